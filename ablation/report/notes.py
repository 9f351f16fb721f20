"""The words around a table: caption, protocol, comparability with the paper, footer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ablation.report.cells import NOTHING
from ablation.report.definitions import TableDefinition
from ablation.report.intervals import half_width
from ablation.report.measures import Measure
from ablation.report.published import Entry, Published
from ablation.report.results import DATA_SETTINGS, Footer, Record, Row, is_composite, setting, study_settings

SHOWN_KEYS = 8
KEY_LETTERS = 12


def plain(value: Any) -> str:
    """Write a setting's value the way a person would."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, str):
        return value
    if isinstance(value, (list, tuple)):
        return ", ".join(plain(part) for part in value)
    return json.dumps(value, sort_keys=True)


def scale_of(records: Sequence[Record]) -> str:
    """Name the scale of the records, which never mix scales."""
    return str(records[0]["scale"]) if records else "no"


def scale_warning(used: Sequence[Record], records: Sequence[Record]) -> str:
    """Say at which scale the results are and what that means for the paper's numbers."""
    if not used:
        return "No results yet."
    scale = scale_of(used or records)
    if scale == "paper":
        return "Results at paper scale; the last column, or the note below, says whether the protocol is the paper's."
    return f"Results at {scale} scale; numbers at this scale are not comparable with the paper's."


def caption(definition: TableDefinition, used: Sequence[Record], records: Sequence[Record]) -> str:
    """Say what the table shows, at which scale, and how to fill what is not run."""
    what = "Linear-probe top-1 accuracy (%)" if definition.kind == "grid" else "Each row adds one step to the row before"
    counted = "mean ± standard deviation over seeds (finished/planned seeds)"
    return f"{what}; {counted}. {scale_warning(used, records)} Fill what is not run with: {definition.command}"


def protocol_lines(records: Sequence[Record]) -> tuple[str, ...]:
    """Write the protocol of the finished records in one line; a field with several values shows them all."""
    done = [record for record in records if record["state"] == "done"]
    if not done:
        return ()
    values: dict[str, dict[str, None]] = {}
    for record in done:
        for name, value in record["protocol"].items():
            values.setdefault(name, {})[plain(value)] = None
    fields = "; ".join(f"{name.replace('_', ' ')}: {' | '.join(sorted(options))}" for name, options in values.items())
    return (f"Protocol: {fields}.",)


def image_notes(records: Sequence[Record]) -> tuple[str, ...]:
    """Say what kind of images these are, when they are not what a reader would expect."""
    if any(is_composite(record) for record in records):
        return ("The images are generated composites, not a natural-image data set.",)
    return ()


def _read(record: Record, path: str) -> Any:
    """Read 'scale', 'protocol.NAME' or 'config.SECTION.NAME' from a record."""
    if path.startswith("protocol."):
        return record["protocol"].get(path.removeprefix("protocol."))
    return setting(record, path.removeprefix("config.")) if path.startswith("config.") else record[path]


def differences_from_paper(record: Record, requires: Mapping[str, Any], shared: Mapping[str, Any]) -> list[str]:
    """List in which required conditions a record differs from the paper's, the record's value first."""
    found = []
    for path, value in requires.items():
        if (ours := _read(record, path)) != value:
            name = path.removeprefix("config.").removeprefix("protocol.").replace("_", " ")
            found.append(f"{name} {plain(ours)} (paper: {plain(value)})")
    named = {path.removeprefix("config.") for path in requires}
    return found + [f"{name} set to {plain(value)}" for name, value in shared.items() if name not in named and name not in DATA_SETTINGS]


def same_scale(done: Sequence[Record], requires: Mapping[str, Any], records: Sequence[Record]) -> bool:
    """Say whether finished records were all made under the paper's conditions, with no other setting changed."""
    shared = study_settings(records)
    return not any(differences_from_paper(record, requires, shared) for record in done)


def comparability(row: Row, found: Measure, entry: Entry | None, published: Published, records: Sequence[Record]) -> tuple[str, str]:
    """Say whether a row may be held against the paper's number, and if so whether it agrees; never a bare gap."""
    if row.stage is None:
        return NOTHING, "none"
    done = [record for record in row.records if record["state"] == "done"]
    if not done:
        return "no result", "none"
    if not same_scale(done, published.contexts[entry.context if entry else "main"].requires, records):
        return "other scale", "other scale"
    if entry is None or entry.value is None:
        return "same scale: not in the paper", "same scale"
    half = None if found.mean is None else half_width(list(found.values.values()))
    if found.mean is None or half is None:
        return "same scale: too few seeds to judge", "same scale"
    # The printed number is known only to half a unit of its last decimal.
    inside = abs(found.mean - entry.value) <= half + 0.5 * 10**-entry.decimals
    return f"same scale: paper {'inside' if inside else 'outside'} our 95 % interval", "same scale"


def paper_sentence(records: Sequence[Record], published: Published, name: str = "main") -> str:
    """State the paper's own conditions, by the name of their context, and in what ours differ."""
    context = published.contexts[name]
    said = f"Paper's numbers: {published.source}; {context.summary}."
    done = [record for record in records if record["state"] == "done" and record["stage"] is not None]
    shared = study_settings(records)
    differing = list(dict.fromkeys(text for record in done for text in differences_from_paper(record, context.requires, shared)))
    return f"{said} Other scale here: {'; '.join(differing)}." if differing else said


def _commit(code: Mapping[str, Any]) -> str:
    """Name a commit and whether it had changes; a wheel knows of none."""
    if not code["commit"]:
        return "an unknown commit"
    return f"commit {code['commit']}{' with uncommitted changes' if code['dirty'] else ''}"


def footer_lines(used: Sequence[Record], footer: Footer, records: Sequence[Record]) -> tuple[str, ...]:
    """List where the numbers come from: protocol, seeds, settings of the study, code, date, command, run keys."""
    seeds = sorted({record["seed"] for record in used if record["stage"] is not None})
    lines = list(protocol_lines(used))
    lines.append(f"Scale: {scale_of(used or records)}. Seeds: {', '.join(map(str, seeds)) or 'none'}.")
    if shared := study_settings(records):
        lines.append(f"Set throughout: {', '.join(f'{name} = {plain(value)}' for name, value in sorted(shared.items()))}.")
    if computed := sorted({_commit(record["code"]) for record in used if record["state"] == "done"}):
        lines.append(f"Results computed at {', '.join(computed)}.")
    lines.append(f"Report written at {_commit(footer)}, {footer['date']}, by: {footer['command']}")
    keys = sorted({str(key) for record in used for key in record["jobs"].values()}) or sorted(footer["keys"])
    if keys:
        more = f" and {len(keys) - SHOWN_KEYS} more, listed in index.html" if len(keys) > SHOWN_KEYS else ""
        lines.append(f"Run keys: {' '.join(key[:KEY_LETTERS] for key in keys[:SHOWN_KEYS])}{more}.")
    return tuple(lines)
