"""The run folder: atomic files, job states, locks and studies."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import environment

import ablation.store as module
from ablation.errors import ArtifactError, ConfigError
from ablation.store import Store, atomic_path, read_json, write_json

JOB = "train-0123456789abcdef"


@pytest.fixture
def store(runs: Path) -> Store:
    return Store(runs)


def put(store: Store, name: str, content: str = "x", job: str = JOB) -> Path:
    path = store.job_folder(job) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def done(store: Store, job: str = JOB) -> None:
    put(store, "weights.safetensors", "weights", job)
    store.mark_done(job, {"metrics": {}})


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a" / "value.json"
    write_json(path, 1)
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert read_json(path) == 1
    assert [entry.name for entry in path.parent.iterdir()] == ["value.json"]


def test_others_may_read_what_the_umask_lets_them(tmp_path):
    old = os.umask(0o022)
    try:
        write_json(tmp_path / "value.json", 1)
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "value.json").stat().st_mode) == 0o644


def test_a_place_that_cannot_be_written_is_named_with_the_fix(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match=r"cannot write .*file/below/value\.json: .*--runs"):
        write_json(tmp_path / "file" / "below" / "value.json", 1)


@pytest.mark.parametrize("content", ["{", "\x00", ""])
def test_an_unreadable_file_is_named(tmp_path, content):
    (tmp_path / "value.json").write_text(content)
    with pytest.raises(ArtifactError, match=r"value\.json is unreadable"):
        read_json(tmp_path / "value.json")


# --- states -----------------------------------------------------------------------------------------------------------


def test_a_job_goes_through_its_states(store):
    assert store.state(JOB).name == "new"
    with store.lock(JOB) as mine:
        assert mine
        assert store.state(JOB).name == "running"
    assert store.state(JOB).name == "new"
    put(store, "checkpoint-000000003.safetensors")
    assert store.state(JOB).name == "interrupted"
    store.mark_failed(JOB, "diverged", "loss became nan")
    assert (store.state(JOB).name, store.state(JOB).reason) == ("diverged", "loss became nan")
    done(store)
    assert store.state(JOB).name == "done"
    assert store.state(JOB).when
    assert not store.has_checkpoint(JOB)
    assert not (store.job_folder(JOB) / "FAILED.json").exists()


def test_the_lock_of_a_dead_process_means_interrupted(store):
    put(store, "lock.json", json.dumps({"host": socket.gethostname(), "pid": dead_pid(), "token": "t"}))
    assert store.holder(JOB) is None
    assert store.state(JOB).name == "interrupted"


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"artifacts": 3}', ""])
def test_a_corrupt_record_means_that_the_job_runs_again(store, content):
    done(store)
    put(store, "DONE.json", content)
    state = store.state(JOB)
    assert state.name == "new"
    assert "DONE.json is unreadable" in state.reason


def test_a_missing_or_short_artifact_means_that_the_job_runs_again(store):
    done(store)
    put(store, "weights.safetensors", "weigh")
    assert "weights.safetensors is missing or cut short" in store.state(JOB).reason
    (store.job_folder(JOB) / "weights.safetensors").unlink()
    assert store.state(JOB).name == "new"


def test_a_corrupt_failure_is_still_a_failure(store):
    put(store, "FAILED.json", "{")
    assert store.state(JOB).name == "failed"


def test_a_new_attempt_forgets_what_a_killed_one_left(store):
    put(store, "FAILED.json", '{"state": "failed", "reason": "r"}')
    kept = [put(store, name).name for name in ("checkpoint-000000003.safetensors", ".spec.json.7-7.tmp", "spec.json")]
    put(store, ".checkpoint-000000004.safetensors.7-7.tmp")
    store.clear_failure(JOB)
    assert sorted(path.name for path in store.job_folder(JOB).iterdir()) == sorted(kept)


def test_an_unchanged_specification_is_not_written_again(store):
    store.prepare(JOB, {"a": (1, 2)})
    before = (store.job_folder(JOB) / "spec.json").stat().st_ino
    store.prepare(JOB, {"a": (1, 2)})
    assert (store.job_folder(JOB) / "spec.json").stat().st_ino == before
    store.prepare(JOB, {"a": (1, 3)})
    assert store.spec(JOB) == {"a": [1, 3]}


def test_a_missing_artifact_says_how_to_make_it(store):
    with pytest.raises(ArtifactError, match=r"denoiser\.safetensors is missing\. Run the same command again"):
        store.artifact(JOB, "denoiser.safetensors")


# --- locks ------------------------------------------------------------------------------------------------------------


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_only_one_holds_a_lock(store):
    with store.lock(JOB) as first:
        with Store(store.root).lock(JOB) as second:
            assert (first, second) == (True, False)
        assert str(os.getpid()) in str(store.holder(JOB))
    assert store.holder(JOB) is None


@pytest.mark.parametrize(
    ("content", "age", "free"),
    [
        ({"host": "elsewhere", "pid": 1, "token": "t"}, 0, False),
        ({"host": "elsewhere", "pid": 1, "token": "t"}, 1000, True),
        (None, 0, False),
        (None, 1000, True),
    ],
)
def test_a_lock_is_taken_over_when_its_holder_is_gone(store, content, age, free):
    """None: a lock file that its maker has not written yet."""
    path = put(store, "lock.json", "" if content is None else json.dumps(content))
    os.utime(path, (time.time() - age,) * 2)
    with store.lock(JOB) as mine:
        assert mine is free


def test_a_lock_taken_over_by_another_is_left_to_it(store):
    other = json.dumps({"host": "elsewhere", "pid": 1, "token": "other"})
    with store.lock(JOB):
        path = put(store, "lock.json", other)  # as after a suspended laptop
    assert path.read_text() == other


def test_a_holder_touches_its_lock(store, monkeypatch):
    monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 0.02)
    with store.lock(JOB):
        path = store.job_folder(JOB) / "lock.json"
        os.utime(path, (0, 0))
        deadline = time.monotonic() + 10
        while path.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert path.stat().st_mtime > 0


CONTENDER = """
import os, sys, time
from pathlib import Path
from ablation.store import Store
store, end = Store(Path(sys.argv[1])), time.monotonic() + 60
while time.monotonic() < end:
    with store.lock("job") as mine:
        if mine:
            path = store.root / "count"
            count = int(path.read_text())
            time.sleep(0.003)
            path.write_text(str(count + 1))
            os._exit(0)
"""


def test_many_processes_hold_an_abandoned_lock_one_at_a_time(store):
    """Each of them dies with the lock in its hand, and all others see it stale; two that both took it over would lose a count."""
    put(store, "lock.json", json.dumps({"host": socket.gethostname(), "pid": dead_pid(), "token": "t"}), "job")
    (store.root / "count").write_text("0")
    processes = [subprocess.Popen([sys.executable, "-c", CONTENDER, str(store.root)], env=environment()) for _ in range(8)]
    assert [process.wait(timeout=60) for process in processes] == [0] * 8
    assert (store.root / "count").read_text() == "8"


# --- memo and studies -------------------------------------------------------------------------------------------------


def test_a_memo_is_computed_once(store):
    assert store.memo("m", lambda: 1.5) == 1.5
    assert store.memo("m", lambda: 2.5) == 1.5
    (store.root / "memo" / "m.json").write_text("{")
    assert store.memo("m", lambda: 2.5) == 2.5


def study(name: str, jobs: dict[str, str]) -> dict:
    return {"name": name, "cells": [{"id": cell, "jobs": {"train": job}} for cell, job in jobs.items()]}


def test_a_study_keeps_the_cells_of_earlier_commands(store):
    store.write_study(study("s", {"a": "train-1", "b": "train-2"}))
    store.write_study(study("s", {"b": "train-3"}))
    assert [(cell["id"], cell["jobs"]["train"]) for cell in store.study("s")["cells"]] == [("b", "train-3"), ("a", "train-1")]


def test_the_last_study_is_the_default(store):
    store.write_study(study("first", {}))
    store.write_study(study("second", {}))
    os.utime(store.root / "studies" / "first.json", (0, 0))
    assert store.study()["name"] == "second"
    with pytest.raises(ConfigError, match="unknown study 'secnd'.*second"):
        store.study("secnd")


def test_no_study_yet(store):
    with pytest.raises(ConfigError, match="holds no study yet"):
        store.study()


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"cells": []}'])
def test_a_corrupt_study_is_named_and_nothing_is_written_over(store, content):
    store.write_study(study("s", {"a": "train-1"}))
    path = store.root / "studies" / "s.json"
    path.write_text(content)
    for use in (store.study, store.referred_jobs, lambda: store.write_study(study("s", {}))):
        with pytest.raises(ArtifactError, match=r"s\.json is"):
            use()
    assert path.read_text() == content
    assert store.previous_jobs() == {}


def test_jobs_of_every_study_are_referred_to(store):
    """Two studies may have a cell of the same name, on other data."""
    store.write_study(study("scenes", {"baseline-s0": "train-1"}))
    store.write_study(study("folder", {"baseline-s0": "train-2"}))
    assert store.referred_jobs() == {"train-1", "train-2"}
    assert set(store.previous_jobs().values()) == {"train-2"}


def test_delete_stays_inside_the_run_folder(store, tmp_path):
    put(store, "a")
    outside = tmp_path / "outside"
    outside.mkdir()
    (store.root / "link").symlink_to(outside)
    for path in (outside, store.root, store.root.parent, store.root / ".." / "outside", store.root / "link"):
        with pytest.raises(ConfigError, match="is not inside"):
            store.delete(path)
    store.delete(store.job_folder(JOB))
    assert store.jobs() == []
    assert outside.is_dir()
