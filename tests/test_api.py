"""The Python interface, and the notebook that shows it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from commands import SINGLE_LEVEL, environment

import ablation
from ablation.errors import ConfigError
from ablation.execute import stop_on_signals

NOTEBOOK = Path(__file__).resolve().parent.parent / "examples" / "study.ipynb"


@pytest.fixture
def request_of(tiny_settings, warm, tmp_path):
    """A request for one cell without sampling: a few seconds."""
    settings = {**tiny_settings, **SINGLE_LEVEL, "train.steps": 2}
    return {"only": "patch_pca", "scale": "smoke", "settings": settings, "runs": warm(tmp_path / "runs"), "controls": False}


def test_importing_costs_nothing():
    code = (
        "import sys, ablation\n"
        "assert not {'torch', 'pandas', 'numpy', 'pydantic', 'typer'} & set(sys.modules), 'heavy'\n"
        "print(sorted(name for name in ablation.__all__))"
    )
    run = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "['check', 'frame', 'plan', 'report', 'results', 'run', 'stages']"


def test_modules_that_share_a_name_with_a_function_are_both():
    code = (
        "import ablation.plan, ablation.report, ablation\n"
        "from ablation.plan import build_plan\n"
        "from ablation import plan, report\n"
        "assert plan is ablation.plan and callable(plan) and plan.build_plan is build_plan\n"
        "print(len(ablation.plan(only='patch_pca', scale='smoke', controls=False)), callable(report))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "6 True", run.stderr


def test_an_unknown_function_is_pythons_own_error():
    with pytest.raises(AttributeError, match="no attribute 'runn'"):
        _ = ablation.runn


def test_stages_are_rows(tmp_path):
    (tmp_path / "bad.py").write_text("import no_such_module")
    frame = ablation.stages([tmp_path / "bad.py"])
    assert list(frame.name)[:2] == ["baseline", "drop_class_conditioning"]
    assert frame.set_index("name").loc["predict_clean", "changes"] == {"process.target": "clean", "process.loss_weight": "gamma_squared"}
    assert "no_such_module" in frame.attrs["broken"][0]


def test_a_study_is_run_reused_read_and_reported(request_of):
    before = ablation.plan(**request_of)
    assert list(before.kind) == ["tokenizer", "encode", "train", "probe"]
    assert set(before.action) == {"new"}
    frame = ablation.run(threads=1, **request_of)
    (row,) = frame.to_dict("records")
    assert (row["stage"], row["parent"], row["seed"], row["state"], row["control"]) == ("patch_pca", "patch_ae", 0, "done", None)
    assert 0 <= row["linear_probe_top1"] <= 100
    assert row["protocol"]["composite"] is True
    assert row["overrides"]["train.steps"] == 2
    assert set(ablation.plan(**request_of).action) == {"reuse"}
    again = ablation.results(request_of["runs"])
    assert again.drop(columns="protocol").equals(frame.drop(columns="protocol"))
    paths = ablation.report(request_of["runs"])
    assert {"table3.md", "index.html"} <= {path.name for path in paths}
    records = [json.loads(line) for line in (paths[0].parent / "results.jsonl").read_text().splitlines()]
    assert records[0]["metrics"]["linear_probe_top1"] == pytest.approx(row["linear_probe_top1"])
    document = json.loads((request_of["runs"] / "studies" / "patch_pca-smoke.json").read_text())
    assert document["command"].startswith("ablation.run(only='patch_pca'")


def test_a_cell_that_fails_is_a_row_with_its_reason(request_of, capsys):
    frame = ablation.run(threads=1, **{**request_of, "settings": {**request_of["settings"], "train.base_lr": 1e30, "train.steps": 12}})
    (row,) = frame.to_dict("records")
    assert row["state"] in ("failed", "diverged")
    assert row["reason"]
    assert row["state"] in capsys.readouterr().err


def test_errors_are_the_command_lines(tmp_path):
    for request, said in (
        ({"through": "predict_orignal"}, "Did you mean predict_original"),
        ({"settings": {"train.stepz": 1}}, "unknown setting 'train.stepz'"),
        ({"settings": {"process.target": "cleen"}}, "unknown process.target 'cleen'"),
        ({"table": 7}, "--table 7 does not exist"),
    ):
        with pytest.raises(ConfigError, match=said):
            ablation.run(scale="smoke", runs=tmp_path, **request)
    with pytest.raises(ConfigError, match="submits and returns"):
        ablation.run(scale="smoke", runs=tmp_path, launcher="slurm")
    with pytest.raises(ConfigError, match="unknown launcher 'lokal'. Did you mean local"):
        ablation.run(scale="smoke", runs=tmp_path, only="patch_pca", launcher="lokal")
    with pytest.raises(TypeError, match="thruogh"):
        ablation.run(thruogh="patch_pca")
    assert not list(tmp_path.iterdir())


def test_signals_do_again_what_they_did_and_threads_are_left_alone():
    before = signal.getsignal(signal.SIGINT)
    with stop_on_signals() as stop:
        assert signal.getsignal(signal.SIGINT) == stop._handle
    assert signal.getsignal(signal.SIGINT) == before
    seen = []
    thread = threading.Thread(target=lambda: seen.append(stop_on_signals().__enter__()()))
    thread.start()
    thread.join()
    assert seen == [False]


def test_the_notebook_names_only_what_there_is():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells if cell["cell_type"] == "code")
    for cell in cells:
        if cell["cell_type"] == "code":
            compile("".join(cell["source"]), "cell", "exec")


@pytest.mark.slow
def test_the_notebook_runs(monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=280, kernel_name="python3").execute()
    outputs = "".join(str(cell.get("outputs")) for cell in notebook.cells)
    assert "single_noise_level" in outputs
    assert "index.html" in outputs
    assert "True {'train.beta2': (0.999, 0.9999)}" in outputs
