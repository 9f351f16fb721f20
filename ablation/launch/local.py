"""Run jobs in a few worker processes of this machine, parents before children, at most as many at once as there is room for.

Workers live on between jobs, so that torch is loaded once in each. A worker that dies takes only its job with it.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ablation.errors import ArtifactError, ConfigError
from ablation.launch.base import Outcome, Watcher, blocked_by, skip
from ablation.launch.together import check_shares
from ablation.launch.worker import CHECKPOINT_SECONDS
from ablation.plan import Plan
from ablation.store import LOG, PROGRESS, Store, read_json

POLL_SECONDS = 0.25
FINAL = ("done", "failed", "diverged", "skipped")


def default_workers() -> int:
    """Return how many worker processes suit this machine's cores: 2, or 4 from eight cores on; small jobs gain little from threads."""
    cores = len(os.sched_getaffinity(0))
    return 4 if cores >= 8 else min(2, cores)


@dataclass
class _Worker:
    """One worker process, the GPUs it was given, and the job it is on."""

    gpu: str | None
    process: subprocess.Popen[str] | None = None
    job: str | None = None
    since: float = 0.0


class LocalLauncher:
    """Runs up to `parallel` jobs at once; with GPUs, one job on each, or on as many as there are processes to a training."""

    def __init__(
        self,
        parallel: int,
        threads: int | None = None,
        gpus: tuple[str, ...] = (),
        checkpoint_seconds: float = CHECKPOINT_SECONDS,
        processes: int = 1,
    ) -> None:
        """parallel: jobs at once; threads: CPU threads of each process (None: the cores shared evenly); gpus: one process each.

        processes: how many share a training; raises ConfigError where there are GPUs, but fewer than that.
        """
        if gpus and len(gpus) < processes:
            raise ConfigError(f"--processes {processes} needs as many GPUs; visible: {len(gpus)}", "Use fewer, or hide the GPUs.")
        sets = [gpus[first : first + processes] for first in range(0, len(gpus) - processes + 1, processes)]
        count = max(1, min(parallel, len(sets)) if gpus else parallel)
        self.threads = threads or max(1, len(os.sched_getaffinity(0)) // (count * processes))
        self.checkpoint_seconds, self.processes = checkpoint_seconds, processes
        self.workers = [_Worker(",".join(sets[number]) if gpus else None) for number in range(count)]

    def run(self, plan: Plan, store: Store, watcher: Watcher, should_stop: Callable[[], bool]) -> Outcome:
        """Run what is not finished yet; every job starts only when all its parents are done."""
        for job_id, spec in plan.jobs.items():
            check_shares(spec.kind, store.spec(job_id), self.processes)
        outcome = Outcome()
        waiting = list(plan.jobs)
        with selectors.DefaultSelector() as selector:
            try:
                while waiting or any(worker.job for worker in self.workers):
                    if should_stop():
                        outcome.interrupted = True
                        break
                    self._assign(plan, store, watcher, selector, waiting, outcome.states)
                    self._collect(plan, store, watcher, selector, waiting, outcome)
            finally:
                self._stop(store, watcher, outcome)
        outcome.interrupted |= "interrupted" in outcome.states.values()  # also where somebody else stopped a worker
        return outcome

    def _assign(
        self, plan: Plan, store: Store, watcher: Watcher, selector: selectors.BaseSelector, waiting: list[str], states: dict[str, str]
    ) -> None:
        """Give free workers jobs whose parents are done; settle those that need no worker."""
        for job_id in list(waiting):
            if parent := blocked_by(plan, job_id, states):
                waiting.remove(job_id)
                skip(plan, store, job_id, parent, states, watcher)
                continue
            parents = [states.get(parent) for parent in plan.jobs[job_id].inputs.values()]
            if "interrupted" in parents:
                waiting.remove(job_id)
                states[job_id] = "interrupted"
                continue
            if any(state != "done" for state in parents):
                continue
            if store.state(job_id).name == "done":
                waiting.remove(job_id)
                states[job_id] = "done"
                watcher.ended(job_id, "done", "", 0.0)
                continue
            idle = (worker for worker in self.workers if worker.job is None)
            free = min(idle, key=lambda worker: worker.process is None, default=None)  # rather one that has loaded torch already
            if free is not None and store.holder(job_id) is None:
                waiting.remove(job_id)
                self._start(free, store, job_id, selector)
                watcher.started(job_id)

    def _start(self, worker: _Worker, store: Store, job_id: str, selector: selectors.BaseSelector) -> None:
        """Hand a job to a worker, starting its process if it has none."""
        if worker.process is None or worker.process.poll() is not None:
            environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads), "PYTHONHASHSEED": "0"}
            if worker.gpu is not None:
                environment["CUDA_VISIBLE_DEVICES"] = worker.gpu
            command = [sys.executable, "-m", "ablation.launch.worker", "--serve", "--runs", str(store.root)]
            command += ["--threads", str(self.threads), "--checkpoint-seconds", str(self.checkpoint_seconds)]
            command += ["--processes", str(self.processes)]
            with (store.job_folder(job_id) / LOG).open("a", encoding="utf-8") as log:  # for what goes wrong before the job's own log
                worker.process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    env=environment,
                    start_new_session=True,
                )
            assert worker.process.stdout is not None
            selector.register(worker.process.stdout, selectors.EVENT_READ, worker)
        assert worker.process.stdin is not None
        worker.job, worker.since = job_id, time.monotonic()
        with contextlib.suppress(BrokenPipeError):  # a worker that just died is noticed when its output ends
            worker.process.stdin.write(f"{job_id}\n")
            worker.process.stdin.flush()

    def _collect(
        self, plan: Plan, store: Store, watcher: Watcher, selector: selectors.BaseSelector, waiting: list[str], outcome: Outcome
    ) -> None:
        """Take in what workers report, and what their progress files say."""
        if not selector.get_map():
            time.sleep(POLL_SECONDS)
        for key, _ in selector.select(POLL_SECONDS) if selector.get_map() else []:
            worker: _Worker = key.data
            line = key.fileobj.readline()  # type: ignore[union-attr]
            state = line.strip().rpartition(" ")[2]
            if state in ("", "interrupted"):  # the process has ended, or ends after this answer
                selector.unregister(key.fileobj)
                state = self._gone(worker, store, state)
            self._settle(worker, state, store, watcher, waiting, outcome)
        for worker in self.workers:
            if worker.job is not None:
                with contextlib.suppress(ArtifactError, KeyError, TypeError):
                    progress = read_json(store.job_folder(worker.job) / PROGRESS)
                    watcher.progressed(worker.job, progress["done"], progress["total"], progress["note"])

    def _settle(self, worker: _Worker, state: str, store: Store, watcher: Watcher, waiting: list[str], outcome: Outcome) -> None:
        """Record a finished job and free its worker."""
        if worker.job is None:
            return
        job_id, worker.job = worker.job, None
        if state == "running":  # another command holds it: ask again later
            waiting.append(job_id)
            return
        outcome.states[job_id] = state
        watcher.ended(job_id, state, store.state(job_id).reason, time.monotonic() - worker.since)

    def _gone(self, worker: _Worker, store: Store, state: str) -> str:
        """Part with a worker whose process ends, and return the state of its job: without an answer, it died of something."""
        assert worker.process is not None
        code = worker.process.wait()
        if worker.process.stdout is not None:
            worker.process.stdout.close()
        worker.process = None
        if state or worker.job is None:
            return state
        if store.state(worker.job).name == "done":
            return "done"
        how = f"was killed by signal {-code}" if code < 0 else f"exited with {code}"
        fix = "Run the same command again to go on from the last checkpoint."
        store.mark_failed(worker.job, "failed", f"its worker process {how}. {fix}")
        return "failed"

    def _stop(self, store: Store, watcher: Watcher, outcome: Outcome) -> None:
        """Ask workers to stop at their next step and wait; what they were on is interrupted and can be resumed."""
        for worker in self.workers:
            if worker.process is not None and worker.process.poll() is None:
                if worker.job is not None:
                    worker.process.terminate()
                if worker.process.stdin is not None:
                    worker.process.stdin.close()
        for worker in self.workers:
            if worker.process is None:
                continue
            try:
                worker.process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
            if worker.process.stdout is not None:
                worker.process.stdout.close()
            if worker.job is not None:
                state = "done" if store.state(worker.job).name == "done" else "interrupted"
                outcome.states[worker.job] = state
                watcher.ended(worker.job, state, "", time.monotonic() - worker.since)
                worker.job = None


def visible_gpus() -> tuple[str, ...]:
    """List the GPUs this process may use, by the names CUDA_VISIBLE_DEVICES takes."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return tuple(part for part in named.split(",") if part.strip())
    return tuple(str(number) for number in range(len(list(Path("/proc/driver/nvidia/gpus").glob("*")))))
