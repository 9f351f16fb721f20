"""Run jobs one after the other in this process: the simplest launcher, and the fastest for many small jobs on a laptop."""

from __future__ import annotations

import time
from collections.abc import Callable

from ablation.launch.base import Outcome, Watcher, blocked_by, skip
from ablation.launch.worker import CHECKPOINT_SECONDS, run_job
from ablation.plan import Plan
from ablation.store import Store

POLL_SECONDS = 1.0


class InlineLauncher:
    """Runs every job here, in the plan's order."""

    def __init__(self, threads: int | None = None, checkpoint_seconds: float = CHECKPOINT_SECONDS) -> None:
        """threads: CPU threads (None: all cores)."""
        self.threads, self.checkpoint_seconds = threads, checkpoint_seconds

    def run(self, plan: Plan, store: Store, watcher: Watcher, should_stop: Callable[[], bool]) -> Outcome:
        """Run what is not finished yet, parents first."""
        from ablation.compute import enable_fast_products, set_threads  # torch is loaded only when something runs

        set_threads(self.threads)
        enable_fast_products()
        outcome = Outcome()
        for job_id in plan.jobs:
            if outcome.interrupted or should_stop():
                outcome.interrupted = True
                break
            if parent := blocked_by(plan, job_id, outcome.states):
                skip(plan, store, job_id, parent, outcome.states, watcher)
                continue
            outcome.states[job_id] = self._one(store, job_id, watcher, should_stop)
            outcome.interrupted |= outcome.states[job_id] == "interrupted"
        return outcome

    def _one(self, store: Store, job_id: str, watcher: Watcher, should_stop: Callable[[], bool]) -> str:
        """Run one job, or wait for whoever is running it already."""
        began = time.monotonic()
        watcher.started(job_id)
        while True:
            state = run_job(store, job_id, lambda *at: watcher.progressed(job_id, *at), should_stop, self.checkpoint_seconds)
            if state != "running":
                break
            watcher.progressed(job_id, 0, 1, f"waiting for {store.holder(job_id)}")
            if should_stop():
                state = "interrupted"
                break
            time.sleep(POLL_SECONDS)
        watcher.ended(job_id, state, store.state(job_id).reason, time.monotonic() - began)
        return state
