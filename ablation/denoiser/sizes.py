"""The denoiser's sizes by name. Light: planning asks how many blocks a network has."""

from __future__ import annotations

from typing import NamedTuple


class Size(NamedTuple):
    """Width, number of blocks (encoder and decoder together) and attention heads."""

    width: int
    depth: int
    heads: int

    @property
    def half(self) -> int:
        """Blocks of the encoder half where nothing else is asked for."""
        return self.depth // 2 if self.depth > 1 else 1


SIZES: dict[str, Size] = {
    "narrow_tiny": Size(64, 4, 2),
    "tiny": Size(96, 4, 3),
    "double_tiny": Size(96, 8, 3),
    "narrow_small": Size(192, 6, 3),
    "small": Size(256, 6, 4),
    "double_small": Size(256, 12, 4),
    "S": Size(384, 12, 6),
    "B": Size(768, 12, 12),
    "L": Size(1024, 24, 16),  # the study's network: its encoder half has 12 blocks ("ViT-half-L")
    "XL": Size(1152, 28, 16),
    "double_B": Size(768, 24, 12),  # its encoder half is a plain ViT-B
    "double_L": Size(1024, 48, 16),  # its encoder half is a plain ViT-L
}
"""DiT's sizes by name; tiny and small, and the narrower and deeper ones named after them, are for runs without a cluster;
double_B and double_L are the study's ViT-B and ViT-L entries."""

FREQUENCIES = 256
"""Sinusoidal features of the time, half cosines and half sines."""
