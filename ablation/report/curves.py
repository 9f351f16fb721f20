"""Accuracy along one setting, ours and the paper's side by side: Table 2's plot, and one for every ready study with an axis."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ablation.report.figures import FAINT, SOFT, heading, number, paper_heading, start, styled, title
from ablation.report.measures import measure
from ablation.report.published import Published
from ablation.report.results import Record
from ablation.report.sweeps import Sweep
from ablation.report.tables import Table

LOOKS: tuple[tuple[str, Any, str], ...] = (
    ("o", "-", "#1d5fa6"),
    ("s", (0, (5, 1.5)), "#b3541e"),
    ("^", (0, (1, 1.2)), "#3b7d4f"),
    ("D", (0, (6, 1.5, 1, 1.5)), "#6b4a94"),
)
DODGE = 0.03  # octaves between the curves, so that their error bars do not hide each other
DODGE_SHARE = 0.012  # the same on an axis that is not logarithmic, as a share of its length
LEAST_SPAN = 2.0  # points: a smaller range of accuracies is not blown up to the whole height
MANY_TICKS = 8
Points = list[tuple[float, float, float | None]]  # place on the axis, mean, standard deviation


@dataclass(frozen=True)
class Axis:
    """The horizontal axis: its words, its kind, and the words of its ticks where it is ordinal."""

    title: str
    scale: str = "log"
    ticks: tuple[str, ...] = ()
    levels: tuple[tuple[str, float], ...] = ()  # lines across our panel: words and height


LATENT_DIM = Axis("latent dimension d, numbers per token (log axis)")


def curves(table: Table, kind: str = "step", name: str = "mean") -> dict[str, Points]:
    """Collect a grid's numbers by row title; kind 'step' and name 'mean' are ours, 'paper' and 'value' the paper's."""
    found: dict[str, Points] = {}
    for row in table.rows:
        for column, cell in zip(table.columns, row.cells, strict=True):
            value = cell.number(name)
            if row.kind == kind and value is not None:
                point = (float(column.name.removeprefix("d")), float(value), cell.number("sd"))
                found.setdefault(row.cells[0].text, []).append(point)
    return found


def curves_figure(table: Table, records: Sequence[Record], published: Published) -> Figure | None:
    """Draw Table 2's accuracy against latent dimension, ours and the paper's side by side; None while no row has two cells."""
    ours = {name: points for name, points in curves(table).items() if len(points) >= 2}
    if not ours:
        return None
    names = [row.cells[0].text for row in table.rows if row.kind == "step"]
    stages = {row.stage for row in table.rows}
    used = [record for record in records if record["stage"] in stages]
    paper = curves(table, "paper", "value")
    return draw_panels("Accuracy against latent dimension", names, (ours, paper), LATENT_DIM, used, published, _holes(table))


def draw_panels(
    words: str,
    names: Sequence[str],
    series: tuple[Mapping[str, Points], Mapping[str, Points]],
    axis: Axis,
    used: Sequence[Record],
    published: Published,
    holes: str,
) -> Figure:
    """Draw our curves and, on the right where it has any, the paper's, with one legend below both."""
    ours, paper = series
    with styled():
        figure = start(10.5, 5.1)
        panels = [(0.07, ours, "This study, top-1 (%)")]
        panels += [(0.56, paper, paper_heading(used, published))] if paper else []
        width = 0.42 if paper else 0.9
        for left, curves_shown, text in panels:
            axes = figure.add_axes((left, 0.205, width, 0.56))
            heading(axes, text)
            _draw_curves(axes, curves_shown, names, axis)
            _draw_levels(axes, axis.levels if curves_shown is ours else ())
        title(figure, words, used)
        handles = [
            Line2D([], [], color=shade, marker=marker, ls=dashes, lw=1.5, ms=6, label=name)
            for name, (marker, dashes, shade) in zip(names, LOOKS, strict=False)
            if name in ours or name in paper
        ]
        place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0.055, 0.005), "fontsize": 9}
        figure.legend(handles=handles, ncols=4, frameon=False, handlelength=3.2, **place)
        figure.text(0.98, 0.042, holes, ha="right", fontsize=8.5, color=SOFT)
    return figure


def _holes(table: Table) -> str:
    """Count the cells that have no point, by the word the table gives them."""
    words = Counter(cell.state for row in table.rows if row.kind == "step" for cell in row.cells[2:] if cell.state != "shown")
    return f"Without a point: {', '.join(f'{count} {word}' for word, count in sorted(words.items()))} (Table 2)" if words else ""


def _draw_curves(axes: Axes, series: Mapping[str, Points], names: Sequence[str], axis: Axis) -> None:
    """Draw one panel of curves, each row with its own marker, dash pattern and shade."""
    _scale_axis(axes, sorted({point[0] for points in series.values() for point in points}), axis)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=3, labelsize=9)
    axes.grid(axis="y", color=FAINT, lw=0.6)
    axes.set_xlabel(axis.title, fontsize=9)
    span = max((point[0] for points in series.values() for point in points), default=0.0)
    for place, (name, (marker, dashes, shade)) in enumerate(zip(names, LOOKS, strict=False)):
        if points := series.get(name):
            spreads = [point[2] or 0.0 for point in points]
            step = (place - (len(names) - 1) / 2) if any(spreads) else 0.0
            where = [point[0] * 2 ** (DODGE * step) if axis.scale == "log" else point[0] + DODGE_SHARE * span * step for point in points]
            look: dict[str, Any] = {"marker": marker, "ls": dashes, "color": shade, "lw": 1.5, "ms": 6, "elinewidth": 1}
            axes.errorbar(where, [point[1] for point in points], yerr=spreads, capsize=3 if any(spreads) else 0, **look)
    low, high = axes.get_ylim()
    if high - low < LEAST_SPAN:
        middle = (low + high) / 2
        axes.set_ylim(middle - LEAST_SPAN / 2, middle + LEAST_SPAN / 2)
    axes.yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]))


def _draw_levels(axes: Axes, levels: Sequence[tuple[str, float]]) -> None:
    """Draw a line across for what has no place on the axis, with its words at the right end."""
    for words, height in levels:
        axes.axhline(height, color=SOFT, lw=1.2, ls=(0, (2, 2)))
        axes.annotate(
            words, (1, height), (-2, 3), ("axes fraction", "data"), textcoords="offset points", ha="right", fontsize=8.5, color=SOFT
        )


def _scale_axis(axes: Axes, places: Sequence[float], axis: Axis) -> None:
    """Give a panel its horizontal axis: ticks at the measured places, at equal distances where the axis is ordinal."""
    if axis.scale == "log":
        axes.set_xscale("log", base=2)
    shown = list(range(len(axis.ticks))) if axis.scale == "ordinal" else places
    words = axis.ticks if axis.scale == "ordinal" else [f"{place:g}" for place in places]
    if len(shown) <= MANY_TICKS or axis.scale != "linear":
        axes.set_xticks(shown, words)
    axes.minorticks_off()
    if axis.scale == "ordinal":
        axes.set_xlim(-0.4, max(len(axis.ticks) - 0.6, 0.4))


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


def sweep_figure(sweep: Sweep, published: Published) -> Figure | None:
    """Draw a ready study's metric along its axis; None where it has no axis, or no row has two points."""
    asked = sweep.definition.axis
    if asked is None:
        return None
    places = {spot.variant.name: spot.x for spot in sweep.spots if spot.x is not None}
    order = [variant.name for variant in sweep.definition.variants if variant.name in places]
    ticks = tuple(f"{places[name]:.3g}" for name in order) if asked.scale == "ordinal" else ()
    ours: dict[str, Points] = {}
    paper: dict[str, Points] = {}
    for spot in sweep.spots:
        if spot.x is None:
            continue
        x = float(order.index(spot.variant.name)) if asked.scale == "ordinal" else spot.x
        found = measure(spot.measured, sweep.definition.metric)
        if found.mean is not None:
            ours.setdefault(spot.row.title, []).append((x, found.mean, found.spread))
        entry = published.find(sweep.definition.paper_table, spot.row.name, spot.paper)
        if entry is not None and entry.value is not None:
            paper.setdefault(spot.row.title, []).append((x, entry.value, None))
    if asked.scale != "ordinal" and asked.of is not None:
        paper = _paper_points(sweep, published)
    if not any(len(points) >= 2 for points in ours.values()):
        return None
    names = [row.title for row in sweep.definition.rows]
    shown = {name: points for name, points in paper.items() if len(points) >= 2}
    off = (
        (spot.row.title, measure(spot.measured, sweep.definition.metric).mean) for spot in sweep.spots if spot.variant.name == asked.level
    )
    axis = Axis(asked.title, asked.scale, ticks, tuple((words, height) for words, height in off if height is not None))
    return draw_panels(sweep.definition.title, names, (ours, shown), axis, sweep.used, published, _sweep_holes(sweep))


def _paper_points(sweep: Sweep, published: Published) -> dict[str, Points]:
    """Collect the paper's own curves, whose columns are places on the axis, also where our scale has no such variant."""
    titles = {row.name: row.title for row in sweep.definition.rows}
    found: dict[str, Points] = {}
    for entry in published.entries:
        if entry.table == sweep.definition.paper_table and entry.row in titles and entry.value is not None:
            found.setdefault(titles[entry.row], []).append((float(entry.column), entry.value, None))
    return {title: sorted(points) for title, points in found.items()}


def _sweep_holes(sweep: Sweep) -> str:
    """Count the spots without a point, by the word the table gives them."""
    states = (
        "not possible" if spot.reason else measure(spot.measured, sweep.definition.metric).state
        for spot in sweep.spots
    )  # fmt: skip
    words = Counter(state for state in states if state != "shown")
    return f"Without a point: {', '.join(f'{count} {word}' for word, count in sorted(words.items()))}" if words else ""


def sweep_csv(sweep: Sweep, published: Published) -> str:
    """Write a ready study's data, one line per row and variant: ours with its spread, the paper's beside it."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["row", "variant", "x", "state", "mean", "sd", "n", "planned", "paper"])
    for spot in sweep.spots:
        found = measure(spot.measured, sweep.definition.metric)
        entry = published.find(sweep.definition.paper_table, spot.row.name, spot.paper)
        state = "not possible" if spot.reason else found.state
        ours = [number(found.mean), number(found.spread), len(found.values), found.planned]
        writer.writerow([spot.row.title, spot.title, number(spot.x), state, *ours, number(entry.value if entry else None)])
    return out.getvalue()
