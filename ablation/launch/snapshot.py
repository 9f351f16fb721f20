"""The code as it was when a study was submitted: copied once, named by its content, and run from there by every job. Light.

    RUNS/snapshots/HASH/code/           the package, the stages and what else is tracked or declared
    RUNS/snapshots/HASH/SNAPSHOT.json   commit, dirty flag and the SHA-256 of every file
    RUNS/snapshots/HASH/dirty.diff      what differed from the commit

An edit, or another branch checked out, changes nothing in a queued job.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ablation.errors import ArtifactError, ConfigError
from ablation.store import read_json, write_json, write_text

TRACKED = ("ablation", "stages", "reports", "pyproject.toml")
"""Tracked files below these are copied; tests, documents and results are not needed to run a job."""
UNTRACKED = ("ablation", "stages")
"""Untracked files below these are copied as well, unless git ignores them."""


def take_snapshot(runs: Path, include: Sequence[str] = (), package: Path | None = None) -> Path:
    """Copy the running code into RUNS/snapshots/HASH, unless the same is there; returns that folder.

    package: the package's folder; beside it lies the checkout, if there is one. include: further files, relative to the checkout.
    """
    package = package or Path(__file__).resolve().parents[1]
    root = package.parent
    listed = _git(root, "ls-files", "-z", "--", *TRACKED)
    if listed is None or not (root / "stages").is_dir():  # installed from a wheel: the package is all there is
        files: Iterable[str] = (str(path.relative_to(root)) for path in package.rglob("*") if path.is_file())
    else:
        others = _git(root, "ls-files", "-z", "--others", "--exclude-standard", "--", *UNTRACKED) or ""
        files = [*listed.split("\0"), *others.split("\0")]
    wanted = {name: root / name for name in files if name and "__pycache__" not in name and (root / name).is_file()}
    for pattern in include:
        found = [path for path in sorted(root.glob(pattern)) if path.is_file()]
        if not found:
            raise ConfigError(f"include: '{pattern}' names no file below {root}", "Mend the resource file.")
        wanted |= {str(path.relative_to(root)): path for path in found}
    sums = {name: _sum(path) for name, path in sorted(wanted.items())}
    digest = hashlib.sha256("".join(f"{value} {name}\n" for name, value in sums.items()).encode()).hexdigest()[:16]
    folder = Path(runs).resolve() / "snapshots" / digest
    if not (folder / "SNAPSHOT.json").exists():
        _copy(folder, root, wanted, sums, digest)
    return folder


def _copy(folder: Path, root: Path, wanted: Mapping[str, Path], sums: Mapping[str, str], digest: str) -> None:
    """Copy aside, then rename, so that a snapshot is there whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{digest}."))
    aside.chmod(0o755)
    for name, path in wanted.items():
        target = aside / "code" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        target.chmod(0o444)
    diff = _git(root, "diff", "HEAD", "--", *TRACKED) or ""
    write_text(aside / "dirty.diff", diff)
    commit = (_git(root, "rev-parse", "HEAD") or "").strip()
    write_json(
        aside / "SNAPSHOT.json",
        {"hash": digest, "commit": commit, "dirty": bool(diff), "taken": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "files": dict(sums)},
    )
    try:
        os.rename(aside, folder)
    except OSError:  # another command was faster; content names the folder, so theirs is ours
        shutil.rmtree(aside, ignore_errors=True)
        if not (folder / "SNAPSHOT.json").exists():
            raise ArtifactError(f"cannot write {folder}", "Remove it, or check the permissions.") from None


def code_folder(snapshot: Path) -> Path:
    """Return the folder of a snapshot that goes onto PYTHONPATH."""
    return snapshot / "code"


def check_snapshot(snapshot: Path, package_file: str) -> None:
    """Raise ArtifactError unless the running package is the snapshot's and the snapshot is unchanged."""
    content: dict[str, Any] = read_json(snapshot / "SNAPSHOT.json")
    if code_folder(snapshot).resolve() not in Path(package_file).resolve().parents:
        raise ArtifactError(
            f"this job would run {package_file} instead of the code pinned in {snapshot}",
            "Look for lines in the setup of the resources that change PYTHONPATH.",
        )
    for name, value in content["files"].items():
        path = code_folder(snapshot) / name
        if not path.is_file() or _sum(path) != value:
            raise ArtifactError(f"{path} changed since it was pinned", f"Remove {snapshot} and run `ablate run` again.")


def _sum(path: Path) -> str:
    """Return a file's SHA-256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _git(root: Path, *arguments: str) -> str | None:
    """Return what git prints, or None where there is no repository or no git."""
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout
