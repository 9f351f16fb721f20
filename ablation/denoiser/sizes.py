"""The denoiser's sizes by name. This module is light, so that planning can price a network."""

from __future__ import annotations

from typing import NamedTuple


class Size(NamedTuple):
    """Width, number of blocks (encoder and decoder together) and attention heads."""

    width: int
    depth: int
    heads: int


SIZES: dict[str, Size] = {
    "tiny": Size(96, 4, 3),
    "small": Size(256, 6, 4),
    "S": Size(384, 12, 6),
    "B": Size(768, 12, 12),
    "L": Size(1024, 24, 16),  # the study's network: its encoder half has 12 blocks ("ViT-half-L")
    "XL": Size(1152, 28, 16),
    "double_B": Size(768, 24, 12),  # its encoder half is a plain ViT-B
    "double_L": Size(1024, 48, 16),  # its encoder half is a plain ViT-L
}
"""DiT's sizes by name; tiny and small are for smoke runs, double_B and double_L are the study's ViT-B and ViT-L entries."""

FREQUENCIES = 256
"""Sinusoidal features of the time, half cosines and half sines."""
