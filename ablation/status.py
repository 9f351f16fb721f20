"""How far a study is, where its logs lie, and what a run folder no longer needs; all from our own files. Light."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ablation.errors import AblationError, ConfigError, nearest
from ablation.keys import content_key
from ablation.store import ATTEMPTS, CURVE, LOG, JobState, Store

POLL_SECONDS = 0.5


def cell_states(store: Store, document: Mapping[str, Any], state_of: Callable[[str], JobState] | None = None) -> list[dict[str, Any]]:
    """Return each cell's state, its jobs' states, attempts, seconds computed, last loss, probe accuracy, log and reason.

    state_of: where jobs' states come from; None: their own files.
    """
    return [_cell_state(store, cell, state_of or store.state) for cell in document["cells"]]


def _cell_state(store: Store, cell: Mapping[str, Any], state_of: Callable[[str], JobState]) -> dict[str, Any]:
    """Summarise one cell: the first of these that any of its jobs is in."""
    states = {role: state_of(job) for role, job in cell["jobs"].items()}
    names = [state.name for state in states.values()]
    order = ("failed", "diverged", "cancelled", "skipped", "lost", "running", "queued", "interrupted", "new")
    overall = next((name for name in order if name in names), "done")
    if overall == "new" and any(name == "done" for name in names):
        overall = "waiting"
    reason = next((state.reason for state in states.values() if state.name == overall and state.reason), "")
    probe = store.done(cell["jobs"]["probe"])["metrics"].get("linear_probe_top1") if names and states["probe"].name == "done" else None
    train = cell["jobs"].get("train")
    return {
        "cell": cell["id"],
        "stage": cell["stage"],
        "seed": cell["seed"],
        "state": overall,
        "jobs": {role: state.name for role, state in states.items()},
        "attempts": max(store.attempts(job) for job in cell["jobs"].values()),
        "elapsed": sum(elapsed(store, job, states[role]) for role, job in cell["jobs"].items()),
        "loss": last_loss(store, train) if train else None,
        "probe": probe,
        "log": telling_log(store, cell["jobs"], states),
        "reason": reason,
    }


def elapsed(store: Store, job_id: str, state: JobState) -> float:
    """Return the seconds that a finished job took, or that a running one has taken since it last started."""
    if state.name not in ("done", "running"):
        return 0.0
    try:
        if state.name == "done":
            return float(store.done(job_id)["cost"]["wall_seconds"])
        lines = (store.job_folder(job_id) / ATTEMPTS).read_text(encoding="utf-8").splitlines()
        starts = [json.loads(line)["time"] for line in lines if '"started"' in line]
        return max(0.0, round(time.time() - float(starts[-1]), 1))
    except (OSError, IndexError, ValueError, KeyError):
        return 0.0


def telling_log(store: Store, jobs: Mapping[str, str], states: Mapping[str, JobState]) -> str | None:
    """Return the log of the job that a cell is at: one that runs or failed, else the last that has written any."""
    written = {role: store.job_folder(job) / LOG for role, job in jobs.items() if (store.job_folder(job) / LOG).exists()}
    at = [role for name in ("running", "failed", "diverged") for role in written if states[role].name == name]
    return str(written[at[0] if at else list(written)[-1]]) if written else None


def last_loss(store: Store, job_id: str) -> float | None:
    """Return the last logged training loss of a job, or None."""
    path = store.job_folder(job_id) / CURVE
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return float(json.loads(lines[-1])["loss"])
    except (OSError, IndexError, ValueError, KeyError):
        return None


def find_cell(store: Store, study: str | None, stage: str, seed: int | None) -> dict[str, Any]:
    """Return a stage's cell of a study, or the cell of that id; an unknown stage or seed raises with the valid ones."""
    document = store.study(study)
    named = [cell for cell in document["cells"] if cell["id"] == stage]
    cells = named or [cell for cell in document["cells"] if cell["stage"] == stage and not cell["control"]]
    cells.sort(key=lambda cell: cell["id"] != f"{stage}-s{cell['seed']}")  # the stage itself before variants of it
    if not cells:
        raise ConfigError(
            f"study '{document['name']}' has no stage '{stage}'", nearest(stage, {cell["stage"] for cell in document["cells"]})
        )
    chosen = [cell for cell in cells if seed is None or cell["seed"] == seed]
    if not chosen:
        raise ConfigError(f"stage '{stage}' was not run with seed {seed}", f"Seeds: {', '.join(str(cell['seed']) for cell in cells)}.")
    found: dict[str, Any] = chosen[0]
    return found


def log_path(store: Store, study: str | None, stage: str, kind: str, seed: int | None) -> Path:
    """Return the log file of a stage's job; an unknown kind raises with the valid ones."""
    cell = find_cell(store, study, stage, seed)
    if kind not in cell["jobs"]:
        raise ConfigError(f"stage '{stage}' has no job of kind '{kind}'", nearest(kind, cell["jobs"]))
    return store.job_folder(cell["jobs"][kind]) / LOG


def follow_file(path: Path, follow: bool) -> Iterator[str]:
    """Yield a file's text, and what is appended to it for as long as one follows."""
    while not path.exists():
        if not follow:
            raise ConfigError(f"{path} does not exist yet", "The job has not started; add -f to wait for it.")
        time.sleep(POLL_SECONDS)
    with path.open(encoding="utf-8", errors="replace") as file:
        while True:
            text = file.read()
            if text:
                yield text
            elif not follow:
                return
            else:
                time.sleep(POLL_SECONDS)


def removable(store: Store, *, stale: bool, orphans: bool, failed: bool, cache: bool) -> list[tuple[Path, str]]:
    """List the folders that the chosen kinds of cleaning would delete, with the reason; running jobs are never among them.

    Raises ArtifactError for orphans where a study cannot be read: its jobs would look like orphans.
    """
    found: list[tuple[Path, str]] = []
    referred = store.referred_jobs() if orphans else set()
    for job in store.jobs():
        state = store.state(job)
        if state.name == "running":
            continue
        if failed and state.name in ("failed", "diverged", "skipped"):
            found.append((store.job_folder(job), f"{state.name}: {state.reason}"))
        elif orphans and job not in referred and not job.startswith("checkpoint-"):  # a probe of a network belongs to no study
            found.append((store.job_folder(job), "no study refers to it"))
        elif stale and (drift := _drift(store, job)):
            found.append((store.job_folder(job), drift))
    if cache and store.cache.is_dir():
        found.append((store.cache, "made again when needed"))
    return found


def _drift(store: Store, job_id: str) -> str:
    """Say whether a job's key no longer follows from what it read: a default or the job kind's version changed since."""
    spec = store.spec(job_id)
    if spec is None:
        return "its specification is unreadable"
    try:
        reads = {path: as_setting(value) for path, value in spec["reads"].items()}
        inputs = {role: parent.rpartition("-")[2] for role, parent in spec["inputs"].items()}
        same = content_key(spec["kind"], reads, inputs, spec["extra"]) == spec["key"]
    except (AblationError, KeyError) as error:
        return f"its specification is no longer valid: {error}"
    return "" if same else "a default or the version of its job kind changed since it ran"


def as_setting(value: Any) -> Any:
    """Turn a JSON list back into the tuple a setting holds."""
    return tuple(value) if isinstance(value, list) else value
