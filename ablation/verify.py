"""Derive every printed number again, and name each that differs: from the jobs' files to the records, from the records to the reports."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ablation.collect import collect
from ablation.errors import ArtifactError
from ablation.results_folder import PROVENANCE, RESULTS, STUDY_FIELDS, Source, report_of
from ablation.store import CURVE, DONE, PREDICTIONS, Store, sha256

ROWS = {"linear_probe_top1": 0, "knn_top1": 1}
"""Rows of the file of predictions, by the metric they are the mean of."""
TOLERANCE = 1e-3
"""Percent; the jobs average in single precision, and one of a million images is a tenth of this."""
LIST_OF_VERSIONS = "versions.json"
ABSENT = object()


def check_study(store: Store, document: Mapping[str, Any], source: Source) -> list[str]:
    """Compare records with what the study's jobs left, and those files with one another; name each cell that differs."""
    return [*_provenance(document, source.provenance), *_evidence(store, document), *_records(store, document, source.records)]


def _provenance(document: Mapping[str, Any], provenance: Mapping[str, Any]) -> Iterator[str]:
    """Name the fields in which the provenance is not the study's."""
    for name in STUDY_FIELDS:
        if name in provenance and provenance[name] != document[name]:
            yield f"{PROVENANCE}: {name} is {provenance[name]!r}, and {document[name]!r} in the study; `ablate report` writes it again"


def _evidence(store: Store, document: Mapping[str, Any]) -> Iterator[str]:
    """Derive metrics again from predictions and curves, and check the artifacts' recorded checksums; each job once."""
    seen: set[str] = set()
    for cell in document["cells"]:
        for role, job in cell["jobs"].items():
            if job in seen or store.state(job).name != "done":
                continue
            seen.add(job)
            done, folder, where = store.done(job), store.job_folder(job), f"{_cell_name(cell, document)}, {role} ({job})"
            for name, value in done.get("sha256", {}).items():
                if (folder / name).is_file() and sha256(folder / name) != value:
                    yield f"{where}: {name} is not the file that the job wrote: its SHA-256 differs from the one in {DONE}"
            for metric, value in derived_metrics(folder).items():
                recorded = done["metrics"].get(metric)
                if recorded is not None and not math.isclose(recorded, value, abs_tol=TOLERANCE, rel_tol=1e-6):
                    yield f"{where}: {metric} is {recorded} in {DONE}, {value:.6g} from the job's own files"


def derived_metrics(folder: Path) -> dict[str, float]:
    """Return the metrics that follow from a job's predictions and learning curve, as far as it has them."""
    found: dict[str, float] = {}
    if (folder / PREDICTIONS).is_file():
        import numpy as np  # here, so that importing this module stays light

        try:
            correct = np.load(folder / PREDICTIONS, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{folder / PREDICTIONS} is unreadable: {error}", "Run the job again.") from None
        rows = {"finetune_top1": 0} if folder.name.startswith("finetune-") else ROWS
        found |= {metric: 100 * float(correct[row].mean()) for metric, row in rows.items() if correct.ndim == 2 and row < len(correct)}
    if folder.name.startswith("train-") and (folder / CURVE).is_file():
        losses = [json.loads(line)["loss"] for line in (folder / CURVE).read_text(encoding="utf-8").splitlines()]
        tail = losses[-max(1, len(losses) // 10) :]
        found |= {"final_loss": sum(tail) / len(tail)} if tail else {}
    return found


def _records(store: Store, document: Mapping[str, Any], records: list[dict[str, Any]]) -> Iterator[str]:
    """Collect the records again and name every value in which the file's differ."""
    fresh = {record["cell"]: json.loads(json.dumps(record)) for record in collect(store, document)}
    given = {record["cell"]: record for record in records}
    for cell in sorted(fresh.keys() | given.keys()):
        if cell not in given:
            yield f"{RESULTS}: cell {cell} of the study is not in the file"
        elif cell not in fresh:
            yield f"{RESULTS}: cell {cell} is not in the study"
        else:
            where = _cell_name(given[cell], document)
            for path, ours, theirs in leaf_differences(fresh[cell], given[cell]):
                yield f"{RESULTS}: {where}: {path} is {_shown(theirs)} in the file, {_shown(ours)} from the run folder"


def leaf_differences(wanted: Any, found: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield the dotted paths at which two JSON values differ, with both values; a field that only `wanted` has may be new."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        for name in sorted(wanted.keys() | found.keys()):
            yield from leaf_differences(wanted.get(name, ABSENT), found.get(name, ABSENT), f"{path}.{name}" if path else name)
    elif type(wanted) is not type(found) or wanted != found:
        yield path, wanted, found


def _shown(value: Any) -> str:
    """Write a value for a message."""
    text = "absent" if value is ABSENT else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _cell_name(cell: Mapping[str, Any], document: Mapping[str, Any]) -> str:
    """Name a cell by stage or control, seed, and the settings that set it apart from the rest of its study."""
    name = f"control {cell['control']}" if cell["control"] else f"stage {cell['stage']}"
    settings = ", ".join(f"{path} = {value}" for path, value in sorted(cell["overrides"].items()) if path not in document["settings"])
    return f"{name}, seed {cell['seed']}" + (f" ({settings})" if settings else "")


def check_results_folder(results: Path, source: Source) -> list[str]:
    """Compare the files of a results folder with the checksums in its provenance."""
    said = []
    for name, value in source.provenance.get("files", {}).items():
        path = results if name == RESULTS else results.parent / name
        if not path.is_file():
            said.append(f"{name}: the file is missing")
        elif sha256(path) != value:
            said.append(f"{name}: its SHA-256 is not the one in {PROVENANCE}")
    return said


def check_reports(source: Source, folder: Path) -> tuple[list[str], list[str]]:
    """Make the report again from the records and compare it byte for byte with a folder's.

    Returns what differs, and what could not be compared: pictures drawn by another version of the drawing library.
    """
    from ablation.report.compare import PICTURES, compare_files

    wanted = report_of(source)
    found = {name: (folder / name).read_bytes() for name in wanted if (folder / name).is_file()}
    notes = []
    if found.get(LIST_OF_VERSIONS, wanted[LIST_OF_VERSIONS]) != wanted[LIST_OF_VERSIONS] and _is_versions(found[LIST_OF_VERSIONS]):
        skipped = sorted(name for name in wanted if name.endswith(PICTURES))
        theirs, ours = (json.loads(files[LIST_OF_VERSIONS]) for files in (found, wanted))
        notes.append(f"{len(skipped)} pictures were not compared, only their data: drawn with {theirs}, here with {ours}")
        drop = {*skipped, LIST_OF_VERSIONS}
        wanted = {name: _without_pictures(name, content) for name, content in wanted.items() if name not in drop}
        found = {name: _without_pictures(name, content) for name, content in found.items() if name not in drop}
    return compare_files(found, wanted), notes


def _is_versions(content: bytes) -> bool:
    """Say whether a file lists versions, as strings of numbers."""
    try:
        value = json.loads(content)
    except ValueError:
        return False
    return isinstance(value, dict) and all(isinstance(version, str) for version in value.values())


def _without_pictures(name: str, content: bytes) -> bytes:
    """Leave the embedded pictures out of the page."""
    if not name.endswith(".html"):
        return content
    return re.sub(rb"data:image/png;base64,[A-Za-z0-9+/=]*", b"data:", content)
