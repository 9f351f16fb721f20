"""From result records to the rows of a table: which record belongs where, what it measured, what is missing.

A record is one seed of one cell; README of `results/` describes its fields. Everything here is pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict

from ablation.errors import ConfigError, nearest
from ablation.report.definitions import ControlDefinition, RowDefinition, TableDefinition, ladder_rows

Record = Mapping[str, Any]

STATES = ("done", "failed", "diverged", "skipped", "missing", "stale", "impossible")
CONTROLS = ("random_init", "pca_features", "chance")
# Settings that say where the images come from; the protocol's own fields then say what they are.
DATA_SETTINGS = ("data.source", "data.path")


class Footer(TypedDict):
    """What made a report: the command, its code, its date (ISO) and the keys of the runs it read."""

    command: str
    commit: str
    dirty: bool
    date: str
    keys: Sequence[str]


def check_records(records: Iterable[Record]) -> tuple[Record, ...]:
    """Return the records as a tuple; an unknown schema or state, or a mixture of scales, raises ConfigError."""
    checked = tuple(records)
    for record in checked:
        if record["schema"] != 1:
            raise ConfigError(f"record {record['cell']} has schema {record['schema']}, this program reads schema 1", "Collect again.")
        if record["state"] not in STATES:
            raise ConfigError(f"record {record['cell']} has the unknown state '{record['state']}'", nearest(record["state"], STATES))
        if (record["stage"] is None) == (record["control"] is None):
            raise ConfigError(f"record {record['cell']} must have either a stage or a control", "Collect again.")
    scales = sorted({str(record["scale"]) for record in checked})
    if len(scales) > 1:
        raise ConfigError(f"the results mix the scales {', '.join(scales)}", "A report shows one study: choose it with --study.")
    return checked


def study_settings(records: Iterable[Record]) -> dict[str, Any]:
    """Return the overrides that every stage's record shares: settings of the study, not of a cell."""
    shared: dict[str, Any] | None = None
    for record in records:
        if record["stage"] is None:
            continue
        overrides = dict(record["overrides"])
        shared = overrides if shared is None else {k: v for k, v in shared.items() if k in overrides and overrides[k] == v}
    return shared or {}


def own_settings(record: Record, shared: Mapping[str, Any]) -> dict[str, Any]:
    """Return the overrides that set a record apart from the rest of its study."""
    return {name: value for name, value in record["overrides"].items() if name not in shared}


def setting(record: Record, path: str) -> Any:
    """Read a dotted setting from a record: its overrides first, then its resolved configuration; None if it has neither."""
    if path in record["overrides"]:
        return record["overrides"][path]
    value: Any = record["config"]
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return value


@dataclass(frozen=True)
class Row:
    """The records of one row of a table, one per seed; parent is the stage whose row the change is taken from."""

    title: str
    stage: str | None
    control: str | None
    parent: str | None
    records: tuple[Record, ...]
    labels_used: bool
    plugin: bool = False
    ambiguous: str = ""
    seeds: tuple[int, ...] = ()  # the study's seeds: one without a record is a hole as well


def pick_seeds(candidates: Iterable[Record]) -> tuple[tuple[Record, ...], str]:
    """Return one record per seed, finished ones first, and a complaint when a seed has two different finished results.

    Records of the same jobs (a cell that two studies share) are one result.
    """
    by_seed: dict[int, list[Record]] = {}
    for record in candidates:
        by_seed.setdefault(record["seed"], []).append(record)
    picked: list[Record] = []
    complaint = ""
    for seed in sorted(by_seed):
        done = [record for record in by_seed[seed] if record["state"] == "done"]
        if any(record["jobs"] != done[0]["jobs"] for record in done):
            complaint = f"two results for seed {seed} ({', '.join(sorted(str(record['cell']) for record in done))})"
        picked.append((done or by_seed[seed])[0])
    return tuple(picked), complaint


def _longest_path(candidates: Sequence[Record]) -> list[Record]:
    """Keep the records on the longest path: the ladder's, not a leave-one-out's or an add-one's."""
    longest = max((tuple(record["path"]) for record in candidates), key=lambda path: (len(path), path), default=())
    return [record for record in candidates if tuple(record["path"]) == longest]


def ladder(records: Sequence[Record], definition: TableDefinition, known: Iterable[str]) -> tuple[Row, ...]:
    """Build a ladder's rows in order, plugin stages inserted after their parents; known: every built-in stage, in order."""
    shared = study_settings(records)
    plain = [record for record in records if record["stage"] is not None and not own_settings(record, shared)]
    order = list(known)
    rows: list[Row] = []
    for row in definition.rows:
        # A path that leaves out an earlier built-in stage belongs to another design (leave-one-out, add-one).
        required = set(order[: order.index(row.stage)])
        fitting = [record for record in plain if record["stage"] == row.stage and required <= set(record["path"])]
        rows.append(_step(row, _longest_path(fitting), rows))
    plugins = sorted({record["stage"] for record in plain} - set(order))
    inserted = True
    while inserted:
        inserted = False
        for stage in list(plugins):
            fitting = _longest_path([record for record in plain if record["stage"] == stage])
            parent = fitting[0]["path"][-2] if len(fitting[0]["path"]) > 1 else None
            place = next((index for index, row in enumerate(rows) if row.stage == parent), None)
            if place is None:
                continue
            title = f"+ {fitting[0]['title'] or stage}"
            plugin = _step(RowDefinition(stage=stage, title=title), fitting, rows[: place + 1], plugin=True)
            rows.insert(place + 1, plugin)
            plugins.remove(stage)
            inserted = True
    return with_seeds(rows)


def with_seeds(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Give every row the seeds of all rows together, so that a seed without a record counts as planned."""
    seeds = tuple(sorted({record["seed"] for row in rows for record in row.records}))
    return tuple(replace(row, seeds=seeds) for row in rows)


def _step(row: RowDefinition, candidates: Sequence[Record], above: Sequence[Row], plugin: bool = False) -> Row:
    """Build one row; its parent is the nearest stage of its path that stands above it."""
    picked, complaint = pick_seeds(candidates)
    stages = [earlier.stage for earlier in above]
    if picked:
        parent = next((stage for stage in reversed(picked[0]["path"][:-1]) if stage in stages), None)
    else:
        parent = stages[-1] if stages else None
    labels = any(record["labels_used"] for record in picked) if picked else row.labels_used
    return Row(row.title, row.stage, None, parent, picked, labels, plugin, complaint)


def is_composite(record: Record) -> bool:
    """Say whether a record was measured on generated composites instead of natural images."""
    return bool(record["protocol"].get("composite")) or "composite" in str(record["protocol"].get("dataset"))


def control_rows(records: Sequence[Record], definition: TableDefinition) -> tuple[Row, ...]:
    """Build the reference lines of a table."""
    return control_lines(records, definition.controls)


def control_lines(records: Sequence[Record], controls: Sequence[ControlDefinition]) -> tuple[Row, ...]:
    """Build one reference line per control, measured under the study's own settings."""
    shared = study_settings(records)
    rows = []
    for control in controls:
        plain = (record for record in records if record["control"] == control.control and not own_settings(record, shared))
        picked, complaint = pick_seeds(plain)
        rows.append(Row(control.title, None, control.control, None, picked, False, False, complaint))
    return tuple(rows)


def grid_row(records: Sequence[Record], definition: TableDefinition, row: RowDefinition, value: int) -> Row:
    """Build one cell of a grid: the records of a stage at one value of the grid's setting."""
    assert definition.setting is not None
    shared = study_settings(records)
    candidates = [
        record
        for record in records
        if record["stage"] == row.stage
        and set(own_settings(record, shared)) <= {definition.setting}
        and setting(record, definition.setting) == value
    ]
    picked, complaint = pick_seeds(_longest_path(candidates))
    return Row(row.title, row.stage, None, None, picked, any(record["labels_used"] for record in picked), False, complaint)


def whole_trajectory(records: Sequence[Record], definitions: tuple[TableDefinition, ...]) -> tuple[Row, ...]:
    """Build the rows of the whole ladder, from the baseline to the last stage (Fig. 6), plugins included."""
    rows = ladder_rows(definitions)
    whole = definitions[0].model_copy(update={"rows": rows})
    return ladder(records, whole, [row.stage for row in rows])
