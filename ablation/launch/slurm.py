"""Submit a study's whole graph to SLURM, through submitit, and return: the only file that imports submitit.

Every sbatch call hands over a group: jobs of one kind, as an array where there are several. A group is written to disk before
the call and its SLURM id after it, and carries a token as its job name: a command that died between the two is made good by
the next one, which asks squeue for the name and adopts what it finds. Children wait for their parents' tasks by afterok and
aftercorr with kill-on-invalid-dep, so that they start when their own parents are done and end when these fail.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ablation.errors import ConfigError
from ablation.keys import KIND_VERSIONS
from ablation.launch.resources import ResourceFile, Resources, sbatch_options
from ablation.launch.slurm_checks import check_requests, setting
from ablation.launch.slurm_graph import Node, Tasks, descendants, partition
from ablation.launch.slurm_groups import (
    REPORT,
    Group,
    group_folder,
    groups,
    handed_over,
    last_task,
    new_token,
    record_abandoned,
    record_handed_over,
    record_submission,
    write_group,
)
from ablation.launch.slurm_job import SETTLED, work
from ablation.launch.slurm_state import SlurmError, ask_queue, command, ranges, words
from ablation.launch.snapshot import code_folder, take_snapshot
from ablation.launch.together import check_shares
from ablation.store import Store, atomic_path

LOCK_SECONDS = 600.0
LEAKS = ("SLURM_", "SBATCH_", "SRUN_", "SALLOC_", "SUBMITIT_", "PMI_", "PMIX_", "OMPI_")
RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "GROUP_RANK")
LEAKING = (*RANKS, "MASTER_ADDR", "MASTER_PORT", "CUDA_VISIBLE_DEVICES")
KEPT = ("SLURM_CONF", "SLURM_CLUSTERS")
PORTS = (10000, 30000)


@dataclass
class Submission:
    """What one submission did: how many jobs were done, live and submitted before and by it, and in how many calls."""

    done: int = 0
    adopted: int = 0
    submitted: int = 0
    calls: int = 0
    seconds: float = 0.0
    tasks: dict[str, str] = field(default_factory=dict)  # job id -> live SLURM task


@contextlib.contextmanager
def clean_environment() -> Iterator[None]:
    """Take out of the environment what belongs to a job this process may itself be running in; SLURM_CONF stays."""
    hidden = {name: value for name, value in os.environ.items() if name not in KEPT and (name.startswith(LEAKS) or name in LEAKING)}
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)


class SlurmLauncher:
    """Submits jobs with their dependencies; what is done is left out, what is queued or running is adopted."""

    def __init__(self, store: Store, study: str, resources: ResourceFile, say: Callable[[str], None] = print) -> None:
        self.store, self.study, self.resources, self.say = store, study, resources, say

    def submit(self, jobs: Mapping[str, Node]) -> Submission:
        """Hand every job that is neither done nor live to SLURM, and one that writes the reports at the end.

        Raises ConfigError with SLURM's own words where it refuses; what was submitted by then is adopted by the next call.
        """
        began = time.monotonic()
        with self._lock(), clean_environment():
            result = self._submit(jobs)
        result.seconds = time.monotonic() - began
        return result

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """Let one command at a time submit into a run folder: studies share jobs."""
        locks, deadline, said = Store(self.store.root / "slurm"), time.monotonic() + LOCK_SECONDS, False
        while True:
            with locks.lock("submission") as mine:
                if mine:
                    yield
                    return
            if time.monotonic() > deadline:
                raise ConfigError(f"{locks.holder('submission')} is submitting into {self.store.root}", "Wait for it, then run this again.")
            if not said:
                said = True
                self.say(f"another command is submitting ({locks.holder('submission')}); waiting for it")
            time.sleep(0.2)

    def _submit(self, jobs: Mapping[str, Node]) -> Submission:
        """Submit with the lock held."""
        result = Submission(done=sum(self.store.state(job).name == "done" for job in jobs))
        cluster = setting("ClusterName")
        self._recover(cluster)
        waiting = {job: node for job, node in jobs.items() if self.store.state(job).name != "done"}
        live = self._live(waiting)
        result.adopted, result.tasks = len(live), dict(live)
        new = {job: node for job, node in waiting.items() if job not in live}
        if not new and self._live_report():
            return result
        for job, node in new.items():
            check_shares(node.kind, self.store.spec(job), self.resources.kinds[node.kind].processes)
        check_requests(self.resources, {node.kind for node in new.values()} | {REPORT})
        snapshot = str(take_snapshot(self.store.root, self.resources.include))
        self._pin_sources(new)
        largest = int(setting("MaxArraySize") or 1001)
        children = descendants(jobs)
        for kind in KIND_VERSIONS:
            for job in (job for job, node in new.items() if node.kind == kind):
                with self.store.lock(job) as mine:
                    if mine:
                        self.store.clear_failure(job)
            parents = {
                job: [result.tasks[parent] for parent in node.inputs if parent in result.tasks]
                for job, node in new.items()
                if node.kind == kind
            }
            for tasks, array, dependency in partition(parents, largest, self.resources.kinds[kind].pack):
                below = {job: children[job] for jobs_of in tasks.values() for job in jobs_of if children[job]}
                group = self._group(kind, tasks, array, dependency, below, snapshot)
                slurm_id = self._call(group, cluster)
                handed = {job: group.task_id(slurm_id, index) for index, jobs_of in tasks.items() for job in jobs_of}
                result.calls, result.submitted = result.calls + 1, result.submitted + len(handed)
                result.tasks |= handed
        mains = sorted({task.partition("_")[0] for task in result.tasks.values()}, key=int)
        after = f"afterany:{':'.join(mains)}" if mains else ""
        self._call(self._group(REPORT, {"0": (REPORT,)}, False, after, {}, snapshot), cluster)
        result.calls += 1
        return result

    def _group(
        self, kind: str, tasks: Tasks, array: bool, dependency: str, children: Mapping[str, tuple[str, ...]], snapshot: str
    ) -> Group:
        """Describe one sbatch call."""
        wanted = self.resources.kinds[kind].model_dump(mode="json")
        return Group(
            new_token(),
            self.study,
            kind,
            tasks,
            array,
            dependency,
            children,
            wanted,
            snapshot,
            self.resources.python,
            round(time.time(), 3),
        )

    def _pin_sources(self, jobs: Mapping[str, Node]) -> None:
        """Copy the stage files whose parts the jobs load; a file that changed since the plan is left to the job to refuse."""
        for job in jobs:
            for source in (self.store.spec(job) or {"sources": ()})["sources"]:
                target, path = self.store.sources / f"{source['sha256']}.py", Path(source["file"])
                if not target.exists() and path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == source["sha256"]:
                    with atomic_path(target) as temporary:
                        temporary.write_bytes(path.read_bytes())

    # --- what is there already ------------------------------------------------------------------------------------------
    def _recover(self, cluster: str) -> None:
        """Finish what commands left that died in the middle of a call: before they had the SLURM id, or before all was told of it."""
        root = self.store.root / "slurm"
        studies = [path.name for path in root.iterdir() if path.is_dir()] if root.is_dir() else []
        known = [(group, slurm_id) for study in studies for group, slurm_id in groups(self.store, study)]
        unfinished = [(group, slurm_id) for group, slurm_id in known if not handed_over(self.store, group)]
        nameless = [group.name for group, slurm_id in unfinished if not slurm_id]
        found = {task.name: task.id.partition("_")[0] for task in ask_queue(nameless).values()}
        for group, slurm_id in unfinished:
            reached = slurm_id or found.get(group.name)
            if reached:
                self.say(f"adopted {group.kind} job {reached}, submitted by a command that was stopped")
                self._hand_over(group, reached, cluster)
            else:
                record_abandoned(self.store, group)

    def _live(self, jobs: Mapping[str, Node]) -> dict[str, str]:
        """Return the jobs that SLURM holds, with their tasks; one that waits for something that cannot come is cancelled."""
        records = {job: record for job in jobs if (record := last_task(self.store, job)) is not None}
        found = ask_queue(record["name"] for record in records.values())
        live: dict[str, str] = {}
        for job, record in records.items():
            task = found.get(record["task"])
            if task is None or task.name != record["name"] or not task.live:
                continue
            if record.get("packed") and self.store.state(job).name in SETTLED:  # it has ended; the task goes on for the others
                continue
            if task.stuck and task.reason == "DependencyNeverSatisfied":
                command("scancel", task.id)
                continue
            live[job] = task.id
        return live

    def _live_report(self) -> bool:
        """Say whether a report job of the study is still to run."""
        names = [group.name for group, slurm_id in groups(self.store, self.study) if group.kind == REPORT and slurm_id]
        return any(task.live for task in ask_queue(names).values())

    # --- one call -------------------------------------------------------------------------------------------------------
    def _call(self, group: Group, cluster: str) -> str:
        """Submit one group and write down its id at once."""
        import submitit

        folder = write_group(self.store, group)
        executor = submitit.SlurmExecutor(folder=folder, python=group.python)
        executor.update_parameters(**submitit_parameters(group, folder))
        try:
            job = executor.submit(work, str(self.store.root), str(folder))
        except submitit.core.utils.FailedJobError as error:
            record_abandoned(self.store, group)
            raise SlurmError(
                f"SLURM refused {group.kind} jobs: {words(_own_words(str(error)))}",
                "What was submitted before is kept; the same command goes on from there.",
            ) from None
        record_submission(self.store, group, str(job.job_id), cluster)
        self._hand_over(group, str(job.job_id), cluster)
        return str(job.job_id)

    def _hand_over(self, group: Group, slurm_id: str, cluster: str) -> None:
        """Give every task its copy of the call under the name submitit looks for, and write down which job has which task."""
        from submitit.core.utils import DelayedSubmission, JobPaths

        folder = group_folder(self.store, group.study, group.token)
        for index in group.tasks:
            path = JobPaths(folder, job_id=group.task_id(slurm_id, index)).submitted_pickle
            if not path.exists():
                call = DelayedSubmission(work, str(self.store.root), str(folder))
                call.set_timeout(int(group.resources["time"]), int(group.resources["max_restarts"]))
                aside = path.with_name(f".{path.name}")
                call.dump(aside)
                aside.replace(path)
        record_handed_over(self.store, group, slurm_id, cluster)


def submitit_parameters(group: Group, folder: Path) -> dict[str, Any]:
    """Return a group's parameters in submitit's words."""
    wanted = Resources(**group.resources)
    options = sbatch_options(wanted)
    options["requeue"] = True
    if group.dependency:
        options |= {"dependency": group.dependency, "kill-on-invalid-dep": "yes"}
    if group.array:
        options["array"] = f"{ranges([int(index) for index in group.tasks])}%{wanted.array_parallelism}"
    pattern = "%A_%a" if group.array else "%j"
    options["output"] = str(folder / f"{pattern}.out")
    threads = wanted.threads or wanted.cpus
    together = ["--kill-on-bad-exit=1"] if wanted.processes > 1 else ["--kill-on-bad-exit=0"]
    setup = [
        *wanted.setup,
        f"export PYTHONPATH={code_folder(Path(group.snapshot))}",
        "export PYTHONSAFEPATH=1",  # else the working directory comes first, and with it the edited code
        f"export PYTHONHASHSEED=0 OMP_NUM_THREADS={threads}",
        # one of several packed jobs may fail without taking along what waits for the others: our files say which
        *(["trap 'exit 0' EXIT"] if wanted.pack > 1 else []),
    ]
    return {
        "job_name": group.name,
        "comment": group.name,
        "time": wanted.time,
        "signal_delay_s": wanted.signal_seconds,
        "wckey": None,
        "stderr_to_stdout": True,
        "setup": setup,
        # a step no longer inherits its job's CPUs since SLURM 22.05
        "srun_args": [
            f"--output={folder}/{pattern}.out",
            f"--cpus-per-task={wanted.cpus}",
            *together,  # else the other processes of a training run on when one fails (SLURM's default)
            "--wait=0",  # and here nobody is ended because another has finished
            *wanted.srun,
        ],
        "additional_parameters": options,
    }


@dataclass(frozen=True)
class Place:
    """Which of a job's processes this one is."""

    rank: int
    size: int
    local_rank: int
    host: str  # of rank 0
    port: int


def place_of_process() -> Place:
    """Return this process's place, as submitit's distributed environment has it.

    It is read and not exported: export() would overwrite CUDA_VISIBLE_DEVICES by the local rank, so that two jobs on a node share
    GPU 0, and fails where the submitter had a MASTER_PORT. Its port may lie among the ephemeral ones (from 32768 on); ours does
    not, and differs from restart to restart.
    """
    from submitit.helpers import TorchDistributedEnvironment

    found = TorchDistributedEnvironment()
    seed = f"{os.environ['SLURM_JOB_ID']}-{os.environ.get('SLURM_RESTART_COUNT', '0')}"
    return Place(found.rank, found.world_size, found.local_rank, found.master_addr, random.Random(seed).randrange(*PORTS))


def _own_words(text: str) -> str:
    """Cut sbatch's message out of what submitit raises around it."""
    return "\n".join(line for line in text.splitlines() if line.startswith("sbatch:")) or text
