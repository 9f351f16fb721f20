"""The folder of a study's results, and the report that follows from it and nothing else.

    results.jsonl       one record per cell
    provenance.json     which command made them, when, on which machine; checksums of the other files
    pictures/           small images and arrays that figures show, made once from the run folder

`gather` writes it from a run folder; `report_of` makes every file of the report from it, byte for byte the same anywhere
with the same libraries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from ablation.collect import collect, read_records, write_records
from ablation.errors import ConfigError
from ablation.store import Store, read_json, sha256, write_json

RESULTS, PROVENANCE = "results.jsonl", "provenance.json"
STUDY_FIELDS = ("name", "command", "written", "sessions")


@dataclass(frozen=True)
class Source:
    """What a report is made from."""

    records: list[dict[str, Any]]
    provenance: Mapping[str, Any]


def gather(store: Store, document: Mapping[str, Any], folder: Path) -> Source:
    """Write a study's results folder from its run folder and return what it holds."""
    write_records(collect(store, document), folder / RESULTS)
    provenance = {name: document[name] for name in STUDY_FIELDS}
    write_json(folder / PROVENANCE, {**provenance, "files": checksums(folder)})
    return read_source(folder / RESULTS)


def checksums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file of a results folder except its provenance, by relative name."""
    return {RESULTS: sha256(folder / RESULTS)}


def read_source(results: Path, reports: Path | None = None) -> Source:
    """Read a results file and the provenance beside it; without one, what `ablate report --results` left in the reports' folder."""
    records = read_records(results)
    for folder in (results.parent, reports):
        if folder is not None and (folder / PROVENANCE).is_file():
            provenance = read_json(folder / PROVENANCE)
            if not isinstance(provenance, dict) or not {"command", "written"} <= provenance.keys():
                raise ConfigError(f"{folder / PROVENANCE} is not a provenance file", "Copy it again from the run's reports folder.")
            return Source(records, provenance)
    return Source(records, {"command": f"ablate report --results {results}", "written": date.today().isoformat()})


def report_of(source: Source) -> dict[str, bytes]:
    """Make every file of the report in memory, by name."""
    from ablation.report import report_files  # loads matplotlib
    from ablation.report.build import footer_of

    return report_files(source.records, footer_of(source.records, source.provenance))
