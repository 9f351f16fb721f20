"""What every benchmark shares: paired rounds in alternation, medians and ratios, the machine's name, and result files.

A benchmark is a module with `NAME`, `TITLE`, `ABOUT` and `run(quick) -> Iterator[Row]`, and ends with `main(run, NAME)`. Rows are
written to benchmarks/results/NAME.jsonl; `python -m benchmarks.readme` makes benchmarks/README.md from these files.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "diffusers", "timm", "scipy", "scikit-learn", "numpy")


@dataclass(frozen=True)
class Comparison:
    """Two ways of doing the same work, timed in turns."""

    case: str
    ours: str
    against: str
    ours_seconds: float  # median over rounds
    against_seconds: float
    ratio: float  # median over rounds of against / ours: above 1, ours is faster
    low: float  # quartiles of the same
    high: float
    rounds: int
    wanted: float | None = None  # the ratio to reach, where one is set
    checks: Mapping[str, float] = field(default_factory=dict)  # that both do the same work: differences, errors
    kind: str = "comparison"


@dataclass(frozen=True)
class Measure:
    """One number, with the bound it should keep where there is one."""

    case: str
    value: float
    unit: str
    at_most: float | None = None
    at_least: float | None = None
    note: str = ""
    kind: str = "measure"


@dataclass(frozen=True)
class Share:
    """One line of a profile: a part of the work, what it takes of the whole, and what was done about it."""

    case: str
    part: str
    seconds: float
    share: float
    remedy: str = ""
    kind: str = "share"


Row = Comparison | Measure | Share


def alternate(candidates: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 1) -> dict[str, list[float]]:
    """Run the candidates in turns, each once a round, and return the seconds of every round by name.

    The order turns around from round to round, so that neither of two always runs in the other's wake.
    """
    names = list(candidates)
    for name in names * warmup:
        candidates[name]()
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names if number % 2 == 0 else reversed(names):
            began = time.perf_counter()
            candidates[name]()
            times[name].append(time.perf_counter() - began)
    return times


def compare(
    case: str,
    ours: str,
    against: str,
    times: Mapping[str, Sequence[float]],
    wanted: float | None = None,
    checks: Mapping[str, float] | None = None,
) -> Comparison:
    """Make a comparison of two of the candidates that `alternate` timed."""
    ratios = [theirs / mine for mine, theirs in zip(times[ours], times[against], strict=True)]
    low, high = quartiles(ratios)
    medians = statistics.median(times[ours]), statistics.median(times[against])
    return Comparison(case, ours, against, *medians, statistics.median(ratios), low, high, len(ratios), wanted, dict(checks or {}))


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """Return the lower and the upper quartile; of fewer than three values the smallest and the largest."""
    if len(values) < 3:
        return min(values), max(values)
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, third


def machine() -> dict[str, Any]:
    """Describe where a benchmark ran: processor, cores, memory, GPU, versions, and how busy it was."""
    from ablation.study import machine_name

    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "absent"
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return {
        "name": machine_name(),
        "memory_gib": round(pages * size / 2**30, 1),
        "gpu": gpu_name(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "versions": versions,
    }


def gpu_name() -> str:
    """Name the GPU, or nothing; torch is asked only if the benchmark has loaded it."""
    torch = sys.modules.get("torch")
    return torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else ""


def write(name: str, rows: Iterable[Row], folder: Path, quick: bool, began: float) -> Path:
    """Write the rows as JSON lines, after a first line that says where, when and how they came about."""
    lines = [asdict(row) for row in rows]
    head = {
        "kind": "run",
        "benchmark": name,
        "date": time.strftime("%Y-%m-%d"),
        "quick": quick,
        "seconds": round(time.perf_counter() - began, 1),
        "machine": machine(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in [head, *lines]), encoding="utf-8")
    return path


def shown(rows: Iterable[Row]) -> Iterator[Row]:
    """Print every row as it comes and pass it on."""
    for row in rows:
        if isinstance(row, Comparison):
            bar = f", wanted {row.wanted:g}x" if row.wanted else ""
            checks = "".join(f", {name} {value:.2g}" for name, value in row.checks.items())
            print(f"{row.case}: {row.ours} {row.ratio:.2f}x [{row.low:.2f}, {row.high:.2f}] {row.against}{bar}{checks}", flush=True)
        elif isinstance(row, Measure):
            print(f"{row.case}: {row.value:.4g} {row.unit} {row.note}", flush=True)
        else:
            print(f"{row.case}: {row.part} {100 * row.share:.1f} %", flush=True)
        yield row


def main(run: Callable[[bool], Iterable[Row]], name: str, arguments: list[str] | None = None) -> None:
    """Run one benchmark from the command line and write its results."""
    parser = argparse.ArgumentParser(description=f"Benchmark {name}.")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, one round: shows that it runs, times nothing")
    parser.add_argument("--out", type=Path, default=None, help="folder of the result file [default: benchmarks/results, quick: none]")
    options = parser.parse_args(arguments)
    began = time.perf_counter()
    rows = list(shown(run(options.quick)))
    folder = options.out or (None if options.quick else RESULTS)
    if folder is not None:
        print(write(name, rows, folder, options.quick, began))


def use_fast_products(threads: int | None = None) -> None:
    """Set torch up as every job does: all cores, and the fast float32 products where they are exact enough."""
    from ablation.compute import enable_fast_products, set_threads

    set_threads(threads)
    enable_fast_products()
