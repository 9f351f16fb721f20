"""Run a plugin's evaluation of the frozen encoder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ablation.config import ProbeConfig
from ablation.errors import ConfigError, Interrupted
from ablation.evaluation.features import extract, extract_tokens
from ablation.jobs.context import JobIO
from ablation.jobs.parts import images_of
from ablation.jobs.probe import BATCH, make_extractor, setting_of
from ablation.parts import NAME_PATTERN
from ablation.train.noise import stream_seed

Split = Literal["train", "test"]


class Context:
    """What an evaluation sees of the job: ablation.protocols.EvaluationContext."""

    def __init__(self, io: JobIO, name: str) -> None:
        """Load what surrounds the encoder, and the encoder: trained, or for the control untrained."""
        self._io = io
        self._setting = setting_of(io)
        self._images = {split: images_of(io, split) for split in ("train", "test")}
        self._extractor = make_extractor(io, self._setting, self._images["train"].num_classes)
        self._noise_seed = stream_seed(io.seed, "probe")  # the probes' own, where noise is added to what they see
        self.seed: int = stream_seed(io.seed, "evaluation", name)
        self.classes: tuple[str, ...] = tuple(self._images["train"].class_names)
        self.settings: ProbeConfig = io.config.probe
        self.folder: Path = io.folder

    def features(self, split: Split) -> Tensor:
        """Return pooled features, (images, width) float32."""
        return extract(
            self._extractor,
            self._setting.latents.means(split),
            self._images[split],
            mirrored=False,
            seed=self._noise_seed,
            batch=BATCH,
            device=self._io.device,
        )

    def token_features(self, split: Split, first: int = 0, count: int | None = None) -> Tensor:
        """Return features token by token, (images, tokens, width) float32."""
        return extract_tokens(
            self._extractor,
            self._setting.latents.means(split),
            self._images[split],
            span=self._span(split, first, count),
            seed=self._noise_seed,
            batch=BATCH,
            device=self._io.device,
        )

    def labels(self, split: Split) -> Tensor:
        """Return class numbers, (images,) int64."""
        return torch.from_numpy(np.array(self._images[split].labels, dtype=np.int64))

    def images(self, split: Split, first: int = 0, count: int | None = None) -> Tensor:
        """Return pixels, (images, height, width, 3) uint8."""
        return torch.from_numpy(np.array(self._images[split].batch(np.arange(*self._span(split, first, count)))))

    def progress(self, done: int, total: int, note: str) -> None:
        """Report, and heed a stop that was asked for."""
        self._io.progress(done, total, note)
        if self._io.should_stop():
            raise Interrupted("stopped in an evaluation; it starts over")

    def _span(self, split: Split, first: int, count: int | None) -> tuple[int, int]:
        """Turn a first image and a count into a range of the split."""
        total = len(self._images[split])
        return first, total if count is None else min(first + count, total)


def run(io: JobIO) -> dict[str, Any]:
    """Call the plugin; return its metrics and its protocol, both under the evaluation's name."""
    spec = io.store.spec(io.job_id)
    assert spec is not None  # the launcher wrote it before it started the job
    name: str = spec["extra"]["evaluation"]
    evaluate = io.parts[f"evaluation:{name}"]
    metrics, protocol = checked_answer(name, evaluate(Context(io, name)))
    titles = getattr(evaluate, "titles", {})
    for metric in metrics:
        if metric in titles:
            protocol[f"title {metric}"] = str(titles[metric])
    return {
        "metrics": {f"{name}.{metric}": value for metric, value in metrics.items()},
        "protocol": {f"{name}.{field}": value for field, value in protocol.items()},
    }


def checked_answer(name: str, answer: Any) -> tuple[dict[str, float], dict[str, Any]]:
    """Return an evaluation's metrics and protocol as plain values. Raises ConfigError naming what is wrong with them."""
    who = f"evaluation '{name}'"
    if not isinstance(answer, tuple) or len(answer) != 2 or not all(isinstance(part, Mapping) for part in answer):
        raise ConfigError(f"{who} returns {type(answer).__name__}", "Return two mappings: metrics, and the protocol.")
    metrics: dict[str, float] = {}
    for metric, value in answer[0].items():
        if not isinstance(metric, str) or not NAME_PATTERN.match(metric):
            raise ConfigError(f"{who}: metric name {metric!r} is not usable", "Use lower-case letters, digits and _.")
        number = float(value)
        if not math.isfinite(number):
            raise ConfigError(f"{who}: {metric} is {number}", "Return finite numbers, or leave the metric out.")
        metrics[metric] = number
    if not metrics:
        raise ConfigError(f"{who} returns no metric", "Return at least one number.")
    return metrics, {str(field): value if isinstance(value, (str, int, float, bool)) else str(value) for field, value in answer[1].items()}
