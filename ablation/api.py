"""The Python interface: what the command line does, as functions. Light when imported; see docs/python-api.md.

Results come back as pandas data frames. Errors are those of the command line: ConfigError and its kin, with one line that
names the field, the valid values and the fix.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pandas import DataFrame

    from ablation.effects.verdict import Verdict
    from ablation.study import Study

Places = Sequence[str | Path]


def stages(stages: Places = ()) -> DataFrame:
    """Return every stage, one row each, parents before children; `attrs["broken"]` names sources that cannot be used.

    stages: stage files or folders of one's own.
    """
    from pandas import DataFrame

    from ablation.discover import discover

    tree = discover(stages)
    fields = ("name", "after", "title", "table", "uses_labels")
    rows = [
        {
            **{name: getattr(stage, name) for name in fields},
            "changes": dict(stage.changes),
            "effects": stage.effects,
            "source": str(stage.source),
        }
        for stage in tree.ordered()
    ]
    frame = DataFrame(rows)
    frame.attrs["broken"] = [f"{broken.source}: {broken.problem}" for broken in tree.broken]
    return frame


def check(stage: str, *, stages: Places = (), scale: str = "smoke") -> Verdict:
    """Build a stage and its parent at the smallest size and hold the stage to what it declares; takes seconds.

    stages: stage files or folders of one's own. The verdict has passed, problems, changes and seen (the effects).
    Raises ConfigError for an unknown stage.
    """
    from ablation.discover import discover, load_scale
    from ablation.effects.verdict import check_stages

    tree = discover(stages)
    (verdict,) = check_stages(tree.with_root(load_scale(scale, tree.root)), [stage])
    return verdict


def plan(**request: Any) -> DataFrame:
    """Return every job of a study with what would happen to it and why, one row each; nothing runs.

    Takes what `run` takes, less what says how to run.
    """
    from pandas import DataFrame

    from ablation.plan import decide

    study = _study(**request)
    decisions = decide(study.plan, study.store)
    rows = [
        {
            "job": job,
            "kind": spec.kind,
            "action": decisions[job].action,
            "reason": decisions[job].reason,
            "cells": tuple(cell.id for cell in study.plan.cells_of(job)),
        }
        for job, spec in study.plan.jobs.items()
    ]
    return DataFrame(rows, columns=["job", "kind", "action", "reason", "cells"])


def run(
    *,
    launcher: str = "inline",
    parallel: int | None = None,
    threads: int | None = None,
    checkpoint_seconds: float | None = None,
    quiet: bool = True,
    **request: Any,
) -> DataFrame:
    """Run a study and return its results, one row for each cell; the same call again reuses what is finished.

    request: through, table, only, grid, designs, scale, data, settings, seeds, stages, runs, name, controls; as on the
    command line, but seeds are a list, and settings and grid are mappings. launcher: inline (this process), local, or a
    plugin's. quiet: say nothing while it runs. A cell that failed is a row with its state and reason. Raises ConfigError
    before anything runs, and KeyboardInterrupt when it was interrupted; finished jobs are kept.
    """
    from rich.console import Console

    from ablation.collect import collect
    from ablation.errors import EXIT_INTERRUPTED, ConfigError
    from ablation.execute import execute

    if launcher == "slurm":
        raise ConfigError("launcher 'slurm' submits and returns, so there is no result to give back", "Use `ablate run --launcher slurm`.")
    study = _study(**request)
    out = Console(file=io.StringIO()) if quiet else Console()
    words = ", ".join(f"{name}={value!r}" for name, value in request.items())
    if execute(study, launcher, parallel, threads, checkpoint_seconds, f"ablation.run({words})", out) == EXIT_INTERRUPTED:
        raise KeyboardInterrupt("finished jobs are kept; the same call goes on from here")
    return frame(collect(study.store, study.store.study(study.name)))


def results(runs: str | Path = "runs", *, study: str | None = None) -> DataFrame:
    """Return what a study has measured so far, one row for each cell. study: None for the last one."""
    from ablation.collect import collect
    from ablation.store import Store

    store = Store(Path(runs))
    return frame(collect(store, store.study(study)))


def report(runs: str | Path = "runs", *, study: str | None = None, out: str | Path | None = None) -> list[Path]:
    """Write a study's tables, figures and page, and return their paths. out: RUNS/reports/STUDY unless said."""
    from ablation.pictures import make_pictures
    from ablation.report import write_reports
    from ablation.report.build import footer_of
    from ablation.results_folder import gather
    from ablation.store import Store

    store = Store(Path(runs))
    document = store.study(study)
    folder = Path(out) if out is not None else store.root / "reports" / document["name"]
    source = gather(store, document, folder, make_pictures(store, document))
    return write_reports(source.records, folder, footer_of(source.records, source.provenance), source.images, source.provenance)


def frame(records: Iterable[Mapping[str, Any]]) -> DataFrame:
    """Lay result records out as a table: what a cell is, then its metrics, then its cost; one row for each record."""
    from pandas import DataFrame

    records = list(records)
    metrics = list(dict.fromkeys(name for record in records for name in record["metrics"]))
    rows = [
        {
            **{name: record[name] for name in ("cell", "stage", "control", "seed", "title", "scale", "labels_used", "state", "reason")},
            "parent": record["path"][-2] if record["stage"] and len(record["path"]) > 1 else None,
            **{name: record["metrics"].get(name) for name in metrics},
            "wall_seconds": record["cost"]["wall_seconds"],
            "overrides": dict(record["overrides"]),
            "protocol": dict(record["protocol"]),
        }
        for record in records
    ]
    return DataFrame(rows)


def _study(
    *,
    through: str | None = None,
    table: str | int | None = None,
    only: Sequence[str] = (),
    grid: Mapping[str, Sequence[Any]] | None = None,
    designs: Sequence[str] = (),
    scale: str | None = None,
    data: str | None = None,
    settings: Mapping[str, Any] | None = None,
    seeds: Sequence[int] = (0,),
    stages: Places = (),
    runs: str | Path = "runs",
    name: str | None = None,
    controls: bool = True,
) -> Study:
    """Resolve a request; an unknown word is Python's own TypeError."""
    from ablation.study import Request, prepare

    return prepare(
        Request(
            through=through,
            table=None if table is None else str(table),
            only=_words(only),
            grid=dict(grid or {}),
            designs=_words(designs),
            scale=scale,
            data=data,
            settings=dict(settings or {}),
            seeds=tuple(seeds),
            stages=tuple(map(str, stages)),
            runs=Path(runs),
            name=name,
            with_controls=controls,
        )
    )


def _words(given: str | Sequence[str]) -> tuple[str, ...]:
    """Take one name for a list of one."""
    return (given,) if isinstance(given, str) else tuple(given)
