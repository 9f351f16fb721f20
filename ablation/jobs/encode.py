"""Encode every image once, plain and mirrored, and measure the latents' statistics."""

from __future__ import annotations

import contextlib
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ablation.data.images import ImageSet
from ablation.data.latents import STORED, to_tensor
from ablation.diffusion.statistics import StatisticsAccumulator
from ablation.errors import Interrupted
from ablation.jobs.context import JobIO
from ablation.jobs.parts import batches_of, images_of, load_tokenizer, save_array
from ablation.store import STATISTICS, atomic_path, latents_name
from ablation.tokenizers.base import Tokenizer
from ablation.train.checkpoint import save_tensors

BATCH = 256
STATISTICS_IMAGES = 50_000
"""Images whose latents enter the statistics; the covariance between tokens costs d N^2 operations each."""


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


def run(io: JobIO) -> dict[str, Any]:
    """Write the raw latents of both splits and their statistics; return the standard deviation of all latents."""
    tokenizer = load_tokenizer(io, io.inputs["tokenizer"])
    moments = _Moments()
    mirrors = (False, True) if io.config.data.horizontal_flip else (False,)
    passes: list[tuple[Literal["train", "test"], bool]] = [("train", mirrored) for mirrored in mirrors]
    passes.append(("test", False))
    for number, (split, mirrored) in enumerate(passes):
        _encode_split(io, tokenizer, images_of(io, split), split, mirrored, moments, (number, len(passes)))
    tensors = moments.tensors()
    save_tensors(io.folder / STATISTICS, tensors)
    return {"metrics": {"latent_std": float(tensors["variance"].mean().sqrt())}}


@torch.no_grad()
def _encode_split(
    io: JobIO, tokenizer: Tokenizer, images: ImageSet, split: str, mirrored: bool, moments: _Moments, place: tuple[int, int]
) -> None:
    """Encode one split once, into memory-mapped files that get their names only when they are whole."""
    shape = (len(images), tokenizer.tokens, tokenizer.latent_dim)
    chunks = batches_of(len(images), BATCH)
    names = [latents_name(split, mirrored, statistic) for statistic in (("mean", "std") if tokenizer.stochastic else ("mean",))]
    with contextlib.ExitStack() as stack:
        arrays = [save_array(stack.enter_context(atomic_path(io.folder / name)), shape, STORED) for name in names]
        for number, indices in enumerate(chunks):
            if io.should_stop():
                raise Interrupted("stopped while encoding; it starts over")
            pixels = images.batch(indices)
            batch = to_tensor(np.ascontiguousarray(pixels[:, :, ::-1]) if mirrored else pixels, io.device)
            mean, std = tokenizer.encode(batch)
            if split == "train":
                moments.update(mean, std)
            for array, values in zip(arrays, (mean, std), strict=False):
                if values is not None:
                    array[indices] = values.float().cpu().numpy()
            io.progress(place[0] * len(chunks) + number + 1, place[1] * len(chunks), f"{split} latents")
        for array in arrays:
            array.flush()
