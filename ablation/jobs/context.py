"""What a running job gets: its configuration, its folder, its inputs' folders, and a way to report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ablation.config import Config
from ablation.store import Store
from ablation.train.distributed import ALONE, Processes
from ablation.train.loop import Monitor


@dataclass(frozen=True)
class JobIO:
    """A job's view of the store and of its launcher."""

    store: Store
    job_id: str
    config: Config
    seed: int
    control: str | None
    inputs: Mapping[str, str]  # role -> job id
    parts: Mapping[str, Any]  # "tokenizer:NAME" -> class
    device: torch.device
    progress: Callable[[int, int, str], None]
    log: Callable[[str], None]
    should_stop: Callable[[], bool]
    checkpoint_seconds: float
    processes: Processes = ALONE  # those that share the job's training; only the lead writes

    @property
    def folder(self) -> Path:
        """The folder the job writes to."""
        return self.store.job_folder(self.job_id)

    @property
    def monitor(self) -> Monitor:
        """What the training loop reports to."""
        return Monitor(self.progress, self.log, self.should_stop)

    def input(self, role: str, name: str) -> Path:
        """Return the path of an artifact of an input job."""
        return self.store.artifact(self.inputs[role], name)

    def ancestor(self, *roles: str) -> str:
        """Follow roles from input to input, as ancestor("train", "encode"), and return the job id at the end."""
        job_id = self.job_id
        for role in roles:
            spec = self.store.spec(job_id)
            assert spec is not None, f"{job_id} has no specification"  # the launcher wrote it before it started the job
            job_id = spec["inputs"][role]
        return job_id
