"""Feature statistics of real images, which generated ones are compared with."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import torch

from ablation.errors import Interrupted
from ablation.evaluation.extractors import build_extractor
from ablation.evaluation.frechet import FeatureStatistics
from ablation.jobs.context import JobIO
from ablation.jobs.parts import batches_of, images_of, read_progress, save_progress
from ablation.store import CHECKPOINT_PREFIX, REFERENCE
from ablation.train.checkpoint import save_tensors
from ablation.train.prefetch import ahead

BATCH = 64
CHECKPOINT = f"{CHECKPOINT_PREFIX}reference.safetensors"


def run(io: JobIO) -> dict[str, Any]:
    """Write the mean and covariance of training images' features (centre crop); return how many images went in.

    An interrupted measurement goes on with the sums it saved.
    """
    images = images_of(io, "train")
    extractor = build_extractor(io.config.fid.extractor, io.config.fid.extractor_path)
    count = min(len(images), io.config.fid.reference_images or len(images))
    statistics, done, saved_at = FeatureStatistics.empty(extractor.dim), 0, time.monotonic()
    if (found := read_progress(io, CHECKPOINT)) is not None:
        statistics, done = FeatureStatistics.from_tensors(found[0]), found[1]
    chunks = batches_of(count, BATCH)
    with contextlib.closing(ahead(images.batch, chunks[done:])) as stream:
        for _, pixels in stream:
            statistics = statistics.updated(extractor(torch.from_numpy(pixels).permute(0, 3, 1, 2)))
            done += 1
            io.progress(done, len(chunks), "reference features")
            stop = io.should_stop() and done < len(chunks)
            if stop or time.monotonic() - saved_at > io.checkpoint_seconds:
                save_progress(io, CHECKPOINT, statistics.tensors(), done)
                saved_at = time.monotonic()
            if stop:
                raise Interrupted(f"stopped after {done} of {len(chunks)} batches; the sums are saved")
    save_tensors(io.folder / REFERENCE, statistics.tensors())
    return {"metrics": {"reference_images": count}}
