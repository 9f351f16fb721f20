"""Handle a SLURM test cluster, submit to it, and read what became of it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from commands import ROOT, Answer, assert_equal_jobs, run, set_options

from ablation.store import Store

SCRIPT = ROOT / "scripts" / "slurm-test-cluster"
LARGEST_ARRAY = 128
EVERY_STEP = ("--resource", "checkpoint_seconds=0")
ONE_CPU = ["--resource", "gpus=0", "--resource", "cpus=1", "--resource", "memory=1000M", "--resource", "time=30"]
CELL = {
    "data.train_images": 96,
    "data.test_images": 64,
    "train.steps": 120,
    "train.global_batch": 8,
    "probe.weight_decays": [1e-2],
    "process.schedule": "constant",
}
"""One cell of four short jobs (tokenizer, encode, train, probe), with a training long enough to be stopped in its middle."""


class Cluster:
    """The running cluster: what SLURM says, and faults to inject."""

    def __init__(self, folder: Path) -> None:
        self.dir = folder

    def script(self, action: str, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(SCRIPT), action, "--dir", str(self.dir), *words], capture_output=True, text=True, timeout=600, check=False
        )

    def up(self) -> None:
        done = self.script("up")
        assert done.returncode == 0, done.stderr

    def stop(self, name: str) -> None:
        done = self.script("stop", name)
        assert done.returncode == 0, done.stderr

    def ask(self, *command: str, tries: int = 6) -> str:
        """Run a SLURM command; on a machine with too much to do the controller may miss one call."""
        for left in reversed(range(tries)):
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
            if done.returncode == 0:
                return done.stdout
            if left:
                time.sleep(5)
        raise AssertionError(f"{' '.join(command)}: {done.stderr}")

    def tasks(self, states: str = "all") -> dict[str, tuple[str, str]]:
        """Return {task id: (state, job name)} of everything the controller knows in these states."""
        lines = self.ask("squeue", "-hr", f"--states={states}", "--format=%i|%T|%j").splitlines()
        return {line.split("|")[0]: (line.split("|")[1], line.split("|")[2]) for line in lines}

    def live(self) -> dict[str, tuple[str, str]]:
        return self.tasks("PENDING,RUNNING,COMPLETING,CONFIGURING,SUSPENDED")

    def until(self, what: str, test: Callable[[], object], seconds: float = 600) -> None:
        deadline = time.monotonic() + seconds
        while not test():
            assert time.monotonic() < deadline, f"not within {seconds} s: {what}; queue: {self.ask('squeue', '-ar')}"
            time.sleep(0.25)

    def idle(self, seconds: float = 900) -> None:
        """Wait until nothing is queued or running; a job that pends for ever fails the test here."""
        self.until("an empty queue", lambda: not self.live(), seconds)

    def queries(self) -> dict[str, int]:
        """Return how many requests of each type the controller has served since the last reset, as its own statistics count them."""
        lines = self.ask("sdiag").partition("statistics by message type")[2].partition("statistics by user")[0]
        return {name: int(count) for name, count in re.findall(r"(\w+)\s+\(\s*\d+\)\s+count:(\d+)", lines)}


def cell_command(runs: Path, *more: str) -> list[str]:
    """Return the command that runs the one cell."""
    settings = set_options(CELL)
    what = ["--only", "patch_pca", "--scale", "smoke", "--no-controls", "--name", "cell"]
    return ["ablation", "run", *what, "--runs", str(runs), *settings, *more]


def submit_cell(runs: Path, *more: str) -> Answer:
    """Submit the one cell to SLURM."""
    return run([*cell_command(runs), "--launcher", "slurm", *ONE_CPU, *more])


def job_of(runs: Path, kind: str) -> str:
    """Return the only job of a kind in a run folder."""
    (job,) = [job for job in Store(runs).jobs() if job.startswith(f"{kind}-")]
    return job


def status(runs: Path, study: str | None = None) -> list[dict]:
    """Return what `ablate status --json` says of a study's cells."""
    answer = run(["ablation", "status", "--runs", str(runs), "--json", *(["--study", study] if study else [])])
    assert answer.code == 0, answer.err
    cells: list[dict] = json.loads(answer.out)["cells"]
    return cells


def fake_jobs(store: Store, chains: Sequence[Mapping[str, str]], name: str = "fake") -> dict[str, tuple[str, tuple[str, ...]]]:
    """Write specifications of jobs, and a study of them, that never compute: tests mark them done or failed themselves.

    chains: one cell each, {kind: job id}, every kind reading the one before it.
    """
    jobs: dict[str, tuple[str, tuple[str, ...]]] = {}
    for chain in chains:
        before: tuple[str, ...] = ()
        for kind, job in chain.items():
            jobs[job] = (kind, before)
            store.prepare(job, {"kind": kind, "inputs": {f"input{place}": parent for place, parent in enumerate(before)}, "sources": []})
            before = (job,)
    fixed = {"seed": 0, "control": None}
    cells = [{"id": f"cell{place}", "stage": f"stage{place}", **fixed, "jobs": dict(chain)} for place, chain in enumerate(chains)]
    store.write_study({"name": name, "cells": cells})
    order = ("tokenizer", "encode", "train", "probe")
    return dict(sorted(jobs.items(), key=lambda item: order.index(item[1][0])))


def wait_for_training(cluster: Cluster, runs: Path) -> str:
    """Wait until the training has written a checkpoint, and return the job."""
    train = job_of(runs, "train")
    cluster.until("a checkpoint", lambda: Store(runs).has_checkpoint(train))
    return train


def task_of(runs: Path, job: str) -> str:
    task: str = json.loads((Store(runs).job_folder(job) / "slurm.json").read_text())["task"]
    return task


def process_of(task: str, rank: int = 0) -> int:
    """Return the process id of the interpreter that runs one process of a task."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment, line = (folder / "environ").read_bytes().split(b"\0"), (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if (
            f"SLURM_JOB_ID={task}".encode() in environment
            and f"SLURM_PROCID={rank}".encode() in environment
            and b"submitit.core._submit" in line
        ):
            return int(folder.name)
    raise AssertionError(f"no process of task {task}")


def assert_undisturbed(runs: Path, finished: Path) -> None:
    """Fail unless every job of the cell is there once, with the numbers of an undisturbed run, and the report is written."""
    jobs = Store(finished).jobs()
    assert Store(runs).jobs() == jobs
    assert_equal_jobs(Store(runs), Store(finished), jobs)
    assert [cell["state"] for cell in status(runs, "cell")] == ["done"]
    assert (runs / "reports" / "cell" / "results.jsonl").is_file()


BREAKS = """
from ablation.stage import Stage
from ablation.tokenizers.base import Tokenizer


class Breaks(Tokenizer):
    fit_kind = "closed_form"

    def fit(self, batches):
        raise RuntimeError("broken on purpose")

    def encode(self, images):
        raise NotImplementedError

    decode = encode


STAGE = Stage(
    name="breaks", after="patch_pca", title="breaks", changes={"tokenizer.kind": "breaks"}, provides={"tokenizer:breaks": Breaks}
)
"""
