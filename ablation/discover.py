"""Find stage files: the built-in folder, installed plugins, and --stages FILE_OR_FOLDER.

Loading a file returns Stage objects and registers nothing; `discover` builds one immutable tree from them. This module is light.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from ablation.config import Config, from_nested
from ablation.errors import AblationError, ConfigError, nearest
from ablation.stage import Broken, Source, Stage, StageTree

ENTRY_POINT_GROUP = "ablation.stages"


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


def load_file(path: Path, origin: str) -> list[Stage]:
    """Load the Stage objects (STAGE, or STAGES) that a Python file defines."""
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
        return _stages_of(module, Source(str(path), digest, origin))
    finally:
        sys.modules.pop(name, None)


def _stages_of(module: Any, source: Source) -> list[Stage]:
    """Collect STAGE or STAGES from a loaded module, with its docstring and source."""
    found = getattr(module, "STAGES", None) or [getattr(module, "STAGE", None)]
    if not all(isinstance(stage, Stage) for stage in found):
        raise ConfigError(f"{source.file} defines no STAGE", "End the file with `STAGE = Stage(...)`.")
    doc = (module.__doc__ or "").strip()
    return [replace(stage, doc=stage.doc or doc, source=source) for stage in found]


def _load_safely(path: Path, origin: str) -> list[Stage] | Broken:
    """Load one file; whatever goes wrong in it becomes a Broken entry instead of stopping the others."""
    try:
        return load_file(path, origin)
    except AblationError as error:
        return Broken(Source(str(path), origin=origin), str(error))
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return Broken(Source(str(path), origin=origin), f"{type(error).__name__}: {error}")


def _installed(group: str = ENTRY_POINT_GROUP) -> list[Stage | Broken]:
    """Load stages of installed distributions; an entry point names a module or a Stage."""
    found: list[Stage | Broken] = []
    for entry in sorted(metadata.entry_points(group=group), key=lambda e: e.name):
        origin = f"{entry.dist.name} {entry.dist.version}" if entry.dist else "installed"
        try:
            loaded = entry.load()
            module = sys.modules[entry.module]
            file = Path(module.__file__ or "")
            source = Source(str(file), hashlib.sha256(file.read_bytes()).hexdigest(), origin)
            doc = (module.__doc__ or "").strip()
            stages = [replace(loaded, doc=loaded.doc or doc, source=source)] if isinstance(loaded, Stage) else _stages_of(loaded, source)
            found.extend(stages)
        except Exception as error:  # noqa: BLE001 - a broken plugin must not stop the others
            found.append(Broken(Source(entry.value, origin=origin), f"{type(error).__name__}: {error}"))
    return found


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

    A source that cannot be loaded is kept as Broken and stops only a run that needs it; a duplicate name raises with both sources.
    """
    folder = builtin_folder()
    root_stage, root = load_root(folder)
    stages, broken = [root_stage], []
    loaded: list[list[Stage] | Broken] = [_load_safely(path, "built-in") for path in _files(folder)]
    loaded += [[item] if isinstance(item, Stage) else item for item in (_installed() if installed else [])]
    loaded += [_load_safely(path.resolve(), "--stages") for location in extra for path in _files(Path(location))]
    for item in loaded:
        if isinstance(item, Broken):
            broken.append(item)
        else:
            stages.extend(item)
    return StageTree.build(stages, root, broken)


def load_parts(stages: Iterable[Stage]) -> dict[str, Any]:
    """Import the parts that stages provide, as a map from "tokenizer:NAME" to the class; only jobs call this."""
    parts: dict[str, Any] = {}
    for stage in stages:
        for part, value in stage.provides.items():
            parts[part] = _import_part(stage, value) if isinstance(value, str) else value
    return parts


def _import_part(stage: Stage, value: str) -> Any:
    """Import "module:Name"; a module ending in .py is a file beside the stage file."""
    module_name, _, attribute = value.partition(":")
    try:
        if module_name.endswith(".py"):
            path = Path(stage.source.file).parent / module_name
            spec = importlib.util.spec_from_file_location(f"_ablation_part_{path.stem}", path)
            if spec is None or spec.loader is None:
                raise ImportError(f"{path} cannot be loaded")
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(module_name)
        return getattr(module, attribute)
    except Exception as error:
        raise ConfigError(f"stage '{stage.name}' provides '{value}', which cannot be imported: {error}", "Mend it.") from error
