"""One training in several processes of this machine, as the local launcher starts them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from commands import Recorder, environment, never

from ablation.errors import ConfigError
from ablation.launch.inline import InlineLauncher
from ablation.launch.local import LocalLauncher
from ablation.status import last_loss
from ablation.store import Store
from ablation.train.checkpoint import load_tensors

pytestmark = pytest.mark.usefixtures("one_thread")


def followers(job: str) -> list[int]:
    """Return the processes that take part in a job without leading it."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if b"--follow" in words and job.encode() in words:
                found.append(int(folder.name))
    return found


def test_shared_trainings_give_the_numbers_of_one_process(make_study, tmp_path):
    """An adversarial tokenizer, whose loss is balanced over its batch, and the denoiser on it."""
    settings = {"tokenizer.steps": 6, "train.steps": 4, "tokenizer.block_channels": (8, 16)}
    one = make_study(tmp_path / "one", settings, only=("drop_perceptual_loss",))
    two = make_study(tmp_path / "two", settings, only=("drop_perceptual_loss",))
    assert list(one.plan.jobs) == list(two.plan.jobs)  # how many share a training is in no key
    assert set(InlineLauncher(1).run(one.plan, one.store, Recorder(), never).states.values()) == {"done"}
    assert set(LocalLauncher(1, 1, processes=2).run(two.plan, two.store, Recorder(), never).states.values()) == {"done"}
    roles = one.plan.roles["drop_perceptual_loss-s0"]
    for role, name in (("tokenizer", "tokenizer.safetensors"), ("train", "denoiser.safetensors")):
        job = roles[role]
        assert last_loss(two.store, job) == pytest.approx(last_loss(one.store, job), abs=1e-5)
        (expected, _), (found, _) = (load_tensors(study.store.artifact(job, name)) for study in (one, two))
        assert all((found[key] - value).abs().max() < 1e-4 for key, value in expected.items())
        assert two.store.done(job)["cost"]["processes"] == 2
        assert two.store.done(job)["artifacts"].keys() == one.store.done(job)["artifacts"].keys()
        assert not followers(job)


@pytest.mark.slow
def test_a_process_that_is_killed_fails_the_job_and_the_next_run_goes_on(make_study, tmp_path):
    study = make_study(tmp_path / "runs", {"train.steps": 400}, only=("patch_pca",))
    train = study.plan.roles["patch_pca-s0"]["train"]

    def kill() -> None:
        deadline = time.monotonic() + 120
        while not study.store.has_checkpoint(train) and time.monotonic() < deadline:
            time.sleep(0.02)
        for process in followers(train):
            os.kill(process, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    outcome = LocalLauncher(1, 1, checkpoint_seconds=0.05, processes=2).run(study.plan, study.store, Recorder(), never)
    thread.join()
    assert outcome.states[train] == "failed"
    assert "process 1 was killed by signal 9" in study.store.state(train).reason
    assert study.store.has_checkpoint(train)
    assert not followers(train)
    again = subprocess.run(
        [sys.executable, "-m", "ablation.launch.worker", "--runs", str(study.store.root), "--threads", "1", train],
        env=environment(),
        check=False,
    )
    assert again.returncode == 0
    assert "resuming at step" in (study.store.job_folder(train) / "job.log").read_text()


def test_a_batch_that_cannot_be_divided_is_refused_before_anything_runs(make_study, tmp_path):
    study = make_study(tmp_path / "runs", only=("patch_pca",))
    with pytest.raises(ConfigError, match=r"global_batch = 8 cannot be divided evenly among 3 processes"):
        LocalLauncher(1, processes=3).run(study.plan, study.store, Recorder(), never)
    assert not Store(tmp_path / "runs").has_checkpoint(study.plan.roles["patch_pca-s0"]["train"])


def test_each_worker_gets_as_many_gpus_as_a_training_has_processes():
    launcher = LocalLauncher(8, gpus=tuple("01234"), processes=2)
    assert [worker.gpu for worker in launcher.workers] == ["0,1", "2,3"]
    with pytest.raises(ConfigError, match="--processes 2 needs as many GPUs; visible: 1"):
        LocalLauncher(1, gpus=("3",), processes=2)
