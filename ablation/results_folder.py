"""The folder of a study's results, and the report that follows from it and nothing else.

    results.jsonl       one record per cell
    provenance.json     which command made them, when, on which machine; checksums of the other files
    pictures/           small images and arrays that figures show, made once from the run folder

`gather` writes it from a run folder; `report_of` makes every file of the report from it, byte for byte the same anywhere
with the same libraries.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from ablation.collect import collect, read_records, write_records
from ablation.config import diff, from_nested
from ablation.discover import discover
from ablation.errors import ConfigError
from ablation.keys import EXCLUDED
from ablation.store import Store, atomic_path, read_json, sha256, write_json

RESULTS, PROVENANCE, PICTURES = "results.jsonl", "provenance.json", "pictures"
STUDY_FIELDS = ("name", "command", "written", "sessions")


@dataclass(frozen=True)
class Source:
    """What a report is made from."""

    records: list[dict[str, Any]]
    provenance: Mapping[str, Any]
    images: Mapping[str, bytes] = field(default_factory=dict)


def gather(store: Store, document: Mapping[str, Any], folder: Path, images: Mapping[str, bytes]) -> Source:
    """Write a study's results folder from its run folder and its pictures, and return what it holds."""
    write_records(collect(store, document), folder / RESULTS)
    for stale in (folder / PICTURES).glob("*"):
        if stale.name not in images:
            stale.unlink()
    for name, content in images.items():
        with atomic_path(folder / PICTURES / name) as path:
            path.write_bytes(content)
    provenance = {name: document[name] for name in STUDY_FIELDS}
    write_json(folder / PROVENANCE, {**provenance, "changed": changed_settings(document), "files": checksums(folder)})
    return read_source(folder / RESULTS)


def checksums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file of a results folder except its provenance, by relative name."""
    pictures = sorted((folder / PICTURES).glob("*"))
    return {str(path.relative_to(folder)): sha256(path) for path in (folder / RESULTS, *pictures)}


def changed_settings(document: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return the settings that the scale and the study fix otherwise than the defaults, alike in every cell: [default, here]."""
    tree = discover(installed=False)
    shared: dict[str, list[Any]] | None = None
    for cell in document["cells"]:
        if cell["stage"] not in tree.stages:  # a plugin's defaults are not known here
            continue
        found = {name: list(pair) for name, pair in diff(tree.resolve(cell["stage"]), from_nested(cell["config"])).items()}
        found = {name: pair for name, pair in found.items() if name not in EXCLUDED}
        shared = found if shared is None else {name: pair for name, pair in shared.items() if found.get(name, [None, None])[1] == pair[1]}
    return json.loads(json.dumps(shared or {}))  # type: ignore[no-any-return]


def read_source(results: Path, reports: Path | None = None) -> Source:
    """Read a results file with the provenance and the pictures beside it.

    Without a provenance there, the one that `ablate report --results` left in the reports' folder counts.
    """
    records = read_records(results)
    images = {path.name: path.read_bytes() for path in sorted((results.parent / PICTURES).glob("*")) if path.is_file()}
    for folder in (results.parent, reports):
        if folder is not None and (folder / PROVENANCE).is_file():
            provenance = read_json(folder / PROVENANCE)
            if not isinstance(provenance, dict) or not {"command", "written"} <= provenance.keys():
                raise ConfigError(f"{folder / PROVENANCE} is not a provenance file", "Copy it again from the run's reports folder.")
            return Source(records, provenance, images)
    return Source(records, {"command": f"ablate report --results {results}", "written": date.today().isoformat()}, images)


def report_of(source: Source) -> dict[str, bytes]:
    """Make every file of the report in memory, by name."""
    from ablation.report import report_files  # loads matplotlib
    from ablation.report.build import footer_of

    return report_files(source.records, footer_of(source.records, source.provenance), source.images, source.provenance)
