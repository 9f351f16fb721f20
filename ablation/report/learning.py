"""Training loss of every row over its steps; rows whose losses must not be compared stand in panels of their own."""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ablation.report.figures import FAINT, LOOKS, SOFT, Omission, Picture, number, render, start, styled, title
from ablation.report.intervals import mean
from ablation.report.results import Record, Row

COLUMNS = 4
INCOMPARABLE = "training loss"
TITLE = "Learning curves"


def learning_picture(rows: Sequence[Row]) -> Picture | Omission:
    """Draw the learning curves of the ladder."""
    groups = panels(rows)
    if not groups:
        return Omission(TITLE, "the records hold no learning curve; `ablate report --runs` collects them")
    used = [record for group in groups for row in group for record in row.records]
    lines = -(-len(groups) // COLUMNS)
    with styled():
        height = 2.25 * lines + 1.0
        figure = start(12, height)
        for place, group in enumerate(groups):
            line, column = divmod(place, COLUMNS)
            bottom = (height - 0.9 - 2.25 * (line + 1) + 0.45) / height
            axes = figure.add_axes((0.045 + 0.243 * column, bottom, 0.2, 1.4 / height))
            _draw(axes, group)
        title(figure, TITLE, used)
    shown = [row for group in groups for row in group]
    said = "; ".join(f"{row.title} {first:.3g} to {last:.3g}" for row in shown for first, last in [_ends(row)])
    alt = f"Training loss over steps in {len(groups)} panels, averaged over seeds at the first and last point: {said}."
    caption = (
        "One line per seed, averaged over blocks of steps. Rows share a panel only where their losses measure the same; "
        "each panel has its own axis, and heights must not be compared between panels."
    )
    data = _csv(shown)
    return Picture("learning", TITLE, alt, caption, {**render(figure), "csv": data.encode()}, _summary(shown))


def panels(rows: Sequence[Row]) -> list[list[Row]]:
    """Group neighbouring rows whose training losses are comparable; rows without a curve are left out."""
    groups: list[list[Row]] = []
    before: Row | None = None
    for row in rows:
        drawn = any(_curve(record) for record in row.records)
        apart = before is None or row.parent != before.stage or any(INCOMPARABLE in record["incomparable"] for record in row.records)
        if drawn and (apart or not groups):
            groups.append([row])
        elif drawn:
            groups[-1].append(row)
        before = row if drawn else None
    return groups


def _curve(record: Record) -> tuple[list[float], list[float]] | None:
    """Return a record's steps and losses; None where it has none, as old records do."""
    curve: dict[str, Any] = record.get("curve") or {}
    return (curve["step"], curve["loss"]) if curve.get("loss") else None


def _ends(row: Row) -> tuple[float, float]:
    """Return the first and the last loss of a row, averaged over its seeds."""
    curves = [curve for record in row.records if (curve := _curve(record))]
    return mean([losses[0] for _, losses in curves]), mean([losses[-1] for _, losses in curves])


def _draw(axes: Axes, group: Sequence[Row]) -> None:
    """Draw one panel; each row has its own marker, dash pattern and shade, and its name in the panel's title."""
    names: list[str] = []
    for row, (marker, dashes, shade) in zip(group, LOOKS, strict=False):
        for record in row.records:
            if curve := _curve(record):
                every = max(1, len(curve[0]) // 6)
                axes.plot(*curve, color=shade, ls=dashes, lw=1.2, marker=marker, ms=3.5, markevery=every, alpha=0.9)
        names.append(f"{'●■▲◆'[len(names)]} {row.title}" if len(group) > 1 else row.title)
    text = "\n".join(textwrap.fill(name, 38, max_lines=1, placeholder=" …") for name in names)
    axes.set_title(text, loc="left", fontsize=8, fontweight="bold", pad=4)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=FAINT, lw=0.5)
    axes.tick_params(length=2, labelsize=7.5)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.set_xlabel("step", fontsize=7.5, color=SOFT, labelpad=1)


def _csv(rows: Sequence[Row]) -> str:
    """Write every point: stage, seed, step, loss."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["stage", "seed", "step", "loss"])
    for row in rows:
        for record in row.records:
            steps, losses = _curve(record) or ([], [])
            writer.writerows([row.stage, record["seed"], f"{step:g}", number(loss)] for step, loss in zip(steps, losses, strict=True))
    return out.getvalue()


def _summary(rows: Sequence[Row]) -> str:
    """Write the first and the last loss of every row, which is what the page shows as a table."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["row", "seeds", "first loss", "last loss"])
    for row in rows:
        seeds = ", ".join(str(record["seed"]) for record in row.records if _curve(record))
        writer.writerow([row.title, seeds, *map(number, _ends(row))])
    return out.getvalue()
