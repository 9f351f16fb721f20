"""The Frechet distance: ours against scipy's matrix square root and against the eigenvalues of the product."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import scipy.linalg

from ablation.evaluation.frechet import Array, FeatureStatistics, frechet_distance
from benchmarks.harness import Measure, Row, alternate, compare, main, use_fast_products

NAME = "frechet"
TITLE = "Fréchet distance"
ABOUT = """
From two covariances in float64. "sqrtm" is `scipy.linalg.sqrtm` of their product (pytorch-fid, clean-fid), "eigenvalues" the square
roots of `numpy.linalg.eigvals` of it (torchmetrics, torch-fidelity); both are coded here as there. `error` is relative, against the
nuclear norm of the product of the two factors from QR, in float64. Singular covariances come of fewer images than dimensions: there
the square root of round-off, 1e-16, is 1e-8 for every dimension that is missing.
"""

Case = tuple[str, int, int, int]
"""A label, the dimension, and the images of both sets."""
CASES: tuple[Case, ...] = (("full rank, d = 2048", 2048, 4096, 1), ("singular, d = 512, n = 256", 512, 256, 3))
QUICK: tuple[Case, ...] = (("full rank, d = 64", 64, 128, 1), ("singular, d = 64, n = 32", 64, 32, 1))


def run(quick: bool) -> Iterator[Row]:
    """Yield both comparisons, and the errors of all ways, for a full-rank and a singular case."""
    use_fast_products()
    for label, dim, images, rounds in QUICK if quick else CASES:
        a, b = (_features(seed, dim, images) for seed in (1, 2))
        first, second = FeatureStatistics.of(a), FeatureStatistics.of(b)
        ways: dict[str, Callable[[], float]] = {
            "ours": partial(frechet_distance, first, second),
            "sqrtm": partial(by_sqrtm, first, second),
            "eigenvalues": partial(by_eigenvalues, first, second),
        }
        true = by_factors(a, b)
        errors = {name: abs(way() - true) / true for name, way in ways.items()}
        times = alternate(ways, 1 if quick else rounds, warmup=0)
        for other, wanted in (("sqrtm", 10.0), ("eigenvalues", 4.0)):
            yield compare(label, "ours", other, times, wanted, {"error of ours": errors["ours"], "error of the other": errors[other]})
        yield Measure(f"{label}: relative error of ours", errors["ours"], "", at_most=1e-6)


def _features(seed: int, dim: int, images: int) -> Array:
    """Return features whose spectrum falls by four powers of ten, as those of an Inception do."""
    generator = np.random.default_rng(seed)
    basis = np.linalg.qr(generator.standard_normal((dim, dim)))[0]
    scale = np.logspace(0, -2, dim)
    return generator.standard_normal((images, dim)) * scale @ basis.T + 0.05 * seed


def _rest(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """Return the distance's terms outside the root."""
    difference = a.mean - b.mean
    return float(difference @ difference + np.trace(a.covariance) + np.trace(b.covariance))


def by_sqrtm(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """Return the distance by scipy's square root of the product."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of singular products, which are meant here
        root = scipy.linalg.sqrtm(a.covariance @ b.covariance)
    return _rest(a, b) - 2 * float(np.trace(root).real)


def by_eigenvalues(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """Return the distance by the eigenvalues of the product."""
    values = np.linalg.eigvals(a.covariance @ b.covariance)
    return _rest(a, b) - 2 * float(np.sqrt(values.astype(complex)).real.sum())


def by_factors(a: Array, b: Array) -> float:
    """Return the exact distance: tr (A B)^(1/2) is the nuclear norm of F_a F_b^T, with A = F_a^T F_a from a QR decomposition."""
    factors: list[Array] = [scipy.linalg.qr((x - x.mean(0)) / np.sqrt(len(x) - 1), mode="r")[0] for x in (a, b)]
    nuclear = scipy.linalg.svdvals(factors[0] @ factors[1].T).sum()
    return _rest(FeatureStatistics.of(a), FeatureStatistics.of(b)) - 2 * float(nuclear)


if __name__ == "__main__":
    main(run, NAME)
