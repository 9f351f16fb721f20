"""Accuracy against latent dimension, one curve per tokenizer, ours and the paper's (its Table 2 plot)."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ablation.report.figures import FAINT, SOFT, heading, number, paper_heading, start, styled, title
from ablation.report.published import Published
from ablation.report.results import Record
from ablation.report.tables import Table

LOOKS: tuple[tuple[str, Any, str], ...] = (
    ("o", "-", "#1d5fa6"),
    ("s", (0, (5, 1.5)), "#b3541e"),
    ("^", (0, (1, 1.2)), "#3b7d4f"),
    ("D", (0, (6, 1.5, 1, 1.5)), "#6b4a94"),
)
DODGE = 0.03  # octaves between the curves, so that their error bars do not hide each other
Points = list[tuple[int, float, float | None]]  # latent dimension, mean, standard deviation


def curves(table: Table, kind: str = "step", name: str = "mean") -> dict[str, Points]:
    """Collect a grid's numbers by row title; kind 'step' and name 'mean' are ours, 'paper' and 'value' the paper's."""
    found: dict[str, Points] = {}
    for row in table.rows:
        for column, cell in zip(table.columns, row.cells, strict=True):
            value = cell.number(name)
            if row.kind == kind and value is not None:
                point = (int(column.name.removeprefix("d")), float(value), cell.number("sd"))
                found.setdefault(row.cells[0].text, []).append(point)
    return found


def curves_figure(table: Table, records: Sequence[Record], published: Published) -> Figure | None:
    """Draw accuracy against latent dimension, ours and the paper's side by side; None while no row has two cells."""
    ours = {name: points for name, points in curves(table).items() if len(points) >= 2}
    if not ours:
        return None
    names = [row.cells[0].text for row in table.rows if row.kind == "step"]
    stages = {row.stage for row in table.rows}
    used = [record for record in records if record["stage"] in stages]
    with styled():
        figure = start(10.5, 5.1)
        panels = ((0.07, ours, "This study, top-1 (%)"), (0.56, curves(table, "paper", "value"), paper_heading(used, published)))
        for left, series, text in panels:
            axes = figure.add_axes((left, 0.205, 0.42, 0.56))
            heading(axes, text)
            _draw_curves(axes, series, names)
        title(figure, "Accuracy against latent dimension", used)
        handles = [
            Line2D([], [], color=shade, marker=marker, ls=dashes, lw=1.5, ms=6, label=name)
            for name, (marker, dashes, shade) in zip(names, LOOKS, strict=False)
        ]
        place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0.055, 0.005), "fontsize": 9}
        figure.legend(handles=handles, ncols=4, frameon=False, handlelength=3.2, **place)
        figure.text(0.98, 0.042, _holes(table), ha="right", fontsize=8.5, color=SOFT)
    return figure


def _holes(table: Table) -> str:
    """Count the cells that have no point, by the word the table gives them."""
    words = Counter(cell.state for row in table.rows if row.kind == "step" for cell in row.cells[2:] if cell.state != "shown")
    return f"Without a point: {', '.join(f'{count} {word}' for word, count in sorted(words.items()))} (Table 2)" if words else ""


def _draw_curves(axes: Axes, series: dict[str, Points], names: Sequence[str]) -> None:
    """Draw one panel of curves, each row with its own marker, dash pattern and shade."""
    axes.set_xscale("log", base=2)
    ticks = sorted({point[0] for points in series.values() for point in points})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=3, labelsize=9)
    axes.grid(axis="y", color=FAINT, lw=0.6)
    axes.set_xlabel("latent dimension d, numbers per token (log axis)", fontsize=9)
    for place, (name, (marker, dashes, shade)) in enumerate(zip(names, LOOKS, strict=False)):
        if points := series.get(name):
            spreads = [point[2] or 0.0 for point in points]
            shift = 2 ** (DODGE * (place - (len(names) - 1) / 2)) if any(spreads) else 1.0
            where = [point[0] * shift for point in points]
            look: dict[str, Any] = {"marker": marker, "ls": dashes, "color": shade, "lw": 1.5, "ms": 6, "elinewidth": 1}
            axes.errorbar(where, [point[1] for point in points], yerr=spreads, capsize=3 if any(spreads) else 0, **look)


def curves_csv(table: Table) -> str:
    """Write the curves' data, one line per point: ours with its spread, the paper's beside it."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["tokenizer", "latent_dim", "state", "mean", "sd", "n", "planned", "paper"])
    paper = {row.stage: row for row in table.rows if row.kind == "paper"}
    for row in (row for row in table.rows if row.kind == "step"):
        for place, column in enumerate(table.columns[2:], start=2):
            cell, theirs = row.cells[place], paper[row.stage].cells[place].number("value")
            counted = [cell.number("n") or 0, cell.number("planned") or 0]
            ours = [number(cell.number("mean")), number(cell.number("sd")), *counted]
            writer.writerow([row.cells[0].text, column.name.removeprefix("d"), cell.state, *ours, number(theirs)])
    return out.getvalue()
