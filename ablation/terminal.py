"""What the command line prints: tables for people, JSON for programs. Light; rich is loaded only where a table is drawn."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from ablation.design import Role
    from ablation.plan import Decision, Plan
    from ablation.stage import StageTree
    from ablation.study import Study

WIDTH = 160
"""Columns of a stream that is no terminal: long lines instead of wrapped ones."""

LONG_TABLE = 1000
"""Rows from which a table is printed without colour."""

MARKUP = re.compile(r"(?<!\\)\[/?[a-z ]*\]")
"""What colours a cell: [green] or [/]; a bracket of the text itself has a backslash before it."""

STATE_STYLES = {
    **dict.fromkeys(("failed", "diverged", "lost"), "red"),
    **dict.fromkeys(("skipped", "cancelled", "interrupted"), "yellow"),
    "done": "green",
    "running": "cyan",
    "queued": "blue",
}
ACTION_STYLES = {"reuse": "cyan", "resume": "yellow", "stale": "magenta", "new": "green"}
CHECK_MARKS = {"ok": "[green]ok  [/]", "note": "[yellow]note[/]", "bad": "[red]bad [/]"}
ROLES = ("tokenizer", "encode", "train", "probe", "fid")


def command_line() -> str:
    """Return the command line as a user would type it."""
    return shlex.join(["ablate", *sys.argv[1:]])


def console(stderr: bool = False) -> Console:
    """Return a terminal to print to."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else WIDTH)


def emit_json(value: Any) -> None:
    """Print a value as JSON."""
    print(json.dumps(value, indent=1, default=str))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows of markup under column names; very long tables without colour, which rich would take minutes over."""
    if len(rows) > LONG_TABLE:
        _print_long_table(columns, rows)
        return
    from rich.table import Table

    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*row)
    console().print(table)


def _print_long_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows of markup as plain columns."""
    bare = [[MARKUP.sub("", cell).replace("\\[", "[") for cell in row] for row in (columns, *rows)]
    widths = [max(map(len, column)) for column in zip(*bare, strict=True)]
    for row in bare:
        print(" ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def plain(text: object) -> str:
    """Keep a text's own brackets from being read as markup."""
    from rich.markup import escape

    return escape(str(text))


def coloured(word: str, styles: Mapping[str, str]) -> str:
    """Mark up a word in the style it has, or dimmed."""
    return f"[{styles.get(word, 'dim')}]{word}[/]"


def number(value: float | None, digits: int) -> str:
    """Format a number, or nothing."""
    return "" if value is None else f"{value:.{digits}f}"


def print_stages(tree: StageTree, as_json: bool) -> None:
    """Print all stages in order, and the sources that could not be loaded."""
    if as_json:
        fields = ("name", "after", "title", "table", "uses_labels")
        entries = [
            {**{name: getattr(stage, name) for name in fields}, "changes": dict(stage.changes), "source": str(stage.source)}
            for stage in tree.ordered()
        ]
        emit_json({"stages": entries, "broken": [{"source": str(b.source), "problem": b.problem} for b in tree.broken]})
        return
    rows = []
    for stage in tree.ordered():
        changes = ", ".join(f"{path}={value}" for path, value in stage.changes.items())
        own = "" if stage.source.origin == "built-in" else f" [cyan]({plain(stage.source.origin)})[/]"
        rows.append((stage.name + own, stage.after or "", plain(stage.title), "yes" if stage.uses_labels else "", plain(changes)))
    print_table(("stage", "after", "row", "labels", "changes"), rows)
    print_broken(tree)


def print_broken(tree: StageTree) -> None:
    """Name the stage sources that could not be loaded."""
    for broken in tree.broken:
        console().print(f"[red]broken stage source:[/] {plain(broken.source)}: {plain(broken.problem)}", soft_wrap=True)


def print_stage(tree: StageTree, name: str, as_json: bool) -> None:
    """Print a stage's text, its place, and the configuration its path resolves to."""
    found, config = tree.stage(name), tree.resolve(name).model_dump(mode="json")
    path = [stage.name for stage in tree.path(name)]
    if as_json:
        emit_json({"name": found.name, "path": path, "changes": dict(found.changes), "config": config})
        return
    import yaml
    from rich.text import Text

    out = console()
    out.print(Text(f"{found.name}: {found.title}", style="bold"))
    out.print(Text(found.doc + "\n"))
    out.print(Text("path: " + " > ".join(path), style="dim"))
    out.print(Text(f"file: {found.source}\n", style="dim"), soft_wrap=True)
    out.print(Text(yaml.safe_dump(config, sort_keys=False)))


def print_diff(before: str, after: str, changed: Mapping[str, tuple[Any, Any]], as_json: bool) -> None:
    """Print the settings in which two stages differ."""
    if as_json:
        emit_json({path: list(pair) for path, pair in changed.items()})
    elif changed:
        print_table(("setting", before, after), [(path, plain(old), plain(new)) for path, (old, new) in changed.items()])
    else:
        print("no difference")


def print_notes(study: Study) -> None:
    """Print what the user should know about a study before it runs."""
    for note in study.notes:
        console().print(f"[yellow]note:[/] {plain(note)}", soft_wrap=True)
    print_broken(study.tree)


def print_plan(study: Study, decisions: Mapping[str, Decision], as_json: bool) -> None:
    """Print every job of a study with what would happen to it and why."""
    plan = study.plan
    if as_json:
        jobs = [
            {
                "id": job,
                "kind": spec.kind,
                "action": decisions[job].action,
                "reason": decisions[job].reason,
                "inputs": dict(spec.inputs),
                "cells": [cell.id for cell in plan.cells_of(job)],
            }
            for job, spec in plan.jobs.items()
        ]
        roles = [{"id": cell.id, "designs": [asdict(role) for role in cell.roles]} for cell in plan.cells.values()]
        about = {"study": study.name, "scale": study.scale}
        emit_json({**about, "jobs": jobs, "unshared": plan.unshared, "cells": roles, "notes": list(study.notes)})
        return
    rows = []
    for job in plan.jobs:
        cells = plan.cells_of(job)
        serves = cells[0].id + (f" and {len(cells) - 1} more" if len(cells) > 1 else "")
        rows.append((job, coloured(decisions[job].action, ACTION_STYLES), serves, plain(decisions[job].reason)))
    print_table(("job", "action", "serves", "reason"), rows)
    print_designs(plan)
    print_notes(study)
    counts = {action: sum(decision.action == action for decision in decisions.values()) for action in ACTION_STYLES}
    summary = ", ".join(f"{count} {action}" for action, count in counts.items() if count)
    controls = sum(cell.control is not None for cell in plan.cells.values())
    console().print(f"\n{len(plan.cells)} cells, [bold]{len(plan.jobs)} jobs[/] instead of {plan.unshared} ({summary})")
    if controls:
        rows_only = {job for cell, roles in plan.roles.items() if not plan.cells[cell].control for job in roles.values()}
        unshared = plan.unshared - sum(len(roles) for cell, roles in plan.roles.items() if plan.cells[cell].control)
        console().print(f"of these, {controls} cells are controls; without them {len(rows_only)} jobs instead of {unshared}")


def _stands_for(role: Role) -> str:
    """Say in words what a cell is to a design."""
    if role.design == "shapley":
        return f"shapley with {' + '.join(role.steps) or 'none of the stages'}"
    return f"{role.design} of {role.stage}" if role.stage else f"reference of {role.design}"


def print_designs(plan: Plan) -> None:
    """Print what each configuration stands for, where a study has more than the ladder; seeds alike are one line."""
    if all(role.design == "ladder" for cell in plan.cells.values() for role in cell.roles):
        return
    rows: dict[str, tuple[str, str, str]] = {}
    for cell in plan.cells.values():
        parts = [_stands_for(role) for role in cell.roles]
        remarks = dict.fromkeys(role.remark for role in cell.roles if role.remark)
        if parts:
            rows.setdefault(cell.id.rpartition("-s")[0], (cell.id, plain(", ".join(parts)), plain("; ".join(remarks))))
    print_table(("cell", "stands for", "remark"), list(rows.values()))


def print_status(study: str, root: Path, cells: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    """Print how far every cell of a study is."""
    if as_json:
        emit_json({"study": study, "cells": cells})
        return
    roles = [*ROLES, *sorted({role for cell in cells for role in cell["jobs"]} - {*ROLES, "reference"})]
    rows = [
        (
            cell["cell"],
            coloured(cell["state"], STATE_STYLES),
            *(coloured(cell["jobs"].get(role, "-"), STATE_STYLES) for role in roles),
            str(cell["attempts"]),
            clock(cell["elapsed"]),
            number(cell["loss"], 4),
            number(cell["probe"], 1),
            plain(cell["log"] or "").removeprefix(f"{root}/"),
            plain(cell["reason"]),
        )
        for cell in cells
    ]
    console().print(f"study [bold]{plain(study)}[/] in {plain(root)}", soft_wrap=True)
    print_table(("cell", "state", *roles, "tries", "time", "loss", "probe %", "log", "why"), rows)


def clock(seconds: float) -> str:
    """Format a time as hours, minutes and seconds, or nothing where there is none."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if seconds else ""


def say(text: str) -> None:
    """Print one line."""
    console().print(plain(text), soft_wrap=True, highlight=False)


def show_cells(study: str, root: Path) -> Callable[[list[dict[str, Any]], str], None]:
    """Return a function that prints a study's cells; on a terminal over what it printed last."""

    def show(cells: list[dict[str, Any]], problem: str) -> None:
        if sys.stdout.isatty():
            console().clear()
        print_status(study, root, cells, False)
        if problem:
            say(f"SLURM cannot be asked: {problem}. Shown is what our own files say")

    return show


def print_checks(checks: Sequence[Mapping[str, str]], as_json: bool) -> None:
    """Print what was looked at on this machine, and what was found."""
    if as_json:
        emit_json(checks)
        return
    for check in checks:
        console().print(f"{CHECK_MARKS[check['state']]} {check['what']}: {plain(check['found'])}", soft_wrap=True, highlight=False)
