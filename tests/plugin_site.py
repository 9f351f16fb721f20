"""Folders of installed plugins, as pip leaves them, without waiting for pip."""

from __future__ import annotations

import shutil
import tomllib
from collections.abc import Mapping
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def install_example(name: str, site: Path) -> None:
    """Put an example package into a folder with the metadata that its pyproject.toml gives it."""
    folder = EXAMPLES / name
    project = tomllib.loads((folder / "pyproject.toml").read_text())
    (module,) = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    shutil.copytree(folder / module, site / module, ignore=shutil.ignore_patterns("__pycache__"))
    write_metadata(site, project["project"]["name"], project["project"]["entry-points"], project["project"]["version"])


def install(site: Path, name: str, files: Mapping[str, str], entry_points: Mapping[str, Mapping[str, str]]) -> None:
    """Put a made-up distribution into a folder."""
    for path, text in files.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_text(text)
    write_metadata(site, name, entry_points)


def write_metadata(site: Path, name: str, entry_points: Mapping[str, Mapping[str, str]], version: str = "1.0") -> Path:
    """Write NAME-VERSION.dist-info with METADATA and entry_points.txt."""
    folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    groups = [f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in entries.items()) for group, entries in entry_points.items()]
    (folder / "entry_points.txt").write_text("\n".join(groups))
    return folder
