"""Start the command line and workers as a user would, and read what they left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file

from ablation.plan import Plan
from ablation.store import Store

ROOT = Path(__file__).resolve().parent.parent
TINY = {
    "data.train_images": 96,
    "data.test_images": 64,
    "tokenizer.steps": 4,
    "tokenizer.global_batch": 8,
    "train.steps": 4,
    "train.global_batch": 8,
    "fid.samples": 16,
    "fid.reference_images": 32,
    "fid.sampler_steps": 2,
    "probe.weight_decays": (1e-2,),
}
"""Settings that make every job take about a second."""
SINGLE_LEVEL = {"process.schedule": "constant"}
"""One noise level leaves out sampling, and with it the slowest jobs."""


class Answer(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line on standard error; more than one, or a traceback, fails."""
        lines = self.err.strip().splitlines()
        assert len(lines) == 1, self.err
        return lines[0]


def environment() -> dict[str, str]:
    """Return an environment in which the package is found from any folder."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}


def set_options(settings: Mapping[str, Any]) -> list[str]:
    """Write settings as --set options."""
    return [word for path, value in settings.items() for word in ("--set", f"{path}={json.dumps(value)}")]


def start(command: Sequence[str]) -> subprocess.Popen[str]:
    """Start `python -m ...`."""
    return subprocess.Popen(
        [sys.executable, "-m", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(), cwd=ROOT
    )


def finish(process: subprocess.Popen[str]) -> Answer:
    """Wait for a started command."""
    out, err = process.communicate(timeout=240)
    return Answer(process.returncode, out, err)


def run(command: Sequence[str]) -> Answer:
    """Run `python -m ...` to its end."""
    return finish(start(command))


def worker(runs: Path, *jobs: str) -> list[str]:
    """Return the command that runs jobs in a worker with a checkpoint at every step."""
    return ["ablation.launch.worker", "--runs", str(runs), "--threads", "1", "--checkpoint-seconds", "0", *jobs]


def assert_equal_jobs(store: Store, other: Store, jobs: Sequence[str]) -> None:
    """Fail unless both stores hold the same tensors, arrays and metrics, bit for bit, for every job."""
    for job in jobs:
        one, two = store.done(job), other.done(job)
        assert one["metrics"] == two["metrics"], job
        assert one["artifacts"].keys() == two["artifacts"].keys(), job
        for name in one["artifacts"]:
            paths = store.job_folder(job) / name, other.job_folder(job) / name
            if name.endswith(".safetensors"):
                first, second = map(load_file, paths)
                assert first.keys() == second.keys()
                assert all(torch.equal(first[key], second[key]) for key in first), f"{job} {name}"
            else:
                assert paths[0].read_bytes() == paths[1].read_bytes(), f"{job} {name}"


def attempts(store: Store, job: str) -> list[dict[str, Any]]:
    """Return the lines about a job's attempts."""
    path = store.job_folder(job) / "attempts.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def starts(store: Store, job: str) -> int:
    """Count a job's attempts."""
    return sum(entry["event"] == "started" for entry in attempts(store, job))


class Recorder:
    """A watcher that keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str, str]] = []

    def started(self, job_id: str) -> None:
        self.events.append(("started", job_id, ""))

    def progressed(self, job_id: str, done: int, total: int, note: str) -> None:
        assert 0 <= done <= total

    def ended(self, job_id: str, state: str, reason: str, seconds: float) -> None:
        self.events.append((state, job_id, reason))

    def of(self, state: str) -> list[str]:
        return [job for event, job, _ in self.events if event == state]


def descendants(plan: Plan, job_id: str) -> set[str]:
    """Return the jobs that need a job's output, directly or not."""
    children = set(plan.children(job_id))
    return children | {below for child in children for below in descendants(plan, child)}


def never() -> bool:
    """Ask for no stop."""
    return False
