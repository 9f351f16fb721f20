"""The example packages: installed, held to what they declare, and run to rows and columns of a report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT, environment, set_options
from plugin_site import EXAMPLES, install_example

PACKAGES = ("flow_matching", "fixed_bases", "few_shot")
STAGES = ("v_prediction", "flow_matching", "logit_normal_weight", "dct_tokenizer", "random_basis")


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """The environment of a process that has all three packages installed."""
    site = tmp_path_factory.mktemp("site")
    for name in PACKAGES:
        install_example(name, site)
    found = environment()
    return {**found, "PYTHONPATH": os.pathsep.join([found["PYTHONPATH"], str(site)]), "OMP_NUM_THREADS": "1"}


def run(paths, *command, cwd=ROOT):
    return subprocess.run([sys.executable, "-m", *map(str, command)], env=paths, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", PACKAGES)
def test_the_packages_own_tests_pass(paths, name):
    done = run(paths, "pytest", "-q", "-p", "no:cacheprovider", "tests", cwd=EXAMPLES / name)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout


def test_they_run_side_by_side_to_rows_and_columns_of_the_report(paths, tmp_path, tiny_settings, warm):
    settings = {**tiny_settings, "probe.evaluations": ["few_shot"], "train.steps": 2}
    only = [word for stage in ("patch_pca", *STAGES) for word in ("--only", stage)]
    runs = warm(tmp_path / "runs")
    done = run(
        paths, "ablation", "run", *only, "--scale", "smoke", "--launcher", "inline", "--threads", 1, "--runs", runs, *set_options(settings)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = (runs / "reports").iterdir()
    lines = (folder / "table3.md").read_text().splitlines()
    header = next(line for line in lines if line.startswith("| Step"))
    assert "5-shot nearest mean (%) ↑" in header
    assert "5-shot linear (%) ↑" in header
    rows = [line.split("|")[1].partition("<sup>")[0].strip() for line in lines if line.startswith("| ")]
    place = rows.index("patch PCA")
    own = {"+ patch-wise DCT", "+ random orthogonal basis", "+ predict v", "+ flow matching", "+ logit-normal weight"}
    assert own <= set(rows[place + 1 : place + 6])
    records = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert {record["stage"] for record in records if record["stage"]} == {"patch_pca", *STAGES}
    for record in records:
        if record["stage"]:
            assert 0 <= record["metrics"]["few_shot.linear_top1"] <= 100
            assert record["protocol"]["few_shot.shots"] == 5
            assert record["metrics"]["fid"] > 0
    untrained = next(record for record in records if record["control"] == "random_init")
    assert "few_shot.linear_top1" in untrained["metrics"]


def test_an_evaluation_that_fails_leaves_the_other_numbers(paths, tmp_path, tiny_settings, warm):
    (tmp_path / "mine.py").write_text("def fails(context):\n    raise RuntimeError('no masks')\nPARTS = {'evaluation:mine': fails}\n")
    settings = {**tiny_settings, "probe.evaluations": ["mine", "few_shot"], "train.steps": 2, "process.schedule": "constant"}
    runs = warm(tmp_path / "runs")
    request = ["--only", "patch_pca", "--scale", "smoke", "--no-controls", "--runs", runs, "--stages", tmp_path / "mine.py"]
    done = run(paths, "ablation", "run", *request, "--launcher", "inline", "--threads", 1, *set_options(settings))
    assert done.returncode == 1
    assert "no masks" in done.stderr
    (folder,) = (runs / "reports").iterdir()
    (record,) = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert record["state"] == "done"
    assert record["holes"]["mine"][0] == "failed"
    assert {"linear_probe_top1", "few_shot.linear_top1"} <= set(record["metrics"])


@pytest.mark.slow
@pytest.mark.parametrize("name", PACKAGES)
def test_pip_installs_them(name, tmp_path):
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "install", "--no-deps", "--target", str(tmp_path)]
    done = subprocess.run([*pip, str(EXAMPLES / name)], capture_output=True, text=True, check=False)
    if done.returncode and "hatchling" in done.stderr:
        pytest.skip("the build backend cannot be had here")
    assert done.returncode == 0, done.stderr
    paths = environment()
    paths["PYTHONPATH"] = os.pathsep.join([paths["PYTHONPATH"], str(tmp_path)])
    listed = run(paths, "ablation", "stages", "--json")
    assert f"ablation-{name.replace('_', '-')} 0.1.0" in listed.stdout or name == "few_shot"
    assert json.loads(listed.stdout)["broken"] == []
    assert Path(tmp_path).is_dir()
