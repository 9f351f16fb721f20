"""Find stage files: the built-in folder, installed plugins, and --stages FILE_OR_FOLDER.

Loading a file returns Stage objects and registers nothing; `discover` builds one immutable tree from them. This module is light.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from ablation.config import Config, from_nested
from ablation.errors import AblationError, ConfigError, nearest
from ablation.parts import KINDS, Part, Source
from ablation.stage import Broken, Stage, StageTree

ENTRY_POINT_GROUP = "ablation.stages"
ENTRY_POINT_GROUPS = (ENTRY_POINT_GROUP, *(f"ablation.{kind}s" for kind in KINDS))
"""Groups that installed distributions use: stages, which are loaded, and parts of each kind, of which only the place is read."""


def builtin_folder() -> Path:
    """Return the folder of the built-in stages: inside an installed wheel, else beside the package in a checkout."""
    package = Path(__file__).resolve().parent
    for folder in (package / "_stages", package.parent / "stages"):
        if (folder / "baseline.yaml").is_file():
            return folder
    raise ConfigError("the built-in stages are missing from this installation", "Reinstall deconstruct-ddm.")


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping; a malformed file raises with its name and line."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", "Check the path.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}", "Mend the file.") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold a mapping", "Write 'name: value' lines.")
    return content


def scale_names() -> tuple[str, ...]:
    """List the built-in scales."""
    return tuple(sorted(path.stem for path in (builtin_folder() / "scales").glob("*.yaml")))


def load_scale(name: str, base: Config) -> Config:
    """Overlay a scale (a built-in name or a YAML file) on a configuration; a scale sets sizes, never the method."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else builtin_folder() / "scales" / f"{name}.yaml"
    if not path.is_file():
        raise ConfigError(f"unknown scale '{name}'", nearest(name, scale_names()) + " Or give a YAML file.")
    content = read_yaml(path)
    content.pop("description", None)
    return from_nested(content, base)


def load_file(path: Path, origin: str) -> list[Stage | Part]:
    """Load what a Python file defines: stages (STAGE, or STAGES) and parts that belong to no stage (PARTS)."""
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    name = f"_ablation_stage_{digest[:16]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is not a Python file", "Stage files end in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses in the file look themselves up here
    try:
        spec.loader.exec_module(module)
        return _contents(module, Source(str(path), digest, origin))
    finally:
        sys.modules.pop(name, None)


def _contents(module: Any, source: Source) -> list[Stage | Part]:
    """Collect STAGE or STAGES and PARTS from a loaded module, with its docstring and source."""
    found = getattr(module, "STAGES", None) or ([module.STAGE] if hasattr(module, "STAGE") else [])
    parts = getattr(module, "PARTS", {})
    if not all(isinstance(stage, Stage) for stage in found) or not isinstance(parts, Mapping) or not (found or parts):
        raise ConfigError(f"{source.file} defines no STAGE", "End the file with `STAGE = Stage(...)`, or with PARTS = {'KIND:NAME': ...}.")
    doc = (module.__doc__ or "").strip()
    stages = [replace(stage, doc=stage.doc or doc, source=source) for stage in found]
    for stage in stages:
        stage.parts()  # now that the file is known, places in it can be read
    return [*stages, *(Part.parse(label, value, source) for label, value in parts.items())]


def _load_safely(load: Callable[[], list[Stage | Part]], source: Source) -> list[Stage | Part] | Broken:
    """Load one source; whatever goes wrong in it becomes a Broken entry instead of stopping the others.

    What it prints goes to standard error, so that it cannot be taken for an answer.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return load()
    except KeyboardInterrupt:
        raise
    except AblationError as error:
        return Broken(source, str(error))
    except BaseException as error:  # noqa: BLE001 - a plugin may even raise SystemExit
        return Broken(source, " ".join(f"{type(error).__name__}: {error}".split()))


def _installed() -> list[list[Stage | Part] | Broken]:
    """Load the stages of installed distributions, and note the parts they provide without importing them."""
    found: list[list[Stage | Part] | Broken] = []
    for entry, origin in _entry_points(found):
        source = Source(entry.value, origin=origin)
        if entry.group == ENTRY_POINT_GROUP:
            found.append(_load_safely(partial(_load_entry, entry, origin), source))
        else:
            kind = entry.group.removeprefix("ablation.").removesuffix("s")
            found.append(_load_safely(partial(_part_entry, f"{kind}:{entry.name}", entry.value, source), source))
    return found


def _part_entry(label: str, value: str, source: Source) -> list[Stage | Part]:
    """Read an entry point that names a part."""
    return [Part.parse(label, value, source)]


def _entry_points(found: list[list[Stage | Part] | Broken]) -> list[tuple[metadata.EntryPoint, str]]:
    """List our entry points in the order of their names; a distribution whose metadata cannot be read is added as broken."""
    entries: list[tuple[metadata.EntryPoint, str]] = []
    seen: set[str] = set()
    for distribution in metadata.distributions():
        where = str(getattr(distribution, "_path", "an installed distribution"))
        try:
            if "[ablation." not in (distribution.read_text("entry_points.txt") or ""):
                continue
            name, version = distribution.metadata["Name"], distribution.metadata["Version"]
            if not name:
                raise ValueError("its METADATA has no Name")
            if name.lower() in seen:
                continue
            seen.add(name.lower())
            entries += [(entry, f"{name} {version}") for entry in distribution.entry_points if entry.group in ENTRY_POINT_GROUPS]
        except Exception as error:  # noqa: BLE001 - metadata of others, in whatever state
            found.append(Broken(Source(where, origin="installed"), f"its metadata cannot be read: {type(error).__name__}: {error}"))
    return sorted(entries, key=lambda pair: (pair[0].group, pair[0].name))


def _load_entry(entry: metadata.EntryPoint, origin: str) -> list[Stage | Part]:
    """Load an entry point that names a module or a Stage."""
    loaded = entry.load()
    module = sys.modules[entry.module]
    file = Path(module.__file__ or "")
    source = Source(str(file), hashlib.sha256(file.read_bytes()).hexdigest(), origin)
    doc = (module.__doc__ or "").strip()
    return [replace(loaded, doc=loaded.doc or doc, source=source)] if isinstance(loaded, Stage) else _contents(loaded, source)


def _files(location: Path) -> list[Path]:
    """List the stage files at a file or folder, in name order."""
    if location.is_dir():
        return sorted(path for path in location.glob("*.py") if not path.name.startswith("_"))
    if location.is_file():
        return [location]
    raise ConfigError(f"--stages: {location} does not exist", "Give a Python file or a folder of them.")


def load_root(folder: Path) -> tuple[Stage, Config]:
    """Read baseline.yaml: the root stage and the configuration everything is a diff on."""
    path = folder / "baseline.yaml"
    content = read_yaml(path)
    config = from_nested(content["config"])
    stage = Stage(
        name=content["name"],
        after=None,
        title=content["title"],
        table=content["table"],
        uses_labels=content["uses_labels"],
        doc=content["doc"].strip(),
        source=Source(str(path), hashlib.sha256(path.read_bytes()).hexdigest()),
    )
    return stage, config


def discover(extra: Sequence[str | Path] = (), installed: bool = True) -> StageTree:
    """Build the stage tree from the built-in folder, installed plugins and extra files or folders.

    A source that cannot be loaded is kept as Broken and stops only a run that needs it; a file that was asked for and claims
    a name that is taken raises with both sources.
    """
    folder = builtin_folder()
    root_stage, root = load_root(folder)
    loaded = [_load_path(path, "built-in") for path in _files(folder)]
    loaded += _installed() if installed else []
    loaded += [_load_path(path.resolve(), "--stages") for location in extra for path in _files(Path(location))]
    broken = [item for item in loaded if isinstance(item, Broken)]
    things = [thing for item in loaded if not isinstance(item, Broken) for thing in item]
    stages = [root_stage, *(thing for thing in things if isinstance(thing, Stage))]
    return StageTree.build(stages, root, broken, [thing for thing in things if isinstance(thing, Part)])


def _load_path(path: Path, origin: str) -> list[Stage | Part] | Broken:
    """Load one file safely."""
    return _load_safely(partial(load_file, path, origin), Source(str(path), origin=origin))
