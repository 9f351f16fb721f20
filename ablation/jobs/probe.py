"""Measure a representation: linear probe and nearest neighbours on features of the frozen encoder."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ablation.data.images import ImageSet
from ablation.data.latents import to_tensor
from ablation.data.storage import require_space
from ablation.errors import Interrupted
from ablation.evaluation.features import FeatureExtractor, extract
from ablation.evaluation.knn import knn_classify
from ablation.evaluation.probe import ProbeResult, fit_cached_probe
from ablation.evaluation.probe_epochs import fit_epochs_probe
from ablation.jobs.context import JobIO
from ablation.jobs.parts import Setting, images_of, load_network, load_setting
from ablation.jobs.protocol import data_protocol, probe_protocol
from ablation.store import PREDICTIONS, UNFINISHED, atomic_path
from ablation.train.noise import ImageOrder, NoiseSource, stream_seed
from ablation.train.prefetch import ahead

BATCH = 256
MEMORY_LIMIT = 2**31
"""Bytes of training features that are kept in memory; more are mapped from a file."""
Features = Callable[[Tensor, NoiseSource], Tensor]
"""Images (B, 3, H, W) in [-1, 1] and a source of noise to features (B, C)."""

PCA_GRID = 4
"""Side of the grid over which the PCA control averages tokens: a place for each part of the image, and few enough numbers to fit."""


def run(io: JobIO) -> dict[str, Any]:
    """Extract features of both splits and classify them; write which test images were right; return accuracies in percent."""
    train, test = images_of(io, "train"), images_of(io, "test")
    train_labels, test_labels = torch.from_numpy(np.asarray(train.labels)), torch.from_numpy(np.asarray(test.labels))
    setting = setting_of(io)
    if io.control == "pca_features":
        views, queries = _pca_features(setting)
        probe = fit_cached_probe(views, train_labels, queries, test_labels, io.config.probe, stream_seed(io.seed, "held out"))
    else:
        extractor = make_extractor(io, setting, train.num_classes)
        views, queries = _network_features(io, setting, extractor, train, test)

        def features(images: Tensor, noise: NoiseSource) -> Tensor:
            raw, _ = setting.tokenizer.encode(images)
            return extractor(raw, images if extractor.needs_images else None, noise)

        return classified(io, features, views, queries, train, test)
    return _scored(io, probe, views, queries, train, test)


def classified(io: JobIO, features: Features, views: Tensor, queries: Tensor, train: ImageSet, test: ImageSet) -> dict[str, Any]:
    """Classify features by the configured probe, and score as `run` says.

    views (V, n, C) of the training images, queries (n_test, C); `features` maps images to features for the probe of many epochs.
    """
    train_labels, test_labels = torch.from_numpy(np.asarray(train.labels)), torch.from_numpy(np.asarray(test.labels))
    if io.config.probe.mode == "cached":
        probe = fit_cached_probe(views, train_labels, queries, test_labels, io.config.probe, stream_seed(io.seed, "held out"))
    else:
        epoch = EpochFeatures(io, features, train)
        io.log(train.where_from(random_crops=True))
        seed = stream_seed(io.seed, "linear layer")
        probe = fit_epochs_probe(epoch, len(train), train.num_classes, queries, test_labels, io.config.probe, seed)
    return _scored(io, probe, views, queries, train, test)


def _scored(io: JobIO, probe: ProbeResult, views: Tensor, queries: Tensor, train: ImageSet, test: ImageSet) -> dict[str, Any]:
    """Classify by nearest neighbours as well, write which test images were right, and return metrics and protocol."""
    train_labels, test_labels = torch.from_numpy(np.asarray(train.labels)), torch.from_numpy(np.asarray(test.labels))
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


def setting_of(io: JobIO) -> Setting:
    """Load what surrounds the encoder; a control has no training between itself and the latents."""
    above = () if io.control else ("train",)
    return load_setting(io, io.ancestor(*above, "encode"), io.ancestor(*above, "encode", "tokenizer"))


def make_extractor(io: JobIO, setting: Setting, num_classes: int) -> FeatureExtractor:
    """Build the feature extractor: the trained network, or for the control the same network untrained."""
    if io.control == "random_init":
        denoiser = setting.fresh_denoiser(num_classes, io.seed)
    else:
        denoiser = load_network(io, setting, num_classes, io.config.probe.weights)
    return FeatureExtractor(denoiser.to(io.device), setting.process, setting.scaler, setting.space, io.config.probe, io.device)


def _network_features(io: JobIO, setting: Setting, extractor: FeatureExtractor, train: ImageSet, test: ImageSet) -> tuple[Tensor, Tensor]:
    """Return features of the training images, (views, n, C), plain and where needed mirrored, and of the test images, (n, C)."""
    seed = stream_seed(io.seed, "probe")
    mirrors = (False, True) if setting.latents.has_mirror and io.config.probe.mode == "cached" else (False,)
    views = feature_array(io, (len(mirrors), len(train), extractor.width))
    queries = torch.empty(len(test), extractor.width)
    passes = [("train", train, mirrored, views[view]) for view, mirrored in enumerate(mirrors)] + [("test", test, False, queries)]
    for number, (split, images, mirrored, out) in enumerate(passes):
        if io.should_stop():
            raise Interrupted("stopped before the probe; it starts over")
        io.progress(number, len(passes) + 1, f"features, {split}{' mirrored' if mirrored else ''}")
        means = setting.latents.means(split, mirrored)
        extract(extractor, means, images, mirrored=mirrored, seed=seed, batch=BATCH, device=io.device, out=out)
    return views, queries


def feature_array(io: JobIO, shape: tuple[int, int, int]) -> Tensor:
    """Return room for features (views, n, C) float32: in memory, or, above MEMORY_LIMIT, in a mapped file that nobody else sees.

    Not float16: the probe standardises features by deviations that can be a thousandth of a feature's mean, and float16
    keeps three digits. Pages of the file are written out and dropped where memory is short. Raises ArtifactError for a full disk.
    """
    size = 4 * math.prod(shape)
    if size <= MEMORY_LIMIT:
        return torch.empty(shape)
    require_space(io.folder, size, "features")
    path = io.folder / f".features.{os.getpid()}{UNFINISHED}"
    with path.open("w+b") as file:
        path.unlink()  # it lives as long as it is mapped
        os.posix_fallocate(file.fileno(), 0, size)  # else a full disk kills the process when it writes to a page of the map
        return torch.from_numpy(np.memmap(file, np.float32, "r+", shape=shape))


class EpochFeatures:
    """Features of freshly cropped and mirrored training images, epoch by epoch: what the paper's long probe is trained on."""

    def __init__(self, io: JobIO, features: Features, train: ImageSet) -> None:
        self.io, self.features, self.train = io, features, train
        self.seed = stream_seed(io.seed, "probe epochs")
        self.order = ImageOrder(len(train), self.seed)
        self.labels = torch.from_numpy(np.asarray(train.labels))

    def __call__(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield features (B, C) and labels (B,) of every training image once, each with its own random resized crop and mirror."""
        first = epoch * len(self.train)
        with contextlib.closing(ahead(self._load, range(first, first + len(self.train), BATCH))) as stream:
            for start, (pixels, indices) in stream:
                if self.io.should_stop():
                    raise Interrupted("stopped in the probe; it starts over")
                noise = NoiseSource(self.seed, start, len(indices), self.io.device)
                mirrored = (noise.uniform("mirror") < 0.5).cpu().numpy()
                pixels[mirrored] = pixels[mirrored, :, ::-1]
                images = to_tensor(pixels, self.io.device)
                with torch.no_grad():
                    found = self.features(images, noise)
                yield found.cpu(), self.labels[indices]
        self.io.progress(epoch + 1, self.io.config.probe.epochs, "probe epochs")

    def _load(self, start: int) -> tuple[np.ndarray, np.ndarray]:
        """Cut the random crops (B, H, W, 3) of the images at positions start, start + 1, ...; also their indices (B,)."""
        count = min(BATCH, len(self.train) - start % len(self.train))
        indices = self.order.indices(start, count)
        seeds = np.array([stream_seed(self.seed, "crop", position) for position in range(start, start + count)], dtype=np.int64)
        return self.train.batch(indices, seeds), indices


def _pca_features(setting: Setting) -> tuple[Tensor, Tensor]:
    """Return the scaled patch-PCA latents themselves, averaged over a coarse grid of tokens: (1, n, G^2 d) and (n_test, G^2 d)."""
    scaler, grid = setting.scaler.to("cpu"), setting.tokenizer.grid
    cells = math.gcd(grid, PCA_GRID)

    def latents(split: str) -> Tensor:
        z = scaler(torch.from_numpy(np.array(setting.latents.means(split))).float())  # (n, N, d)
        squares = z.unflatten(1, (cells, grid // cells, cells, grid // cells))  # (n, N, d) -> (n, G, grid/G, G, grid/G, d)
        return squares.mean(dim=(2, 4)).flatten(1)  # (n, G, grid/G, G, grid/G, d) -> (n, G^2 d)

    return latents("train")[None], latents("test")
