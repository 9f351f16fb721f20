"""The optimiser of the cached probe on functions with known minima."""

from __future__ import annotations

import math

import scipy.optimize
import torch
from torch import Tensor

from ablation.evaluation.lbfgs import minimise


def test_an_ill_conditioned_quadratic_is_solved() -> None:
    """The minimum of x A x / 2 - b x is A^-1 b; the condition number of A is 10,000."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(30, 30, generator=generator, dtype=torch.float64)).Q
    matrix = basis @ torch.diag(torch.logspace(-2, 2, 30, dtype=torch.float64)) @ basis.T
    offset = torch.randn(30, generator=generator, dtype=torch.float64)

    def quadratic(x: Tensor) -> tuple[float, Tensor]:
        return float(0.5 * x @ matrix @ x - offset @ x), matrix @ x - offset

    solution = torch.linalg.solve(matrix, offset)
    point, value = minimise(quadratic, torch.zeros(30, dtype=torch.float64), 1e-14, 500)
    torch.testing.assert_close(point, solution, rtol=0, atol=1e-3)  # a value 1e-10 too high, where the curvature is 0.01, is 1e-4
    assert abs(value - quadratic(solution)[0]) < 1e-9
    again, _ = minimise(quadratic, solution, 1e-14, 500)
    torch.testing.assert_close(again, solution)


def test_needs_about_as_many_evaluations_as_scipy() -> None:
    """A sum of softplus, flat far away, with a start where the first step is far too short."""
    scale = torch.logspace(-1, 1, 12, dtype=torch.float64)
    calls = [0]

    def objective(x: Tensor) -> tuple[float, Tensor]:
        calls[0] += 1
        z = scale * x
        both = torch.nn.functional.softplus(z) + torch.nn.functional.softplus(-z) + 0.05 * x.square()
        return float(both.sum()), scale * torch.tanh(z / 2) + 0.1 * x

    start = torch.full((12,), 40.0, dtype=torch.float64)
    point, value = minimise(objective, start, 1e-12, 200)
    ours, calls[0] = calls[0], 0
    theirs = scipy.optimize.minimize(
        lambda x: tuple(map(_plain, objective(torch.from_numpy(x)))), start.numpy(), jac=True, method="L-BFGS-B", tol=1e-12
    )
    assert math.isclose(value, 24 * math.log(2), rel_tol=1e-9)
    assert float(point.abs().max()) < 1e-4
    assert ours <= 2 * theirs.nfev


def _plain(value: float | Tensor) -> object:
    return value.numpy() if isinstance(value, Tensor) else value


def test_regions_without_a_value_are_stepped_back_from() -> None:
    """x - log x has its minimum at 1 and is not defined below 0, where the first steps from 0.01 and from 3 may lead."""

    def barrier(x: Tensor) -> tuple[float, Tensor]:
        return float((x - x.log()).sum()), 1 - 1 / x

    for first in (0.01, 3.0):
        point, value = minimise(barrier, torch.tensor([first], dtype=torch.float64), 1e-14, 100)
        assert math.isclose(float(point), 1, abs_tol=1e-5)
        assert math.isclose(value, 1, abs_tol=1e-9)
