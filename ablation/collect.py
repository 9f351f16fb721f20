"""Turn the store into result records: one flat, JSON-able dict per cell, the only thing reports ever see. Light."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ablation import cost
from ablation.checkpoint_probes import checkpoint_records
from ablation.config import from_nested
from ablation.diffusion.feasible import undefined_reason
from ablation.errors import ArtifactError, ConfigError
from ablation.store import CURVE, DONE, PREDICTIONS, Store, write_text

SCHEMA = 1
ROLES = ("tokenizer", "encode", "train", "probe", "fid", "finetune")
OWN_METRIC = {"fid": "fid", "finetune": "finetune_top1"}
"""Jobs whose failure leaves the probe's numbers standing, and the metric that is then missing."""
ANSWERED = ("linear_probe_top1", "knn_top1")
"""The metrics whose answers a probe keeps, in the order of its file."""
EVALUATION = "evaluation:"
"""Roles of further evaluations are this and their name; their metrics and protocol are called NAME.METRIC."""
SETTLED = ("failed", "diverged", "skipped")
DESCRIBED = ("control", "overrides", "seed", "title", "path", "changes", "labels_used", "incomparable", "config", "jobs")
CURVE_POINTS = 60
"""Points of a learning curve that a record keeps."""


def collect(store: Store, study: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return one record per cell of a study, finished or not; holes carry their reason."""
    records = [_record(store, study, cell) for cell in study["cells"]]
    records += [_impossible(study, cell) for cell in study.get("impossible", [])]
    records += checkpoint_records(store, study)
    untrained = next((record for record in records if record["control"] == "random_init"), None)
    return [*records, _chance(untrained)] if untrained else records


def _impossible(study: Mapping[str, Any], cell: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record of what cannot exist at the study's scale: no results, and the reason."""
    nothing: dict[str, Any] = {"metrics": {}, "undefined": {}, "holes": {}, "protocol": {}, "cost": {}, "code": {}, "versions": {}}
    described = {name: cell[name] for name in (*DESCRIBED, "stage", "places", "reason")}
    return {"schema": SCHEMA, "cell": cell["id"], **described, "scale": study["scale"], "state": "impossible", **nothing}


def _chance(record: dict[str, Any]) -> dict[str, Any]:
    """Return the control that always answers the most frequent class, from a record that measured how frequent it is."""
    value = record["metrics"].get("chance_top1")
    metrics = {} if value is None else {"linear_probe_top1": value, "knn_top1": value}
    return {
        **record,
        "cell": record["cell"].replace("random_init", "chance"),
        "control": "chance",
        "title": "most frequent class",
        "metrics": metrics,
        "correct": {"reason": "a constant answer, which is not kept by image"},
    }


def _undefined(cell: Mapping[str, Any]) -> dict[str, str]:
    """Say which metrics a cell cannot have, and why."""
    reason = undefined_reason(from_nested(cell["config"]).process)
    return {"fid": reason} if reason else {}


def _record(store: Store, study: Mapping[str, Any], cell: Mapping[str, Any]) -> dict[str, Any]:
    """Join what a cell's jobs left in the store."""
    metrics: dict[str, Any] = {}
    protocol: dict[str, Any] = {}
    state, reason, seconds, memory = "done", "", 0.0, 0.0
    holes: dict[str, list[str]] = {}
    code: dict[str, Any] = {}
    versions: dict[str, str] = {}
    for role in [*ROLES, *sorted(role for role in cell["jobs"] if role.startswith(EVALUATION))]:
        job = cell["jobs"].get(role)
        if job is None:
            continue
        found = store.state(job)
        own = OWN_METRIC[role] if role in OWN_METRIC else role.removeprefix(EVALUATION) if role.startswith(EVALUATION) else None
        if found.name != "done" and own is not None and state == "done":
            holes[own] = [found.name if found.name in SETTLED else "missing", found.reason or f"{role} {found.name}"]
            continue
        if found.name != "done":
            if state == "done" or (state not in SETTLED and found.name in SETTLED):
                state = found.name if found.name in SETTLED else "missing"
                reason = found.reason or f"{role} {found.name}"
            continue
        done = store.done(job)
        metrics |= done["metrics"]
        protocol |= done["protocol"]
        seconds += done["cost"]["wall_seconds"]
        memory = max(memory, done["cost"]["peak_memory_gib"])
        code, versions = code or done["code"], versions or done["versions"]
    undefined = {} if cell["control"] else _undefined(cell)
    return {
        "schema": SCHEMA,
        "cell": cell["id"],
        "stage": None if cell["control"] else cell["stage"],
        **{name: cell[name] for name in DESCRIBED},
        **({"places": cell["places"]} if "places" in cell else {}),
        "correct": _correct(store, cell["jobs"].get("probe")),
        # Studies written before there were designs say nothing of them.
        "designs": cell.get("designs", []),
        "left_out": cell.get("left_out", []),
        "smallest_effect": study.get("smallest_effect"),
        "scale": study["scale"],
        "state": state,
        "reason": reason,
        "metrics": metrics,
        "undefined": undefined,
        "holes": holes,
        "protocol": protocol,
        "cost": {"wall_seconds": round(seconds, 2), "peak_memory_gib": memory, **operations(cell, metrics, protocol)},
        "curve": _curve(store, cell),
        "code": code,
        "versions": versions,
        "evidence": {role: _digest(store.job_folder(job) / DONE) for role, job in cell["jobs"].items() if store.state(job).name == "done"},
    }


def operations(cell: Mapping[str, Any], metrics: Mapping[str, Any], protocol: Mapping[str, Any]) -> dict[str, float]:
    """Count the floating-point operations of one denoiser step on a global batch, and of both trainings; nothing for a control."""
    if cell["control"] or "steps" not in metrics or "classes" not in protocol:
        return {}
    config = from_nested(cell["config"])
    step = config.train.global_batch * cost.denoiser_step(config, protocol["classes"])
    tokenizer = config.tokenizer
    plain, adversarial = cost.tokenizer_step(config, False), cost.tokenizer_step(config, tokenizer.adversarial_weight > 0)
    if tokenizer.kind == "patch_pca":
        fitting = protocol["train_images"] * plain
    else:
        start = tokenizer.adversarial_start
        fitting = tokenizer.steps * tokenizer.global_batch * (start * plain + (1 - start) * adversarial)
    return {
        "step_flops": float(f"{step:.6g}"),
        "train_flops": float(f"{step * metrics['steps']:.6g}"),
        "tokenizer_flops": float(f"{fitting:.6g}"),
    }


def _curve(store: Store, cell: Mapping[str, Any]) -> dict[str, list[float]]:
    """Return the training loss by step, averaged over blocks of logged steps to at most CURVE_POINTS points; empty without one."""
    job = cell["jobs"].get("train")
    path = store.job_folder(job) / CURVE if job else None
    if path is None or not path.is_file():
        return {}
    points = [(entry["step"], entry["loss"]) for line in path.read_text(encoding="utf-8").splitlines() if (entry := _entry(line))]
    size = -(-len(points) // CURVE_POINTS)
    blocks = [points[start : start + size] for start in range(0, len(points), size)] if points else []
    losses = [float(f"{sum(loss for _, loss in block) / len(block):.5g}") for block in blocks]
    return {"step": [block[-1][0] for block in blocks], "loss": losses} if blocks else {}


def _entry(line: str) -> dict[str, Any] | None:
    """Read one line of a learning curve; None for one that a running job has not finished writing."""
    try:
        entry: dict[str, Any] = json.loads(line)
    except ValueError:
        return None
    return entry if "loss" in entry else None


def _digest(path: Path) -> str:
    """Return the first 16 hexadecimal digits of a file's SHA-256: enough to notice any change of it."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _correct(store: Store, probe: str | None) -> dict[str, Any]:
    """Return which test images a finished probe answered correctly, packed to bits in base64, and a print of the test set."""
    if probe is None or store.state(probe).name != "done":
        return {}
    import numpy as np  # only where results are read

    try:
        rows = np.load(store.artifact(probe, PREDICTIONS), allow_pickle=False)
        answered = dict(zip(ANSWERED, rows, strict=True))
    except (OSError, ValueError, TypeError, ArtifactError):
        return {"reason": "answers unreadable"}
    packed = {name: base64.b64encode(np.packbits(row.astype(bool)).tobytes()).decode("ascii") for name, row in answered.items()}
    test_set = str((store.spec(probe) or {}).get("fingerprint", {}).get("test", ""))
    return {**packed, "images": int(rows.shape[-1]), "test_set": test_set[:16]}


def write_records(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write records as JSON lines, sorted keys, one cell a line."""
    write_text(path, "".join(json.dumps(record, sort_keys=True) + "\n" for record in records))


def read_records(path: Path) -> list[dict[str, Any]]:
    """Read records from JSON lines; a malformed line raises with its number."""
    records = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}", "Give a results.jsonl file.") from None
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ConfigError(f"{path} line {number} is not JSON: {error}", "Mend or remove the line.") from None
        if not isinstance(record, dict):
            raise ConfigError(f"{path} line {number} is not a record", "Mend or remove the line.")
        if record.get("schema") != SCHEMA:
            raise ConfigError(
                f"{path} line {number} has schema {record.get('schema')!r}, not {SCHEMA}", "Write it again with this version."
            )
        records.append(record)
    return records
