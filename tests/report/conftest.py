"""Fabricated result records: the report is a pure function of them, so nothing has to be trained here."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

LADDER = (
    "baseline", "drop_class_conditioning", "drop_perceptual_loss", "drop_adversarial_loss", "linear_gamma_schedule", "patch_vae",
    "patch_ae", "patch_pca", "predict_clean", "drop_input_scaling", "inverse_pca_input", "inverse_pca_output", "predict_original",
    "single_noise_level",
)  # fmt: skip
CENTRES = (24.1, 29.5, 26.0, 26.9, 31.3, 33.0, 32.6, 33.9, 30.2, 31.7, 31.9, 32.4, 33.3, 28.8)
PROTOCOL = {
    "dataset": "scenes (composite: emoji art on photos)", "image_size": 32, "train_images": 8000, "test_images": 2000,
    "probe": "logistic regression, block 3, t = 10, clean input", "distance": "FD (EfficientNet-Lite0, 112-d)", "distance_samples": 512,
}  # fmt: skip
CONFIG: dict[str, dict[str, Any]] = {
    "tokenizer": {"kind": "patch_pca", "latent_dim": 16, "patch_size": 4, "stride": 2},
    "denoiser": {"size": "tiny"},
    "train": {"epochs": 400.0, "steps": 300},
    "probe": {"mode": "cached", "timestep": 10, "noisy_input": False},
}


def make_record(stage: str, seed: int = 0, value: float | None = 30.0, **changes: Any) -> dict[str, Any]:
    """Make one finished record of a stage; changes replace whole fields."""
    place = LADDER.index(stage) if stage in LADDER else len(LADDER)
    config = {section: dict(values) for section, values in CONFIG.items()}
    config["tokenizer"]["latent_dim"] = 32 if place >= LADDER.index("patch_pca") else 16
    record: dict[str, Any] = {
        "schema": 1, "cell": f"{stage}-{seed}", "stage": stage, "control": None, "overrides": {}, "seed": seed, "scale": "smoke",
        "title": stage.replace("_", " "), "path": list(LADDER[: place + 1]), "changes": {}, "labels_used": place < 2,
        "incomparable": [], "state": "done", "reason": "",
        "metrics": {"linear_probe_top1": value, "knn_top1": None if value is None else 0.8 * value, "fid": 80.0 + place},
        "undefined": {}, "protocol": dict(PROTOCOL), "config": config,
        "jobs": {"train": f"train{place:02d}{seed}abcdef", "probe": f"probe{place:02d}{seed}abcdef"},
        "cost": {"wall_seconds": 60.0 + place, "peak_memory_gib": 1.25}, "code": {"commit": "0123abc", "dirty": False},
        "versions": {"torch": "2.13.0"},
    }  # fmt: skip
    if stage == "single_noise_level":
        del record["metrics"]["fid"]
        record["undefined"] = {"fid": "not defined: a single noise level has no reverse process"}
    record.update(changes)
    return record


def make_control(control: str, value: float, seed: int = 0) -> dict[str, Any]:
    """Make one finished record of a control."""
    metrics = {"linear_probe_top1": value}
    return make_record("baseline", seed, None) | {
        "stage": None, "control": control, "path": [], "metrics": metrics, "cell": f"{control}-{seed}", "labels_used": False,
    }  # fmt: skip


def make_study(seeds: tuple[int, ...] = (0, 1, 2)) -> list[dict[str, Any]]:
    """Make the whole ladder, part of Table 2 and the controls, without holes."""
    noise = random.Random(7)
    records = [
        make_record(stage, seed, centre + noise.gauss(0, 0.5)) for stage, centre in zip(LADDER, CENTRES, strict=True) for seed in seeds
    ]
    for stage in ("linear_gamma_schedule", "patch_vae", "patch_ae", "patch_pca"):
        for latent_dim in (8, 16, 32):
            for seed in seeds:
                if latent_dim != (32 if stage == "patch_pca" else 16):
                    record = make_record(stage, seed, 30 + noise.gauss(0, 1), overrides={"tokenizer.latent_dim": latent_dim})
                    record["config"]["tokenizer"]["latent_dim"] = latent_dim
                    records.append(record)
    return [*records, *(make_control("random_init", 18.0 + seed, seed) for seed in seeds), make_control("chance", 6.25)]


@pytest.fixture
def record() -> Callable[..., dict[str, Any]]:
    """Give the maker of one record."""
    return make_record


@pytest.fixture
def control() -> Callable[..., dict[str, Any]]:
    """Give the maker of one control's record."""
    return make_control


def hole(study: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Give the study one hole of each kind and a plugin whose title every format has to escape."""
    fates = {
        ("drop_adversarial_loss", 2): ("diverged", "the loss became non-finite at step 412"),
        ("linear_gamma_schedule", 0): ("failed", "out of memory"),
        ("linear_gamma_schedule", 1): ("skipped", "the parent failed"),
        ("drop_input_scaling", 0): ("stale", "code changed: process.py"),
        ("inverse_pca_input", 1): ("missing", ""),
    }
    for one in study:
        if not one["overrides"] and (fate := fates.get((one["stage"], one["seed"]))):
            one.update(state=fate[0], reason=fate[1], metrics={} if fate[0] != "stale" else one["metrics"])
        if one["stage"] == "predict_clean":
            one["incomparable"] = ["training loss"]
    title = r"my | 50% & a_b [x] <i> $c$ #d ~e ^f {g} \h *i* `j` \"k\" --l γ²"
    path = [*LADDER[: LADDER.index("predict_clean") + 1], "my_plugin"]
    return [*(one for one in study if one["stage"] != "predict_original"), make_record("my_plugin", 0, 31.0, title=title, path=path)]


@pytest.fixture
def study() -> list[dict[str, Any]]:
    """Give a whole study of three seeds without holes."""
    return make_study()


@pytest.fixture
def holed() -> list[dict[str, Any]]:
    """Give the study with holes."""
    return hole(make_study())


@pytest.fixture(scope="session")
def make_holed() -> Callable[[], list[dict[str, Any]]]:
    """Give the maker of the study with holes, for fixtures that live longer than one test."""
    return lambda: hole(make_study())


@pytest.fixture(scope="session")
def make_footer() -> Callable[[], dict[str, Any]]:
    """Give the maker of what made the report."""
    return lambda: {
        "command": "ablate report --scale smoke", "commit": "0123abc", "dirty": True, "date": "2026-01-02", "keys": ["k1"],
    }  # fmt: skip


@pytest.fixture
def footer(make_footer: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Give what made the report."""
    return make_footer()
