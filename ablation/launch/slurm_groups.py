"""What was submitted to SLURM, on our own disk: one folder for each sbatch call, made before the call. Light.

    RUNS/slurm/STUDY/TOKEN/group.json       which jobs, at which array index, waiting for what; written before sbatch
    RUNS/slurm/STUDY/TOKEN/submitted.json   the SLURM id; written right after sbatch, or when the group is found again,
                                            and once more when every task and job has been told of it
    RUNS/slurm/STUDY/TOKEN/*.out, *.pkl     what the tasks print, and submitit's files
    RUNS/jobs/JOB/slurm.json                the job's last SLURM task

A folder is never used twice, so that no task can find the files of another one that once had its id.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ablation.errors import ArtifactError
from ablation.launch.slurm_state import expand
from ablation.store import SLURM, Store, read_json, write_json

GROUP, SUBMITTED = "group.json", "submitted.json"
REPORT = "report"
"""The kind, and the task, that writes a study's reports after all else has ended."""


@dataclass(frozen=True)
class Group:
    """Jobs of one kind handed to SLURM in one call: a task, or an array of tasks, each with one job or with several packed ones."""

    token: str
    study: str
    kind: str
    tasks: Mapping[str, Sequence[str]]  # array index (a text, as JSON has it; "0" for a single task) -> job ids
    array: bool
    dependency: str
    descendants: Mapping[str, tuple[str, ...]]  # job id -> everything that needs its output
    resources: Mapping[str, Any]
    snapshot: str
    python: str | None
    created: float

    @property
    def name(self) -> str:
        """The SLURM job name; no other submission ever has it."""
        return f"ablate-{self.kind}-{self.token}"

    @property
    def packed(self) -> bool:
        """Say whether a task may hold several jobs."""
        return bool(self.resources["pack"] > 1)

    def task_id(self, slurm_id: str, index: str) -> str:
        """Return the SLURM id of one task."""
        return f"{slurm_id}_{index}" if self.array else slurm_id


def new_token() -> str:
    """Return a token that no other submission has."""
    return secrets.token_hex(5)


def group_folder(store: Store, study: str, token: str) -> Path:
    """Return the folder of one submission."""
    return store.root / "slurm" / study / token


def write_group(store: Store, group: Group) -> Path:
    """Make a group's folder and write down what is about to be submitted."""
    folder = group_folder(store, group.study, group.token)
    write_json(folder / GROUP, asdict(group))
    return folder


def read_group(folder: Path) -> Group:
    """Read a group from its folder; raises ArtifactError where it is unreadable."""
    try:
        return Group(**read_json(folder / GROUP))
    except TypeError as error:
        raise ArtifactError(f"{folder / GROUP} is unreadable: {error}", "Remove the folder and run the same command again.") from None


def groups(store: Store, study: str) -> Iterator[tuple[Group, str | None]]:
    """Yield a study's groups with their SLURM ids (None: not known to have been submitted), oldest first."""
    found = []
    for path in (store.root / "slurm" / study).glob(f"*/{GROUP}"):
        with contextlib.suppress(ArtifactError):
            found.append(read_group(path.parent))
    for group in sorted(found, key=lambda group: (group.created, group.token)):
        try:
            slurm_id = str(read_json(group_folder(store, study, group.token) / SUBMITTED)["slurm_id"])
        except (ArtifactError, KeyError):
            yield group, None
        else:
            yield group, slurm_id or None


def record_submission(store: Store, group: Group, slurm_id: str, cluster: str) -> None:
    """Write a submitted group's SLURM id beside it, at once; what each of its jobs is told follows."""
    _record(store, group, slurm_id, cluster, complete=False)


def record_handed_over(store: Store, group: Group, slurm_id: str, cluster: str) -> None:
    """Write which task each job was given, and then that nothing of the submission is left to be done."""
    for index, jobs in group.tasks.items():
        for job_id in jobs if group.kind != REPORT else ():
            record_task(store, group, job_id, group.task_id(slurm_id, index), cluster)
    _record(store, group, slurm_id, cluster, complete=True)


def _record(store: Store, group: Group, slurm_id: str, cluster: str, complete: bool) -> None:
    """Write what is known of a submission."""
    content = {"slurm_id": slurm_id, "cluster": cluster, "time": time.time(), "complete": complete}
    write_json(group_folder(store, group.study, group.token) / SUBMITTED, content)


def record_task(store: Store, group: Group, job_id: str, task: str, cluster: str) -> None:
    """Write which SLURM task a job was given."""
    write_json(
        store.job_folder(job_id) / SLURM,
        {
            "task": task,
            "name": group.name,
            "token": group.token,
            "study": group.study,
            "cluster": cluster,
            "submitted": group.created,
            "packed": group.packed,
        },
    )


def record_abandoned(store: Store, group: Group) -> None:
    """Note that a group never reached SLURM, so that nobody looks for it again."""
    _record(store, group, "", "", complete=True)


def handed_over(store: Store, group: Group) -> bool:
    """Say whether nothing is left to be done for a group: all was written, or it was found never to have reached SLURM."""
    try:
        return bool(read_json(group_folder(store, group.study, group.token) / SUBMITTED)["complete"])
    except (ArtifactError, KeyError):
        return False


def last_task(store: Store, job_id: str) -> dict[str, Any] | None:
    """Return what a job's slurm.json says, or None where it was never submitted."""
    try:
        content: dict[str, Any] = read_json(store.job_folder(job_id) / SLURM)
    except ArtifactError:
        return None
    return content if {"task", "name"} <= content.keys() else None


def main_id(task: str) -> str:
    """Return the id of the SLURM job that a task belongs to."""
    return expand(task)[0].partition("_")[0]
