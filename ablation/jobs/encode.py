"""Encode every image once, plain and mirrored, shard by shard, and measure the latents' statistics."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ablation.data.images import ImageSet
from ablation.data.latents import STORED, to_tensor
from ablation.data.shards import write_shard
from ablation.data.sources import SPLITS, Split
from ablation.data.storage import LATENT_SHARD_BYTES, require_space, shard_ranges
from ablation.diffusion.statistics import StatisticsAccumulator
from ablation.errors import ArtifactError, Interrupted
from ablation.jobs.context import JobIO
from ablation.jobs.parts import batches_of, images_of, load_tokenizer
from ablation.store import CHECKPOINT_PREFIX, LATENTS, STATISTICS, latents_name, read_json, write_json
from ablation.tokenizers.base import Tokenizer
from ablation.train.checkpoint import load_tensors, save_tensors
from ablation.train.prefetch import ahead

BATCH = 256
STATISTICS_IMAGES = 50_000
"""Images whose latents enter the statistics; the covariance between tokens costs d N^2 operations each."""
CHECKPOINT = f"{CHECKPOINT_PREFIX}encode.safetensors"


class _Moments:
    """Mean and variance of raw latents per dimension and between tokens, the posterior's own variance included."""

    def __init__(self) -> None:
        self.accumulator = StatisticsAccumulator()
        self.posterior_variance: Tensor | None = None
        self.images = 0

    def update(self, mean: Tensor, std: Tensor | None) -> None:
        """Add a batch of latents, (B, N, d) each."""
        if self.images >= STATISTICS_IMAGES:
            return
        self.accumulator.update(mean)
        if std is not None:
            total = std.double().square().sum(dim=0)  # (B, N, d) -> (N, d)
            self.posterior_variance = total if self.posterior_variance is None else self.posterior_variance + total
        self.images += len(mean)

    def tensors(self) -> dict[str, Tensor]:
        """Return per-dimension mean and variance (d,), and mean (N, d) and covariance (d, N, N) by token, float64."""
        found = self.accumulator.result()
        covariance = found.token_covariance.cpu()
        if self.posterior_variance is not None:
            covariance = covariance + torch.diag_embed((self.posterior_variance / self.images).T.cpu())  # (N, d) -> (d, N, N)
        token_mean = found.mean.cpu()  # (N, d)
        mean = token_mean.mean(dim=0)  # (N, d) -> (d,)
        within = covariance.diagonal(dim1=1, dim2=2).mean(dim=1)  # (d, N, N) -> (d,)
        variance = within + (token_mean - mean).square().mean(dim=0)
        return {"mean": mean, "variance": variance, "token_mean": token_mean, "token_covariance": covariance}

    def state(self) -> dict[str, Tensor]:
        """Return everything as tensors, from which `load` goes on bit for bit."""
        state = {**self.accumulator.state(), "images": torch.tensor(self.images)}
        return state if self.posterior_variance is None else {**state, "posterior_variance": self.posterior_variance}

    def load(self, state: dict[str, Tensor], device: torch.device) -> None:
        """Take up what `state` returned."""
        self.images = int(state.pop("images"))
        posterior = state.pop("posterior_variance", None)
        self.posterior_variance = None if posterior is None else posterior.to(device)
        self.accumulator.load(state, device)


@dataclass(frozen=True)
class _Shard:
    """Consecutive images of one pass, which become one file for each statistic."""

    split: Split
    mirrored: bool
    number: int | None  # None where the pass is one file
    first: int
    last: int  # one past

    def name(self, statistic: str) -> str:
        """Name the shard's file."""
        return latents_name(self.split, self.mirrored, statistic, self.number)


@dataclass
class _Progress:
    """What is finished: the manifest's entries by file name, and the moments of the shards counted so far."""

    moments: _Moments
    counted: int = 0  # training shards that are in the moments
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)

    def has(self, folder: Path, shard: _Shard, statistics: tuple[str, ...]) -> bool:
        """Say whether a shard's files are all there."""
        return all(shard.name(statistic) in self.entries and (folder / shard.name(statistic)).exists() for statistic in statistics)

    def save(self, folder: Path) -> None:
        """Write a checkpoint."""
        metadata = {"counted": json.dumps(self.counted), "entries": json.dumps(self.entries)}
        save_tensors(folder / CHECKPOINT, self.moments.state(), metadata)

    @classmethod
    def load(cls, io: JobIO) -> _Progress:
        """Read the checkpoint, or after a finished encoding its manifest; a fresh start where there is neither."""
        progress = cls(_Moments())
        with contextlib.suppress(ArtifactError, KeyError, ValueError):
            if (io.folder / CHECKPOINT).exists():
                tensors, metadata = load_tensors(io.folder / CHECKPOINT)
                progress.moments.load(tensors, io.device)
                progress.counted, progress.entries = json.loads(metadata["counted"]), json.loads(metadata["entries"])
            elif (io.folder / LATENTS).exists():
                arrays = read_json(io.folder / LATENTS)["arrays"]
                progress.entries = {entry["file"]: entry for entries in arrays.values() for entry in entries}
        return progress


def run(io: JobIO) -> dict[str, Any]:
    """Write the raw latents of both splits and their statistics; return the standard deviation of all latents.

    An interrupted encoding goes on at the shard it was in; of a finished one, only files that are missing are made again.
    """
    tokenizer = load_tokenizer(io, io.inputs["tokenizer"])
    images: dict[Split, ImageSet] = {split: images_of(io, split) for split in SPLITS}
    statistics = ("mean", "std") if tokenizer.stochastic else ("mean",)
    image_bytes = tokenizer.tokens * tokenizer.latent_dim * np.dtype(STORED).itemsize
    shards = list(_plan(io, {split: len(found) for split, found in images.items()}, image_bytes))
    progress = _Progress.load(io)
    missing = [shard for shard in shards if not progress.has(io.folder, shard, statistics)]
    require_space(io.folder, sum(len(statistics) * image_bytes * (shard.last - shard.first) for shard in missing), "latents")
    if progress.entries:
        io.log(f"going on: {len(shards) - len(missing)} of {len(shards)} shards are there")
    measured = _measured(io)
    training = [shard for shard in shards if shard.split == "train"]
    for place, shard in enumerate(shards):
        uncounted = measured is None and shard.split == "train" and training.index(shard) >= progress.counted
        if shard in missing or (uncounted and progress.moments.images < STATISTICS_IMAGES):
            moments = progress.moments if uncounted else None
            progress.entries |= _encode_shard(io, tokenizer, images[shard.split], shard, statistics, moments, (place, len(shards)))
            progress.counted += uncounted
            progress.save(io.folder)
    tensors = progress.moments.tensors() if measured is None else measured
    save_tensors(io.folder / STATISTICS, tensors)
    write_json(io.folder / LATENTS, {"arrays": _arrays(progress, shards, statistics)})
    return {"metrics": {"latent_std": float(tensors["variance"].mean().sqrt())}}


def _plan(io: JobIO, counts: dict[Split, int], image_bytes: int) -> Iterator[_Shard]:
    """List the shards in the order in which they are written: training images, their mirrors, test images."""
    mirrors = (False, True) if io.config.data.horizontal_flip else (False,)
    passes: list[tuple[Split, bool]] = [("train", mirrored) for mirrored in mirrors]
    for split, mirrored in [*passes, ("test", False)]:
        ranges = shard_ranges(counts[split], image_bytes, LATENT_SHARD_BYTES)
        for number, (first, last) in enumerate(ranges):
            yield _Shard(split, mirrored, number if len(ranges) > 1 else None, first, last)


def _measured(io: JobIO) -> dict[str, Tensor] | None:
    """Return the statistics of an encoding that was finished once and of which a file has been lost."""
    if (io.folder / CHECKPOINT).exists() or not (io.folder / LATENTS).exists():
        return None
    with contextlib.suppress(ArtifactError):
        return load_tensors(io.folder / STATISTICS)[0]
    return None


def _arrays(progress: _Progress, shards: list[_Shard], statistics: tuple[str, ...]) -> dict[str, list[dict[str, Any]]]:
    """Map each array's name to its files, in order."""
    arrays: dict[str, list[dict[str, Any]]] = {}
    for shard in shards:
        for statistic in statistics:
            name = latents_name(shard.split, shard.mirrored, statistic)
            arrays.setdefault(name, []).append(progress.entries[shard.name(statistic)])
    return arrays


@torch.no_grad()
def _encode_shard(
    io: JobIO,
    tokenizer: Tokenizer,
    images: ImageSet,
    shard: _Shard,
    statistics: tuple[str, ...],
    moments: _Moments | None,
    place: tuple[int, int],
) -> dict[str, dict[str, Any]]:
    """Encode one shard into files that get their names only when they are whole; returns their entries for the manifest."""
    shape = (shard.last - shard.first, tokenizer.tokens, tokenizer.latent_dim)
    chunks = [shard.first + indices for indices in batches_of(shape[0], BATCH)]
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(write_shard(io.folder / shard.name(statistic), shape, STORED)) for statistic in statistics]
        for number, (_, pixels) in enumerate(stack.enter_context(contextlib.closing(ahead(images.batch, chunks)))):
            if io.should_stop():
                raise Interrupted(f"stopped while encoding; it goes on at shard {place[0] + 1} of {place[1]}")
            batch = to_tensor(np.ascontiguousarray(pixels[:, :, ::-1]) if shard.mirrored else pixels, io.device)
            mean, std = tokenizer.encode(batch)
            if moments is not None:
                moments.update(mean, std)
            for file, values in zip(files, (mean, std), strict=False):
                if values is not None:
                    file.append(values.float().cpu().numpy())
            io.progress(place[0] * len(chunks) + number + 1, place[1] * len(chunks), f"{shard.split} latents")
    return {shard.name(statistic): file.entry(shard.name(statistic)) for statistic, file in zip(statistics, files, strict=True)}
