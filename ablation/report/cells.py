"""The cells of a table: the words they say in every format, and the numbers behind them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import ROUND_HALF_UP, Decimal

from ablation.report.definitions import ColumnDefinition
from ablation.report.intervals import Change
from ablation.report.measures import Measure, change_between, measure
from ablation.report.published import Entry, Published
from ablation.report.results import Row

LABELS_MARK = "†"
MINUS = "\N{MINUS SIGN}"
NOTHING = "\N{EN DASH}"  # a cell that can have no content, never one that lacks it


@dataclass(frozen=True)
class Cell:
    """What one cell says, the same words in every format, and the numbers behind it."""

    text: str
    state: str = "shown"
    numbers: tuple[tuple[str, float | int | None], ...] = ()
    marks: tuple[str, ...] = ()

    def number(self, name: str) -> float | int | None:
        """Return one of the numbers behind the cell (mean, sd, n, planned, low, high); None if it has none of that name."""
        return dict(self.numbers).get(name)


@dataclass
class Footnotes:
    """Letters the footnotes of one table in reading order; the same text keeps one letter."""

    texts: dict[str, str] = field(default_factory=dict)

    def mark(self, text: str) -> str:
        """Return the letter of a footnote, a new one for a new text."""
        if text not in self.texts:
            count = len(self.texts)
            self.texts[text] = (chr(96 + count // 26) if count >= 26 else "") + chr(97 + count % 26)
        return self.texts[text]

    def marks(self, texts: Sequence[str]) -> tuple[str, ...]:
        """Return the letters of several footnotes, each once."""
        return tuple(dict.fromkeys(self.mark(text) for text in texts))


def rounded(value: float, decimals: int = 1) -> str:
    """Write a number with halves rounded away from zero, as a reader would (6.25 is 6.3)."""
    if not math.isfinite(value):
        return "not finite"
    return str(Decimal(repr(value)).quantize(Decimal(1).scaleb(-decimals), ROUND_HALF_UP))


def signed(value: float, decimals: int = 1) -> str:
    """Write a difference with its sign, a true minus, and no sign on zero."""
    text = rounded(value, decimals)
    if float(text) == 0:
        return text.removeprefix("-")
    return text.replace("-", MINUS) if text.startswith("-") else f"+{text}"


def duration(seconds: float) -> str:
    """Write a wall time in the unit a person would use."""
    if seconds < 90:
        return f"{rounded(seconds)} s"
    return f"{rounded(seconds / 60)} min" if seconds < 5400 else f"{rounded(seconds / 3600)} h"


def measure_text(found: Measure) -> str:
    """Write mean, spread and n of N seeds; a hole is a word, never a blank."""
    if found.withheld:
        return f"withheld: {found.withheld}"
    if found.state == "not run":
        return "not run"
    words: dict[str, int] = {}
    for _, word, _ in found.holes:
        words[word] = words.get(word, 0) + 1
    counted = f"{len(found.values)}/{found.planned}"
    if found.mean is None:
        return (
            f"{found.state} ({counted})"
            if len(words) == 1
            else f"{', '.join(f'{n} {word}' for word, n in sorted(words.items()))} ({counted})"
        )
    holes = "".join(f"; {n} {word}" for word, n in sorted(words.items()))
    deviation = "" if found.spread is None else f" ± {rounded(found.spread)}"
    return f"{rounded(found.mean)}{deviation} ({counted}{holes})"


def measure_cell(row: Row, metric: str, notes: Footnotes) -> Cell:
    """Fill a cell with one metric of one row and footnote the reason of every hole."""
    found = measure(row, metric)
    seeds_by_reason: dict[tuple[str, str], list[int]] = {}
    for seed, word, reason in found.holes:
        if reason:
            seeds_by_reason.setdefault((word, reason), []).append(seed)
    reasons = []
    for (word, reason), seeds in seeds_by_reason.items():
        # "not defined: ..." already says so itself, for every seed alike.
        said = reason if reason.startswith(word) else f"{word}: {reason}"
        reasons.append(said if word == "not defined" else f"seed {', '.join(map(str, seeds))} {said}")
    numbers = (("mean", found.mean), ("sd", found.spread), ("n", len(found.values)), ("planned", found.planned))
    return Cell(measure_text(found), found.state, numbers, notes.marks(reasons))


def change_cell(row: Row, rows: Sequence[Row], metric: str) -> Cell:
    """Fill the change to the parent's row: common seeds only, an interval from two seeds on, else the reason it is withheld."""
    if row.parent is None:
        return Cell(NOTHING, "none")
    parent = next(other for other in rows if other.stage == row.parent)
    change = change_between(parent, row, metric)
    if isinstance(change, str):
        return Cell(f"withheld: {change}", "withheld")
    above = rows[rows.index(row) - 1].stage
    origin = "" if row.parent == above else f", from {row.parent}"
    return Cell(change_text(change, origin), "shown", change_numbers(change))


def change_numbers(change: Change) -> tuple[tuple[str, float | int | None], ...]:
    """Return the numbers behind a change's cell."""
    return (("mean", change.mean), ("low", change.low), ("high", change.high), ("n", len(change.seeds)))


def change_text(change: Change, origin: str = "") -> str:
    """Write a change with its interval and the number of common seeds."""
    if change.low is None or change.high is None:
        return f"{signed(change.mean)} (n = {len(change.seeds)}{origin})"
    return f"{signed(change.mean)} [{signed(change.low)}, {signed(change.high)}] (n = {len(change.seeds)}{origin})"


def published_cell(table: str, row: Row, column: ColumnDefinition, published: Published, notes: Footnotes) -> Cell:
    """Fill the paper's own number; contradictions and inferences become footnotes, never a choice made in silence."""
    entry = published.find(table, row.stage, str(column.metric))
    if entry is None:
        return Cell("not in the paper", "none")
    before = published.find(table, row.parent, str(column.metric)) if column.with_change else None
    change = None if before is None or before.value is None or entry.value is None else round(entry.value - before.value, 6)
    text = entry.text if change is None else f"{entry.text} ({signed(change, entry.decimals)})"
    return Cell(text, "shown", (("value", entry.value), ("change", change)), notes.marks(entry_notes(entry)))


def entry_notes(entry: Entry) -> list[str]:
    """List what must be said beside a cited number."""
    said = []
    if entry.contradicted_by is not None:
        said.append(f"The paper contradicts itself: {entry.contradicted_by.where} gives {entry.contradicted_by.value:.{entry.decimals}f}.")
    if entry.note is not None:
        said.append(f"Paper: {entry.note}.")
    return said
