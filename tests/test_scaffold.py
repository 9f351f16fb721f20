"""A stage written by `ablate new-stage` loads, passes `ablate check` as it is, and is never written over anything."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from commands import environment

from ablation.discover import discover, load_file
from ablation.scaffold import package_files, stage_text, suggest, write_files

NAMES = [stage.name for stage in discover(installed=False).ordered()]


@pytest.mark.parametrize("parent", NAMES)
def test_every_parent_gets_a_stage_that_loads_and_changes_something(tree, parent, tmp_path):
    (path,) = write_files(tmp_path, {"mine.py": stage_text(tree, "mine", parent)})
    (stage,) = load_file(path, "test")
    assert (stage.name, stage.after, stage.table) == ("mine", parent, tree.stage(parent).table)
    child = stage.apply(tree.resolve(parent))
    assert child.labels_used == stage.uses_labels
    assert all(word in stage.doc for word in ("Changes", "Keeps", "Why", "Beware"))
    assert "{" not in path.read_text().replace("changes={", "").replace("requires={", "").replace("provides={", "")


def test_the_suggestion_says_something_about_the_parent(tree):
    assert suggest(tree, "predict_clean").path == "process.loss_weight"
    assert suggest(tree, "patch_pca").value == "gamma_squared"
    assert suggest(tree, "single_noise_level").path == "train.beta2"


def test_a_written_file_passes_the_check(ablate, tmp_path):
    answer = ablate("new-stage", "my_weight", "--after", "predict_clean", "--out", tmp_path)
    assert answer.code == 0
    path = tmp_path / "my_weight.py"
    assert f"ablate check {path}" in answer.out
    found = ablate("check", path, "--json")
    assert found.code == 0, found.out
    (document,) = json.loads(found.out)["stages"]
    assert document["stage"] == "my_weight"
    assert document["changes"] == {"process.loss_weight": ["gamma_squared", "snr"]}
    assert list(document["seen_effects"]) == document["declared_effects"] == ["loss"]


def test_nothing_is_written_over(ablate, tmp_path):
    ablate("new-stage", "mine", "--after", "patch_pca", "--out", tmp_path)
    before = (tmp_path / "mine.py").read_text()
    answer = ablate("new-stage", "mine", "--after", "patch_ae", "--out", tmp_path)
    assert answer.code == 2
    assert "exists already; nothing was written" in answer.error
    assert (tmp_path / "mine.py").read_text() == before
    ablate("new-stage", "mine", "--after", "patch_pca", "--out", tmp_path, "--package")
    (tmp_path / "ablation-stage-mine" / "pyproject.toml").unlink()
    answer = ablate("new-stage", "mine", "--after", "patch_pca", "--out", tmp_path, "--package")
    assert answer.code == 2
    assert not (tmp_path / "ablation-stage-mine" / "pyproject.toml").exists()


@pytest.mark.parametrize("name", ["../evil", "/tmp/x", "Upper", "a b", "a;rm", "$HOME", "a/b", ".hidden", "a" * 65, "", "ünï"])
@pytest.mark.parametrize("package", [(), ("--package",)])
def test_bad_names_are_refused_and_nothing_is_written(ablate, tmp_path, name, package):
    answer = ablate("new-stage", name, "--after", "patch_pca", "--out", tmp_path / "out", *package)
    assert answer.code == 2
    assert "is not usable. Use lower-case letters" in answer.error
    assert not (tmp_path / "out").exists()


def test_a_taken_name_and_an_unknown_parent_are_refused(ablate, tmp_path):
    assert "there is a stage 'patch_pca' already" in ablate("new-stage", "patch_pca", "--after", "baseline", "--out", tmp_path).error
    assert "Did you mean patch_pca" in ablate("new-stage", "mine", "--after", "patch_pc", "--out", tmp_path).error
    assert not list(tmp_path.iterdir())


def test_an_out_that_is_a_file_is_refused(ablate, tmp_path):
    (tmp_path / "file").write_text("")
    answer = ablate("new-stage", "mine", "--after", "patch_pca", "--out", tmp_path / "file")
    assert (answer.code, "cannot write" in answer.error) == (2, True)


def test_a_package_installs_and_its_test_passes(ablate, tmp_path):
    assert ablate("new-stage", "beta", "--after", "single_noise_level", "--out", tmp_path, "--package").code == 0
    folder = tmp_path / "ablation-stage-beta"
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["ablation.stages"] == {"beta": "ablation_stage_beta"}
    site = installed(folder, tmp_path / "site")
    paths = environment()
    paths["PYTHONPATH"] = f"{site}:{paths['PYTHONPATH']}"
    listed = subprocess.run([sys.executable, "-m", "ablation", "stages", "--json"], env=paths, capture_output=True, text=True, check=True)
    assert "ablation-stage-beta 0.1.0" in listed.stdout
    tested = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"]
    subprocess.run(tested, cwd=folder, env=paths, check=True, capture_output=True)


def installed(folder: Path, site: Path) -> Path:
    """Install a package into a folder of its own, as pip does it."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "install", "--no-deps", "--target", str(site)]
    run = subprocess.run([*pip, str(folder)], capture_output=True, text=True, check=False)
    if run.returncode and "hatchling" in run.stderr:
        pytest.skip("the build backend cannot be had here")
    assert run.returncode == 0, run.stderr
    return site


def test_texts_of_a_package(tree):
    folder, files = package_files(tree, "my_own", "patch_pca")
    assert folder == "ablation-stage-my-own"
    assert set(files) == {"pyproject.toml", "README.md", "ablation_stage_my_own/__init__.py", "tests/test_my_own.py"}
