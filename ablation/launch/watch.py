"""Show a run as it goes: bars with a time estimate on a terminal, one line a job elsewhere."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from ablation.plan import Plan

FIRST_GUESS = {
    "reference": 8.0,
    "tokenizer": 12.0,
    "encode": 3.0,
    "train": 14.0,
    "probe": 4.0,
    "fid": 6.0,
    "finetune": 30.0,
    "checkpoint": 5.0,
    "evaluation": 4.0,
}
"""Seconds a job of each kind takes before one of its kind has ended; only the first estimates depend on it."""

MARKS = {
    "done": "[green]done[/]",
    "reused": "[cyan]reused[/]",
    "failed": "[red]failed[/]",
    "diverged": "[red]diverged[/]",
    "skipped": "[yellow]skipped[/]",
    "interrupted": "[yellow]interrupted[/]",
}


class _Remaining(ProgressColumn):
    """The estimated time to the end of the run, where the task carries one."""

    def render(self, task: Task) -> Text:
        seconds = task.fields.get("remaining")
        return Text("" if seconds is None else f"about {int(seconds) // 60}:{int(seconds) % 60:02d} left", style="cyan")


class RunWatcher:
    """Shows progress; the estimate multiplies what is left of each job kind by what that kind has taken so far."""

    def __init__(self, plan: Plan, console: Console, reused: set[str]) -> None:
        self.plan, self.console, self.reused = plan, console, reused
        self.left = [job for job in plan.jobs if job not in reused]
        self.took: dict[str, list[float]] = defaultdict(list)
        self.shares: dict[str, float] = {}
        self.tasks: dict[str, TaskID] = {}
        self.skipped: Counter[str] = Counter()  # by reason, which names the ancestor that failed
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeElapsedColumn(),
            _Remaining(),
            TextColumn("[dim]{task.fields[note]}"),
            console=console,
            transient=False,
            disable=not console.is_terminal,
        )
        self.overall = self.bar.add_task("[bold]jobs[/]", total=len(plan.jobs), completed=len(reused), note="", remaining=None)

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.bar.stop()
        for reason, count in self.skipped.items():
            self.console.print(f"{count} jobs {MARKS['skipped']}: {escape(reason)}", highlight=False, soft_wrap=True)

    def _name(self, job_id: str) -> str:
        """Name a job by its kind and the first cell it serves."""
        cells = self.plan.cells_of(job_id)
        more = f" (+{len(cells) - 1})" if len(cells) > 1 else ""
        return f"{self.plan.jobs[job_id].kind:<9} {cells[0].id}{more}"

    def _estimate(self) -> float:
        """Estimate the seconds left."""
        total = 0.0
        for job in self.left:
            kind = self.plan.jobs[job].kind
            seconds = self.took[kind]
            total += (sum(seconds) / len(seconds) if seconds else FIRST_GUESS[kind]) * (1 - self.shares.get(job, 0.0))
        return total

    def started(self, job_id: str) -> None:
        """Add a bar for the job."""
        if job_id not in self.reused and job_id not in self.tasks:  # a job that another command held is started again
            self.tasks[job_id] = self.bar.add_task(self._name(job_id), total=1, note="", remaining=None)

    def progressed(self, job_id: str, done: int, total: int, note: str) -> None:
        """Move the job's bar and the estimate."""
        if job_id in self.tasks:
            self.shares[job_id] = min(1.0, done / max(1, total))
            self.bar.update(self.tasks[job_id], completed=done, total=max(1, total), note=note)
            self.bar.update(self.overall, remaining=self._estimate())

    def ended(self, job_id: str, state: str, reason: str, seconds: float) -> None:
        """Close the job's bar and print a line about it; skipped jobs are counted and named at the end."""
        if job_id in self.tasks:
            self.bar.remove_task(self.tasks.pop(job_id))
        if job_id in self.reused and state == "done":
            return
        if job_id in self.left:
            self.left.remove(job_id)
        if state == "done":
            self.took[self.plan.jobs[job_id].kind].append(seconds)
        self.bar.update(self.overall, advance=1, remaining=self._estimate())
        if state == "skipped":
            self.skipped[reason] += 1
            return
        left = self._estimate()
        tail = f"  [red]{escape(reason)}[/]" if state in ("failed", "diverged") else f"  [dim]{escape(reason)}[/]" if reason else ""
        clock = "" if self.console.is_terminal else f"  about {int(left) // 60}:{int(left) % 60:02d} left"
        self.console.print(
            f"[dim]{time.strftime('%H:%M:%S')}[/] {self._name(job_id)}  {MARKS.get(state, state)} in {seconds:.1f} s{clock}{tail}",
            highlight=False,
            soft_wrap=True,
        )
