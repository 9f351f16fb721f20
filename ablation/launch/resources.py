"""What each kind of job asks SLURM for: one YAML file, validated before anything is submitted. Light."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from ablation.discover import read_yaml
from ablation.errors import ConfigError, nearest
from ablation.keys import KIND_VERSIONS
from ablation.launch.together import TOGETHER

BUILT_IN = Path(__file__).with_name("resources.yaml")
KINDS = (*KIND_VERSIONS, "report")
RESERVED = (
    *("array", "dependency", "kill-on-invalid-dep", "job-name", "comment", "output", "error", "signal", "requeue", "export"),
    *("nodes", "ntasks", "ntasks-per-node", "cpus-per-task"),  # nodes, tasks_per_node, pack and cpus are for these
)
"""sbatch options that the launcher sets itself; a resource file may not."""


def minutes(value: Any) -> int:
    """Read a time limit as SLURM writes it (minutes, MM:SS, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS) and round it up to minutes."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", str(value).strip())
    if match is None:
        raise ValueError(f"'{value}' is not a time; write minutes, 'HH:MM:SS' or 'D-HH:MM:SS' in quotes")
    days, *parts = match.groups()
    numbers = [int(part) for part in parts if part is not None]
    if days is not None:
        hours, mins, seconds = (*numbers, 0, 0)[:3]
    elif len(numbers) == 3:
        hours, mins, seconds = numbers
    else:
        hours, mins, seconds = 0, numbers[0], numbers[1] if len(numbers) == 2 else 0
    return int(days or 0) * 1440 + hours * 60 + mins + (seconds > 0)


class _Loader(yaml.SafeLoader):
    """YAML in which 2:00:00 stays a text: by YAML 1.1 it would be the number 7200."""


_Loader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:int"]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?\d+$"), list("-+0123456789"))


def _read(path: Path) -> dict[str, Any]:
    """Read a resource file; a malformed one raises with its name and line."""
    read_yaml(path)  # raises for what cannot be read at all
    content: dict[str, Any] = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    return content


class Resources(BaseModel):
    """What one kind of job asks for, and how its restarts are bounded."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    nodes: int = Field(1, ge=1)  # that share one training
    tasks_per_node: int = Field(1, ge=1)  # processes on each of them
    pack: int = Field(1, ge=1)  # jobs that run side by side as one SLURM job
    gpus: Annotated[int, Field(ge=0)] | Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+:\d+$")] = 0  # of a node: a count, or "type:count"
    cpus: int = Field(1, ge=1)  # of a process
    memory: str | None = Field(None, pattern=r"^\d+[KMGT]?$")  # of a node, in MiB without a unit
    time: Annotated[int, BeforeValidator(minutes), Field(ge=1)] = 60  # minutes
    threads: int | None = Field(None, ge=1)  # CPU threads of a process; None: one for each CPU
    array_parallelism: int = Field(256, ge=1)  # tasks of one array running at once
    signal_seconds: int = Field(120, ge=5)  # how long before the time limit the job is told to save
    checkpoint_seconds: float = Field(60.0, ge=0)  # between checkpoints of a training, whatever the signals
    max_restarts: int = Field(20, ge=0)  # of one submission
    max_stalled: int = Field(5, ge=1)  # restarts in a row without a new checkpoint
    setup: tuple[str, ...] = ()  # shell lines before the job, such as `module load cuda`
    srun: tuple[str, ...] = ()  # further srun arguments
    sbatch: Mapping[str, str | int | bool] = Field(default_factory=dict)  # further sbatch options, by their long names

    @property
    def processes(self) -> int:
        """How many processes share one training."""
        return self.nodes * self.tasks_per_node

    @property
    def gpu_count(self) -> int:
        """How many GPUs are asked for on each node."""
        return int(str(self.gpus).rpartition(":")[2])


class ResourceFile(BaseModel):
    """The whole file: what every kind asks for, the interpreter in the job, and files to pin beside the code."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kinds: Mapping[str, Resources]
    python: str | None = None  # a shell command; None: the interpreter that submits
    include: tuple[str, ...] = ()  # files to copy into the snapshot, relative to the checkout


def load_resources(path: Path | None = None, settings: Sequence[str] = (), **common: str | None) -> ResourceFile:
    """Read the built-in file, the user's over it, then KEY=VALUE or KIND.KEY=VALUE settings, then fields common to all kinds.

    Raises ConfigError naming the file, the field and the valid values.
    """
    built_in, own = _read(BUILT_IN), _read(path) if path else {}
    where = str(path or "the built-in resources")
    _known(own, ("defaults", "kinds", "python", "include"), where)
    _known(own.get("kinds") or {}, KINDS, f"{where}, kinds")
    given: dict[str, dict[str, Any]] = {kind: {} for kind in KINDS}
    for kind in KINDS:
        layers = (built_in["defaults"], built_in["kinds"].get(kind), own.get("defaults"), (own.get("kinds") or {}).get(kind))
        for layer in layers:
            if layer is not None and not isinstance(layer, dict):
                raise ConfigError(f"{where}: {layer!r} is not a mapping", "Write 'name: value' lines.")
            given[kind] |= layer or {}
    for text in settings:
        _assign(given, text)
    for kind in KINDS:
        given[kind] |= {name: value for name, value in common.items() if value is not None}
    resolved = {kind: _validated(kind, values, where) for kind, values in given.items()}
    try:
        return ResourceFile(kinds=resolved, python=own.get("python"), include=tuple(own.get("include") or ()))
    except ValidationError as error:
        raise ConfigError(f"{where}: {_first(error)}") from None


def _assign(given: dict[str, dict[str, Any]], text: str) -> None:
    """Apply one --resource text to one kind or to all."""
    name, equals, value = text.partition("=")
    kind, dot, field = name.strip().rpartition(".")
    if not equals or (dot and kind not in KINDS):
        raise ConfigError(f"--resource {text!r} cannot be read", f"Write --resource gpus=1 or KIND.gpus=1, KIND one of {', '.join(KINDS)}.")
    parsed = yaml.load(value, _Loader)
    for target in [kind] if dot else KINDS:
        given[target][field] = parsed


def _validated(kind: str, values: dict[str, Any], where: str) -> Resources:
    """Validate what one kind asks for."""
    _known(values, tuple(Resources.model_fields), f"{where}, {kind}")
    if kind == "report":
        values = {**values, "pack": 1}  # there is one report job, also where `pack` is set for every kind
    if isinstance(values.get("memory"), int):
        values = {**values, "memory": str(values["memory"])}
    try:
        resources = Resources(**values)
    except ValidationError as error:
        raise ConfigError(f"{where}, {kind}: {_first(error)}", "docs/slurm.md lists every field.") from None
    for name in resources.sbatch:
        if name.lstrip("-").replace("_", "-") in RESERVED:
            raise ConfigError(f"{where}, {kind}: sbatch option '{name}' is set by the launcher", f"Leave out {', '.join(RESERVED)}.")
    if problem := _misfit(kind, resources):
        raise ConfigError(f"{where}, {kind}: {problem[0]}", problem[1])
    return resources


def _misfit(kind: str, wanted: Resources) -> tuple[str, str] | None:
    """Return what a kind of job cannot make use of, and the fix."""
    if wanted.processes > 1 and kind not in TOGETHER:
        able = " and ".join(TOGETHER)
        return f"a {kind} job is one process, so nodes and tasks_per_node must be 1", f"Set them for {able}, as in train.tasks_per_node=4."
    if wanted.pack > 1 and wanted.processes > 1:
        return f"pack={wanted.pack} puts several jobs on one node, nodes and tasks_per_node one job on several", "Choose one of them."
    if wanted.pack > 1 and wanted.gpu_count > 1:
        return f"gpus={wanted.gpu_count} with pack={wanted.pack}: packed jobs share one GPU", "Use gpus=1, or 0."
    if wanted.tasks_per_node > 1 and wanted.gpu_count not in (0, wanted.tasks_per_node):
        count, tasks = wanted.gpu_count, wanted.tasks_per_node
        return f"gpus={count} does not fit tasks_per_node={tasks}: each process uses one GPU", f"Use gpus={tasks}, or 0."
    return None


def _known(values: Mapping[str, Any], valid: Sequence[str], where: str) -> None:
    """Refuse unknown names, with the nearest valid ones."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}: {values!r} is not a mapping", "Write 'name: value' lines.")
    for name in values:
        if name not in valid:
            raise ConfigError(f"{where}: unknown field '{name}'", nearest(str(name), valid))


def _first(error: ValidationError) -> str:
    """Say what is wrong with the first invalid field."""
    fault = error.errors()[0]
    return (
        f"{'.'.join(str(part) for part in fault['loc'] if part not in ('int', 'str') and 'constrained' not in str(part))}: {fault['msg']}"
    )


def sbatch_options(wanted: Resources) -> dict[str, str | int | bool]:
    """Return what a request asks of sbatch, by the options' long names."""
    named = {
        "partition": wanted.partition,
        "account": wanted.account,
        "qos": wanted.qos,
        "constraint": wanted.constraint,
        "gpus-per-node": wanted.gpus or None,
        "cpus-per-task": wanted.cpus,
        "mem": wanted.memory,
        "time": wanted.time,
        "nodes": wanted.nodes,
        "ntasks-per-node": wanted.tasks_per_node * wanted.pack,
    }
    own = {name.lstrip("-").replace("_", "-"): value for name, value in wanted.sbatch.items() if value is not False}
    return {name: value for name, value in {**named, **own}.items() if value is not None}
