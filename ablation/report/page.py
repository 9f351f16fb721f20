"""One self-contained HTML page: pictures, tables, what each step changes and costs, and every record. It loads nothing."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ablation.report.cells import LABELS_MARK, duration, rounded
from ablation.report.formats import to_html
from ablation.report.intervals import mean
from ablation.report.notes import plain, scale_of
from ablation.report.published import Published
from ablation.report.results import Footer, Record, Row
from ablation.report.tables import Table

RECORD_FIELDS = (
    "cell", "stage or control", "settings", "seed", "state", "reason", "linear probe", "kNN", "distance", "wall time",
    "memory (GiB)", "commit", "job keys",
)  # fmt: skip


@dataclass(frozen=True)
class Picture:
    """One picture of the page, its words, and its data as CSV text."""

    name: str
    title: str
    alt: str
    caption: str
    png: bytes
    data: str


def _cost(row: Row) -> str:
    """Say what a row's finished records cost."""
    costs = [record["cost"] for record in row.records if record["state"] == "done"]
    seconds = [float(cost["wall_seconds"]) for cost in costs if cost.get("wall_seconds") is not None]
    memory = [float(cost["peak_memory_gib"]) for cost in costs if cost.get("peak_memory_gib") is not None]
    said = [f"{duration(mean(seconds))} per seed, {duration(sum(seconds))} in all"] if seconds else []
    said += [f"peak memory {rounded(max(memory))} GiB"] if memory else []
    return "; ".join(said) or "cost not recorded"


def _step(row: Row) -> dict[str, Any]:
    """Collect what the page says about one row of the ladder."""
    record = row.records[0] if row.records else None
    changes: Mapping[str, Sequence[Any]] = record["changes"] if record else {}
    remarks = [f"Changes {len(changes)} settings at once."] if len(changes) > 1 else []
    if incomparable := sorted({str(what) for one in row.records for what in one["incomparable"]}):
        remarks.append(f"Not comparable with the row before: {', '.join(incomparable)}.")
    if row.labels_used:
        remarks.append(f"{LABELS_MARK} Labels used in training.")
    return {
        "title": row.title,
        "stage": row.stage,
        "changes": [{"path": path, "before": plain(pair[0]), "after": plain(pair[1])} for path, pair in changes.items()],
        "nothing": ("The root: nothing before it." if row.parent is None else "No setting changed.") if record else "Not run.",
        "remarks": remarks,
        "cost": _cost(row) if record else "",
    }


def _record_line(record: Record) -> list[str]:
    """Write one record as a line of the last table."""
    metrics, cost = record["metrics"], record["cost"]
    shown = ["" if metrics.get(name) is None else rounded(metrics[name]) for name in ("linear_probe_top1", "knn_top1", "fid")]
    seconds, memory = cost.get("wall_seconds"), cost.get("peak_memory_gib")
    code = record["code"]
    settings = [f"{name} = {plain(value)}" for name, value in sorted(record["overrides"].items())]
    reasons = [str(record["reason"])] if record["reason"] else []
    for name, why in sorted(record["undefined"].items()):
        reasons.append(f"{name}: {why}")
    return [
        str(record["cell"]),
        str(record["stage"] or record["control"]),
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


def _place(record: Record) -> tuple[int, str, str, str, int]:
    """Order records by their place on the ladder, controls first."""
    settings = str(sorted(record["overrides"].items()))
    return len(record["path"]), str(record["stage"] or record["control"]), settings, str(record["cell"]), record["seed"]


def page(
    records: Sequence[Record],
    tables: Sequence[Table],
    rows: Sequence[Row],
    pictures: Sequence[Picture],
    published: Published,
    footer: Footer,
) -> str:
    """Write the page; rows are the whole ladder, for the changes and costs."""
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    shown = [
        {
            "name": picture.name,
            "title": picture.title,
            "alt": picture.alt,
            "caption": picture.caption,
            "png": base64.b64encode(picture.png).decode("ascii"),
            "data": list(csv.reader(io.StringIO(picture.data))),
        }
        for picture in pictures
    ]
    return environment.get_template("page.html.jinja").render(
        scale=scale_of(records),
        done=sum(record["state"] == "done" for record in records),
        total=len(records),
        source=str(published.source),
        tables=[{"place": table.file_name, "label": table.label, "title": table.title, "html": Markup(to_html(table))} for table in tables],
        pictures=shown,
        steps=[_step(row) for row in rows],
        records=[_record_line(record) for record in sorted(records, key=_place)],
        record_fields=RECORD_FIELDS,
        footer=footer,
        keys=sorted({str(key) for record in records for key in record["jobs"].values()} | {str(key) for key in footer["keys"]}),
    )
