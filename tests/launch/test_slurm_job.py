"""What a SLURM job decides by itself: its place among its processes, when to give up, and whether its inputs are there. No SLURM needed."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from ablation.launch import slurm_job
from ablation.launch.resources import Resources
from ablation.launch.slurm import PORTS, place_of_process, submitit_parameters
from ablation.launch.slurm_groups import Group
from ablation.launch.slurm_job import JobStop, PackedStop, _ended_before, _missing_input, _note_attempt, _stopped
from ablation.launch.slurm_state import SlurmError
from ablation.store import Store

FIRST_EPHEMERAL = 32768


def group(**resources: object) -> Group:
    wanted = Resources(**resources).model_dump(mode="json")
    return Group("t0", "study", "train", {"0": ("train-a",)}, False, "", {}, wanted, "/snapshot", None, 0.0)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "runs")
    for job, inputs in (("encode-a", {}), ("train-a", {"encode": "encode-a"})):
        store.prepare(job, {"kind": job.partition("-")[0], "inputs": inputs, "sources": []})
    return store


@pytest.fixture
def in_job(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The environment of process 3 of 4 on two nodes."""
    values = {
        "SUBMITIT_EXECUTOR": "slurm",
        "SLURM_JOB_ID": "77",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_NTASKS": "4",
        "SLURM_PROCID": "3",
        "SLURM_LOCALID": "1",
        "SLURM_NODEID": "1",
        "CUDA_VISIBLE_DEVICES": "5,7",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    for name in ("SLURM_RESTART_COUNT", "SLURM_ARRAY_JOB_ID", "MASTER_PORT", "RANK"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_the_place_of_a_process_is_read_and_nothing_is_exported(in_job: pytest.MonkeyPatch) -> None:
    """submitit's export() would make both jobs on a node use GPU 0, and fail where the submitter had a MASTER_PORT."""
    in_job.setenv("MASTER_PORT", "4711")
    before = dict(os.environ)
    place = place_of_process()
    assert dict(os.environ) == before
    assert (place.rank, place.size, place.local_rank, place.host) == (3, 4, 1, "n1")
    assert place.port != 4711


def test_the_meeting_port_is_one_for_all_and_never_an_ephemeral_one(in_job: pytest.MonkeyPatch) -> None:
    ports = set()
    for job in range(300):
        in_job.setenv("SLURM_JOB_ID", str(job))
        port = place_of_process().port
        in_job.setenv("SLURM_PROCID", "0")
        assert place_of_process().port == port
        in_job.setenv("SLURM_PROCID", "3")
        ports.add(port)
    assert PORTS[0] <= min(ports) <= max(ports) < PORTS[1] < FIRST_EPHEMERAL
    assert len(ports) > 280
    before = place_of_process().port
    in_job.setenv("SLURM_RESTART_COUNT", "1")
    assert place_of_process().port != before


def test_processes_of_one_training_end_together_and_packed_jobs_apart(tmp_path: Path) -> None:
    shared = submitit_parameters(group(nodes=2), tmp_path)
    assert {"--kill-on-bad-exit=1", "--wait=0"} <= set(shared["srun_args"])
    packed = submitit_parameters(group(pack=2), tmp_path)
    assert {"--kill-on-bad-exit=0", "--wait=0"} <= set(packed["srun_args"])
    assert "trap 'exit 0' EXIT" in packed["setup"]
    assert "trap 'exit 0' EXIT" not in shared["setup"]
    assert "%j" not in str(tmp_path)  # a folder with the job's id in its name is made after the job may have started


def test_restarts_are_bounded_by_our_own_count(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm_job, "_why_again", lambda *_: "node failure")
    wanted = group(max_restarts=2)
    assert _note_attempt(store, wanted, "train-a", "77", 2) == ""
    assert "restarted 3 times, more than max_restarts=2; last: node failure" in _note_attempt(store, wanted, "train-a", "77", 3)


def test_restarts_without_a_new_checkpoint_end(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm_job, "_why_again", lambda *_: "node failure")
    wanted, folder = group(max_stalled=2), store.job_folder("train-a")
    (folder / "checkpoint-000000005.safetensors").touch()
    assert [_note_attempt(store, wanted, "train-a", "77", restart) for restart in (0, 1)] == ["", ""]
    (folder / "checkpoint-000000009.safetensors").touch()
    assert [_note_attempt(store, wanted, "train-a", "77", restart) for restart in (2, 3)] == ["", ""]
    assert "restarted 2 times without a new checkpoint" in _note_attempt(store, wanted, "train-a", "77", 4)
    entries = [json.loads(line) for line in (folder / "attempts.jsonl").read_text().splitlines()]
    assert [entry["restart"] for entry in entries] == [0, 1, 2, 3, 4]
    assert entries[1]["after"] == "node failure"


def test_a_dependency_that_held_nothing_back_is_noticed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """SLURM starts a job at once that waits for an id it has forgotten: so the job looks for itself."""
    monkeypatch.setattr(slurm_job, "INPUT_PATIENCE_SECONDS", 0.0)
    assert _missing_input(store, "train-a") == "encode-a"
    store.mark_failed("encode-a", "failed", "on purpose")
    assert _missing_input(store, "train-a") == "encode-a"
    store.mark_done("encode-a", {})
    assert _missing_input(store, "train-a") == ""


def test_a_packed_job_stops_with_its_task_or_when_it_alone_is_cancelled(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm_job, "PACKED_POLL_SECONDS", -1.0)
    stop = JobStop()
    packed = PackedStop(store, "train-a", stop)
    assert not packed()
    store.mark_failed("train-a", "failed", "by itself")
    assert not packed()
    store.mark_failed("train-a", "cancelled", "`ablate cancel`")
    assert packed()
    assert stop()
    task = JobStop()
    task._handle(signal.SIGTERM, None)
    assert PackedStop(store, "encode-a", task)()


@pytest.mark.parametrize(
    ("state", "restart", "ended"), [("cancelled", 0, True), ("failed", 0, False), ("failed", 1, True), ("skipped", 1, True)]
)
def test_a_packed_job_that_ended_does_not_run_again_with_its_neighbours(store: Store, state: str, restart: int, ended: bool) -> None:
    assert not _ended_before(store, "train-a", 1)
    store.mark_failed("train-a", state, "before")
    assert _ended_before(store, "train-a", restart) is ended


@pytest.mark.parametrize(
    ("signals", "state", "known", "asked", "reason"),
    [
        ({signal.SIGUSR2}, "interrupted", "RUNNING", True, "time limit near (SIGUSR2); requeued"),
        ({signal.SIGTERM}, "interrupted", "RUNNING", True, "preempted (SIGTERM); requeued"),
        ({signal.SIGTERM}, "interrupted", "COMPLETING", False, "ended by SLURM (SIGTERM; COMPLETING)"),
        (set(), "lost", "RUNNING", True, "another process was lost (no signal); requeued"),
        ({signal.SIGTERM}, "lost", "RUNNING", True, "another process was lost (SIGTERM); requeued"),
    ],
)
def test_only_a_job_that_nobody_cancelled_asks_for_a_requeue(
    store: Store, monkeypatch: pytest.MonkeyPatch, signals: set[int], state: str, known: str, asked: bool, reason: str
) -> None:
    calls: list[tuple[str, ...]] = []
    monkeypatch.setattr(slurm_job, "command", lambda *words, **_: calls.append(words))
    monkeypatch.setattr(slurm_job, "own_state", lambda: known)
    monkeypatch.setattr(slurm_job, "END_PATIENCE_SECONDS", 0.0)
    stop = JobStop()
    stop.signals = signals
    _stopped(store, "train-a", "77", stop, state)
    assert calls == ([("scontrol", "requeue", "77")] if asked else [])
    assert slurm_job.attempts(store, "train-a")[-1]["reason"] == reason
    store.mark_failed("train-a", "cancelled", "`ablate cancel`")
    _stopped(store, "train-a", "77", stop, state)
    assert len(calls) == asked


def test_a_requeue_is_asked_for_until_the_controller_answers(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[bool] = []

    def stubborn(*words: str, seconds: float) -> None:
        answers.append(len(answers) == 2)
        if not answers[-1]:
            raise SlurmError("Unable to contact slurm controller")

    monkeypatch.setattr(slurm_job, "command", stubborn)
    monkeypatch.setattr(slurm_job, "own_state", lambda: "")
    monkeypatch.setattr(slurm_job, "END_PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(slurm_job.time, "sleep", lambda _: None)
    stop = JobStop()
    stop.signals = {signal.SIGUSR2}
    _stopped(store, "train-a", "77", stop, "interrupted")
    assert answers == [False, False, True]
    assert slurm_job.attempts(store, "train-a")[-1]["event"] == "requeued"


@pytest.mark.parametrize(
    ("known", "reason"),
    [
        ("COMPLETING", "time limit near (SIGUSR2); requeued"),  # a packed neighbour was faster
        ("RUNNING", "time limit near (SIGUSR2), and could not be requeued: Requeue is disabled"),
    ],
)
def test_a_refused_requeue_is_a_failure_only_if_nobody_else_asked(
    store: Store, monkeypatch: pytest.MonkeyPatch, known: str, reason: str
) -> None:
    def refuse(*words: str, seconds: float) -> None:
        raise SlurmError("Requeue is disabled")

    monkeypatch.setattr(slurm_job, "command", refuse)
    monkeypatch.setattr(slurm_job, "own_state", lambda: known)
    for name in ("END_PATIENCE_SECONDS", "ANSWER_PATIENCE_SECONDS"):
        monkeypatch.setattr(slurm_job, name, 0.0)
    stop = JobStop()
    stop.signals = {signal.SIGUSR2}
    _stopped(store, "train-a", "77", stop, "interrupted")
    assert slurm_job.attempts(store, "train-a")[-1]["reason"] == reason
