"""Measure a representation: linear probe and nearest neighbours on features of the frozen encoder."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ablation.data.images import ImageSet
from ablation.denoiser.exchange import load_denoiser
from ablation.errors import Interrupted
from ablation.evaluation.features import FeatureExtractor, extract
from ablation.evaluation.knn import knn_classify
from ablation.evaluation.probe import fit_cached_probe
from ablation.jobs.context import JobIO
from ablation.jobs.parts import Setting, images_of, load_setting
from ablation.jobs.protocol import data_protocol, probe_protocol
from ablation.store import DENOISER, DENOISER_AVERAGE, PREDICTIONS, atomic_path
from ablation.train.noise import stream_seed

BATCH = 256


def run(io: JobIO) -> dict[str, Any]:
    """Extract features of both splits and classify them; write which test images were right; return accuracies in percent."""
    train, test = images_of(io, "train"), images_of(io, "test")
    setting = _setting(io)
    views, queries = _pca_features(setting) if io.control == "pca_features" else _network_features(io, setting, train, test)
    train_labels, test_labels = torch.from_numpy(np.asarray(train.labels)), torch.from_numpy(np.asarray(test.labels))
    if io.should_stop():
        raise Interrupted("stopped before the probe; it starts over")
    probe = _linear_probe(io, setting, views, train, queries, test)
    neighbours = knn_classify(views[0], train_labels, queries, test_labels, io.config.probe)
    with atomic_path(io.folder / PREDICTIONS) as path, path.open("wb") as file:
        np.save(file, np.stack([probe.correct.numpy(), neighbours.correct.numpy()]))
    counts = np.bincount(np.asarray(test.labels))
    metrics = {
        "linear_probe_top1": probe.top1,
        "linear_probe_top5": probe.top5,
        "knn_top1": neighbours.top1,
        "chance_top1": float(100 * counts.max() / counts.sum()),
        "probe_weight_decay": probe.chosen_weight_decay,
        "probe_held_out_top1": probe.held_out_accuracy,
        "feature_dim": int(views.shape[-1]),
    }
    protocol = {**data_protocol(io, train), "test_images": len(test), **probe_protocol(io)}
    return {"metrics": {name: value for name, value in metrics.items() if value is not None}, "protocol": protocol}


def _setting(io: JobIO) -> Setting:
    """Load what surrounds the encoder; a control has no training between itself and the latents."""
    above = () if io.control else ("train",)
    return load_setting(io, io.ancestor(*above, "encode"), io.ancestor(*above, "encode", "tokenizer"))


def make_extractor(io: JobIO, setting: Setting, num_classes: int) -> FeatureExtractor:
    """Build the feature extractor: the trained network, or for the control the same network untrained."""
    if io.control == "random_init":
        denoiser = setting.fresh_denoiser(num_classes, io.seed)
    else:
        denoiser = load_denoiser(io.input("train", DENOISER_AVERAGE if io.config.probe.weights == "ema" else DENOISER))
    return FeatureExtractor(denoiser.to(io.device), setting.process, setting.scaler, setting.space, io.config.probe, io.device)


def _network_features(io: JobIO, setting: Setting, train: ImageSet, test: ImageSet) -> tuple[Tensor, Tensor]:
    """Return features of the training images, (views, n, C), plain and where stored mirrored, and of the test images, (n, C)."""
    extractor = make_extractor(io, setting, train.num_classes)
    seed = stream_seed(io.seed, "probe")

    def features(split: str, images: ImageSet, mirrored: bool) -> Tensor:
        io.progress(0, 1, f"features, {split}{' mirrored' if mirrored else ''}")
        means = setting.latents.means(split, mirrored)
        return extract(extractor, means, images, mirrored=mirrored, seed=seed, batch=BATCH, device=io.device)

    mirrors = (False, True) if setting.latents.has_mirror else (False,)
    views = torch.stack([features("train", train, mirrored) for mirrored in mirrors])  # (views, n, C)
    return views, features("test", test, False)


def _pca_features(setting: Setting) -> tuple[Tensor, Tensor]:
    """Return the scaled patch-PCA latents themselves, all tokens side by side: (1, n, N d) and (n_test, N d)."""
    scaler = setting.scaler.to("cpu")

    def latents(split: str) -> Tensor:
        raw = torch.from_numpy(np.array(setting.latents.means(split))).float()  # (n, N, d)
        return scaler(raw).flatten(1)  # (n, N, d) -> (n, N d)

    return latents("train")[None], latents("test")


def _linear_probe(io: JobIO, setting: Setting, views: Tensor, train: ImageSet, queries: Tensor, test: ImageSet) -> Any:
    """Fit the linear layer in the configured mode."""
    train_labels, test_labels = torch.from_numpy(np.asarray(train.labels)), torch.from_numpy(np.asarray(test.labels))
    return fit_cached_probe(views, train_labels, queries, test_labels, io.config.probe, stream_seed(io.seed, "held out"))
