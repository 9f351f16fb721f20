"""A study that is killed, interrupted or run twice at once ends in the numbers of one that was left alone, bit for bit."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import SINGLE_LEVEL, Recorder, assert_equal_jobs, attempts, finish, never, set_options, start, starts, worker

from ablation.errors import EXIT_INTERRUPTED
from ablation.launch.inline import InlineLauncher
from ablation.launch.worker import main as worker_main
from ablation.store import Store
from ablation.study import Request, Study, prepare, write_specs

pytestmark = pytest.mark.usefixtures("one_thread")
STEPS = 30
SETTINGS = {"data.image_size": 16, "tokenizer.block_channels": (8, 16), "tokenizer.steps": STEPS, "train.steps": STEPS, **SINGLE_LEVEL}
ADVERSARIAL = "drop_perceptual_loss"


@pytest.fixture(scope="module")
def plan_study(tiny_settings: dict, warm: Callable[[Path], Path]) -> Callable[..., Study]:
    """Plan the cell with an adversarial tokenizer in a run folder."""

    def plan(runs: Path) -> Study:
        settings = {**tiny_settings, **SETTINGS}
        study = prepare(Request(only=(ADVERSARIAL,), scale="smoke", settings=settings, runs=warm(runs), with_controls=False))
        write_specs(study)
        return study

    return plan


@pytest.fixture(scope="module")
def options(tiny_settings: dict) -> list[str]:
    """The same study as options of a command."""
    return ["--only", ADVERSARIAL, "--scale", "smoke", "--no-controls", *set_options({**tiny_settings, **SETTINGS})]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="module")
def undisturbed(plan_study, folder, one_thread) -> Study:
    """The study, run once without any disturbance."""
    study: Study = plan_study(folder / "undisturbed")
    complete(study)
    return study


def reached(store: Store, job: str) -> int:
    """Return the step of a job's newest checkpoint."""
    return max((int(path.stem.rpartition("-")[2]) for path in store.job_folder(job).glob("checkpoint-*.safetensors")), default=0)


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    """Poll until something is so."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.001)


def kill_in_the_middle(store: Store, job: str, step: int) -> None:
    """Start a worker that saves at every step, and kill it when it has passed the given one."""
    process = start(worker(store.root, job))
    wait_for(lambda: reached(store, job) >= step or process.poll() is not None)
    process.kill()
    answer = finish(process)
    assert (answer.code, answer.err) == (-signal.SIGKILL, "")
    assert step <= reached(store, job) < STEPS, f"killed at {reached(store, job)}, asked for {step}"
    assert store.state(job).name == "interrupted"


def interrupt(store: Store, job: str, number: int, step: int) -> None:
    """Run a worker's main in this process and send it a real signal when the job has passed a step."""

    def watch() -> None:
        wait_for(lambda: reached(store, job) >= step)
        os.kill(os.getpid(), number)

    handlers = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)}
    thread = threading.Thread(target=watch)
    thread.start()
    try:
        code = worker_main(worker(store.root, job)[1:])
    finally:
        thread.join()
        for each, handler in handlers.items():
            signal.signal(each, handler)
    assert code == EXIT_INTERRUPTED
    assert store.state(job).name == "interrupted"
    assert step <= reached(store, job) < STEPS
    assert attempts(store, job)[-1]["event"] == "interrupted"


def complete(study: Study) -> None:
    outcome = InlineLauncher(1).run(study.plan, study.store, Recorder(), never)
    assert set(outcome.states.values()) == {"done"}


def test_a_command_killed_in_an_adversarial_tokenizer_and_later_interrupted_ends_the_same(folder, options, warm, ablate, undisturbed):
    """Killed after the discriminator has joined, with its own optimizer state; finished jobs are never run again."""
    runs = warm(folder / "command")
    store = Store(runs)
    command = ["run", *options, "--launcher", "inline", "--no-report", "--threads", "1", "--checkpoint-seconds", "0", "--runs", str(runs)]
    roles = undisturbed.plan.roles[f"{ADVERSARIAL}-s0"]

    process, step = start(["ablation", *command]), random.randrange(STEPS // 2 + 1, STEPS - 8)
    wait_for(lambda: reached(store, roles["tokenizer"]) >= step or process.poll() is not None)
    process.kill()
    assert finish(process).code == -signal.SIGKILL
    assert step <= reached(store, roles["tokenizer"]) < STEPS, f"killed at {reached(store, roles['tokenizer'])}, asked for {step}"

    def interrupt_training() -> None:
        wait_for(lambda: reached(store, roles["train"]) > 4)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt_training)
    thread.start()
    answer = ablate(*command)
    thread.join()
    assert (answer.code, answer.err) == (130, "")
    assert "interrupted: finished jobs are kept; the same command goes on from here" in answer.out
    (cell,) = json.loads(ablate("status", "--runs", runs, "--json").out)["cells"]
    assert cell["state"] == "interrupted"
    plan = {job["id"]: job["action"] for job in json.loads(ablate("plan", *options, "--json", "--runs", runs).out)["jobs"]}
    assert [plan[roles[role]] for role in ("tokenizer", "encode", "train", "probe")] == ["reuse", "reuse", "resume", "new"]

    answer = ablate(*command)
    assert (answer.code, answer.err) == (0, "")
    assert [starts(store, roles[role]) for role in ("tokenizer", "encode", "train", "probe")] == [2, 1, 2, 1]
    assert "resuming at step" in (store.job_folder(roles["tokenizer"]) / "job.log").read_text()
    assert_equal_jobs(store, undisturbed.store, list(undisturbed.plan.jobs))


def test_a_denoiser_killed_stopped_by_every_signal_and_robbed_of_a_checkpoint_ends_the_same(plan_study, folder, undisturbed):
    study = plan_study(folder / "denoiser")
    store, roles = study.store, study.plan.roles[f"{ADVERSARIAL}-s0"]
    assert worker_main(worker(store.root, roles["tokenizer"], roles["encode"])[1:]) == 0
    job = roles["train"]
    kill_in_the_middle(store, job, random.randrange(3, 8))
    for number, step in ((signal.SIGTERM, 14), (signal.SIGUSR2, 18), (signal.SIGINT, 22)):
        interrupt(store, job, number, step)
    newest = max(store.job_folder(job).glob("checkpoint-*"))
    newest.write_bytes(newest.read_bytes()[:-1000])
    complete(study)
    assert starts(store, job) == 5
    assert f"checkpoint {newest.name} cannot be used" in (store.job_folder(job) / "job.log").read_text()
    assert_equal_jobs(store, undisturbed.store, list(study.plan.jobs))


def test_without_a_readable_checkpoint_the_job_fails_in_one_line_and_leaves_the_files_alone(plan_study, folder):
    study = plan_study(folder / "unreadable")
    store, job = study.store, study.plan.roles[f"{ADVERSARIAL}-s0"]["tokenizer"]
    files = [store.job_folder(job) / f"checkpoint-{step:09d}.safetensors" for step in (3, 4)]
    for path in files:
        path.write_bytes(b"not a checkpoint")
    assert worker_main(worker(store.root, job)[1:]) == 1
    state = store.state(job)
    assert state.name == "failed"
    assert state.reason.startswith("no checkpoint in ")
    assert "Remove the checkpoint files there to start this training over, then run the same command again." in state.reason
    assert all(path.read_bytes() == b"not a checkpoint" for path in files)


def test_two_commands_of_the_same_study_share_the_work(folder, tiny_settings, warm):
    """Started together, each with a worker of its own: no job runs twice, and both succeed."""
    runs = warm(folder / "twice")
    settings = {**tiny_settings, **SINGLE_LEVEL, "data.image_size": 16}
    command = ["ablation", "run", "--only", "patch_ae", "--seeds", "0,1", "--scale", "smoke", "--no-controls", "--no-report"]
    command += ["--parallel", "1", "--threads", "1", "--runs", str(runs), *set_options(settings)]
    answers = [finish(process) for process in [start(command), start(command)]]
    assert [(answer.code, answer.err) for answer in answers] == [(0, "")] * 2
    store = Store(runs)
    assert len(store.jobs()) == 8
    assert {store.state(job).name for job in store.jobs()} == {"done"}
    assert all(starts(store, job) == 1 for job in store.jobs())
