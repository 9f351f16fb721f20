"""A wheel carries the stages, scales and table definitions that a checkout keeps beside the package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a wheel and unpack it into a folder of its own; its dependencies are those of this environment."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    built = subprocess.run([*pip, "wheel", str(ROOT), "--no-deps", "-w", str(folder)], capture_output=True, text=True, check=False)
    if built.returncode and "hatchling" in built.stderr:
        pytest.skip("the build backend cannot be had here")
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(folder / "site"), str(wheel)], check=True, capture_output=True)
    return folder / "site"


def ablate(site: Path, folder: Path, *words: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(site), "PYTHONSAFEPATH": "1"}
    run = subprocess.run(
        [sys.executable, "-m", "ablation", *words], cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    return run.stdout


def test_a_wheel_lists_and_plans_every_stage(site: Path, tmp_path: Path) -> None:
    listed = ablate(site, tmp_path, "stages", "--json")
    assert listed.count('"name"') == 14
    assert str(site) in listed
    assert '"broken": []' in listed
    planned = ablate(site, tmp_path, "plan", "--scale", "smoke", "--no-controls", "--json")
    assert len(json.loads(planned)["jobs"]) == 52
    sweep = ablate(site, tmp_path, "plan", "--scale", "smoke", "--table", "timestep", "--json")
    assert sweep.count('"kind": "train"') == 1


def test_a_wheel_finds_its_table_definitions_and_pictures(site: Path, tmp_path: Path) -> None:
    code = (
        "from ablation.report.definitions import definitions_folder, load_definitions;"
        "from ablation.config import DataConfig; from ablation.data.images import open_images;"
        "print(definitions_folder(), len(load_definitions()), len(open_images(DataConfig(image_size=32, train_images=8), 'train')))"
    )
    environment = {**os.environ, "PYTHONPATH": str(site), "PYTHONSAFEPATH": "1"}
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.split() == [str(site / "ablation" / "_reports"), "3", "8"]
