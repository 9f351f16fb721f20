"""One self-contained HTML page: figures, tables, what each step changes, costs and takes to run again, holes, and every record.

It loads nothing, reads without its script (which only sorts tables), prints, and works by keyboard.
"""

from __future__ import annotations

import base64
import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ablation.report.cells import LABELS_MARK, duration, rounded
from ablation.report.figures import DPI, Omission, Picture
from ablation.report.formats import to_html
from ablation.report.intervals import mean
from ablation.report.notes import plain, scale_of
from ablation.report.photos import Strip
from ablation.report.published import Published
from ablation.report.reproduce import changed_lines, command_of
from ablation.report.results import Footer, Record, Row, own_settings, study_settings
from ablation.report.tables import Table

RECORD_FIELDS = (
    "cell", "stage or control", "settings", "seed", "state", "reason", "linear probe", "kNN", "distance", "wall time",
    "memory (GiB)", "commit", "job keys",
)  # fmt: skip
HOLE_FIELDS = ("cell", "stage or control", "seed", "what", "state", "reason")
DEFAULT_FIELDS = ("setting", "default", "here")


def operations(flops: float) -> str:
    """Write a number of floating-point operations in the unit a person would use."""
    for unit, size in (("EFLOP", 1e18), ("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9)):
        if flops >= size:
            return f"{flops / size:.3g} {unit}"
    return f"{flops / 1e6:.3g} MFLOP"


def _cost(row: Row) -> list[str]:
    """Say what a row's finished records cost: time, memory, and operations counted from the architecture."""
    costs = [record["cost"] for record in row.records if record["state"] == "done"]
    seconds = [float(cost["wall_seconds"]) for cost in costs if cost.get("wall_seconds") is not None]
    memory = [float(cost["peak_memory_gib"]) for cost in costs if cost.get("peak_memory_gib") is not None]
    said = [f"{duration(mean(seconds))} per seed, {duration(sum(seconds))} in all"] if seconds else []
    said += [f"peak memory {rounded(max(memory))} GiB"] if memory else []
    counted = next((cost for cost in costs if "step_flops" in cost), None)
    if counted:
        said.append(f"denoiser: {operations(counted['step_flops'])} a step, {operations(counted['train_flops'])} a training")
        said.append(f"tokenizer: {operations(counted['tokenizer_flops'])}")
    return said or ["cost not recorded"]


def _step(row: Row) -> dict[str, Any]:
    """Collect what the page says about one row of the ladder."""
    record = row.records[0] if row.records else None
    changes: Mapping[str, Sequence[Any]] = record["changes"] if record else {}
    remarks = [f"Changes {len(changes)} settings at once."] if len(changes) > 1 else []
    if incomparable := sorted({str(what) for one in row.records for what in one["incomparable"]}):
        remarks.append(f"Not comparable with the row before: {', '.join(incomparable)}.")
    if row.labels_used:
        remarks.append(f"{LABELS_MARK} Labels used in training.")
    if row.plugin:
        remarks.append("The stage comes from a plugin: add the --stages of the study's command.")
    return {
        "title": row.title,
        "stage": row.stage,
        "changes": [{"path": path, "before": plain(pair[0]), "after": plain(pair[1])} for path, pair in changes.items()],
        "nothing": ("The root: nothing before it." if row.parent is None else "No setting changed.") if record else "Not run.",
        "remarks": remarks,
        "cost": _cost(row) if record else [],
        "command": command_of(row.records) if row.records else "",
    }


def _name(record: Record) -> str:
    return str(record["stage"] or record["control"])


def _record_line(record: Record, shared: Mapping[str, Any]) -> list[str]:
    """Write one record as a line of the last table; settings that the whole study shares are said once, elsewhere."""
    metrics, cost = record["metrics"], record["cost"]
    shown = ["" if metrics.get(name) is None else rounded(metrics[name]) for name in ("linear_probe_top1", "knn_top1", "fid")]
    seconds, memory = cost.get("wall_seconds"), cost.get("peak_memory_gib")
    code = record["code"]
    settings = [f"{name} = {plain(value)}" for name, value in sorted(own_settings(record, shared).items())]
    reasons = [str(record["reason"])] if record["reason"] else []
    for name, why in sorted(record["undefined"].items()):
        reasons.append(f"{name}: {why}")
    return [
        str(record["cell"]),
        _name(record),
        ", ".join(settings),
        str(record["seed"]),
        str(record["state"]),
        "; ".join(reasons),
        *shown,
        "" if seconds is None else duration(seconds),
        "" if memory is None else rounded(memory),
        f"{code.get('commit', '')}{' + changes' if code.get('dirty') else ''}",
        " ".join(f"{job}: {key}" for job, key in sorted(record["jobs"].items())),
    ]


def hole_lines(records: Sequence[Record], rows: Sequence[Row]) -> list[list[str]]:
    """List what is missing: cells that are not done, metrics that finished cells lack, and rows and seeds nobody ran."""
    lines = []
    for record in records:
        about = [str(record["cell"]), _name(record), str(record["seed"])]
        if record["state"] != "done":
            lines.append([*about, "the whole cell", str(record["state"]), str(record["reason"]) or "no reason recorded"])
        for metric, (state, reason) in sorted(record.get("holes", {}).items()):
            lines.append([*about, metric, str(state), str(reason)])
        for metric, reason in sorted(record["undefined"].items()):
            lines.append([*about, metric, "not defined", str(reason)])
    for row in rows:
        recorded = {record["seed"] for record in row.records}
        missing = [seed for seed in row.seeds if seed not in recorded]
        if missing or not row.records:
            seeds = ", ".join(map(str, missing)) or "any"
            lines.append([str(row.stage), str(row.stage), seeds, "the whole cell", "not run", "the study did not ask for it"])
    return lines


def _place(record: Record) -> tuple[int, str, str, str, int]:
    """Order records by their place on the ladder, controls first."""
    settings = str(sorted(record["overrides"].items()))
    return len(record["path"]), _name(record), settings, str(record["cell"]), record["seed"]


def _shown(picture: Picture) -> dict[str, Any]:
    """Turn a picture into what the template writes."""
    return {
        "name": picture.name,
        "title": picture.title,
        "alt": picture.alt,
        "caption": picture.caption,
        "png": base64.b64encode(picture.files["png"]).decode("ascii"),
        "rem": round(6.5 * int.from_bytes(picture.files["png"][16:20], "big") / DPI, 1),  # as wide as its words are readable
        "data": list(csv.reader(io.StringIO(picture.data))),
        "files": [f"{picture.name}.{kind}" for kind in picture.files],
    }


def _table(table: Table) -> dict[str, Any]:
    """Turn a table into its heading and its HTML."""
    return {"place": table.file_name, "label": table.label, "html": Markup(to_html(table))}


def _controls(records: Sequence[Record]) -> list[dict[str, str]]:
    """Return the command of each measured reference line; chance follows from the untrained network's."""
    by_name: dict[str, list[Record]] = {}
    for record in records:
        if record["control"] in ("random_init", "pca_features") and re.match(r"[a-z]\w*\.", str(record["cell"])):
            by_name.setdefault(str(record["control"]), []).append(record)
    return [{"title": str(found[0]["title"]), "command": command_of(found)} for _, found in sorted(by_name.items())]


def page(
    records: Sequence[Record],
    tables: Sequence[Table],
    rows: Sequence[Row],
    figures: Sequence[Picture | Omission],
    strips: list[Strip] | Omission,
    published: Published,
    footer: Footer,
    provenance: Mapping[str, Any],
) -> str:
    """Write the page; rows are the whole ladder, for the changes, costs and commands."""
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    omitted = [one for one in [*figures, strips] if isinstance(one, Omission)]
    samples = [] if isinstance(strips, Omission) else strips
    return environment.get_template("page.html.jinja").render(
        scale=scale_of(records),
        done=sum(record["state"] == "done" for record in records),
        total=len(records),
        source=str(published.source),
        tables=[_table(table) for table in tables],
        pictures=[_shown(one) for one in figures if isinstance(one, Picture)],
        omitted=omitted,
        strips=[{"title": one.title, "alt": one.alt, "png": base64.b64encode(one.png).decode("ascii")} for one in samples],
        steps=[_step(row) for row in rows],
        controls=_controls(records),
        holes=hole_lines(sorted(records, key=_place), rows),
        hole_fields=HOLE_FIELDS,
        defaults=[(name, plain(before), plain(after)) for name, before, after in changed_lines(provenance)],
        default_fields=DEFAULT_FIELDS,
        records=[_record_line(record, study_settings(records)) for record in sorted(records, key=_place)],
        record_fields=RECORD_FIELDS,
        footer=footer,
        keys=sorted({str(key) for record in records for key in record["jobs"].values()} | {str(key) for key in footer["keys"]}),
    )
