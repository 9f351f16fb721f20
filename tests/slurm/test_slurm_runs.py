"""Whole studies on a real SLURM: the same numbers as in one process, whatever is done to the jobs, the nodes or the code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import ROOT, assert_equal_jobs, attempts, run, set_options, starts
from slurm_cluster import (
    BREAKS,
    EVERY_STEP,
    ONE_CPU,
    Cluster,
    assert_undisturbed,
    cell_command,
    job_of,
    process_of,
    status,
    submit_cell,
    task_of,
    wait_for_training,
)

from ablation.store import Store

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1200)]


def test_study_through_stages_equals_the_inline_launcher(cluster: Cluster, tmp_path: Path, tiny_settings: dict) -> None:
    tiny = {path: list(value) if isinstance(value, tuple) else value for path, value in tiny_settings.items()}
    command = [
        "ablation",
        "run",
        "--through",
        "drop_class_conditioning",
        "--scale",
        "smoke",
        "--no-controls",
        "--name",
        "two",
        *set_options(tiny),
    ]
    inline = subprocess.Popen(
        [sys.executable, "-m", *command, "--runs", str(tmp_path / "inline"), "--launcher", "inline", "--threads", "1", "--no-report"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        cwd=ROOT,
    )
    began = time.monotonic()
    answer = run([*command, "--runs", str(tmp_path / "slurm"), "--launcher", "slurm", *ONE_CPU])
    assert answer.code == 0, answer.err
    assert time.monotonic() - began < 60  # about two seconds where nothing else runs
    assert len(cluster.live()) >= 9  # the graph is in the queue, and the command is gone
    cluster.idle(900)
    assert inline.wait(timeout=900) == 0
    store = Store(tmp_path / "slurm")
    assert_equal_jobs(store, Store(tmp_path / "inline"), Store(tmp_path / "inline").jobs())
    assert all(starts(store, job) == 1 for job in store.jobs())
    assert [cell["state"] for cell in status(store.root)] == ["done", "done"]
    assert (store.root / "reports" / "two" / "index.html").is_file()
    again = run([*command, "--runs", str(store.root), "--launcher", "slurm", *ONE_CPU])
    assert "0 jobs submitted" in again.out


def test_failed_tokenizer_skips_its_children_at_once(cluster: Cluster, tmp_path: Path) -> None:
    stage = tmp_path / "breaks.py"
    stage.write_text(BREAKS)
    runs = tmp_path / "runs"
    command = [*cell_command(runs, "--stages", str(stage)), "--launcher", "slurm", *ONE_CPU]
    command[command.index("patch_pca")] = "breaks"
    answer = run([*command, "--wait"])
    assert answer.code == 1, answer.err
    assert not [task for task, (state, _) in cluster.live().items() if state == "PENDING"]
    (cell,) = status(runs)
    assert cell["jobs"] == {"tokenizer": "failed", "encode": "skipped", "train": "skipped", "probe": "skipped"}
    store = Store(runs)
    assert "broken on purpose" in store.state(job_of(runs, "tokenizer")).reason
    assert "parent" in store.state(job_of(runs, "probe")).reason
    assert (runs / "reports" / "cell" / "results.jsonl").is_file()


def test_usr2_requeue_from_outside_and_preemption_go_on_bit_for_bit(cluster: Cluster, half_done: Path, finished_cell: Path) -> None:
    """One training, stopped three times: told that its time is nearly over, requeued by somebody, and driven out of its partition."""
    store = Store(half_done)
    assert submit_cell(half_done, *EVERY_STEP, "--partition", "low", "--resource", "sbatch={nodelist: n1}").code == 0
    train = wait_for_training(cluster, half_done)
    log = store.job_folder(train) / "job.log"
    cluster.ask("scancel", "--signal=USR2", task_of(half_done, train))
    cluster.until("it to go on", lambda: log.read_text().count("resuming at step") == 1)
    cluster.ask("scontrol", "requeue", task_of(half_done, train))
    cluster.until("it to go on again", lambda: log.read_text().count("resuming at step") == 2)
    cluster.ask("sbatch", "--partition=main", "--nodelist=n1", "--exclusive", "--output=/dev/null", "--wrap=sleep 3")
    cluster.idle()
    assert_undisturbed(half_done, finished_cell)
    events = attempts(store, train)
    assert [entry["event"] for entry in events if entry["event"] != "slurm"][:4] == ["started", "interrupted", "requeued", "started"]
    reasons = [entry["reason"] for entry in events if entry["event"] == "requeued"]
    assert "SIGUSR2" in reasons[0]
    assert "preempted (SIGTERM)" in reasons[-1]
    assert [entry["restart"] for entry in events if entry["event"] == "slurm"] == list(range(starts(store, train)))
    assert starts(store, train) == 4
    assert events[-1]["event"] == "done"


def test_node_that_loses_power_in_mid_training_costs_only_time(cluster: Cluster, half_done: Path, finished_cell: Path) -> None:
    assert submit_cell(half_done, *EVERY_STEP).code == 0
    train = wait_for_training(cluster, half_done)
    (node,) = cluster.ask("squeue", "-h", "--format=%N", f"--jobs={task_of(half_done, train)}").split()
    cluster.stop(node)
    cluster.until("the requeue", lambda: starts(Store(half_done), train) == 2, 200)
    cluster.idle()
    assert_undisturbed(half_done, finished_cell)
    again = [entry for entry in attempts(Store(half_done), train) if entry["event"] == "slurm" and entry["restart"] == 1]
    assert again
    assert again[0]["after"]


def test_scancel_by_hand_is_not_requeued_and_retry_goes_on(cluster: Cluster, half_done: Path, finished_cell: Path) -> None:
    assert submit_cell(half_done, *EVERY_STEP).code == 0
    train = wait_for_training(cluster, half_done)
    cluster.ask("scancel", task_of(half_done, train))
    cluster.idle()
    (cell,) = status(half_done, "cell")
    assert cell["jobs"]["train"] == "cancelled"
    assert cell["jobs"]["probe"] == "skipped"
    answer = run(["ablation", "retry", "--runs", str(half_done), "--study", "cell"])
    assert "2 jobs submitted" in answer.out, answer
    cluster.idle()
    assert_undisturbed(half_done, finished_cell)


@pytest.mark.slow
def test_killed_process_fails_its_job_and_leaves_nothing_pending(cluster: Cluster, half_done: Path) -> None:
    assert submit_cell(half_done, *EVERY_STEP).code == 0
    train = wait_for_training(cluster, half_done)
    os.kill(process_of(task_of(half_done, train)), signal.SIGKILL)  # what running out of memory looks like
    cluster.idle()
    (cell,) = status(half_done, "cell")
    assert cell["jobs"]["train"] == "failed"
    assert cell["jobs"]["probe"] == "skipped"
    assert "SLURM: FAILED" in Store(half_done).state(train).reason  # settled by the report job
    assert '"failed"' in (half_done / "reports" / "cell" / "results.jsonl").read_text()
    assert (half_done / "reports" / "cell" / "results.jsonl").is_file()
