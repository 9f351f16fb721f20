"""Parts of SLURM, or of us, that die under a running study: nothing is lost, nothing comes twice, and status tells the truth."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import ROOT, assert_equal_jobs, attempts, environment, run, set_options, start, starts
from slurm_cluster import (
    CELL,
    EVERY_STEP,
    ONE_CPU,
    Cluster,
    assert_undisturbed,
    cell_command,
    job_of,
    status,
    submit_cell,
    task_of,
    wait_for_training,
)

from ablation.store import Store

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1200)]


def test_command_killed_between_two_submissions_and_code_edited_after_it(cluster: Cluster, tmp_path: Path, finished_cell: Path) -> None:
    """Killed by SIGKILL once two of five calls are made; the same command again submits what is missing, and what is pinned runs."""
    checkout, runs = tmp_path / "checkout", tmp_path / "runs"
    for name in ("ablation", "stages", "reports"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", *cell_command(runs), "--launcher", "slurm", *ONE_CPU, "--resource", "tokenizer.sbatch={hold: true}"]
    own = {**os.environ, "PYTHONPATH": str(checkout)}
    process = subprocess.Popen(command, env=own, cwd=checkout, stdout=subprocess.DEVNULL)
    while len(list(runs.glob("slurm/cell/*/submitted.json"))) < 2:
        assert process.poll() is None, "the command ended before it could be killed"
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert 2 <= len(cluster.live()) < 5
    subprocess.run(command, env=own, cwd=checkout, check=True, stdout=subprocess.DEVNULL)
    assert len(cluster.live()) == 5  # four jobs and the report, none of them twice
    for name in ("ablation/jobs/tokenizer.py", "ablation/jobs/train.py", "ablation/launch/worker.py", "ablation/launch/slurm_job.py"):
        with (checkout / name).open("a") as file:
            file.write("\nraise RuntimeError('the edited code ran')\n")
    (checkout / "stages" / "patch_pca.py").write_text("raise RuntimeError('the edited stage was read')\n")
    cluster.ask("scontrol", "release", task_of(runs, job_of(runs, "tokenizer")))
    cluster.idle()
    assert_undisturbed(runs, finished_cell)
    assert all(starts(Store(runs), job) == 1 for job in Store(runs).jobs())


@pytest.mark.slow
def test_slurmd_that_dies_in_mid_training(cluster: Cluster, half_done: Path, finished_cell: Path) -> None:
    """The training outlives it; whether SLURM takes the job back before it ends or not, the result is the same, and the probe runs."""
    assert submit_cell(half_done, *EVERY_STEP).code == 0
    train = wait_for_training(cluster, half_done)
    (node,) = cluster.ask("squeue", "-h", "--format=%N", f"--jobs={task_of(half_done, train)}").split()
    cluster.stop(f"{node}.slurmd")
    cluster.until("the end of the training", lambda: Store(half_done).state(train).name == "done")
    cluster.idle()
    assert_undisturbed(half_done, finished_cell)


def test_watching_goes_on_while_accounting_and_controller_are_down(cluster: Cluster, half_done: Path, finished_cell: Path) -> None:
    assert submit_cell(half_done, *EVERY_STEP).code == 0
    watching = start(["ablation", "status", "--runs", str(half_done), "--study", "cell", "--watch"])
    train = wait_for_training(cluster, half_done)
    cluster.stop("slurmdbd")
    cluster.stop("slurmctld")
    time.sleep(20)
    seen = status(half_done, "cell")[0]["jobs"]["train"]
    assert seen in ("running", "done")  # our own files know
    cluster.up()
    cluster.idle()
    out, err = watching.communicate(timeout=300)
    assert watching.returncode == 0, err
    assert "SLURM cannot be asked" in out
    assert "Traceback" not in err
    assert_undisturbed(half_done, finished_cell)
    assert starts(Store(half_done), train) == 1


@pytest.mark.slow
def test_time_limit_saves_requeues_and_goes_on_bit_for_bit(cluster: Cluster, tmp_path: Path) -> None:
    """A real one: SLURM takes at least a minute, and asks up to a minute early."""
    settings = set_options({**CELL, "train.steps": 4000})
    command = ["ablation", "run", "--only", "patch_pca", "--scale", "smoke", "--no-controls", "--name", "cell", *settings]
    runs, other = tmp_path / "runs", tmp_path / "inline"
    inline = subprocess.Popen(
        [sys.executable, "-m", *command, "--runs", str(other), "--launcher", "inline", "--threads", "1", "--no-report"],
        env={**environment(), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        cwd=ROOT,
    )
    limits = ["--resource", "train.time=2", "--resource", "train.signal_seconds=30"]
    assert run([*command, "--runs", str(runs), "--launcher", "slurm", *ONE_CPU, *limits]).code == 0
    cluster.idle(1000)
    assert inline.wait(1000) == 0
    train = job_of(runs, "train")
    assert any("time limit" in entry.get("reason", "") for entry in attempts(Store(runs), train))
    assert_equal_jobs(Store(runs), Store(other), Store(other).jobs())


@pytest.mark.slow
@pytest.mark.timeout(14400)
def test_whole_smoke_study_equals_the_local_launcher(
    cluster: Cluster, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """The path to predict_original with two seeds, at the smoke scale; `SMOKE_STUDY` names a finished local run, to save one."""
    command = ["ablation", "run", "--through", "predict_original", "--seeds", "0,1", "--scale", "smoke", "--name", "both"]
    runs, local = tmp_path / "runs", Path(os.environ.get("SMOKE_STUDY", tmp_path / "local"))
    began = time.monotonic()
    answer = run([*command, "--runs", str(runs), "--launcher", "slurm", *ONE_CPU, "--resource", "memory=1900M"])
    assert answer.code == 0, answer.err
    record_property("seconds to submit", time.monotonic() - began)
    assert time.monotonic() - began < 60
    cluster.idle(10000)
    if not local.exists():
        options = ["--launcher", "local", "--threads", "1", "--no-report"]
        process = subprocess.run(
            [sys.executable, "-m", *command, "--runs", str(local), *options],
            env={**environment(), "OMP_NUM_THREADS": "1"},
            check=False,
            cwd=ROOT,
        )
        assert process.returncode == 0
    assert {cell["state"] for cell in status(runs)} == {"done"}
    store = Store(runs)
    assert_equal_jobs(store, Store(local), Store(local).jobs())
    assert store.jobs() == Store(local).jobs()
    assert all(starts(store, job) == 1 for job in store.jobs())
    assert (runs / "reports" / "both" / "index.html").is_file()


@pytest.mark.slow
def test_node_that_dies_under_one_of_several_processes(cluster: Cluster, half_done: Path, finished_cell: Path) -> None:
    """The processes on the other node notice, and ask for the job to be started again, before SLURM has missed the node."""
    shared = ("--resource", "train.nodes=2", "--resource", "train.sbatch={nodelist: 'n1,n2'}")
    assert submit_cell(half_done, *EVERY_STEP, *shared).code == 0
    train = wait_for_training(cluster, half_done)
    store = Store(half_done)
    cluster.stop("n2")
    cluster.until("the lost process to be noticed", lambda: any(entry["event"] == "lost" for entry in attempts(store, train)), 120)
    cluster.up()
    cluster.until("another attempt", lambda: starts(store, train) >= 2)
    cluster.idle()
    assert [cell["state"] for cell in status(half_done, "cell")] == ["done"]
    assert store.done(train)["cost"]["processes"] == 2
