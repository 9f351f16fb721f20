"""Tests of the tokenizers draw the same random numbers every time and use one thread."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import ablation.torchvision_compat  # noqa: F401  before timm and diffusers


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
