"""Feature statistics of real images, which generated ones are compared with."""

from __future__ import annotations

from typing import Any

import torch

from ablation.errors import Interrupted
from ablation.evaluation.extractors import build_extractor
from ablation.evaluation.frechet import FeatureStatistics
from ablation.jobs.context import JobIO
from ablation.jobs.parts import batches_of, images_of
from ablation.store import REFERENCE
from ablation.train.checkpoint import save_tensors

BATCH = 64


def run(io: JobIO) -> dict[str, Any]:
    """Write the mean and covariance of training images' features (centre crop); return how many images went in."""
    images = images_of(io, "train")
    extractor = build_extractor(io.config.fid.extractor, io.config.fid.extractor_path)
    count = min(len(images), io.config.fid.reference_images or len(images))
    statistics = FeatureStatistics.empty(extractor.dim)
    chunks = batches_of(count, BATCH)
    for number, indices in enumerate(chunks):
        if io.should_stop():
            raise Interrupted("stopped while measuring the reference; it starts over")
        statistics = statistics.updated(extractor(torch.from_numpy(images.batch(indices)).permute(0, 3, 1, 2)))
        io.progress(number + 1, len(chunks), "reference features")
    save_tensors(io.folder / REFERENCE, statistics.tensors())
    return {"metrics": {"reference_images": count}}
