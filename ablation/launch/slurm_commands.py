"""What `ablate run --launcher slurm`, `status`, `cancel` and `retry` do about SLURM. Light: submitit is loaded only to submit."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from ablation.errors import EXIT_INTERRUPTED, EXIT_JOB_FAILED, EXIT_OK, ArtifactError, ConfigError, nearest
from ablation.launch.resources import ResourceFile, load_resources
from ablation.launch.slurm_graph import Node
from ablation.launch.slurm_groups import last_task
from ablation.launch.slurm_state import SlurmError, ask_queue, command
from ablation.launch.slurm_status import ENDED_BADLY, SETTLED, SlurmStates, report_tasks
from ablation.status import cell_states
from ablation.store import LOG, Store, read_json, write_json
from ablation.study import Study, write_plan

if TYPE_CHECKING:
    from ablation.launch.slurm import Submission

FOLLOW_SECONDS = 2.0
MOVING = ("new", "queued", "running", "interrupted")


def resources_path(store: Store, study: str) -> Path:
    """Return where a study keeps what its jobs ask SLURM for."""
    return store.root / "slurm" / study / "resources.json"


def submit_study(
    study: Study, path: Path | None, settings: Sequence[str], partition: str | None, command_line: str, say: Callable[[str], None]
) -> dict[str, Any]:
    """Submit a study's jobs with the resources of a file and of single settings, and return what is stored of the study."""
    resources = load_resources(path, settings, partition=partition)
    write_plan(study, command_line)
    jobs = {job: (spec.kind, tuple(spec.inputs.values())) for job, spec in study.plan.jobs.items()}
    submit(study.store, study.name, jobs, resources, say)
    return study.store.study(study.name)


def submit(
    store: Store, study: str, jobs: Mapping[str, tuple[str, Sequence[str]]], resources: ResourceFile, say: Callable[[str], None]
) -> Submission:
    """Submit what is neither done nor live of jobs {id: (kind, input ids)}, parents first, and say what was done."""
    from ablation.launch.slurm import SlurmLauncher

    write_json(resources_path(store, study), resources.model_dump(mode="json"))
    result = SlurmLauncher(store, study, resources, say).submit({job: Node(kind, tuple(inputs)) for job, (kind, inputs) in jobs.items()})
    say(
        f"{result.submitted} jobs submitted in {result.calls} calls, {result.adopted} queued or running already, {result.done} done,"
        f" in {result.seconds:.1f} s; nothing here has to stay alive"
    )
    return result


def slurm_cells(store: Store, document: Mapping[str, Any], known: SlurmStates | None = None) -> tuple[list[dict[str, Any]], str]:
    """Return each cell's state with what SLURM knows, and why SLURM could not be asked, if so."""
    known = known or SlurmStates(store, document)
    states = known.now()
    cells = cell_states(store, document, states.__getitem__)
    for cell, entry in zip(cells, document["cells"], strict=True):
        tasks = {role: record for role, job in entry["jobs"].items() if (record := last_task(store, job)) is not None}
        seen = [known.tasks[job] for job in entry["jobs"].values() if job in known.tasks]
        cell["slurm"] = {role: record["task"] for role, record in tasks.items()}
        cell["node"] = next((task.node for task in seen if task.state == "RUNNING"), None)
        cell["logs"] = {role: str(store.job_folder(job) / LOG) for role, job in entry["jobs"].items()}
    return cells, known.problem


def follow(store: Store, document: Mapping[str, Any], show: Callable[[list[dict[str, Any]], str], None]) -> int:
    """Show the states until every job is settled and the report is written; returns the exit code. Ctrl-C stops only the showing."""
    known, reports = SlurmStates(store, document), report_tasks(store, document["name"])
    last = ""
    while True:
        try:
            cells, problem = slurm_cells(store, document, known)
            now = repr(([{**cell, "elapsed": None} for cell in cells], problem))  # time alone is no news
            if now != last:
                show(cells, problem)
                last = now
            states = [state for cell in cells for state in cell["jobs"].values()]
            if not any(state in MOVING for state in states) and not _any_live(reports):
                return EXIT_JOB_FAILED if any(state in ENDED_BADLY for state in states) else EXIT_OK
            time.sleep(FOLLOW_SECONDS)
        except KeyboardInterrupt:
            return EXIT_INTERRUPTED


def _any_live(tasks: Mapping[str, tuple[str, str]]) -> bool:
    """Say whether any of these tasks is queued or running; where SLURM cannot be asked, it may be."""
    try:
        return any(task.live for task in ask_queue(name for _, name in tasks.values()).values())
    except SlurmError:
        return True


def chosen_jobs(document: Mapping[str, Any], stage: str | None) -> list[str]:
    """Return the jobs of a study, or those that serve only the cells of one stage; an unknown stage raises."""
    cells = document["cells"]
    if stage is None:
        return list(dict.fromkeys(job for cell in cells for job in cell["jobs"].values()))
    names = {cell["stage"] for cell in cells}
    if stage not in names:
        raise ConfigError(f"study '{document['name']}' has no stage '{stage}'", nearest(stage, names))
    others = {job for cell in cells if cell["stage"] != stage for job in cell["jobs"].values()}
    mine = dict.fromkeys(job for cell in cells if cell["stage"] == stage for job in cell["jobs"].values())
    return [job for job in mine if job not in others]


def cancel(store: Store, document: Mapping[str, Any], stage: str | None) -> list[str]:
    """Cancel the queued and running tasks of a study, or of one stage, and return the jobs; shared jobs go on for the others.

    A job that is packed with jobs of other stages ends by itself, within seconds, and leaves them alone.
    """
    records = {job: record for job in chosen_jobs(document, stage) if (record := last_task(store, job)) is not None}
    found = ask_queue(record["name"] for record in records.values())
    live = {job: record["task"] for job, record in records.items() if record["task"] in found and found[record["task"]].live}
    live = {job: task for job, task in live.items() if not (records[job]["packed"] and store.state(job).name in SETTLED)}
    for job in live:  # before scancel, so that a job that is told to stop finds it
        store.mark_failed(job, "cancelled", f"`ablate cancel` at {time.strftime('%Y-%m-%d %H:%M:%S')}")
    shared = {task for job in chosen_jobs(document, None) if job not in live and (task := _unfinished_task(store, job))}
    reports = report_tasks(store, document["name"]) if stage is None else {}
    tasks = [task for task in live.values() if task not in shared]
    tasks += [task for task, known in ask_queue(name for _, name in reports.values()).items() if known.live]
    if tasks:
        command("scancel", *dict.fromkeys(tasks), seconds=60)
    return list(live)


def _unfinished_task(store: Store, job: str) -> str | None:
    """Return the task of a job that has not ended, if it was ever given one."""
    record = last_task(store, job)
    return record["task"] if record is not None and store.state(job).name not in SETTLED else None


def retry(store: Store, document: Mapping[str, Any], stage: str | None, say: Callable[[str], None]) -> Submission:
    """Submit again what failed, was cancelled, skipped or lost, with the resources of the last submission."""
    path = resources_path(store, document["name"])
    if not path.exists():
        raise ConfigError(f"study '{document['name']}' was never submitted to SLURM", "Run the same `ablate run` command again.")
    try:
        resources = ResourceFile(**read_json(path))
    except (ValidationError, ArtifactError) as error:
        raise ConfigError(f"{path} is unreadable: {error}", "Run the same `ablate run` command again.") from None
    wanted = chosen_jobs(document, stage)
    if stage is not None:  # with everything that the stage's jobs need
        wanted = list(dict.fromkeys(job for cell in document["cells"] if cell["stage"] == stage for job in cell["jobs"].values()))
    jobs = {}
    for job in wanted:
        spec = store.spec(job)
        if spec is None:
            raise ArtifactError(f"{store.job_folder(job)} has no readable specification", "Run the same `ablate run` command again.")
        jobs[job] = (spec["kind"], tuple(spec["inputs"].values()))
    return submit(store, document["name"], parents_first(jobs), resources, say)


def parents_first(jobs: Mapping[str, tuple[str, tuple[str, ...]]]) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Order jobs so that each comes after what it reads."""
    ordered: dict[str, tuple[str, tuple[str, ...]]] = {}

    def add(job: str) -> None:
        if job in jobs and job not in ordered:
            for parent in jobs[job][1]:
                add(parent)
            ordered[job] = jobs[job]

    for job in jobs:
        add(job)
    return ordered
