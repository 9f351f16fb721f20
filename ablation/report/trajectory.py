"""The running linear-probe accuracy from the baseline down, ours and the paper's (its Fig. 6)."""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ablation.report.cells import LABELS_MARK, rounded, signed
from ablation.report.definitions import TableDefinition
from ablation.report.figures import (
    FAINT,
    INK,
    METRIC,
    OURS,
    PAPER,
    SOFT,
    fit,
    heading,
    number,
    paper_heading,
    start,
    styled,
    title,
)
from ablation.report.intervals import Change
from ablation.report.measures import Measure, change_between, measure
from ablation.report.published import Published
from ablation.report.results import Record, Row, control_rows, whole_trajectory

Definitions = tuple[TableDefinition, ...]
DASHES: tuple[Any, ...] = ((0, (6, 2)), (0, (1, 1.6)), (0, (6, 2, 1, 2)))
FIELDS = (
    "stage", "title", "labels_used", "state", "mean", "sd", "n", "planned", "change", "low", "high", "common_seeds", "withheld",
    "paper", "paper_note",
)  # fmt: skip
WORDS: dict[str, Any] = {"textcoords": "offset points", "va": "center", "fontsize": 8.5}
GREY, HATCH = "#eceef1", "#c6cbd2"


@dataclass(frozen=True)
class Step:
    """One row of the trajectory: our measure and change, and the paper's value."""

    row: Row
    found: Measure
    change: Change | str | None
    parent_place: int | None
    paper: float | None
    paper_other: float | None  # what the paper says elsewhere, where it contradicts itself
    paper_note: str


def trajectory_steps(records: Sequence[Record], definitions: Definitions, published: Published) -> tuple[Step, ...]:
    """Collect the whole ladder; the paper's value is Fig. 6's, or the text's for the single noise level."""
    rows = whole_trajectory(records, definitions)
    places = {row.stage: place for place, row in enumerate(rows)}
    steps = []
    for row in rows:
        parent = places[row.parent] if row.parent is not None else None
        entry = published.find("figure_6", row.stage, METRIC) or published.find("3", row.stage, METRIC)
        other = None if entry is None or entry.contradicted_by is None else entry.contradicted_by
        note = "; ".join(part for part in (other and f"{other.where} gives {other.value:g}", entry and entry.note) if part)
        change = None if parent is None else change_between(rows[parent], row, METRIC)
        value, elsewhere = entry.value if entry else None, other.value if other else None
        steps.append(Step(row, measure(row, METRIC), change, parent, value, elsewhere, note))
    return tuple(steps)


def trajectory_csv(steps: Sequence[Step], controls: Sequence[Row]) -> str:
    """Write the trajectory's data, one line per row of the picture, then one per control."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(FIELDS)
    for step in steps:
        change = step.change if isinstance(step.change, Change) else None
        moved = [number(change.mean), number(change.low), number(change.high), len(change.seeds)] if change else ["", "", "", 0]
        withheld = step.change if isinstance(step.change, str) else ""
        labels = "yes" if step.row.labels_used else "no"
        about = [step.row.stage, step.row.title, labels]
        writer.writerow([*about, *_measured(step.found), *moved, withheld, number(step.paper), step.paper_note])
    for row in controls:
        writer.writerow([row.control, row.title, "no", *_measured(measure(row, METRIC)), "", "", "", 0, "", "", ""])
    return out.getvalue()


def _measured(found: Measure) -> list[str | int]:
    return [found.state, number(found.mean), number(found.spread), len(found.values), found.planned]


def trajectory_figure(records: Sequence[Record], definitions: Definitions, published: Published) -> Figure:
    """Draw the running accuracy: ours with seeds and changes, the paper's beside it on its own axis."""
    steps = trajectory_steps(records, definitions, published)
    used = [record for step in steps for record in step.row.records]
    with styled():
        height = 0.40 * len(steps) + 2.55
        figure = start(12, height)
        top, bottom = 1 - 1.15 / height, 1.2 / height
        ours = figure.add_axes((0.235, bottom, 0.375, top - bottom))
        paper = figure.add_axes((0.725, bottom, 0.26, top - bottom), sharey=ours)
        _draw_rows(steps, (ours, paper))
        controls = _draw_controls(ours, steps, control_rows(records, definitions[0]))
        _draw_ours(ours, steps)
        _draw_paper(paper, steps)
        title(figure, "Linear-probe accuracy along the deconstruction", used)
        heading(ours, "This study, top-1 (%)")
        heading(paper, paper_heading(used, published))
        ours.annotate("Change [95 %]", (1.02, 1), (0, 8), "axes fraction", textcoords="offset points", fontsize=9, color=SOFT)
        marks = [
            Line2D([], [], marker="o", color=OURS, lw=0, ms=6.5, label="no labels used"),
            Patch(facecolor=GREY, edgecolor="#b9bfc7", hatch="////", label=f"labels used {LABELS_MARK} (hollow marker)"),
            Line2D([], [], marker="|", color=OURS, lw=1.6, ms=7, label="± 1 standard deviation over seeds"),
        ]
        for handles, line in ((marks, 0.5), (controls, 0.22)):
            figure.add_artist(_legend(figure, handles, line / height))
    return figure


def _legend(figure: Figure, handles: Sequence[Any], middle: float) -> Legend:
    """Lay out one line of the legend, starting where the panel starts."""
    labels = [handle.get_label() for handle in handles]
    place: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (0.225, middle), "bbox_transform": figure.transFigure}
    return Legend(figure, handles, labels, ncols=4, frameon=False, fontsize=8.5, handletextpad=0.6, columnspacing=2.2, **place)


def _draw_rows(steps: Sequence[Step], panels: Sequence[Axes]) -> None:
    """Set up the shared rows: labels, rules, and the grey hatching of rows that use labels."""
    for axes in panels:
        axes.set_ylim(len(steps) - 0.5, -0.5)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.tick_params(axis="x", length=3, labelsize=8.5)
        axes.grid(axis="x", color=FAINT, lw=0.6)
        axes.set_axisbelow(True)
        for place, step in enumerate(steps):
            if step.row.labels_used:
                axes.axhspan(place - 0.44, place + 0.44, facecolor=GREY, edgecolor=HATCH, hatch="////", lw=0, zorder=0)
            else:
                axes.axhline(place + 0.5, color=FAINT, lw=0.5, zorder=0)
    titles = []
    for step in steps:
        marks = (f" {LABELS_MARK}" if step.row.labels_used else "") + (" (plugin)" if step.row.plugin else "")
        titles.append(textwrap.fill(step.row.title, 32, max_lines=2, placeholder=" …") + marks)
    panels[0].set_yticks(range(len(steps)), titles)
    for label, step in zip(panels[0].get_yticklabels(), steps, strict=True):
        label.set_color(SOFT if step.row.labels_used else INK)
    panels[1].tick_params(axis="y", labelleft=False)


def _draw_controls(axes: Axes, steps: Sequence[Step], controls: Sequence[Row]) -> list[Line2D]:
    """Draw each measured control as a vertical line of its own dash pattern and set the axis; return the legend's entries.

    A control far from the ladder stays off the axis, and the legend says so: a ladder squeezed into a corner shows nothing.
    """
    values = [value for step in steps if step.found.mean is not None for value in step.found.values.values()]
    reach = 0.9 * max(max(values) - min(values), 1.0) if values else 0.0
    handles, shown = [], list(values)
    for row, dashes in zip(controls, DASHES, strict=True):
        found = measure(row, METRIC)
        if found.mean is None:
            handles.append(Line2D([], [], lw=0, label=f"{row.title}: {_hole(found)}"))
            continue
        near = not values or min(values) - reach <= found.mean <= max(values) + reach
        if near:
            axes.axvline(found.mean, color=SOFT, lw=1.3, ls=dashes, zorder=1)
            shown.append(found.mean)
        label = f"{row.title} {rounded(found.mean)}{'' if near else ' (off the axis)'}"
        handles.append(Line2D([], [], color=SOFT, lw=1.3, ls=dashes if near else "none", label=label))
    fit(axes, shown, right=0.2 if any(step.found.holes for step in steps) else 0.14)
    return handles


def _draw_ours(axes: Axes, steps: Sequence[Step]) -> None:
    """Draw our means, their spread, the path between parent and child, and the changes in a column of their own."""
    means = [step.found.mean for step in steps]
    across = axes.get_yaxis_transform()
    for place, step in enumerate(steps):
        value, halo = means[place], _halo(step)
        if step.parent_place is not None and value is not None and (before := means[step.parent_place]) is not None:
            axes.plot([before, before, value], [step.parent_place, place, place], color=OURS, lw=0.9, alpha=0.55, zorder=2)
        if value is None:
            axes.annotate(_hole(step.found), (0, place), (6, 0), across, style="italic", color=SOFT, bbox=halo, **WORDS)
        else:
            spread = step.found.spread
            bar: dict[str, Any] = {"xerr": spread, "elinewidth": 1.6, "capsize": 3}
            face = "white" if step.row.labels_used else OURS
            axes.errorbar(value, place, fmt="o", ms=6.5, color=OURS, mfc=face, mew=1.4, zorder=4, **bar)
            holes = f" ({len(step.found.values)}/{step.found.planned})" if step.found.holes else ""
            words = {**WORDS, "fontsize": 9, "fontweight": "bold", "zorder": 5, "bbox": halo}
            axes.annotate(rounded(value) + holes, (value + (spread or 0), place), (8, 0), **words)
        shade = SOFT if isinstance(step.change, str) else INK
        axes.annotate(_change_words(step), (1.02, place), (0, 0), across, color=shade, annotation_clip=False, **WORDS)


def _draw_paper(axes: Axes, steps: Sequence[Step]) -> None:
    """Draw the paper's own trajectory, contradicted values with both readings."""
    fit(axes, [step.paper for step in steps if step.paper is not None], right=0.16)
    for place, step in enumerate(steps):
        if step.paper is None:
            across = axes.get_yaxis_transform()
            axes.annotate("not in the paper", (0, place), (6, 0), across, style="italic", color=SOFT, bbox=_halo(step), **WORDS)
            continue
        if step.parent_place is not None and (before := steps[step.parent_place].paper) is not None:
            axes.plot([before, before, step.paper], [step.parent_place, place, place], color=PAPER, lw=0.9, alpha=0.55, zorder=2)
        face = "white" if step.row.labels_used else PAPER
        axes.plot(step.paper, place, "D", ms=5.5, color=PAPER, mfc=face, mew=1.3, zorder=4)
        words = f"{step.paper:.1f}" if step.paper_other is None else f"{step.paper:.1f} (text: {step.paper_other:.1f})"
        axes.annotate(words, (step.paper, place), (8, 0), zorder=5, bbox=_halo(step), **WORDS)


def _halo(step: Step) -> dict[str, Any]:
    """Keep lines and hatching from crossing the words."""
    return {"boxstyle": "square,pad=0.15", "facecolor": GREY if step.row.labels_used else "white", "edgecolor": "none"}


def _hole(found: Measure) -> str:
    return textwrap.shorten(f"withheld: {found.withheld}" if found.withheld else found.state, 46, placeholder=" …")


def _change_words(step: Step) -> str:
    """Write a change for the narrow column beside the panel."""
    if step.change is None:
        return ""
    if isinstance(step.change, str):
        return "withheld"
    if step.change.low is None or step.change.high is None:
        return f"{signed(step.change.mean)}  (one seed)"
    return f"{signed(step.change.mean)} [{signed(step.change.low)}, {signed(step.change.high)}]"


def trajectory_words(steps: Sequence[Step]) -> tuple[str, str, str]:
    """Title the picture, say in words what it shows (for those who cannot see it), and caption it."""
    shown = []
    for step in steps:
        value = step.found.mean
        shown.append(f"{step.row.title} {_hole(step.found) if value is None else rounded(value)}")
    alt = f"Linear-probe top-1 accuracy in percent, step by step: {'; '.join(shown)}. The paper's own values stand beside."
    caption = (
        "Each marker is the mean over seeds with one standard deviation; the line joins each step to its parent. "
        "Changes are taken on common seeds only, with Student's 95 % interval. The right panel has an axis of its own."
    )
    return "Trajectory", alt, caption
