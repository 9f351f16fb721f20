"""One job in a worker: what it records however it ends, and what a job prints."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from commands import ROOT, Answer, attempts, environment, never, worker

from ablation.launch.worker import CHECKPOINT_SECONDS, StopFlag, file_progress, run_job
from ablation.store import Store

pytestmark = pytest.mark.usefixtures("one_thread")


def execute(store: Store, job: str, should_stop=never) -> str:
    return run_job(store, job, lambda *_: None, should_stop)


def test_a_job_records_what_it_did(make_study, runs):
    study = make_study(runs, only=("patch_pca",))
    job = next(iter(study.plan.jobs))
    assert execute(study.store, job) == "done"
    done = study.store.done(job)
    assert done["metrics"]["tokenizer_psnr"] > 10
    assert done["cost"].keys() == {"wall_seconds", "cpu_seconds", "peak_memory_gib", "device"}
    assert done["code"].keys() == {"commit", "dirty"}
    assert {"python", "torch", "numpy"} <= done["versions"].keys()
    assert done["artifacts"].keys() == {"tokenizer.safetensors"}
    events = attempts(study.store, job)
    assert [event["event"] for event in events] == ["started", "done"]
    assert events[0]["pid"] == os.getpid()
    assert execute(study.store, job) == "done"
    assert len(attempts(study.store, job)) == 2
    assert not (study.store.job_folder(job) / "lock.json").exists()


def test_a_held_job_is_left_to_its_holder(make_study, runs):
    study = make_study(runs)
    job = next(iter(study.plan.jobs))
    with Store(runs).lock(job):
        assert execute(study.store, job) == "running"
    assert attempts(study.store, job) == []


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_without_a_readable_specification_a_job_fails_in_one_line(make_study, runs, content):
    study = make_study(runs)
    job = next(iter(study.plan.jobs))
    path = study.store.job_folder(job) / "spec.json"
    path.unlink() if content is None else path.write_text(content)
    assert execute(study.store, job) == "failed"
    state = study.store.state(job)
    assert state.name == "failed"
    assert "specification" in state.reason
    assert len(state.reason.splitlines()) == 1


def test_an_input_that_is_missing_or_damaged_is_named(make_study, runs):
    study = make_study(runs, only=("patch_pca",))
    tokenizer, encode = list(study.plan.jobs)[:2]
    assert execute(study.store, encode) == "failed"
    assert "tokenizer.safetensors is missing. Run the same command again" in study.store.state(encode).reason
    assert execute(study.store, tokenizer) == "done"
    path = study.store.job_folder(tokenizer) / "tokenizer.safetensors"
    path.write_bytes(path.read_bytes()[:200])
    assert execute(study.store, encode) == "failed"
    assert "tokenizer.safetensors is unreadable" in study.store.state(encode).reason


def test_a_part_that_changed_since_the_plan_is_refused(make_study, plugin, runs):
    stage = plugin("pass")
    study = make_study(runs, only=("own",), stages=(str(stage),))
    part = stage.parent / "_own.py"
    part.write_text(part.read_text() + "# a remark\n")
    job = study.plan.roles["own-s0"]["tokenizer"]
    assert execute(study.store, job) == "failed"
    assert str(part) in study.store.state(job).reason
    assert "changed since the job was planned" in study.store.state(job).reason


@pytest.mark.parametrize(
    ("statement", "reason"),
    [("raise MemoryError", "out of memory"), ("raise SystemExit(3)", "SystemExit: 3"), ("raise OSError(28, 'No space left')", "OSError")],
)
def test_whatever_a_job_raises_is_its_own_failure(make_study, plugin, runs, statement, reason):
    study = make_study(runs, only=("own",), stages=(str(plugin(statement)),))
    job = study.plan.roles["own-s0"]["tokenizer"]
    assert execute(study.store, job) == "failed"
    assert reason in study.store.state(job).reason
    assert attempts(study.store, job)[-1]["event"] == "failed"


def test_ctrl_c_in_a_job_is_an_interruption(make_study, plugin, runs):
    study = make_study(runs, only=("own",), stages=(str(plugin("raise KeyboardInterrupt")),))
    job = study.plan.roles["own-s0"]["tokenizer"]
    with pytest.raises(KeyboardInterrupt):
        execute(study.store, job)
    assert attempts(study.store, job)[-1]["event"] == "interrupted"
    assert not (study.store.job_folder(job) / "FAILED.json").exists()
    assert study.store.holder(job) is None


def test_a_job_folder_that_cannot_be_written_is_a_failure_without_a_traceback(make_study, runs, capsys):
    study = make_study(runs)
    for job, name in zip(study.plan.jobs, ("lock.json", "attempts.jsonl", "job.log"), strict=False):
        (study.store.job_folder(job) / name).mkdir()
        assert execute(study.store, job) == "failed"
        printed, state = capsys.readouterr().err, study.store.state(job)
        assert f"cannot write {study.store.job_folder(job) / name}: Is a directory" in (printed or state.reason)
        assert len(printed.splitlines()) <= 1


def test_progress_is_written_for_others_to_read(make_study, runs):
    study = make_study(runs)
    job = next(iter(study.plan.jobs))
    report = file_progress(study.store, job)
    for done in range(1, 101):
        report(done, 100, "note")
    assert json.loads((study.store.job_folder(job) / "progress.json").read_text()) == {"done": 100, "total": 100, "note": "note"}


def test_the_first_stop_is_noted_and_a_second_interrupt_does_not_wait():
    stop = StopFlag()
    assert not stop()
    stop._handle(2, None)
    assert stop()
    with pytest.raises(KeyboardInterrupt):
        stop._handle(2, None)
    stop._handle(15, None)


def test_the_checkpoint_interval_is_in_no_specification(make_study, runs):
    study = make_study(runs)
    assert all("checkpoint_seconds" not in json.dumps(study.store.spec(job)) for job in study.plan.jobs)
    assert CHECKPOINT_SECONDS == 60


def test_what_a_job_prints_goes_to_its_log_and_never_into_the_answers(make_study, plugin, runs):
    """Two plugin tokenizers that print on every channel, one worker that serves both, then jobs that cannot run."""
    chatter = "print('chatter done'); print('complaint', file=sys.stderr); os.write(1, b'raw\\n'); os.system('echo from a child')"
    study = make_study(runs, only=("own",), stages=(str(plugin(chatter)),), seeds=(0, 1))
    jobs = [study.plan.roles[f"own-s{seed}"]["tokenizer"] for seed in (0, 1)]
    served = subprocess.run(
        [sys.executable, "-m", *worker(runs), "--serve"],
        input="".join(f"{job}\n" for job in [*jobs, "train-nothing"]),
        capture_output=True,
        text=True,
        timeout=120,
        env=environment(),
        cwd=ROOT,
    )
    answer = Answer(served.returncode, served.stdout, served.stderr)
    assert answer.out == f"{jobs[0]} done\n{jobs[1]} done\ntrain-nothing failed\n"
    assert (answer.code, answer.err) == (1, "")
    for job in jobs:
        log = (study.store.job_folder(job) / "job.log").read_text()
        assert all(log.count(text) == 1 for text in ("chatter done\n", "complaint\n", "raw\n", "from a child\n"))
