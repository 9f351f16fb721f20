"""What the jobs of a plan take before they run: operations, hours and disk, and what sharing saves. Light."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ablation import cost
from ablation.config import Config, from_nested
from ablation.data.storage import class_count, feature_bytes, image_counts, latent_bytes, statistics_bytes
from ablation.denoiser.sizes import SIZES
from ablation.errors import DataError
from ablation.plan import JobSpec, Plan
from ablation.rates import Rates
from ablation.store import Store

FLOAT = 4  # bytes
CHECKPOINTS = 2  # kept while a training runs
COPIES = 4  # in a checkpoint: weights, their average, and AdamW's two moments
PROBE_EVALUATIONS = 60  # of the logistic regression per weight decay, from zero or from the previous solution
LATENT_STATISTICS_IMAGES = 50_000  # whose latents enter the token covariance
FEATURE_DIMS: Mapping[str, int] = {"efficientnet_lite0": 112, "inception_v3": 2048}  # of the Frechet distance


@dataclass(frozen=True)
class Counts:
    """How much data there is."""

    train: int
    test: int
    classes: int


@dataclass
class Work:
    """What one job does: operations by kind of work and precision, images read, and what it leaves on disk."""

    flops: dict[tuple[str, str], float] = field(default_factory=dict)
    images: float = 0.0
    parameters: int = 0
    kept_bytes: int = 0  # when it is done
    scratch_bytes: int = 0  # more than that while it runs

    def add(self, work: str, precision: str, flops: float) -> None:
        """Add operations of a kind."""
        self.flops[work, precision] = self.flops.get((work, precision), 0.0) + flops

    @property
    def total_flops(self) -> float:
        """Operations of all kinds."""
        return sum(self.flops.values())

    def seconds(self, rates: Rates) -> float:
        """Return the time on one accelerator: computing, then reading images, then starting up."""
        computing = sum(flops / rates.rate(work, precision) for (work, precision), flops in self.flops.items())
        return computing + self.images / rates.images + rates.job_seconds


@dataclass(frozen=True)
class JobPrice:
    """A job's price on one accelerator."""

    job: str
    kind: str
    parameters: int
    flops: float
    seconds: float
    kept_bytes: int
    scratch_bytes: int


@dataclass(frozen=True)
class Bill:
    """The prices of a plan's jobs, and of the same cells if nothing were shared."""

    rates: Rates
    jobs: tuple[JobPrice, ...]
    unshared_jobs: int
    unshared_seconds: float

    def seconds(self, jobs: Iterable[str] | None = None) -> float:
        """Return the time of some jobs, or of all."""
        chosen = None if jobs is None else set(jobs)
        return sum(price.seconds for price in self.jobs if chosen is None or price.job in chosen)

    @property
    def kept_bytes(self) -> int:
        """Disk that all jobs leave in use."""
        return sum(price.kept_bytes for price in self.jobs)


def price_plan(plan: Plan, rates: Rates, cache: Path | None = None) -> Bill:
    """Price every job of a plan. Raises DataError where the number of images is not known."""
    counts: dict[Any, Counts] = {}
    prices: dict[str, JobPrice] = {}
    configs: dict[int, Config] = {}
    for spec in plan.jobs.values():
        config = configs.setdefault(id(spec.config), from_nested(spec.config))
        if config.data not in counts:
            counts[config.data] = count_images(config, cache)
        work = job_work(spec, config, counts[config.data])
        prices[spec.id] = JobPrice(
            spec.id, spec.kind, work.parameters, work.total_flops, work.seconds(rates), work.kept_bytes, work.scratch_bytes
        )
    served = [job for roles in plan.roles.values() for role, job in roles.items() if role != "reference"]
    references = [job for job, spec in plan.jobs.items() if spec.kind == "reference"]  # nobody would measure it for every row
    unshared = sum(prices[job].seconds for job in [*served, *references])
    return Bill(rates, tuple(prices.values()), plan.unshared, unshared)


def count_images(config: Config, cache: Path | None) -> Counts:
    """Count images and classes of a configuration's data."""
    images, classes = image_counts(config.data, cache), class_count(config.data, cache)
    if images["train"] is None or images["test"] is None or classes is None:
        raise DataError(
            f"the number of images of '{config.data.source}' is not known before it is opened",
            "Set data.train_images and data.test_images, or price with --data declared:TRAIN,TEST,CLASSES.",
        )
    return Counts(images["train"], images["test"], classes)


def job_work(spec: JobSpec, config: Config, counts: Counts) -> Work:
    """Return what a job does; a kind that is not known here costs nothing but its start."""
    work = Work()
    known = {"reference": _reference, "tokenizer": _tokenizer, "encode": _encode, "train": _train, "fid": _fid, "finetune": _finetune}
    if spec.kind == "probe":
        _probe(work, config, counts, spec.control)
    elif spec.kind in known:
        known[spec.kind](work, config, counts)
    return work


def _reference(work: Work, config: Config, counts: Counts) -> None:
    """Features of training images, and their covariance."""
    images = min(counts.train, config.fid.reference_images or counts.train)
    work.add("features", "fp32", images * cost.extractor(config.fid.extractor, config.data.image_size))
    work.images = images
    work.kept_bytes = 8 * FEATURE_DIMS.get(config.fid.extractor, 2048) ** 2


def _tokenizer(work: Work, config: Config, counts: Counts) -> None:
    """Gradient steps, or one pass for a covariance, or nothing."""
    cfg, size = config.tokenizer, config.data.image_size
    encoder, decoder = cost.encoder(cfg, size), cost.decoder(cfg, size)
    work.parameters = encoder.parameters + decoder.parameters
    work.kept_bytes = FLOAT * work.parameters
    if cfg.kind == "pixels":
        return
    if cfg.kind == "patch_pca":
        work.add("fitting", "fp32", counts.train * cost.tokenizer_step(config, False))
        work.images = counts.train
        work.kept_bytes = FLOAT * config.patch_dim**2
        return
    images = cfg.steps * cfg.global_batch
    adversarial = cfg.kind == "conv" and cfg.adversarial_weight > 0
    share = 1 - cfg.adversarial_start if adversarial else 0.0
    flops = share * cost.tokenizer_step(config, True) + (1 - share) * cost.tokenizer_step(config, False)
    judge = cost.discriminator(cfg, size).parameters if adversarial else 0
    work.add("tokenizer training", cfg.precision, images * flops)
    work.images = images
    work.scratch_bytes = CHECKPOINTS * FLOAT * (COPIES - 1) * (work.parameters + judge)


def _encode(work: Work, config: Config, counts: Counts) -> None:
    """One pass over both splits and the mirrored training images."""
    images = counts.train * (2 if config.data.horizontal_flip else 1) + counts.test
    work.add("tokenizer forward", "fp32", images * cost.encoder(config.tokenizer, config.data.image_size).forward)
    statistics = min(LATENT_STATISTICS_IMAGES, images - counts.test)
    work.add("fitting", "fp32", statistics * 2.0 * config.tokens**2 * config.tokenizer.latent_dim)
    work.images = images
    work.kept_bytes = latent_bytes(config, counts.train, counts.test) + statistics_bytes(config)


def train_images(config: Config, counts: Counts) -> float:
    """Return how many images a denoiser's training sees."""
    train = config.train
    steps = train.steps if train.steps is not None else max(1, round(train.epochs * counts.train / train.global_batch))
    return float(steps * train.global_batch)


def _train(work: Work, config: Config, counts: Counts) -> None:
    """Gradient steps of the denoiser; pixels are read where the target is the image, and encoded anew where crops are random."""
    images = train_images(config, counts)
    work.add("denoiser training", config.train.precision, images * cost.denoiser_step(config, counts.classes))
    if config.data.augmentation == "random_resized_crop":
        work.add("tokenizer forward", "fp32", images * cost.encoder(config.tokenizer, config.data.image_size).forward)
    if config.data.augmentation == "random_resized_crop" or config.process.target == "original":
        work.images = images
    work.parameters = cost.denoiser(config, counts.classes).parameters
    work.kept_bytes = 2 * FLOAT * work.parameters  # last weights and their average
    work.scratch_bytes = CHECKPOINTS * COPIES * FLOAT * work.parameters


def _probe(work: Work, config: Config, counts: Counts, control: str | None) -> None:
    """Features of both splits, or of freshly cropped images each epoch; a linear layer; nearest neighbours."""
    probe, classes = config.probe, counts.classes
    width = SIZES[config.denoiser.size].width
    views = 2 if config.data.horizontal_flip and probe.mode == "cached" else 1
    images = counts.train * views + counts.test
    if control == "pca_features":
        width = min(16, config.tokens) * config.tokenizer.latent_dim
    else:
        encoder = cost.denoiser(config, classes, cost.encoder_blocks(config)).forward
        if probe.mode == "epochs":
            fresh = probe.epochs * counts.train
            work.add("tokenizer forward", "fp32", fresh * cost.encoder(config.tokenizer, config.data.image_size).forward)
            work.images = fresh
            images += fresh
        elif config.process.input_space == "image" and probe.input == "raw":
            work.images = images
        work.add("denoiser forward", probe.precision, images * encoder)
    layer = 4.0 * (width + 1) * classes
    fits = (len(set(probe.weight_decays)) + 1) * PROBE_EVALUATIONS * counts.train * views
    work.add(
        "fitting", "fp32", layer * (fits if probe.mode == "cached" or control == "pca_features" else 1.5 * probe.epochs * counts.train)
    )
    work.add("fitting", "fp32", 2.0 * counts.train * counts.test * width)
    work.scratch_bytes = feature_bytes(width, counts.train, views) + feature_bytes(width, counts.test)
    work.kept_bytes = 2 * counts.test


def _fid(work: Work, config: Config, counts: Counts) -> None:
    """Sampling, decoding and features of the samples; and the same for reconstructions of test images, once per tokenizer."""
    fid, size, cfg = config.fid, config.data.image_size, config.tokenizer
    calls = min(fid.sampler_steps, config.process.num_timesteps)
    work.add("denoiser forward", fid.precision, fid.samples * calls * cost.denoiser_call(config, counts.classes))
    rebuilt = min(counts.test, fid.samples)
    decoded = fid.samples * (config.process.output_space == "latent") + rebuilt
    codec = decoded * cost.decoder(cfg, size).forward + rebuilt * cost.encoder(cfg, size).forward
    work.add("tokenizer forward", "fp32", codec)
    work.add("features", "fp32", (fid.samples + 2 * rebuilt) * cost.extractor(fid.extractor, size))
    work.images = rebuilt


def _finetune(work: Work, config: Config, counts: Counts) -> None:
    """Gradient steps of the encoder half on freshly cropped and encoded images, and the test images twice."""
    cfg = config.finetune
    steps = cfg.steps if cfg.steps is not None else max(1, round(cfg.epochs * counts.train / cfg.global_batch))
    images = float(steps * cfg.global_batch)
    encoder = cost.denoiser(config, counts.classes, cost.encoder_blocks(config))
    work.add("denoiser training", cfg.precision, (3 * images + 2 * counts.test) * encoder.forward)  # a backward pass is two forward ones
    seen = images + 2 * counts.test
    work.add("tokenizer forward", "fp32", seen * cost.encoder(config.tokenizer, config.data.image_size).forward)
    work.images = seen
    work.parameters = encoder.parameters
    work.kept_bytes = FLOAT * encoder.parameters
    work.scratch_bytes = CHECKPOINTS * COPIES * FLOAT * encoder.parameters


ASSUMED_DEVIATION = 0.5
"""Standard deviation in points of a paired difference of linear-probe accuracy, where no results tell: our assumption."""
PRECISION_OF_EFFECT = 1e-3


def observed_deviation(store: Store) -> tuple[float, int] | None:
    """Return the spread over seeds of a step's change of linear-probe accuracy in this run folder, in points, and of how many steps.

    The root mean of the variances of the differences between each row and its parent's on common seeds; None without two seeds.
    """
    from ablation.report.intervals import spread  # the package loads more than this module may

    top1: dict[tuple[str, str, int], float] = {}
    parents: set[tuple[str, str, str]] = set()
    for name in store.studies():
        for cell in store.study(name)["cells"]:
            job = cell["jobs"]["probe"]
            if cell["control"] is None and not cell["overrides"] and store.state(job).name == "done":
                top1[name, cell["stage"], cell["seed"]] = float(store.done(job)["metrics"]["linear_probe_top1"])
                if len(cell["path"]) > 1:
                    parents.add((name, cell["path"][-2], cell["stage"]))
    variances = []
    for name, parent, stage in sorted(parents):
        seeds = [seed for study, row, seed in top1 if (study, row) == (name, stage) and (name, parent, seed) in top1]
        deviation = spread([top1[name, stage, seed] - top1[name, parent, seed] for seed in seeds])
        if deviation is not None:
            variances.append(deviation**2)
    return (math.sqrt(sum(variances) / len(variances)), len(variances)) if variances and any(variances) else None


def detectable_effect(seeds: int, deviation: float) -> float | None:
    """Return the smallest true change that a paired Student test at 5 % finds with power 0.8; None for a single seed."""
    from ablation.report.significance import POWER, detection_power  # the package loads more than this module may

    if seeds < 2:
        return None
    low, high = 0.0, deviation
    while detection_power(seeds, high, deviation) < POWER:
        low, high = high, 2 * high
    while high - low > PRECISION_OF_EFFECT * deviation:
        middle = (low + high) / 2
        low, high = (middle, high) if detection_power(seeds, middle, deviation) < POWER else (low, middle)
    return high
