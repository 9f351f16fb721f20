"""Where and how fast to compute: device, threads, and the fast float32 matrix product where it is exact enough."""

from __future__ import annotations

import os
import time

import torch
from torch import nn

FP32_ERROR_BOUND = 2e-6
"""Largest relative error of a product that still counts as float32; bf16 rounding is a thousand times worse."""


def choose_device() -> torch.device:
    """Return the GPU if there is one, else the CPU."""
    return torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")


def product_error(device: torch.device | str = "cpu") -> float:
    """Measure the largest relative error of float32 products against float64 under the present settings.

    Products of each form that a network makes are tried, plain, with a bias, and batched: a processor may have another
    kernel for each.
    """
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(4, 256, 256, generator=generator) for _ in range(2))
    bias = torch.randn(256, generator=generator)
    exact = [a[0].double() @ b[0].double(), a.double() @ b[0].double() + bias.double(), a.double() @ b.double()]
    on, weight = a.to(device), b.to(device)
    found = [on[0] @ weight[0], nn.functional.linear(on, weight[0].T.contiguous(), bias.to(device)), on @ weight]
    return max(float((mine.cpu() - true).norm() / true.norm()) for mine, true in zip(found, exact, strict=True))


def enable_fast_products(device: torch.device | None = None) -> str:
    """Choose the fastest float32 product that is still float32, by measuring its error, and say which it is.

    On a CPU, "medium" hands products to oneDNN, about twice as fast as the default on some processors, but on others the
    same word means bf16 arithmetic, and on a GPU it means TF32: so the error is measured on the device where the work will
    be done (None: where `choose_device` puts it), and the setting taken back where it is too large.
    """
    device = device or choose_device()
    torch.set_float32_matmul_precision("medium")
    if (error := product_error(device)) <= FP32_ERROR_BOUND:
        return f"oneDNN float32 products (relative error {error:.1e})"
    torch.set_float32_matmul_precision("highest")
    return f"default float32 products (the fast ones round to {error:.1e})"


def matmul_rate(device: torch.device, dtype: torch.dtype, size: int, seconds: float = 0.5) -> float:
    """Measure the operations a second of a product of two size x size matrices: the fastest of the rounds that fit the time."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best, spent = float("inf"), 0.0
    for number in range(50):
        wait_for(device)
        began = time.perf_counter()
        a @ b
        wait_for(device)
        took = time.perf_counter() - began
        spent += took
        if number >= 2:  # the first ones allocate, and choose their kernel
            best = min(best, took)
        if spent > seconds and number >= 4:
            break
    return 2.0 * size**3 / best


def bf16_is_fast(device: torch.device) -> bool:
    """Say whether bf16 products are faster than float32 ones here; a processor without them emulates, at a hundredth of the speed."""
    return matmul_rate(device, torch.bfloat16, 256, 0.05) > matmul_rate(device, torch.float32, 256, 0.05)


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has done what it was given; a CPU has at once."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def set_threads(threads: int | None) -> int:
    """Use the given number of CPU threads, or all cores this process may run on; returns the number."""
    count = threads or len(os.sched_getaffinity(0))
    torch.set_num_threads(count)
    return count
