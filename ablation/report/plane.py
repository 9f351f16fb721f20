"""Accuracy against the distance of samples: does a better representation go with better images? The path is drawn step by step."""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from matplotlib.axes import Axes

from ablation.report.cells import LABELS_MARK, rounded
from ablation.report.figures import FAINT, METRIC, OURS, PAPER, SOFT, Omission, Picture, heading, number, render, start, styled, title
from ablation.report.measures import measure
from ablation.report.published import Published
from ablation.report.results import Record, Row

TITLE = "Accuracy and sample quality"
MARKER = 14.0  # points


@dataclass(frozen=True)
class Point:
    """One row of the ladder: its number on the path, ours, and the paper's."""

    place: int
    row: Row
    distance: float | None
    accuracy: float | None
    paper_distance: float | None
    paper_accuracy: float | None

    @property
    def ours(self) -> tuple[float, float] | None:
        """Return distance and accuracy where both were measured."""
        return None if self.distance is None or self.accuracy is None else (self.distance, self.accuracy)

    @property
    def paper(self) -> tuple[float, float] | None:
        """Return the paper's distance and accuracy where it prints both."""
        return None if self.paper_distance is None or self.paper_accuracy is None else (self.paper_distance, self.paper_accuracy)


def plane_points(rows: Sequence[Row], published: Published) -> list[Point]:
    """Collect every row's two measures, ours and the paper's."""
    points = []
    for place, row in enumerate(rows, 1):
        cited = [published.find("1", row.stage, name) for name in ("fid", METRIC)]
        paper = [None if entry is None else entry.value for entry in cited]
        points.append(Point(place, row, measure(row, "fid").mean, measure(row, METRIC).mean, *paper))
    return points


def plane_picture(rows: Sequence[Row], published: Published) -> Picture | Omission:
    """Draw both planes, each with its path."""
    points = plane_points(rows, published)
    shown = [point for point in points if point.ours is not None]
    if len(shown) < 2:
        return Omission(TITLE, "fewer than two rows have both an accuracy and a distance")
    used: list[Record] = [record for point in shown for record in point.row.records]
    names = sorted({str(record["protocol"].get("distance", "distance")) for record in used if record["state"] == "done"})
    with styled():
        figure = start(12, 5.4)
        left, right = figure.add_axes((0.05, 0.12, 0.36, 0.62)), figure.add_axes((0.47, 0.12, 0.24, 0.62))
        title(figure, TITLE, used)
        heading(left, "This study: linear probe, top-1 (%)")
        heading(right, "Paper, ImageNet (Table 1)")
        _draw(left, [(point, where) for point in shown if (where := point.ours)], OURS, "o")
        _draw(right, [(point, where) for point in points if (where := point.paper)], PAPER, "D")
        left.set_xlabel(f"{' | '.join(names)}: left is better")
        right.set_xlabel("FID-50K: left is better")
        lines = [
            f"{point.place}  {textwrap.shorten(point.row.title, 34, placeholder=' …')}{f' {LABELS_MARK}' if point.row.labels_used else ''}"
            + ("" if point.ours else "  (no distance)")
            for point in points
        ]
        figure.text(0.735, 0.78, "\n".join(lines), fontsize=8.3, va="top", linespacing=1.55)
        figure.text(0.735, 0.035, f"hollow, {LABELS_MARK}: labels used", fontsize=8.3, color=SOFT)
    best, closest = max(shown, key=lambda p: p.accuracy or 0), min(shown, key=lambda p: p.distance or 0)
    alt = (
        f"Accuracy against sample distance, rows joined in their order. The highest accuracy, {rounded(best.accuracy or 0)}, is at "
        f"{best.row.title} with distance {rounded(best.distance or 0)}; the smallest distance, {rounded(closest.distance or 0)}, at "
        f"{closest.row.title} with accuracy {rounded(closest.accuracy or 0)}. "
        f"{'They are the same row.' if best is closest else 'They are different rows.'}"
    )
    caption = "Means over seeds; arrows lead from each row to the next one that has both measures. The panels have axes of their own."
    data = _csv(points)
    return Picture("plane", TITLE, alt, caption, {**render(figure), "csv": data.encode()}, data)


def _draw(axes: Axes, points: Sequence[tuple[Point, tuple[float, float]]], shade: str, marker: str) -> None:
    """Draw one path: arrows, numbered markers, hollow where labels were used."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=FAINT, lw=0.6)
    axes.tick_params(length=3, labelsize=8.5)
    axes.margins(0.1)
    axes.update_datalim([where for _, where in points])
    axes.autoscale_view()
    for (_, before), (_, after) in pairwise(points):
        arrow = {"arrowstyle": "-|>", "color": shade, "lw": 0.9, "alpha": 0.6, "shrinkA": 8, "shrinkB": 8}
        axes.annotate("", after, before, arrowprops=arrow)
    crowds = _crowds(axes, [where for _, where in points])
    for (point, where), crowd in zip(points, crowds, strict=True):
        face = "white" if point.row.labels_used else shade
        ink = shade if point.row.labels_used else "white"
        axes.plot(*where, marker, ms=13 if len(crowd) == 1 else 9, color=shade, mfc=face, mew=1.3, zorder=3)
        if len(crowd) == 1:
            axes.annotate(str(point.place), where, ha="center", va="center", fontsize=7.5, color=ink, zorder=4, fontweight="bold")
        elif points[crowd[0]][0] is point:  # markers on top of one another share a label beside them
            text = ", ".join(str(points[place][0].place) for place in crowd)
            halo = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
            axes.annotate(text, where, (9, 7), textcoords="offset points", fontsize=8, color=shade, fontweight="bold", zorder=5, bbox=halo)


def _crowds(axes: Axes, where: Sequence[tuple[float, float]]) -> list[tuple[int, ...]]:
    """Return for each point the places of all points whose markers touch its own, itself included; touching is passed on."""
    shown = [axes.transData.transform(one) / axes.figure.dpi * 72 for one in where]  # in points, as the markers are
    groups = [{place} for place in range(len(where))]
    for one in range(len(where)):
        for other in range(one):
            apart = float(((shown[one] - shown[other]) ** 2).sum()) ** 0.5
            if apart < MARKER and groups[one] is not groups[other]:
                joined = groups[one] | groups[other]
                for place in joined:
                    groups[place] = joined
    return [tuple(sorted(group)) for group in groups]


def _csv(points: Sequence[Point]) -> str:
    """Write one line per row of the ladder."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["place", "stage", "title", "labels_used", "distance", METRIC, "paper_fid", f"paper_{METRIC}"])
    for point in points:
        values = (point.distance, point.accuracy, point.paper_distance, point.paper_accuracy)
        labels = "yes" if point.row.labels_used else "no"
        writer.writerow([point.place, point.row.stage, point.row.title, labels, *map(number, values)])
    return out.getvalue()
