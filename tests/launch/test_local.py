"""Jobs in worker processes: order, bounds, equality with the inline launcher, and workers that die or are stopped."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from commands import Recorder, assert_equal_jobs, attempts, descendants, never, starts

from ablation.launch.inline import InlineLauncher
from ablation.launch.local import LocalLauncher
from ablation.study import Study

pytestmark = pytest.mark.usefixtures("one_thread")
STAGES = ("patch_ae", "patch_vae", "patch_pca")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("local")


@pytest.fixture(scope="module")
def settings() -> dict:
    """Tokenizers that take long enough to be hit in the middle."""
    return {"tokenizer.steps": 30}


@pytest.fixture
def inline(make_study, folder, settings) -> Study:
    """The small study, run by the inline launcher with one thread, once."""
    study = make_study(folder / "inline", settings, only=STAGES)
    assert set(InlineLauncher(1).run(study.plan, study.store, Recorder(), never).states.values()) == {"done"}
    return study


def when_started(study: Study, job: str, number: int) -> threading.Thread:
    """Send a signal to the worker of a job as soon as the job has begun its steps."""

    def watch() -> None:
        curve = study.store.job_folder(job) / "curve.jsonl"
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if curve.exists() and (entries := attempts(study.store, job)):
                os.kill(entries[-1]["pid"], number)
                return
            time.sleep(0.001)

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def test_workers_keep_the_order_and_one_that_dies_takes_only_its_job_with_it(make_study, folder, settings, inline):
    """One worker is killed in a tokenizer, another asked to stop in another one; the rest finishes; a rerun completes.

    In the end all numbers are the inline launcher's, bit for bit, also of the jobs that were hit.
    """
    study, watcher = make_study(folder / "local", settings, only=STAGES), Recorder()
    plan, store = study.plan, study.store
    killed, stopped = (plan.roles[f"{stage}-s0"]["tokenizer"] for stage in ("patch_ae", "patch_vae"))
    threads = [when_started(study, killed, signal.SIGKILL), when_started(study, stopped, signal.SIGTERM)]
    outcome = LocalLauncher(parallel=2, threads=1, checkpoint_seconds=0).run(plan, store, watcher, never)
    for thread in threads:
        thread.join()
    assert outcome.interrupted
    assert set(outcome.failed) == {killed} | descendants(plan, killed)
    assert store.state(killed).reason.startswith("its worker process was killed by signal 9. Run the same command again")
    assert {store.state(job).name for job in descendants(plan, killed)} == {"skipped"}
    assert store.state(stopped).name == "interrupted"
    assert {store.state(job).name for job in descendants(plan, stopped)} == {"new"}
    rest = set(plan.jobs) - {killed, stopped} - descendants(plan, killed) - descendants(plan, stopped)
    assert len(rest) == 4
    assert {*watcher.of("done")} == rest

    events = {job: attempts(store, job) for job in rest}
    assert all([entry["event"] for entry in entries] == ["started", "done"] for entries in events.values())
    for job in rest:
        for parent in plan.jobs[job].inputs.values():
            assert events[parent][1]["time"] <= events[job][0]["time"]
    spans = [(entries[0]["time"], entries[1]["time"]) for entries in events.values()]
    assert max(sum(begin <= at < end for begin, end in spans) for at, _ in spans) <= 2
    pids = {entry["pid"] for job in plan.jobs for entry in attempts(store, job)}
    assert os.getpid() not in pids
    assert len(pids) == 3  # the two that were hit, and one that took over; it was kept from job to job

    again = InlineLauncher(1).run(plan, store, Recorder(), never)
    assert set(again.states.values()) == {"done"}
    assert all(starts(store, job) == 1 for job in rest)
    assert_equal_jobs(store, inline.store, list(plan.jobs))


def test_a_stop_of_the_launcher_stops_its_workers(make_study, folder, settings):
    """Its workers save and end; none of them outlives it."""
    study, watcher = make_study(folder / "stopped", {**settings, "tokenizer.steps": 3000}, only=("patch_ae",)), Recorder()
    job = study.plan.roles["patch_ae-s0"]["tokenizer"]
    curve = study.store.job_folder(job) / "curve.jsonl"
    launcher = LocalLauncher(parallel=2, threads=1)
    outcome = launcher.run(study.plan, study.store, watcher, lambda: curve.exists() and curve.stat().st_size > 0)
    assert outcome.interrupted
    assert outcome.states == {job: "interrupted"}
    assert study.store.state(job).name == "interrupted"
    assert study.store.has_checkpoint(job)
    assert all(worker.process is None or worker.process.poll() is not None for worker in launcher.workers)


def test_what_is_done_starts_no_worker(inline):
    launcher = LocalLauncher(parallel=2, threads=1)
    outcome = launcher.run(inline.plan, inline.store, Recorder(), never)
    assert set(outcome.states.values()) == {"done"}
    assert all(worker.process is None for worker in launcher.workers)


@pytest.mark.parametrize(("parallel", "gpus", "names"), [(3, (), [None] * 3), (4, ("0", "2"), ["0", "2"]), (1, ("0", "1"), ["0"])])
def test_with_gpus_every_worker_has_one_of_its_own(parallel, gpus, names):
    launcher = LocalLauncher(parallel, gpus=gpus)
    assert [worker.gpu for worker in launcher.workers] == names
    assert launcher.threads == max(1, len(os.sched_getaffinity(0)) // len(names))
