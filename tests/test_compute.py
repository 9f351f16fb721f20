"""The choice of float32 products, by measuring their error."""

from __future__ import annotations

import pytest
import torch

from ablation import compute


@pytest.fixture(autouse=True)
def _same_precision_afterwards():
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def test_fast_products_are_float32():
    said = compute.enable_fast_products(torch.device("cpu"))
    assert "float32 products" in said
    assert compute.product_error("cpu") <= compute.FP32_ERROR_BOUND


def test_products_that_round_are_taken_back(monkeypatch):
    monkeypatch.setattr(compute, "product_error", lambda _: 3e-3)
    assert compute.enable_fast_products(torch.device("cpu")).startswith("default float32 products (the fast ones round to 3.0e-03)")
    assert torch.get_float32_matmul_precision() == "highest"


def test_bf16_rounding_is_seen_in_every_form_of_product(monkeypatch):
    """A processor may round in one kernel only."""
    plain = torch.nn.functional.linear

    def rounding(x, weight, bias):
        return plain(x.bfloat16(), weight.bfloat16(), bias.bfloat16()).float()

    monkeypatch.setattr(torch.nn.functional, "linear", rounding)
    assert compute.product_error() > 100 * compute.FP32_ERROR_BOUND


def test_a_larger_product_takes_a_measurable_rate():
    assert compute.matmul_rate(torch.device("cpu"), torch.float32, 64, 0.01) > 0
