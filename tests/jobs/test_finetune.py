"""Fine-tuning: planned when asked, learns, agrees with the exported encoder before it starts, and resumes bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ablation.config import apply
from ablation.errors import ConfigError
from ablation.evaluation.features import FeatureExtractor
from ablation.export import job_io
from ablation.jobs.finetune import make_trainer
from ablation.jobs.parts import images_of
from ablation.keys import job_slice
from ablation.launch.worker import run_job
from ablation.store import CLASSIFIER
from ablation.study import Request, Study, prepare, write_specs
from ablation.train.checkpoint import load_tensors
from ablation.verify import derived_metrics

pytestmark = pytest.mark.usefixtures("one_thread")
STAGES = ("linear_gamma_schedule", "patch_pca", "predict_original")
SETTINGS = {
    "data.image_size": 16, "tokenizer.block_channels": (8, 16), "tokenizer.steps": 4, "tokenizer.global_batch": 8, "train.steps": 4,
    "train.global_batch": 8, "finetune.enabled": True, "finetune.steps": 40, "finetune.global_batch": 32, "finetune.ema_decay": 0.9,
}  # fmt: skip
PLAIN = {"finetune.rand_augment": None, "finetune.random_erasing": 0.0, "finetune.mixup": 0.0, "finetune.cutmix": 0.0}


def planned(runs: Path, data: Path, **changes: Any) -> Study:
    """Plan three rows: conv latents, PCA latents, images."""
    settings = {**SETTINGS, **changes}
    study = prepare(Request(only=STAGES, scale="smoke", data=str(data), settings=settings, runs=runs, with_controls=False))
    write_specs(study)
    return study


def run_to(study: Study, stage: str, kind: str, should_stop: Callable[[], bool] = lambda: False) -> tuple[str, str]:
    """Run a cell's jobs up to a kind and return the last one's id and state."""
    roles = study.plan.roles[f"{stage}-s0"]
    state = ""
    for role in ("tokenizer", "encode", "train", "finetune"):
        asked = should_stop if role == kind else lambda: False
        state = run_job(study.store, roles[role], lambda *_: None, asked, 1e9)
        assert state == "done" or role == kind, study.store.state(roles[role])
        if role == kind:
            break
    return roles[kind], state


def test_it_is_planned_only_when_asked(smoke_tree, runs, coloured_images):
    asked, plain = planned(runs, coloured_images), prepare(Request(only=STAGES, scale="smoke", runs=runs, with_controls=False))
    assert not any(spec.kind == "finetune" for spec in plain.plan.jobs.values())
    for cell, roles in asked.plan.roles.items():
        assert asked.plan.jobs[roles["finetune"]].inputs == {"train": roles["train"]}, cell
    config = smoke_tree.resolve("predict_original")
    others = ("reference", "tokenizer", "encode", "train", "probe", "fid")
    assert not any(path.startswith("finetune.") for kind in others for path in job_slice(kind, config))
    assert "finetune.enabled" not in job_slice("finetune", config)


def test_fine_tuning_shares_the_ladders_training(runs):
    """Asking for it adds one job to a cell and changes no other."""
    plain = prepare(Request(only=("predict_original",), scale="smoke", runs=runs, with_controls=False)).plan.roles
    asked = prepare(
        Request(only=("predict_original",), scale="smoke", runs=runs, with_controls=False, settings={"finetune.enabled": True})
    ).plan.roles
    cell = "predict_original-s0"
    assert {role: job for role, job in asked[cell].items() if role != "finetune"} == plain[cell]


@pytest.mark.parametrize("stage", STAGES)
def test_it_learns(runs, coloured_images, stage):
    study = planned(runs, coloured_images, **PLAIN)
    job, state = run_to(study, stage, "finetune")
    assert state == "done"
    metrics = study.store.done(job)["metrics"]
    assert metrics["finetune_top1"] > 80
    assert metrics["finetune_steps"] == 40
    said = study.store.done(job)["protocol"]
    assert "40 steps, batch 32, AdamW" in said["finetune"]
    assert "encoder half at t = 10" in said["finetune_encoder"]
    assert derived_metrics(study.store.job_folder(job))["finetune_top1"] == pytest.approx(metrics["finetune_top1"])


@pytest.mark.parametrize("stage", STAGES)
def test_the_classifier_starts_as_the_probed_encoder(runs, coloured_images, stage):
    """Through front end and folded weights, the tokens' mean is the feature that the probe sees."""
    study = planned(runs, coloured_images)
    run_to(study, stage, "train")
    io = job_io(study.store, study.plan.roles[f"{stage}-s0"]["finetune"])
    objective: Any = make_trainer(io).objective
    images = torch.from_numpy(images_of(io, "test").batch(torch.arange(6).numpy())).permute(0, 3, 1, 2).float() / 127.5 - 1
    front: Any = objective.front_end
    extractor: FeatureExtractor = front.extractor
    raw, _ = front.tokenizer.encode(images)
    expected = extractor(raw, images if extractor.needs_images else None)
    vit = objective.classifier.eval()
    with torch.no_grad():
        found = vit.forward_features(front(images)).mean(dim=1)
    assert torch.allclose(found, expected, atol=2e-4)


def test_it_resumes_bit_for_bit(tmp_path, coloured_images):
    """With everything random switched on: mixing, RandAugment, erasing, stochastic depth."""
    settings = {"finetune.steps": 6, "finetune.drop_path": 0.3}
    whole, broken = (planned(tmp_path / name, coloured_images, **settings) for name in ("whole", "broken"))
    job, _ = run_to(whole, "predict_original", "finetune")
    asked = iter([False, False, True])
    _, state = run_to(broken, "predict_original", "finetune", lambda: next(asked, True))
    assert state == "interrupted"
    assert broken.store.has_checkpoint(job)
    again, state = run_to(broken, "predict_original", "finetune")
    assert (again, state) == (job, "done")
    first, second = (load_tensors(study.store.artifact(job, CLASSIFIER))[0] for study in (whole, broken))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_lower_layers_learn_more_slowly(runs, coloured_images):
    study = planned(runs, coloured_images, **{"finetune.layer_decay": 0.5})
    run_to(study, "predict_original", "train")
    trainer = make_trainer(job_io(study.store, study.plan.roles["predict_original-s0"]["finetune"]))
    names = {id(parameter): name for name, parameter in trainer.modules["classifier"].named_parameters()}
    groups = trainer.optimizers["classifier"].param_groups
    scale = {names[id(p)]: (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert len(scale) == len(names)
    assert scale["head.weight"] == (1.0, 0.05)
    assert scale["blocks.1.mlp.fc1.weight"] == (0.5, 0.05)
    assert scale["blocks.0.mlp.fc1.weight"] == (0.25, 0.05)
    assert scale["pos_embed"] == (0.125, 0.0)
    assert scale["blocks.0.norm1.bias"] == (0.25, 0.0)


def test_an_odd_batch_is_refused(smoke_tree):
    with pytest.raises(ConfigError, match=r"finetune\.global_batch' cannot be 33"):
        apply(smoke_tree.resolve("predict_original"), {"finetune.global_batch": 33})
