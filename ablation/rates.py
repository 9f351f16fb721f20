"""How fast an accelerator works: measured by `ablate calibrate`, or from a datasheet with an assumed utilisation. Light."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ablation.errors import ArtifactError, ConfigError, nearest
from ablation.store import read_json, write_json

CALIBRATION = "calibration.json"
WORK = ("denoiser training", "denoiser forward", "tokenizer training", "tokenizer forward", "features", "fitting")
"""Kinds of work with a rate of their own; fitting is what remains: covariances, nearest neighbours, logistic regression."""

ASSUMED_SHARE = {
    "denoiser training": 0.40,
    "denoiser forward": 0.40,
    "tokenizer training": 0.30,
    "tokenizer forward": 0.35,
    "features": 0.20,
    "fitting": 0.10,
}
"""Share of the datasheet's dense peak that each kind of work is assumed to reach: our assumption, not a measurement."""
ASSUMED_IMAGES = 3000.0
"""Images of about 400 x 500 pixels that a machine of 32 cores is assumed to decode per second."""
ASSUMED_JOB_SECONDS = 30.0
"""Time a job is assumed to take to start."""

CONVOLUTIONAL = ("tokenizer training", "tokenizer forward", "features")
"""Work whose float32 convolutions PyTorch lets a GPU round to TF32 by default; products stay float32."""

DATASHEETS: dict[str, dict[str, float]] = {
    "a100": {"bf16": 312e12, "tf32": 156e12, "fp32": 19.5e12},  # NVIDIA A100 80GB SXM datasheet, dense; likewise below
    "h100": {"bf16": 989e12, "tf32": 495e12, "fp32": 67e12},  # H100 SXM5
    "h200": {"bf16": 989e12, "tf32": 495e12, "fp32": 67e12},  # H200 SXM
    "l40s": {"bf16": 362e12, "tf32": 183e12, "fp32": 91.6e12},  # L40S
    "rtx4090": {"bf16": 165e12, "tf32": 82.6e12, "fp32": 82.6e12},  # GeForce RTX 4090, bf16 with float32 accumulation
}
"""Dense operations a second from the vendors' datasheets, without sparsity."""


@dataclass(frozen=True)
class Rates:
    """Operations a second by kind of work and precision, images read a second, and what a job takes to start."""

    name: str
    basis: str  # in words: measured where and when, or which datasheet
    measured: bool
    peak: Mapping[str, float]  # precision -> operations a second of a large matrix product
    flops: Mapping[str, float] = field(default_factory=dict)  # "WORK, PRECISION" -> operations a second
    images: float = ASSUMED_IMAGES
    job_seconds: float = ASSUMED_JOB_SECONDS

    def rate(self, work: str, precision: str) -> float:
        """Return the operations a second of a kind of work; what was not measured takes its assumed share of the peak."""
        known = self.flops.get(f"{work}, {precision}")
        if known is not None:
            return known
        wanted = "tf32" if precision == "fp32" and work in CONVOLUTIONAL else precision
        return ASSUMED_SHARE[work] * self.peak[wanted if wanted in self.peak else "fp32"]


def datasheet(name: str) -> Rates:
    """Return an accelerator's rates from its datasheet."""
    peak = DATASHEETS[name]
    share = f"{100 * ASSUMED_SHARE['denoiser training']:.0f} % of the dense peak in training"
    return Rates(name, f"datasheet of {name}; assumed: {share}, {ASSUMED_IMAGES:.0f} images decoded a second", False, peak)


def choose_rates(name: str | None, runs: Path) -> Rates:
    """Return the rates of a named accelerator, or of the last calibration of this run folder.

    Raises ConfigError, with the names there are, for an unknown name, and where nothing is named and nothing was measured.
    """
    measured = read_calibrations(runs)
    if name in measured:
        return measured[name]
    if name is None and measured:
        return list(measured.values())[-1]
    if name in DATASHEETS:
        return datasheet(name)
    known = [*measured, *DATASHEETS]
    if name is None:
        fix = f"Run `ablate calibrate --runs {runs}` on the machine, or name one with --accelerator: {', '.join(known)}."
        raise ConfigError(f"how fast the machine works is not known: no {CALIBRATION} in {runs}", fix)
    raise ConfigError(f"unknown accelerator '{name}'", nearest(name, known))


def read_calibrations(runs: Path) -> dict[str, Rates]:
    """Return what `ablate calibrate` has measured for a run folder, by name, the last one last."""
    path = runs / CALIBRATION
    if not path.is_file():
        return {}
    try:
        return {entry["name"]: Rates(**entry) for entry in read_json(path)}
    except (ArtifactError, TypeError, KeyError) as error:
        raise ConfigError(f"{path} is unreadable: {error}", "Remove it and run `ablate calibrate` again.") from None


def write_calibration(runs: Path, rates: Rates) -> Path:
    """Add a calibration to a run folder's, in place of one of the same name; returns the file."""
    kept: list[dict[str, Any]] = [asdict(old) for name, old in read_calibrations(runs).items() if name != rates.name]
    write_json(runs / CALIBRATION, [*kept, asdict(rates)])
    return runs / CALIBRATION


def today() -> str:
    """Return the date as a calibration bears it."""
    return time.strftime("%Y-%m-%d")
