"""Code pinned at submission: what is copied, named by content, and refused once changed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT

from ablation.errors import ArtifactError, ConfigError
from ablation.launch.snapshot import check_snapshot, code_folder, take_snapshot


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A small git checkout laid out like ours, with a change, an untracked and an ignored file."""
    root = tmp_path / "checkout"
    for name, text in {
        "ablation/__init__.py": "VALUE = 1\n",
        "ablation/part.py": "X = 1\n",
        "stages/baseline.yaml": "a: 1\n",
        "notes.txt": "notes\n",
        ".gitignore": "*.log\n",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    git = ["git", "-C", str(root), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True)
    (root / "ablation/part.py").write_text("X = 2\n")
    (root / "ablation/new.py").write_text("Y = 1\n")
    (root / "ablation/ignored.log").write_text("log\n")
    return root


def files(snapshot: Path) -> set[str]:
    code = code_folder(snapshot)
    return {str(path.relative_to(code)) for path in code.rglob("*") if path.is_file()}


def test_takes_tracked_changed_and_untracked_files_and_the_diff(checkout: Path, tmp_path: Path) -> None:
    snapshot = take_snapshot(tmp_path / "runs", ("*.txt",), checkout / "ablation")
    assert files(snapshot) == {"ablation/__init__.py", "ablation/part.py", "ablation/new.py", "stages/baseline.yaml", "notes.txt"}
    assert (code_folder(snapshot) / "ablation/part.py").read_text() == "X = 2\n"
    assert "+X = 2" in (snapshot / "dirty.diff").read_text()
    content = json.loads((snapshot / "SNAPSHOT.json").read_text())
    assert content["dirty"]
    assert len(content["commit"]) == 40


def test_the_same_code_is_the_same_snapshot_and_an_edit_another(checkout: Path, tmp_path: Path) -> None:
    first = take_snapshot(tmp_path / "runs", (), checkout / "ablation")
    assert take_snapshot(tmp_path / "runs", (), checkout / "ablation") == first
    (checkout / "ablation/part.py").write_text("X = 3\n")
    assert take_snapshot(tmp_path / "runs", (), checkout / "ablation") != first
    assert (code_folder(first) / "ablation/part.py").read_text() == "X = 2\n"


def test_refuses_other_code_and_changed_files(checkout: Path, tmp_path: Path) -> None:
    snapshot = take_snapshot(tmp_path / "runs", (), checkout / "ablation")
    inside = str(code_folder(snapshot) / "ablation/__init__.py")
    check_snapshot(snapshot, inside)
    with pytest.raises(ArtifactError, match="instead of the code pinned"):
        check_snapshot(snapshot, str(checkout / "ablation/__init__.py"))
    part = code_folder(snapshot) / "ablation/part.py"
    part.chmod(0o644)
    part.write_text("X = 4\n")
    with pytest.raises(ArtifactError, match=r"part\.py changed"):
        check_snapshot(snapshot, inside)


def test_names_an_include_that_matches_nothing(checkout: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\*\.nothing"):
        take_snapshot(tmp_path / "runs", ("*.nothing",), checkout / "ablation")


def test_without_git_the_package_alone_is_taken(checkout: Path, tmp_path: Path) -> None:
    shutil.rmtree(checkout / ".git")
    shutil.rmtree(checkout / "stages")
    assert "ablation/new.py" in files(take_snapshot(tmp_path / "runs", (), checkout / "ablation"))


def test_our_own_snapshot_runs_from_anywhere(tmp_path: Path) -> None:
    snapshot = take_snapshot(tmp_path / "runs")
    script = "import ablation, sys; from ablation.discover import discover; discover(installed=False); print(ablation.__file__)"
    environment = {"PYTHONPATH": str(code_folder(snapshot)), "PYTHONSAFEPATH": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    check_snapshot(snapshot, done.stdout.strip())
