"""Principal components of image patches: one streaming pass against scikit-learn's PCA and IncrementalPCA."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from benchmarks.harness import Measure, Row, alternate, compare, main, use_fast_products

NAME = "pca"
TITLE = "Principal components of patches"
ABOUT = """
Patches of 16 x 16 x 3 = 768 numbers, 256 components; float32 data with variances over six decades. Ours starts from images
and cuts the patches itself; scikit-learn is given the patch matrix. One thread for every way. The error is the worst relative
error of the 256 variances against the covariance in float64 throughout. Memory is what a fit adds at most to its process's own.
"""

PATCH, SIDE, COMPONENTS, BATCH = 16, 256, 256, 32
MANY = 392
PER_IMAGE = (SIDE // PATCH) ** 2


def images(count: int) -> torch.Tensor:
    """Make images (n, 3, H, W) whose patches have variances that fall over six decades, around a mean far from zero."""
    generator = torch.Generator().manual_seed(0)
    dim = 3 * PATCH**2
    basis = torch.linalg.qr(torch.randn(dim, dim, generator=generator))[0]
    scale = torch.logspace(0, -3, dim)
    made = torch.empty(count, 3, SIDE, SIDE)
    for first in range(0, count, BATCH):
        size = min(BATCH, count - first)
        patches = (torch.randn(size * PER_IMAGE, dim, generator=generator) * scale) @ basis + 0.5
        grid = patches.view(size, SIDE // PATCH, SIDE // PATCH, PATCH, PATCH, 3)
        made[first : first + size] = grid.permute(0, 5, 1, 3, 2, 4).reshape(size, 3, SIDE, SIDE)
    return made


def patches_of(data: torch.Tensor) -> np.ndarray:
    """Cut all patches, (n N, D) float32."""
    from ablation.tokenizers.base import patchify

    matrix: np.ndarray = patchify(data, PATCH).flatten(0, 1).numpy()
    return matrix


def ours(data: torch.Tensor) -> np.ndarray:
    """Return the first variances, from one pass over the images."""
    from ablation.tokenizers.pca import PatchCovariance, principal_components

    statistics = PatchCovariance(PATCH)
    for batch in data.split(BATCH):
        statistics.update(batch)
    return principal_components(statistics).eigenvalues[:COMPONENTS]


def merged(data: torch.Tensor) -> np.ndarray:
    """Return the first variances from four accumulators, as four workers would fill them."""
    from ablation.tokenizers.pca import PatchCovariance, principal_components

    parts = []
    for share in data.chunk(4):
        statistics = PatchCovariance(PATCH)
        for batch in share.split(BATCH):
            statistics.update(batch)
        parts.append(statistics)
    for other in parts[1:]:
        parts[0].merge(other)
    return principal_components(parts[0]).eigenvalues[:COMPONENTS]


def covariance_eigh(matrix: np.ndarray) -> np.ndarray:
    """Return scikit-learn's variances by the covariance."""
    from sklearn.decomposition import PCA  # type: ignore[import-untyped]

    found: np.ndarray = PCA(COMPONENTS, svd_solver="covariance_eigh").fit(matrix).explained_variance_
    return found


def incremental(matrix: np.ndarray) -> np.ndarray:
    """Return scikit-learn's variances by its incremental PCA, in its default batches."""
    from sklearn.decomposition import IncrementalPCA

    found: np.ndarray = IncrementalPCA(COMPONENTS).fit(matrix).explained_variance_
    return found


def exact(matrix: np.ndarray) -> np.ndarray:
    """Return the variances in float64 throughout."""
    values = np.linalg.eigvalsh(np.cov(matrix.astype(np.float64), rowvar=False))
    return values[::-1][:COMPONENTS]


def error(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the worst relative error."""
    return float(np.abs(found / expected - 1).max())


def run(quick: bool) -> Iterator[Row]:
    """Yield the comparison with covariance_eigh on many patches and with IncrementalPCA on few, and the memory of each."""
    with threadpool_limits(1):
        use_fast_products(1)
        yield from _compared(quick)
    for name in ("ours", "covariance_eigh", "incremental"):
        for count in (8,) if quick else (80, MANY):
            if name != "incremental" or count == 80:
                note = f"{count * PER_IMAGE:,} patches, beyond the data"
                yield Measure(f"memory, {'streaming' if name == 'ours' else name}", _memory(name, count), "MiB", note=note)


def _compared(quick: bool) -> Iterator[Row]:
    """Yield the comparisons, with the error of each way."""
    data = images(8 if quick else MANY)
    matrix = patches_of(data)
    expected = exact(matrix)
    results: dict[str, np.ndarray] = {}
    ours(data[:2]), covariance_eigh(matrix[:512])  # loads what is loaded once
    rounds = 1 if quick else 3
    ways = {
        "streaming": lambda: results.update(streaming=ours(data)),
        "covariance_eigh": lambda: results.update(covariance_eigh=covariance_eigh(matrix)),
    }
    times = alternate(ways, rounds, warmup=0)
    checks = {"our error": error(results["streaming"], expected), "its error": error(results["covariance_eigh"], expected)}
    checks["error of 4 merged"] = error(merged(data), expected)
    yield compare(f"{len(matrix):,} patches", "streaming", "covariance_eigh", times, 1.9, checks)
    few = data[: 8 if quick else 80]
    part = patches_of(few)
    truth = exact(part)
    ways = {"streaming": lambda: results.update(streaming=ours(few)), "IncrementalPCA": lambda: results.update(inc=incremental(part))}
    times = alternate(ways, 1 if quick else 2, warmup=0)
    checks = {"our error": error(results["streaming"], truth), "its error": error(results["inc"], truth)}
    yield compare(f"{len(part):,} patches", "streaming", "IncrementalPCA", times, 30, checks)


def _memory(name: str, count: int) -> float:
    """Return the MiB that a fit adds to the peak of a fresh process."""
    done = subprocess.run([sys.executable, "-m", "benchmarks.pca", "memory", name, str(count)], check=True, capture_output=True, text=True)
    return float(done.stdout)


def _measure(name: str, count: int) -> None:
    """Fit in this process and print by how much its own memory grew at most, in MiB."""
    data = images(count)
    given = data if name == "ours" else patches_of(data)
    globals()[name](given[: COMPONENTS if name != "ours" else 2])  # loads what is loaded once
    before, peak, done = _own(), 0.0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, _own())

    watcher = threading.Thread(target=watch)
    watcher.start()
    globals()[name](given)
    done.set()
    watcher.join()
    print(max(0.0, peak - before))


def _own() -> float:
    """Return this process's own memory in MiB, mapped files apart."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


if __name__ == "__main__":
    if sys.argv[1:2] == ["memory"]:
        _measure(sys.argv[2], int(sys.argv[3]))
    else:
        main(run, NAME)
