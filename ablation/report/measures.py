"""What a row measured over its seeds, what is missing, and how far it moved from its parent's row. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ablation.report.intervals import Change, mean, paired_change, spread
from ablation.report.results import Record, Row

METRIC_NAMES = {"linear_probe_top1": "linear probe", "knn_top1": "kNN", "fid": "distance", "finetune_top1": "fine-tuning"}
# A protocol field that only concerns sampling and its distance must not stop a comparison of two probes.
DISTANCE_FIELDS = ("distance", "fid", "sampler", "guidance", "extractor", "reference")


@dataclass(frozen=True)
class Measure:
    """One metric of one row: its value per seed and, for each seed without one, the word that says why."""

    values: Mapping[int, float]
    holes: tuple[tuple[int, str, str], ...]  # seed, word, reason
    withheld: str = ""

    @property
    def planned(self) -> int:
        """Seeds asked for, whatever became of them."""
        return len(self.values) + len(self.holes)

    @property
    def mean(self) -> float | None:
        """Mean over the seeds that have a value; None without any, or when withheld."""
        return mean(list(self.values.values())) if self.values and not self.withheld else None

    @property
    def spread(self) -> float | None:
        """Sample standard deviation over seeds; None below two."""
        return spread(list(self.values.values())) if self.values and not self.withheld else None

    @property
    def state(self) -> str:
        """One word, or words, for a measure without a value; 'shown' for one with."""
        if self.withheld:
            return "withheld"
        if self.values:
            return "shown"
        words = Counter(word for _, word, _ in self.holes)
        if set(words) <= {"not run"}:
            return "not run"
        return next(iter(words)) if len(words) == 1 else ", ".join(f"{count} {word}" for word, count in sorted(words.items()))


def measure(row: Row, metric: str) -> Measure:
    """Collect a metric over a row's seeds; nothing that lacks a finite value is dropped in silence."""
    values: dict[int, float] = {}
    holes: list[tuple[int, str, str]] = []
    for record in row.records:
        seed, state, number = record["seed"], record["state"], record["metrics"].get(metric)
        hole = next((name for name in (metric, evaluation_of(metric)) if name and name in record.get("holes", {})), None)
        if hole is not None:
            holes.append((seed, *record["holes"][hole]))
        elif state != "done":
            holes.append((seed, state, record["reason"]))
        elif metric in record["undefined"]:
            holes.append((seed, "not defined", record["undefined"][metric]))
        elif number is None:
            holes.append((seed, "not measured", ""))
        elif not math.isfinite(number):
            holes.append((seed, "not finite", ""))
        else:
            values[seed] = float(number)
    recorded = {record["seed"] for record in row.records}
    holes += [(seed, "not run", "") for seed in row.seeds if seed not in recorded]
    withheld = row.ambiguous
    measured = [record for record in row.records if record["seed"] in values]
    if not withheld and (fields := differing_fields(measured, metric)):
        withheld = f"seeds differ in {', '.join(fields)}"
    return Measure(values, tuple(holes), withheld)


def evaluation_of(name: str) -> str:
    """Return the evaluation that a metric or protocol field called NAME.FIELD belongs to; empty for the built-in measures."""
    return name.partition(".")[0] if "." in name else ""


def differing_fields(records: Sequence[Record], metric: str) -> tuple[str, ...]:
    """Name the protocol fields, among those that matter for a metric, in which records disagree."""
    own = evaluation_of(metric)
    names = sorted({name for record in records for name in record["protocol"] if evaluation_of(name) in ("", own)})
    if metric != "fid":
        names = [name for name in names if not name.startswith(DISTANCE_FIELDS)]
    if not metric.startswith("finetune"):
        names = [name for name in names if not name.startswith("finetune")]
    missing = object()
    return tuple(
        name for name in names if any(r["protocol"].get(name, missing) != records[0]["protocol"].get(name, missing) for r in records)
    )


def shared_fields_differ(control: Row, rows: Sequence[Row]) -> tuple[str, ...]:
    """Name the protocol fields that a control and the ladder both have, with different values."""
    steps = [record for row in rows for record in row.records if record["state"] == "done"]
    ours = [record for record in control.records if record["state"] == "done"]
    common = set.intersection(*(set(record["protocol"]) for record in (*steps, *ours))) if steps and ours else set()
    return tuple(
        name for name in differing_fields([*steps, *ours], "linear_probe_top1") if name in common and not differing_in(steps, name)
    )


def differing_in(records: Sequence[Record], name: str) -> bool:
    """Say whether records disagree in one protocol field."""
    return any(record["protocol"][name] != records[0]["protocol"][name] for record in records)


def change_between(before: Row, after: Row, metric: str) -> Change | str:
    """Return the change on common seeds, or the reason why it is withheld."""
    first, second = measure(before, metric), measure(after, metric)
    if first.withheld or second.withheld:
        return first.withheld or second.withheld
    if any(metric in record["incomparable"] or METRIC_NAMES.get(metric) in record["incomparable"] for record in after.records):
        return f"{METRIC_NAMES.get(metric, metric)} not comparable"
    if not second.values:
        return second.state
    if not first.values:
        return f"{before.stage} {first.state}"
    change = paired_change(first.values, second.values)
    if change is None:
        return "no common seed"
    fields = differing_fields([record for record in (*before.records, *after.records) if record["seed"] in change.seeds], metric)
    return f"{', '.join(fields)} differ{'s' if len(fields) == 1 else ''}" if fields else change
