"""The one training loop, on the real networks, tokenizers and data of every built-in stage."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import ablation.jobs.train as train_job
from ablation.config import from_nested
from ablation.discover import discover
from ablation.errors import ArtifactError, DivergedError, Interrupted
from ablation.jobs.context import JobIO
from ablation.jobs.parts import images_of
from ablation.jobs.tokenizer import fresh_tokenizer
from ablation.jobs.tokenizer import make_trainer as make_tokenizer_trainer
from ablation.jobs.train import make_trainer
from ablation.launch.worker import run_job
from ablation.study import Request, Study, prepare, write_specs
from ablation.train.loop import Trainer, learning_rate_factor
from ablation.train.noise import NoiseSource

STEPS, BATCH = 20, 4
STAGES = [stage.name for stage in discover(installed=False).ordered()]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The whole ladder, planned; its tokenizers and latents are made when a test asks for them, once."""
    settings = {
        "data.image_size": 16,
        "data.train_images": 64,
        "data.test_images": 32,
        "tokenizer.steps": 4,
        "tokenizer.global_batch": BATCH,
        "tokenizer.block_channels": (8, 16),
        "train.steps": STEPS,
        "train.global_batch": BATCH,
        "train.base_lr": 0.16,
    }
    runs = tmp_path_factory.mktemp("loop") / "runs"
    planned = prepare(Request(through="single_noise_level", scale="smoke", settings=settings, runs=runs, with_controls=False))
    write_specs(planned)
    return planned


@pytest.fixture
def io_of(study: Study, tmp_path: Path) -> Iterator[Callable[..., JobIO]]:
    """Return a job's view of the world by stage and kind, with changes; what it writes goes to a folder of the test."""

    def build(stage: str, kind: str = "train", settings: dict[str, Any] | None = None, **changes: Any) -> JobIO:
        roles = study.plan.roles[f"{stage}-s0"]
        for parent in ("tokenizer", "encode") if kind == "train" else ():
            assert run_job(study.store, roles[parent], lambda *_: None, lambda: False) == "done"
        spec = study.plan.jobs[roles[kind]]
        config = from_nested(dict(spec.config))
        for path, value in (settings or {}).items():
            section, _, name = path.partition(".")
            config = config.model_copy(update={section: getattr(config, section).model_copy(update={name: value})})
        fields = {
            "store": study.store,
            "job_id": spec.id,
            "config": config,
            "seed": spec.seed or 0,
            "control": None,
            "inputs": spec.inputs,
            "parts": {},
            "device": torch.device("cpu"),
            "progress": lambda *_: None,
            "log": lambda _: None,
            "should_stop": lambda: False,
            "checkpoint_seconds": 1e9,
        }
        return JobIO(**{**fields, **changes})

    yield build
    for job in study.plan.jobs.values():
        if job.kind == "train":
            for left in study.store.job_folder(job.id).glob("*"):
                if left.name != "spec.json":
                    left.unlink()


def losses(trainer: Trainer, phase: str, batches: int = 4) -> float:
    """Return the mean loss over the first batches of the training, without training."""
    total = 0.0
    for number in range(batches):
        start = number * BATCH
        noise = NoiseSource(trainer.recipe.seed, start, BATCH)
        loaded = trainer.batches.load(trainer.order.indices(start, BATCH), np.arange(start, start + BATCH), noise)
        batch = trainer.batches.finish(loaded, noise)
        trainer.objective.begin_step(batch, noise, 0.0)
        loss, _ = trainer.objective.loss(phase)
        assert loss is not None
        total += loss.item() / batches
    return total


def weights(trainer: Trainer) -> dict[str, Tensor]:
    """Return a copy of everything the training changes."""
    return {f"{name}.{key}": value.detach().clone() for name, module in trainer.modules.items() for key, value in module.named_parameters()}


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    assert one.keys() == two.keys()
    return all(torch.equal(one[name], two[name]) for name in one)


# --- every stage ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_learns_and_moves_all_of_its_network(io_of, stage):
    trainer = make_trainer(io_of(stage))
    before, loss = weights(trainer), losses(trainer, "denoiser")
    last = trainer.fit()
    assert trainer.step == STEPS
    assert losses(trainer, "denoiser") < 0.85 * loss  # whitened latents fall slowest: no component is easy
    assert np.isfinite(list(last.values())).all()
    after = weights(trainer)
    resting = {name for name, parameter in trainer.modules["denoiser"].named_parameters() if parameter.grad is None}
    unmoved = {name.removeprefix("denoiser.") for name in before if torch.equal(before[name], after[name])}
    assert unmoved == resting == set()
    moved = trainer.averages["denoiser"].state()
    assert not any(torch.equal(moved[name.removeprefix("denoiser.")], after[name]) for name in after)


@pytest.mark.parametrize("stage", ["baseline", "drop_perceptual_loss", "drop_adversarial_loss", "patch_vae", "patch_ae"])
def test_every_fitted_tokenizer_learns(io_of, stage):
    """Tokenizer and, where there is one, discriminator move, and what the tokenizer minimises falls."""
    io = io_of(stage, "tokenizer", {"tokenizer.steps": STEPS, "tokenizer.base_lr": 8e-4}, job_id=f"tokenizer-{stage}")
    trainer = make_tokenizer_trainer(io, fresh_tokenizer(io), images_of(io, "train"))
    before, loss = weights(trainer), losses(trainer, "tokenizer")
    last = trainer.fit()
    assert losses(trainer, "tokenizer") < 0.9 * loss
    after = weights(trainer)
    assert not [name for name in before if torch.equal(before[name], after[name])]
    adversarial = stage in ("baseline", "drop_perceptual_loss")
    assert ("discriminator" in trainer.modules) == ("discriminator_loss" in last) == adversarial
    assert ("perceptual" in last) == (stage == "baseline")


# --- labels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stage", "used"), [("baseline", True), ("drop_class_conditioning", False), ("predict_original", False)])
def test_labels_enter_only_a_class_conditional_training(io_of, monkeypatch, stage, used):
    """With permuted labels an unconditional training ends in the same weights, bit for bit; a conditional one does not."""

    def train(permute: bool) -> dict[str, Tensor]:
        def images(io: JobIO, split: Any) -> Any:
            found: Any = images_of(io, split)
            shuffled = np.random.default_rng(1).permutation(found.labels)
            assert not np.array_equal(shuffled, found.labels)
            return dataclasses.replace(found, labels=shuffled) if permute else found

        monkeypatch.setattr(train_job, "images_of", images)
        trainer = make_trainer(io_of(stage, settings={"train.steps": 6}))
        trainer.fit()
        return weights(trainer)

    assert same(train(permute=False), train(permute=True)) is not used


# --- batches ----------------------------------------------------------------------------------------------------------


def trained(io: JobIO, **recipe: Any) -> Trainer:
    trainer = make_trainer(io)
    trainer.recipe = dataclasses.replace(trainer.recipe, **recipe)
    trainer.fit()
    return trainer


def largest_difference(one: dict[str, Tensor], two: dict[str, Tensor]) -> float:
    return max(float((one[name] - two[name]).abs().max()) for name in one)


@pytest.mark.parametrize("micro_batch", [1, 3])
def test_micro_batches_add_up_to_the_whole_batch(io_of, micro_batch):
    """Also where the last one is smaller; the sums are taken in another order, so equality is up to rounding."""
    io = io_of("predict_original", settings={"train.steps": 3})
    whole, start = weights(trained(io)), weights(make_trainer(io))
    assert largest_difference(whole, start) > 1e-3
    assert largest_difference(weights(trained(io, micro_batch=micro_batch)), whole) < 2e-5


def test_the_logged_loss_is_the_loss(io_of):
    io = io_of("predict_clean", settings={"train.steps": 1})
    expected = losses(make_trainer(io), "denoiser", batches=1)
    for micro_batch in (BATCH, 3):
        assert trained(io, micro_batch=micro_batch).last["loss"] == pytest.approx(expected, rel=1e-5)


def test_gradients_are_clipped_to_the_norm_that_is_asked_for(io_of):
    def norm(clip: float | None) -> float:
        trainer = trained(io_of("patch_pca", settings={"train.steps": 2}), clip_grad=clip)
        gradients = [parameter.grad for parameter in trainer.modules["denoiser"].parameters() if parameter.grad is not None]
        return float(torch.cat([gradient.flatten() for gradient in gradients]).norm())

    assert norm(None) > 0.02
    assert norm(0.01) == pytest.approx(0.01, rel=1e-3)


def test_the_learning_rate_warms_up_and_ends_at_zero():
    factors = [learning_rate_factor(step, 100, 10) for step in range(100)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert factors[10] == 1
    assert factors[55] == pytest.approx(0.5)
    assert 0 < factors[99] < 0.001
    assert all(later < earlier for earlier, later in pairwise(factors[10:]))
    assert learning_rate_factor(0, 1, 0) == 1


# --- stopping, resuming, diverging ------------------------------------------------------------------------------------


def stopping_after(steps: int) -> Callable[[], bool]:
    """Return a function that asks for a stop when it is called for the given number of times."""
    calls = iter(range(1, 10**9))
    return lambda: next(calls) >= steps


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_stopped_and_resumed_equals_never_stopped(io_of, precision):
    settings = {"train.steps": 8, "train.precision": precision}
    io = io_of("baseline", settings=settings)
    straight, curve = trained(io, log_every=2), (io.folder / "curve.jsonl").read_text()
    io = io_of("baseline", settings=settings, should_stop=stopping_after(5))
    with pytest.raises(Interrupted, match="stopped at step 5 of 8; a checkpoint is saved"):
        trained(io, log_every=2)
    (io.folder / "curve.jsonl").open("a").write('{"step": 6, "loss": 9.0}\n{"step": 8, "lo')  # beyond the checkpoint, and cut short
    log: list[str] = []
    resumed = trained(io_of("baseline", settings=settings, log=log.append), log_every=2)
    assert log == ["resuming at step 5 of 8"]
    assert same(weights(resumed), weights(straight))
    assert same(resumed.averages["denoiser"].state(), straight.averages["denoiser"].state())
    assert (io.folder / "curve.jsonl").read_text() == curve


@pytest.mark.parametrize("step", [3, 8])
def test_an_adversarial_tokenizer_resumes_before_and_after_its_discriminator_joins(io_of, step):
    settings = {"tokenizer.steps": 10}

    def fit(name: str, **changes: Any) -> Trainer:
        io = io_of("drop_perceptual_loss", "tokenizer", settings, job_id=f"tokenizer-{name}", **changes)
        trainer = make_tokenizer_trainer(io, fresh_tokenizer(io), images_of(io, "train"))
        trainer.fit()
        return trainer

    with pytest.raises(Interrupted):
        fit(f"stopped-{step}", should_stop=stopping_after(step))
    assert same(weights(fit(f"stopped-{step}")), weights(fit(f"straight-{step}")))


def test_checkpoints_come_at_the_asked_interval_and_change_nothing(io_of):
    io = io_of("patch_pca", settings={"train.steps": 4})
    plain = trained(io)
    assert not list(io.folder.glob("checkpoint-*"))
    often = trained(io_of("patch_pca", settings={"train.steps": 4}, checkpoint_seconds=0.0))
    assert sorted(path.name for path in io.folder.glob("checkpoint-*")) == [f"checkpoint-{step:09d}.safetensors" for step in (2, 3)]
    assert same(weights(often), weights(plain))


def test_a_diverging_loss_stops_with_the_step_and_the_last_good_checkpoint(io_of):
    settings = {"train.steps": STEPS, "train.base_lr": 1e12}
    io = io_of("predict_original", settings=settings, should_stop=stopping_after(1))
    with pytest.raises(Interrupted):
        trained(io)
    with pytest.raises(DivergedError) as caught:
        trained(io_of("predict_original", settings=settings))
    assert caught.value.problem.endswith("last good checkpoint: checkpoint-000000001.safetensors")
    assert " at step 10 of 20; " in caught.value.problem
    assert "train.base_lr" in caught.value.fix


def test_weights_that_overflow_at_the_last_step_are_not_taken_for_a_result(io_of):
    """The loss of the last step was computed before its update."""
    with pytest.raises(DivergedError, match="a weight became infinite or NaN at step 1 of 1; last good checkpoint: none"):
        trained(io_of("patch_pca", settings={"train.steps": 1, "train.base_lr": 1e42}))


def test_weights_that_overflowed_are_never_saved(io_of):
    io = io_of("patch_pca", settings={"train.base_lr": 1e42}, checkpoint_seconds=0.0)
    with pytest.raises(DivergedError, match="at step 1 of 20"):
        trained(io)
    assert not list(io.folder.glob("checkpoint-*"))


def test_a_curve_that_cannot_be_written_is_one_line(io_of):
    io = io_of("patch_pca", settings={"train.steps": 1})
    (io.folder / "curve.jsonl").mkdir()
    with pytest.raises(ArtifactError, match=r"cannot write .*curve\.jsonl"):
        make_trainer(io)
    (io.folder / "curve.jsonl").rmdir()


def test_the_curve_has_every_logged_step(io_of):
    io = io_of("predict_clean", settings={"train.steps": 7})
    trained(io, log_every=3)
    entries = [json.loads(line) for line in (io.folder / "curve.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries] == [3, 6, 7]
    assert all({"loss", "unweighted_loss"} <= entry.keys() for entry in entries)
