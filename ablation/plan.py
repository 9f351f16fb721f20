"""Cut cells into jobs, share equal jobs, order them, and say why each would run. This module is light."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ablation.config import Config, DataConfig
from ablation.data.fingerprint import fingerprint, weights_fingerprint
from ablation.design import Cell
from ablation.diffusion.feasible import undefined_reason
from ablation.keys import KIND_VERSIONS, changed_key, changed_settings, job_slice
from ablation.parts import KINDS, used
from ablation.stage import StageTree
from ablation.store import JobState, Store

SEEDED = {"tokenizer", "train", "probe", "fid", "finetune", "evaluation"}
_NETWORK_PARTS = ("tokenizer", "schedule", "target", "weight", "denoiser")


@dataclass(frozen=True)
class JobSpec:
    """Everything a worker needs to run one job, as plain data; it is what spec.json holds."""

    kind: str
    key: str
    inputs: Mapping[str, str]  # role -> id of the input job
    reads: Mapping[str, Any]  # every setting the job reads, with its value
    config: Mapping[str, Any]  # the whole resolved configuration, nested
    seed: int | None
    control: str | None
    fingerprint: Mapping[str, str]
    extra: Mapping[str, Any]  # what enters the key beside settings and inputs
    sources: tuple[Mapping[str, str], ...]  # the parts it loads, as Part.entry writes them

    @property
    def id(self) -> str:
        """Name the job: its kind and its content key."""
        return f"{self.kind}-{self.key}"


@dataclass(frozen=True)
class Plan:
    """A directed acyclic graph of jobs, parents first, and which job serves which cell in which role."""

    jobs: Mapping[str, JobSpec]
    cells: Mapping[str, Cell]
    roles: Mapping[str, Mapping[str, str]]  # cell id -> role -> job id
    unshared: int  # how many jobs the same cells would take if nothing were shared

    def cells_of(self, job_id: str) -> list[Cell]:
        """Return the cells that a job serves."""
        return [self.cells[cell] for cell in self._serves[job_id]]

    @cached_property
    def _serves(self) -> dict[str, list[str]]:
        """Map each job to the cells it serves; looked up once per job, so a search through all cells each time would not do."""
        serves: dict[str, list[str]] = {job: [] for job in self.jobs}
        for cell, roles in self.roles.items():
            for job in dict.fromkeys(roles.values()):
                serves[job].append(cell)
        return serves

    def children(self, job_id: str) -> list[str]:
        """Return the jobs that read a job's output."""
        return [other.id for other in self.jobs.values() if job_id in other.inputs.values()]


@dataclass(frozen=True)
class Decision:
    """What running the plan would do with a job, and why."""

    action: str  # new, reuse, resume, stale
    reason: str


def build_plan(tree: StageTree, cells: Sequence[Cell], cache: Path | None = None) -> Plan:
    """Plan the jobs of the cells; jobs with equal content keys are one job."""
    jobs: dict[str, JobSpec] = {}
    roles: dict[str, dict[str, str]] = {}
    prints: dict[DataConfig, dict[str, str]] = {}
    unshared = 0
    maker = _JobMaker(tree)
    for cell in cells:
        data = cell.config.data
        if data not in prints:
            prints[data] = fingerprint(data, cache)
        planned = _cell_jobs(maker, cell, prints[data])
        roles[cell.id] = {role: spec.id for role, spec in planned.items()}
        unshared += sum(role != "reference" for role in planned)
        jobs.update({spec.id: spec for spec in planned.values() if spec.id not in jobs})
    unshared += sum(spec.kind == "reference" for spec in jobs.values())
    return Plan(jobs, {cell.id: cell for cell in cells}, roles, unshared)


def _cell_jobs(maker: _JobMaker, cell: Cell, prints: dict[str, str]) -> dict[str, JobSpec]:
    """Plan one cell's jobs by role, parents first."""
    config = cell.config
    made: dict[str, JobSpec] = {}

    def add(kind: str, *parents: str, evaluation: str = "") -> None:
        given = {role: made[role] for role in parents}
        made[f"{kind}:{evaluation}" if evaluation else kind] = maker.job(cell, kind, given, prints, evaluation)

    def add_evaluations(parent: str) -> None:
        for name in config.probe.evaluations:
            add("evaluation", parent, evaluation=name)

    if cell.control:  # measures latents or an untrained network: nothing to train
        add("tokenizer")
        add("encode", "tokenizer")
        add("probe", "encode")
        if cell.control == "random_init":
            add_evaluations("encode")
        return made
    if undefined_reason(config.process) is None:
        add("reference")
    add("tokenizer")
    add("encode", "tokenizer")
    add("train", "encode")
    add("probe", "train")
    if "reference" in made:
        add("fid", "train", "reference")
    if config.finetune.enabled:
        add("finetune", "train")
    add_evaluations("train")
    return made


@dataclass(frozen=True)
class _Common:
    """What the jobs of one kind and one configuration have in common, whatever their seed."""

    reads: Mapping[str, Any]
    changed: Mapping[str, Any]  # those settings that differ from their default, as the key has them
    config: Mapping[str, Any]
    extra: Mapping[str, Any]
    fingerprint: Mapping[str, str]
    sources: tuple[dict[str, str], ...]


class _JobMaker:
    """Makes job specifications; what depends on the configuration alone is worked out once for all its seeds."""

    def __init__(self, tree: StageTree) -> None:
        self.tree = tree
        self._common: dict[tuple[Any, ...], _Common] = {}
        self._configs: dict[int, Mapping[str, Any]] = {}
        self._made: dict[tuple[Any, ...], JobSpec] = {}

    def job(self, cell: Cell, kind: str, parents: dict[str, JobSpec], prints: dict[str, str], evaluation: str = "") -> JobSpec:
        """Make one job's specification and key; evaluation names the part that an evaluation job runs."""
        config = cell.config
        control = cell.control if kind in ("probe", "evaluation") else None
        seeded = kind in SEEDED and not (kind == "tokenizer" and config.tokenizer.kind in ("patch_pca", "pixels"))
        seed = cell.seed if seeded else None
        same = (id(config), kind, control, evaluation)  # configurations live as long as the cells that hold them
        whole = (*same, seed, *(spec.key for spec in parents.values()))
        if whole not in self._made:
            if same not in self._common:
                self._common[same] = self._shared(config, kind, control, prints, evaluation)
            common = self._common[same]
            extra = {"seed": seed, "control": control, **common.extra}
            inputs = {role: spec.id for role, spec in parents.items()}
            key = changed_key(kind, common.changed, {role: spec.key for role, spec in parents.items()}, extra)
            self._made[whole] = JobSpec(
                kind, key, inputs, common.reads, common.config, seed, control, common.fingerprint, extra, common.sources
            )
        return self._made[whole]

    def _shared(self, config: Config, kind: str, control: str | None, prints: dict[str, str], evaluation: str) -> _Common:
        """Work out what does not depend on the seed."""
        reads = job_slice(kind, config)
        if control == "random_init":  # reads the architecture, none of the training
            reads |= {path: value for path, value in job_slice("train", config).items() if not path.startswith("train.")}
        elif control == "pca_features":
            reads |= {"tokenizer.latent_scale": config.tokenizer.latent_scale}
        sources = _part_sources(self.tree, config, kind, evaluation)
        data = {split: print_ for split, print_ in prints.items() if kind != "reference" or split == "train"}
        extra: dict[str, Any] = {}
        if kind in ("reference", "tokenizer"):
            extra["data"] = data
        if config.denoiser.init_path and (kind == "train" or control == "random_init"):
            extra["initial_weights"] = weights_fingerprint(config.denoiser.init_path)
        if evaluation:
            extra["evaluation"] = evaluation
        if own := _own_digests(sources, kind, control):
            extra["sources"] = own
        if id(config) not in self._configs:
            self._configs[id(config)] = config.model_dump(mode="json")
        return _Common(reads, changed_settings(reads), self._configs[id(config)], extra, data, sources)


def _part_sources(tree: StageTree, config: Config, kind: str, evaluation: str) -> tuple[dict[str, str], ...]:
    """Say where the parts are that a job of this kind loads."""
    wanted = {"reference": (), "tokenizer": ("tokenizer",), "encode": ("tokenizer",)}.get(kind, _NETWORK_PARTS)
    labels = [label for label in used(config) if label.partition(":")[0] in wanted]
    labels += [f"evaluation:{evaluation}"] if evaluation else []
    return tuple(tree.parts[label].entry() for label in labels)


def _own_digests(sources: Sequence[Mapping[str, str]], kind: str, control: str | None) -> list[str]:
    """Return the digests of the parts that no input's key holds yet; an untrained network has no training above it."""
    jobs = {kind, "train"} if control == "random_init" else {kind}
    return sorted(source["digest"] for source in sources if KINDS[source["part"].partition(":")[0]].job in jobs)


def decide(plan: Plan, store: Store) -> dict[str, Decision]:
    """Say for each job whether it is new, reused, resumed or stale, and why."""
    decisions: dict[str, Decision] = {}
    previous, known = store.previous_jobs(), set(store.jobs())
    for job_id, spec in plan.jobs.items():
        if job_id not in known:
            decisions[job_id] = _why_new(plan, spec, previous, store, JobState("new"))
            continue
        state = store.state(job_id)
        if state.name == "done":
            drift = default_drift(spec, store)
            decisions[job_id] = Decision("stale", drift) if drift else Decision("reuse", f"finished {state.when}")
        elif store.has_checkpoint(job_id):
            decisions[job_id] = Decision("resume", f"{state.name}: goes on from its checkpoint")
        elif state.name in ("failed", "diverged", "skipped"):
            decisions[job_id] = Decision("new", f"{state.name} before: {state.reason}")
        else:
            decisions[job_id] = _why_new(plan, spec, previous, store, state)
    return decisions


def _why_new(plan: Plan, spec: JobSpec, previous: Mapping[tuple[str, str], str], store: Store, state: JobState) -> Decision:
    """Compare with the job that last served the same cell in the same role, if there is one."""
    if state.reason:
        return Decision("stale", state.reason)
    for cell in plan.cells_of(spec.id):
        old_id = previous.get((cell.id, spec.kind))
        old = store.spec(old_id) if old_id and old_id != spec.id else None
        if old is None or store.state(str(old_id)).name != "done":
            continue
        changed = [
            f"{path} was {old['reads'].get(path)!r}, is {_plain(value)!r}"
            for path, value in spec.reads.items()
            if path in old["reads"] and old["reads"][path] != _plain(value)
        ]
        if dict(old["fingerprint"]) != dict(spec.fingerprint):
            changed.append("the data changed")
        stale_inputs = [role for role, job in spec.inputs.items() if old["inputs"].get(role) != job]
        changed += [f"its {role} changed" for role in stale_inputs]
        return Decision("stale", "; ".join(changed) or "its code version changed")
    return Decision("new", "never run")


def _plain(value: Any) -> Any:
    """Turn tuples into lists, as JSON would."""
    return list(value) if isinstance(value, tuple) else value


def default_drift(spec: JobSpec, store: Store) -> str:
    """Name a setting whose default changed since a job with the same key was run; empty when none did."""
    old = store.spec(spec.id)
    if old is None:
        return ""
    for path, value in spec.reads.items():
        if path in old["reads"] and old["reads"][path] != _plain(value):
            change = f"from {old['reads'][path]!r} to {_plain(value)!r}"
            return f"the default of {path} changed {change} since it ran; `ablate clean --stale --yes` removes it"
    return ""


def kind_order(kind: str) -> int:
    """Return a job kind's place in the order in which a cell runs them."""
    return list(KIND_VERSIONS).index(kind)
