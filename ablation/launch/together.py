"""One training in several processes: which kinds of job can, with how many, and how this machine starts them. Light.

The number of processes changes no result beyond rounding, and is in no key: a training can go on with another number.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablation.errors import ConfigError

if TYPE_CHECKING:
    from ablation.train.distributed import Processes

TOGETHER = {"tokenizer": "tokenizer.global_batch", "train": "train.global_batch"}
"""The kinds of job that several processes can share, and the batch that they divide."""
PARTING_SECONDS = 10.0


def check_shares(kind: str, spec: Mapping[str, Any] | None, processes: int) -> None:
    """Raise ConfigError, naming the batch, where a job's global batch cannot be divided evenly."""
    if processes == 1 or kind not in TOGETHER or spec is None:
        return
    section, _, name = TOGETHER[kind].partition(".")
    batch = spec["config"][section][name]
    if batch % processes:
        raise ConfigError(
            f"{TOGETHER[kind]} = {batch} cannot be divided evenly among {processes} processes", f"Use a number that divides {batch}."
        )


class Followers:
    """The other processes of a training that this process leads, on this machine."""

    def __init__(self, size: int, arguments: list[str]) -> None:
        """arguments: those of the worker, which end with the job."""
        self.size, self.arguments = size, arguments
        self.children: list[subprocess.Popen[bytes]] = []
        self.codes: list[int | None] = []

    @contextlib.contextmanager
    def gather(self) -> Iterator[Processes]:
        """Start the others, form the group, and see to it that they end."""
        from ablation.train.distributed import Meeting

        meeting = Meeting(0, self.size, 0, "127.0.0.1", 0)
        for rank in range(1, self.size):
            place = f"{rank}/{self.size}@{meeting.port}"
            command = [sys.executable, "-m", "ablation.launch.worker", "--follow", place, *self.arguments]
            self.children.append(subprocess.Popen(command, stdin=subprocess.DEVNULL))
        try:
            with meeting.begin() as processes:
                yield processes
        finally:
            self._part()

    def _part(self) -> None:
        """Wait for the others, and end those that do not end by themselves."""
        for child in self.children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(PARTING_SECONDS)
        self.codes = [child.poll() for child in self.children]
        for child in self.children:
            child.kill()
            child.wait()

    def why_lost(self) -> str:
        """Say how the others ended, where one of them ended by itself."""
        killed = [
            f"process {rank} was killed by signal {-code}" for rank, code in enumerate(self.codes, 1) if code is not None and code < 0
        ]
        return f"{'; '.join(killed) or 'a process of this training ended'}. Run the same command again to go on from the last checkpoint."


def follow(place: str, runs: Path, job_id: str, checkpoint_seconds: float) -> int:
    """Take part, as RANK/SIZE@PORT, in a job that another process of this machine leads; returns the exit code."""
    from ablation.launch.worker import StopFlag, follow_job
    from ablation.store import Store
    from ablation.train.distributed import Meeting, leave

    stop = StopFlag()
    stop.install()
    numbers, _, port = place.partition("@")
    rank, size = (int(part) for part in numbers.split("/"))
    state = follow_job(Store(runs), job_id, stop, checkpoint_seconds, Meeting(rank, size, rank, "127.0.0.1", int(port)).begin, rank)
    if state == "lost":
        leave(1)
    return 0 if state == "done" else 1
