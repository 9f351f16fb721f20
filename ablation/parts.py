"""Parts of one's own: which kinds there are, where a part is found, which bytes define it. Light.

A part has a kind, a name, and a text that says where it is: "package.module:Name", or "file.py:Name" for a file beside
the one that provides it. Names are looked up among the built-in ones first; a part cannot take a built-in name.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablation.config import BUILT_IN_NAMES, Config, get_value
from ablation.errors import ArtifactError, ConfigError, nearest

NAME_PATTERN = re.compile(r"[a-z][a-z0-9_]{0,63}\Z")
PLACE_PATTERN = re.compile(r"(?:\w[\w.+-]*\.py|[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):[A-Za-z_]\w*\Z")
LAUNCHERS = ("inline", "local", "slurm")


@dataclass(frozen=True)
class PartKind:
    """A kind of part: the setting that names one, the built-in names, how it is called, and the job whose key holds its bytes."""

    setting: str | None
    built_in: tuple[str, ...]
    arguments: tuple[str, ...]
    job: str | None


KINDS = {
    "tokenizer": PartKind("tokenizer.kind", BUILT_IN_NAMES["tokenizer.kind"], ("cfg", "image_size"), "tokenizer"),
    "schedule": PartKind("process.schedule", BUILT_IN_NAMES["process.schedule"], ("cfg",), "train"),
    "target": PartKind("process.target", BUILT_IN_NAMES["process.target"], ("gamma", "sigma"), "train"),
    "weight": PartKind("process.loss_weight", BUILT_IN_NAMES["process.loss_weight"], ("gamma", "sigma"), "train"),
    "denoiser": PartKind("denoiser.kind", BUILT_IN_NAMES["denoiser.kind"], ("cfg", "in_dim", "out_dim", "grid", "num_classes"), "train"),
    "evaluation": PartKind("probe.evaluations", BUILT_IN_NAMES["probe.evaluations"], ("context",), "evaluation"),
    "launcher": PartKind(None, LAUNCHERS, ("options",), None),
}
"""docs/plugins.md and ablation/protocols.py say what each must be."""


@dataclass(frozen=True)
class Source:
    """Where a stage or part came from: a file and the hash of its bytes, or an installed distribution."""

    file: str = ""
    sha256: str = ""
    origin: str = "built-in"  # built-in, --stages, recorded, or the distribution's name and version

    def __str__(self) -> str:
        return f"{self.file or '?'} ({self.origin})"

    @property
    def installed(self) -> bool:
        """Whether it came with an installed distribution, so that nobody asked for it by name."""
        return self.origin not in ("built-in", "--stages", "recorded")


@dataclass(frozen=True)
class Part:
    """A part that somebody provides: what it is, where it is, and who says so."""

    kind: str
    name: str
    place: str
    source: Source

    @property
    def label(self) -> str:
        """KIND:NAME, as `provides` writes it."""
        return f"{self.kind}:{self.name}"

    @classmethod
    def parse(cls, label: str, value: Any, source: Source) -> Part:
        """Read one entry of `provides` or PARTS; a class or function stands for its place in the providing file.

        Raises ConfigError for a kind that does not exist, a bad or built-in name, and a value that is no place.
        """
        kind, _, name = str(label).partition(":")
        if kind not in KINDS:
            raise ConfigError(f"'{label}' is no part", f"Write KIND:NAME with KIND one of {', '.join(KINDS)}.")
        if not NAME_PATTERN.match(name):
            raise ConfigError(
                f"part name {name!r} is not usable", "Use lower-case letters, digits and _, starting with a letter, at most 64."
            )
        if name in KINDS[kind].built_in:
            raise ConfigError(f"'{label}' would hide the built-in {kind} '{name}'", "Choose another name.")
        if not isinstance(value, str) and hasattr(value, "__name__"):
            value = f"{Path(source.file).name}:{value.__name__}"
        if not isinstance(value, str) or not PLACE_PATTERN.match(value):
            raise ConfigError(
                f"'{label}' is provided as {value!r}, which is no place", "Write package.module:Name, or file.py:Name for a file beside."
            )
        return cls(kind, name, value, source)

    def entry(self) -> dict[str, str]:
        """Return what a job's specification records of the part: where it is and which bytes define it."""
        module, _, attribute = self.place.partition(":")
        file = self._file(module)
        return {
            "part": self.label,
            "module": "" if module.endswith(".py") else module,
            "attribute": attribute,
            "file": str(file),
            "sha256": _sha256(file),
            "digest": _sha256(file) if module.endswith(".py") else digest_of(module, file),
            "provider": str(self.source),
        }

    def _file(self, module: str) -> Path:
        """Find the file of the part. Raises ConfigError naming the part where there is none."""
        if module.endswith(".py"):
            file = Path(self.source.file).parent / module
            if file.is_file():
                return file
            raise ConfigError(f"part '{self.label}' of {self.source}: there is no file {file}", "Put it beside the stage file.")
        return module_file(module, f"part '{self.label}' of {self.source}")


def module_file(module: str, who: str) -> Path:
    """Find the file of an importable module without running it (its packages' __init__ run). Raises ConfigError."""
    try:
        spec = importlib.util.find_spec(module)
    except Exception as error:  # noqa: BLE001 - importing a package can raise anything
        raise ConfigError(f"{who}: the module '{module}' cannot be found: {type(error).__name__}: {error}", "Install or mend it.") from None
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise ConfigError(f"{who}: there is no module '{module}'", "Install its package, or mend the name.")
    return Path(spec.origin)


def _sha256(path: Path) -> str:
    """Return a file's SHA-256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def digest_of(module: str, file: Path) -> str:
    """Hash a module's file together with the files of its own package that it imports, directly or not."""
    depth = len(module.split(".")) - (0 if file.name == "__init__.py" else 1)
    root = file.parents[depth] if depth else file.parent  # the folder that holds the top-level package
    names = sorted(_own_files(file, root, module.partition(".")[0]))
    lines = [f"{_sha256(path)} {path.relative_to(root).as_posix()}\n" for path in names]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _own_files(file: Path, root: Path, top: str) -> set[Path]:
    """Follow the import statements of a file within its top-level package."""
    waiting, seen = [file], set[Path]()
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        for name in _imports(path, root):
            if name.partition(".")[0] == top:
                stem = root.joinpath(*name.split("."))
                waiting += [found for found in (stem.with_suffix(".py"), stem / "__init__.py") if found.is_file()]
    return seen


def _imports(path: Path, root: Path) -> Iterator[str]:
    """Yield the modules, or names in modules, that a file imports anywhere, absolute."""
    package = list(path.relative_to(root).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def load_part(entry: Mapping[str, str], pinned: Path | None = None) -> Any:
    """Load a part from what a specification recorded, after checking that its bytes are unchanged.

    pinned: a folder of copies of loose files named by content, as a cluster's jobs read them. Raises ArtifactError where
    the bytes differ, ConfigError where the part cannot be imported or is not what its kind must be.
    """
    who = f"part '{entry['part']}' of {entry['provider']}"
    path = Path(entry["file"])
    if not entry["module"] and pinned is not None and (copy := pinned / f"{entry['sha256']}.py").is_file():
        path = copy
    if not path.is_file() or (digest_of(entry["module"], path) if entry["module"] else _sha256(path)) != entry["digest"]:
        raise ArtifactError(f"{who}: {path} changed since the job was planned", "Run `ablate run` again.")
    try:
        module = importlib.import_module(entry["module"]) if entry["module"] else _run_file(path, entry["sha256"])
    except Exception as error:
        raise ConfigError(f"{who} cannot be imported: {type(error).__name__}: {error}", f"Mend {path}.") from error
    if not hasattr(module, entry["attribute"]):
        raise ConfigError(f"{who}: {path} defines no '{entry['attribute']}'", "Mend the name after the colon.")
    return checked(entry["part"].partition(":")[0], getattr(module, entry["attribute"]), who)


def _run_file(path: Path, digest: str) -> Any:
    """Run a loose file as a module under a name of its own."""
    spec = importlib.util.spec_from_file_location(f"_ablation_part_{digest[:16]}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses in the file look themselves up here
    spec.loader.exec_module(module)
    return module


def checked(kind: str, part: Any, who: str) -> Any:
    """Return a part if it can be called as its kind is; what it returns is checked where it is used. Raises ConfigError."""
    arguments = KINDS[kind].arguments
    wanted = f"A {kind} is called with ({', '.join(arguments)}): docs/plugins.md."
    if not callable(part):
        raise ConfigError(f"{who} is a {type(part).__name__}, which cannot be called", wanted)
    try:
        inspect.signature(part).bind(*arguments)
    except TypeError as error:
        raise ConfigError(f"{who} cannot be called as a {kind}: {error}", wanted) from None
    except ValueError:  # some callables tell no signature
        return part
    return part


def used(config: Config) -> list[str]:
    """List the parts that a configuration names which are not built in, as KIND:NAME, evaluations last."""
    found = []
    for kind, about in KINDS.items():
        if about.setting is None:
            continue
        value = get_value(config, about.setting)
        names = value if isinstance(value, tuple) else (value,)
        found += [f"{kind}:{name}" for name in names if name not in about.built_in]
    return found


def check_names(values: Mapping[str, Any], parts: Mapping[str, Any]) -> None:
    """Refuse names that are neither built in nor provided; values maps settings to what they hold. Raises ConfigError."""
    for kind, about in KINDS.items():
        if about.setting is None or about.setting not in values:
            continue
        value = values[about.setting]
        provided = tuple(label.partition(":")[2] for label in parts if label.startswith(f"{kind}:"))
        for name in value if isinstance(value, (tuple, list)) else (value,):
            if name not in about.built_in + provided:
                known = about.built_in + provided
                raise ConfigError(
                    f"unknown {about.setting} '{name}'", nearest(str(name), known) if known else f"No {kind} is provided: docs/plugins.md."
                )
