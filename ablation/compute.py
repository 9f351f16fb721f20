"""Where and how fast to compute: device, threads, and the fast float32 matrix product where it is exact enough."""

from __future__ import annotations

import os

import torch

FP32_ERROR_BOUND = 2e-6
"""Largest relative error of a product that still counts as float32; bf16 rounding is a thousand times worse."""


def choose_device() -> torch.device:
    """Return the GPU if there is one, else the CPU."""
    return torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")


def product_error() -> float:
    """Measure the relative error of a float32 matrix product against float64 under the present settings."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(256, 256, generator=generator) for _ in range(2))
    exact = a.double() @ b.double()
    return float((a @ b - exact).norm() / exact.norm())


def enable_fast_products() -> str:
    """Choose the fastest float32 product that is still float32, by measuring its error, and say which it is.

    On a CPU, "medium" hands products to oneDNN, about twice as fast as the default on some processors, but on others the
    same word means bf16 arithmetic: so the error is measured, and the setting taken back where it is too large.
    """
    torch.set_float32_matmul_precision("medium")
    if (error := product_error()) <= FP32_ERROR_BOUND:
        return f"oneDNN float32 products (relative error {error:.1e})"
    torch.set_float32_matmul_precision("highest")
    return f"default float32 products (the fast ones round to {error:.1e})"


def set_threads(threads: int | None) -> int:
    """Use the given number of CPU threads, or all cores this process may run on; returns the number."""
    count = threads or len(os.sched_getaffinity(0))
    torch.set_num_threads(count)
    return count
