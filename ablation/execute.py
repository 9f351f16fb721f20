"""Bring a study's jobs to their end on this machine, and say how they ended. Light."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ablation.errors import EXIT_INTERRUPTED, EXIT_JOB_FAILED, EXIT_OK, ConfigError, nearest
from ablation.launch.base import Launcher
from ablation.launch.inline import InlineLauncher
from ablation.launch.local import LocalLauncher, default_workers, visible_gpus
from ablation.launch.watch import RunWatcher
from ablation.launch.worker import CHECKPOINT_SECONDS, StopFlag
from ablation.parts import LAUNCHERS, load_part
from ablation.protocols import LauncherOptions
from ablation.study import Study, machine_name, write_plan
from ablation.terminal import console, plain

if TYPE_CHECKING:
    from rich.console import Console


def choose_launcher(name: str, options: LauncherOptions, study: Study) -> Launcher:
    """Build a launcher by name: inline, local, or one that a plugin provides. Raises ConfigError with the nearest names."""
    if name == "inline":
        return InlineLauncher(options.threads, options.checkpoint_seconds)
    if name == "local":
        gpus = visible_gpus()
        workers = options.parallel or len(gpus) or max(1, default_workers() // options.processes)
        return LocalLauncher(workers, options.threads, gpus, options.checkpoint_seconds, options.processes)
    part = study.tree.parts.get(f"launcher:{name}")
    if part is None:
        provided = [label.partition(":")[2] for label in study.tree.parts if label.startswith("launcher:")]
        raise ConfigError(f"unknown launcher '{name}'", nearest(name, [*LAUNCHERS, *provided]))
    built: Launcher = load_part(part.entry())(options)
    if not callable(getattr(built, "run", None)):
        raise ConfigError(f"launcher '{name}' of {part.source} has no method run", "See ablation/protocols.py: LauncherPart.")
    return built


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopFlag]:
    """Yield a flag that signals set; afterwards they do what they did before. Outside the main thread none is heeded."""
    stop = StopFlag()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in StopFlag.SIGNALS}
    stop.install()
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def execute(
    study: Study,
    launcher: str,
    parallel: int | None,
    threads: int | None,
    checkpoint_seconds: float | None,
    command: str,
    out: Console,
    processes: int = 1,
) -> int:
    """Bring a study's jobs to their end, tell `out` about it, and return the exit code.

    command: what asked for it. processes: how many share one training, in the local launcher.
    """
    options = LauncherOptions(parallel, threads, CHECKPOINT_SECONDS if checkpoint_seconds is None else checkpoint_seconds, processes)
    chosen = choose_launcher(launcher, options, study)
    decisions = write_plan(study, command)
    reused = {job for job, decision in decisions.items() if decision.action == "reuse"}
    out.print(
        f"study [bold]{study.name}[/]: {len(study.plan.jobs)} jobs ({study.plan.unshared} without sharing), {len(reused)} already done"
    )
    began = time.monotonic()
    with RunWatcher(study.plan, out, reused) as watcher, stop_on_signals() as stop:
        outcome = chosen.run(study.plan, study.store, watcher, stop)
    if ran := len([job for job, state in outcome.states.items() if state == "done" and job not in reused]):
        session = {"machine": machine_name(), "jobs": ran, "seconds": round(time.monotonic() - began, 1), "command": command}
        study.store.record_session(study.name, session)
    if outcome.interrupted:
        out.print("[yellow]interrupted[/]: finished jobs are kept; the same command goes on from here")
        return EXIT_INTERRUPTED
    for job in outcome.failed:
        state = study.store.state(job)
        if state.name != "skipped":
            console(stderr=True).print(f"[red]{state.name}[/] {job}: {plain(state.reason)}", soft_wrap=True, highlight=False)
    return EXIT_JOB_FAILED if outcome.failed else EXIT_OK
