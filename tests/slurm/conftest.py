"""A real SLURM for these tests: brought up once, skipped with the reason where that cannot be done."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import run
from slurm_cluster import LARGEST_ARRAY, Cluster, cell_command


@pytest.fixture(scope="session")
def session_cluster() -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="ablc", dir="/tmp"))
    cluster = Cluster(folder)
    done = cluster.script("up", "--nodes=3", "--cpus=4", "--gpus=2", "--port=18300", f"--conf=MaxArraySize={LARGEST_ARRAY}")
    if done.returncode != 0:
        shutil.rmtree(folder, ignore_errors=True)
        pytest.skip(f"no SLURM can be brought up here: {done.stderr.strip()[-300:]}")
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(folder / "etc" / "slurm.conf")
    yield cluster
    cluster.script("down", "--purge")
    if before is None:
        del os.environ["SLURM_CONF"]
    else:
        os.environ["SLURM_CONF"] = before


@pytest.fixture
def cluster(session_cluster: Cluster) -> Iterator[Cluster]:
    """The cluster, whole and with an empty queue."""
    session_cluster.up()
    yield session_cluster
    session_cluster.up()
    live = {task.partition("_")[0] for task in session_cluster.live()}
    if live:
        session_cluster.ask("scancel", *live)
        session_cluster.until("an empty queue", lambda: not session_cluster.live(), 60)


@pytest.fixture(scope="session")
def finished_cell(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with one cell, undisturbed, as the inline launcher leaves it with one thread."""
    runs = tmp_path_factory.mktemp("finished") / "runs"
    before, os.environ["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS"), "1"
    answer = run([*cell_command(runs), "--launcher", "inline", "--threads", "1", "--no-report"])
    if before is None:
        del os.environ["OMP_NUM_THREADS"]
    else:
        os.environ["OMP_NUM_THREADS"] = before
    assert answer.code == 0, answer.err
    return runs


@pytest.fixture
def half_done(finished_cell: Path, tmp_path: Path) -> Path:
    """A copy of the finished cell in which training and probe are still to do."""
    runs = tmp_path / "runs"
    shutil.copytree(finished_cell, runs)
    for pattern in ("train-*", "probe-*"):
        for folder in (runs / "jobs").glob(pattern):
            shutil.rmtree(folder)
    return runs
