"""What is published: an sdist, the wheel built from it, and that wheel in an environment that holds nothing else."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from commands import SINGLE_LEVEL, TINY, set_options

ROOT = Path(__file__).resolve().parent.parent
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was built from the sdist rather than from the checkout."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode and "hatchling" in done.stdout + done.stderr and "No matching distribution" in done.stdout + done.stderr:
        pytest.skip("the build backend cannot be had here")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return folder


@pytest.fixture(scope="module")
def empty(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a new environment into which only the wheel was installed, by its name in the pinned versions."""
    environment = tmp_path_factory.mktemp("environment") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True, timeout=120)
    pip = [str(environment / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check", "-c", str(ROOT / "constraints.txt")]
    (wheel,) = built.glob("*.whl")
    done = subprocess.run([*pip, str(wheel)], capture_output=True, text=True, timeout=1500, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return environment / "bin"


def run(programs: Path, folder: Path, *command: str, **variables: str) -> str:
    """Run a program of the environment with hardly any environment variables, in a folder that is not the checkout."""
    environment = {"PATH": f"{programs}:/usr/bin:/bin", "HOME": str(folder), "LANG": "C.UTF-8", **variables}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_sdist_is_the_project_and_the_wheel_is_the_package(built: Path) -> None:
    (sdist,), (wheel,) = built.glob("*.tar.gz"), built.glob("*.whl")
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.splitlines()
    assert set(tracked) <= inside
    assert {"README.md", "LICENSE", "CITATION.cff", "stages/baseline.yaml", "tests/test_distribution.py", "mkdocs.yml"} <= inside
    packed = set(zipfile.ZipFile(wheel).namelist())
    assert {"ablation/_stages/baseline.yaml", "ablation/_stages/scales/smoke.yaml", "ablation/_reports/table1.yaml"} <= packed
    assert not [name for name in packed if name.split("/")[0] not in ("ablation",) and ".dist-info/" not in name]


def test_it_works_from_any_folder_by_both_names(empty: Path, tmp_path: Path) -> None:
    """Everything read is the environment's own, whichever folder it is called from."""
    other = tmp_path / "other"
    other.mkdir()
    listings = [
        json.loads(run(empty, folder, *command, "stages", "--json"))
        for folder in (tmp_path, other)
        for command in (["ablate"], ["python", "-m", "ablation"])
    ]
    assert all(listing == listings[0] for listing in listings)
    assert (len(listings[0]["stages"]), listings[0]["broken"]) == (14, [])
    assert str(ROOT) not in json.dumps(listings)
    assert "14 found" in run(empty, tmp_path, "ablate", "doctor")


def test_it_trains_and_reports(empty: Path, tmp_path: Path) -> None:
    words = ["--only", "patch_pca", "--no-controls", "--scale", "smoke", *set_options({**TINY, **SINGLE_LEVEL})]
    run(empty, tmp_path, "ablate", "run", *words)
    (report,) = (tmp_path / "runs" / "reports").glob("*/table3.md")
    assert "patch PCA" in report.read_text(encoding="utf-8")


def test_completion_is_installed_and_completes(empty: Path, tmp_path: Path) -> None:
    """As bash does it: the installed script is sourced, and its function is asked for the words that could follow."""
    if (bash := shutil.which("bash")) is None:
        pytest.skip("bash is not here")
    run(empty, tmp_path, bash, "-c", "ablate --install-completion; true")  # which looks for the shell that it is called from
    assert "ablate" in (tmp_path / ".bashrc").read_text(encoding="utf-8")
    script = """
        source ~/.bashrc
        COMP_WORDS=(ablate sho) COMP_CWORD=1
        $(complete -p ablate | grep -o "_[a-z_]*completion") ablate sho
        echo "${COMPREPLY[@]}"
    """
    assert "show" in run(empty, tmp_path, bash, "-c", script).split()
