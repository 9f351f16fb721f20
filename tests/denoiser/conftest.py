"""Small denoisers whose weights are all random: at initialisation the zeros of adaLN-Zero would hide every mistake."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import ablation.torchvision_compat  # noqa: F401  before timm and diffusers
from ablation.denoiser.dit import DiT

SMALL: dict[str, Any] = {
    "in_dim": 12,
    "out_dim": 24,
    "grid": 3,
    "width": 32,
    "depth": 4,
    "heads": 2,
    "modulation_ratio": 1.0,
    "num_classes": 5,
}


@pytest.fixture(scope="package", autouse=True)
def _one_thread() -> Iterator[None]:
    """Use one thread: for networks this small, waiting for a second one costs more than it does."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """Draw the same numbers in every test, whatever ran before."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture
def random_dit() -> Callable[..., DiT]:
    """Return a builder of small DiTs with all weights drawn at random, in eval mode."""

    def build(**changes: Any) -> DiT:
        model = DiT(**{**SMALL, **changes})
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.2)
        return model.eval()

    return build
