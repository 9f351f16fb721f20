"""Probes of networks from elsewhere: how one is asked for, and which of them belong beside a study's results. Light."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ablation.config import Config, from_nested
from ablation.data.fingerprint import fingerprint, weights_fingerprint
from ablation.keys import content_key, job_slice
from ablation.plan import JobSpec
from ablation.store import Store, sha256

KIND = "checkpoint"


def checkpoint_job(
    config: Config, name: str, weights: Path | None, random: bool, input_size: int | None, seed: int, cache: Path | None
) -> JobSpec:
    """Specify the probe of a network; the key holds the content of its weights, where there is a file of them."""
    folder = Path(name).is_dir()
    content = weights_fingerprint(str(Path(name) / "model.safetensors")) if folder else sha256(weights) if weights else ""
    title = Path(name).resolve().name if folder else name
    prints = fingerprint(config.data, cache)
    place = {"name": str(Path(name).resolve()) if folder else name, "weights": str(weights.resolve()) if weights else None}
    identity = {"title": title, "random": random, "input_size": input_size, "content": content}
    reads = job_slice(KIND, config)
    key = content_key(KIND, reads, {}, {**identity, "seed": seed, "data": prints})
    extra = {**identity, **place, "data": prints}
    return JobSpec(KIND, key, {}, reads, config.model_dump(mode="json"), seed, None, prints, extra, ())


def prepare_job(store: Store, spec: JobSpec, code: Mapping[str, Any]) -> None:
    """Write a probe's specification, unless it has been run."""
    if store.state(spec.id).name != "done":
        store.prepare(spec.id, {**asdict(spec), "code": dict(code)})


def checkpoint_records(store: Store, study: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return one record per finished probe that was measured on a study's images by its protocol."""
    jobs = [job for job in store.jobs() if job.startswith(f"{KIND}-") and store.state(job).name == "done"]
    if not jobs:
        return []
    wanted = {_protocol(from_nested(cell["config"])) for cell in study["cells"]}
    records = []
    for job in jobs:
        spec, done = store.spec(job), store.done(job)
        if spec is None or _protocol(from_nested(spec["config"])) not in wanted or not _same_images(store, study, spec):
            continue
        records.append(_record(job, spec, done, study))
    return records


def _protocol(config: Config) -> str:
    """Write down what a probe of a network reads of a configuration, to be compared."""
    return json.dumps(job_slice(KIND, config), sort_keys=True, default=list)


def _same_images(store: Store, study: Mapping[str, Any], spec: Mapping[str, Any]) -> bool:
    """Say whether a probe saw the images that a job of the study saw."""
    specs = (store.spec(cell["jobs"]["probe"]) for cell in study["cells"] if "probe" in cell["jobs"])
    return any(found is not None and found["fingerprint"] == spec["fingerprint"] for found in specs)


def _record(job: str, spec: Mapping[str, Any], done: Mapping[str, Any], study: Mapping[str, Any]) -> dict[str, Any]:
    """Describe a finished probe as a reference line."""
    title, cost = spec["extra"]["title"] + (" (random weights)" if spec["extra"]["random"] else ""), done["cost"]
    cell = f"checkpoint.{title}-{job.rpartition('-')[2][:6]}-s{spec['seed']}"
    return {
        "schema": 1, "cell": cell, "stage": None, "control": KIND, "title": title,
        "overrides": {}, "seed": spec["seed"], "path": [], "changes": {}, "labels_used": False, "incomparable": [], "designs": [],
        "left_out": [], "config": spec["config"], "jobs": {KIND: job}, "scale": study["scale"], "state": "done", "reason": "",
        "metrics": done["metrics"], "undefined": {}, "holes": {}, "protocol": done["protocol"],
        "cost": {"wall_seconds": round(cost["wall_seconds"], 2), "peak_memory_gib": cost["peak_memory_gib"]},
        "code": done["code"], "versions": done["versions"], "evidence": {},
    }  # fmt: skip
