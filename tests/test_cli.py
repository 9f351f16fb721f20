"""The command line: light where it only looks, one line where something is wrong, JSON where it is asked for."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT, SINGLE_LEVEL, Answer, environment, run, set_options

from ablation.store import Store
from ablation.study import Request, prepare, write_specs

QUICK = ["--scale", "smoke", "--no-controls"]

MEASURE = """
import sys, time
from ablation.cli import main
try:
    main()
except SystemExit as ended:
    code = ended.code
heavy = [name for name in ("torch", "numpy", "PIL", "timm", "pandas", "matplotlib") if name in sys.modules]
print(f"\\n{code or 0} {time.process_time()} {','.join(heavy)}", file=sys.stderr)
"""


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a study in it of which nothing has run."""
    runs = tmp_path_factory.mktemp("planned") / "runs"
    study = prepare(Request(scale="smoke", runs=runs))
    write_specs(study)
    study.store.write_study(study.document("ablate run"))
    return runs


@pytest.mark.parametrize(
    "command",
    [
        ["--help"],
        ["run", "--help"],
        ["stages"],
        ["stages", "--json"],
        ["show", "predict_original"],
        ["diff", "baseline", "predict_original"],
        ["plan", "--through", "single_noise_level", "--seeds", "0-2"],
        ["status"],
        ["clean", "--orphans"],
    ],
    ids=" ".join,
)
def test_looking_is_light(planned, command):
    """No torch, no numpy, and under half a second of CPU time; the best of three counts, as the machine may be busy."""
    places = ["--runs", str(planned)] if command[0] in ("plan", "status", "clean") else []
    times = []
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, *command, *places], capture_output=True, text=True, env=environment(), cwd=ROOT, timeout=60
        )
        code, seconds, heavy = done.stderr.rstrip("\n").rpartition("\n")[2].split(" ")
        assert (code, heavy) == ("0", ""), done.stderr
        times.append(float(seconds))
        if times[-1] < 0.5:
            return
    raise AssertionError(times)


def test_python_m_and_help():
    answer = run(["ablation", "--help"])
    assert (answer.code, answer.err) == (0, "")
    assert "Exit codes: 0 done, 1 a job failed, 2 usage, 130 interrupted." in answer.out


def test_no_arguments_print_the_help(ablate):
    assert ablate() == ablate("--help")


def test_a_closed_pipe_is_no_traceback():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "ablation", "show", "baseline"],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        cwd=ROOT,
    )
    os.close(writer)
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["run", "--parallel", "0"], "--parallel"),
        (["run", "--threads", "two"], "--threads"),
        (["run", "--checkpoint-seconds", "-1"], "--checkpoint-seconds"),
        (["fly"], "No such command 'fly'"),
        (["run", "--thru", "baseline"], "--thru"),
        (["plan", "--design", "ladder,put_bak"], "unknown --design 'put_bak'. Did you mean put_back"),
        (["show"], "Missing argument"),
        (["show", "predict_clan"], "unknown stage 'predict_clan'. Did you mean predict_clean"),
        (["diff", "baseline", "nothing_like_it"], "unknown stage 'nothing_like_it'"),
        (["status", "--runs", "/no/such/folder"], "holds no study yet"),
        (["report", "--runs", "/no/such/folder"], "holds no study yet"),
        (["report", "--results", "/no/such/file"], "cannot read /no/such/file"),
        (["logs", "baseline", "--runs", "/no/such/folder"], "holds no study yet"),
        (["stages", "--stages", "/no/such/stage.py"], "/no/such/stage.py does not exist"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_use_is_one_line_and_exit_2(ablate, command, said):
    answer = ablate(*command)
    assert answer.code == 2
    assert answer.error.startswith("error: ")
    assert said in answer.error


def test_json_of_every_listing(ablate, planned):
    def load(*command: object) -> dict:
        answer = ablate(*command, "--json")
        assert answer.code == 0
        found: dict = json.loads(answer.out)
        return found

    stages = load("stages")
    assert [stage["name"] for stage in stages["stages"]][:2] == ["baseline", "drop_class_conditioning"]
    assert stages["broken"] == []
    shown = load("show", "patch_pca")
    assert (shown["path"][-1], shown["config"]["tokenizer"]["kind"]) == ("patch_pca", "patch_pca")
    assert load("diff", "patch_pca", "predict_clean") == {
        "process.target": ["noise", "clean"],
        "process.loss_weight": ["uniform", "gamma_squared"],
    }
    plan = load("plan", "--runs", planned, *QUICK)
    assert (len(plan["jobs"]), plan["unshared"], plan["jobs"][0]["action"]) == (52, 66, "new")
    status = load("status", "--runs", planned)
    assert {cell["state"] for cell in status["cells"]} == {"new"}


def test_a_broken_stage_file_is_listed_and_stops_nothing_else(ablate, tmp_path):
    (tmp_path / "mine.py").write_text("raise RuntimeError('[red] no closing [/tag]')")
    answer = ablate("stages", "--stages", tmp_path)
    assert answer.code == 0
    assert "broken stage source: " in answer.out
    assert "RuntimeError: [red] no closing [/tag]" in answer.out
    assert "single_noise_level" in answer.out


def test_brackets_of_a_reason_are_no_markup(ablate, runs):
    study = prepare(Request(through="baseline", scale="smoke", runs=runs, with_controls=False))
    write_specs(study)
    study.store.write_study(study.document("ablate run"))
    reason = "cannot read /data/[old]/[/x].png"
    study.store.mark_failed(study.plan.roles["baseline-s0"]["train"], "failed", reason)
    for command in (["status"], ["plan", *QUICK, "--through", "baseline"]):
        answer = ablate(*command, "--runs", runs)
        assert answer.code == 0
        assert reason.split()[-1] in answer.out


def test_plan_says_what_a_run_would_do_and_runs_nothing(ablate, runs):
    answer = ablate("plan", *QUICK, "--through", "patch_pca", "--runs", runs)
    assert answer.code == 0
    assert "8 cells, 37 jobs instead of 41 (37 new)" in answer.out
    assert not runs.exists()


def test_plan_of_designs_says_what_stands_for_what_and_what_is_left_out(ablate, runs):
    command = ["plan", *QUICK, "--through", "drop_input_scaling", "--design", "ladder,put_back", "--design", "add_one", "--runs", runs]
    answer = ablate(*command)
    assert answer.code == 0
    assert re.search(r"drop_input_scaling-\w{6}-s0 +put_back of predict_clean +also undoes process\.loss_weight", answer.out)
    assert "left out: add_one of patch_vae: impossible: stage 'patch_vae' requires tokenizer.perceptual_weight = 0.0" in answer.out
    listed = json.loads(ablate(*command, "--json").out)
    roles = {(role["design"], role["stage"]) for cell in listed["cells"] for role in cell["designs"]}
    assert {("ladder", "baseline"), ("put_back", None), ("add_one", "patch_ae")} <= roles


def test_a_run_is_shown_logged_and_reused(ablate, runs, warm, tiny_settings):
    """One small study, seen through every command that looks at it."""
    warm(runs)
    command = ["run", *QUICK, "--launcher", "inline", "--only", "patch_pca", "--no-report", "--threads", 1, "--runs", runs]
    command += set_options({**tiny_settings, **SINGLE_LEVEL})
    answer = ablate(*command)
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.count("done in") == 4
    again = ablate(*command)
    assert "4 jobs (4 without sharing), 4 already done" in again.out
    assert "done in" not in again.out
    status = json.loads(ablate("status", "--runs", runs, "--json").out)["cells"][0]
    assert (status["state"], status["attempts"]) == ("done", 1)
    assert 0 <= status["probe"] <= 100
    logs = ablate("logs", "patch_pca", "--kind", "probe", "--runs", runs)
    assert "done: {" in logs.out
    store = Store(runs)
    assert logs.err.strip() == f"# {store.job_folder(store.study()['cells'][0]['jobs']['probe'])}/job.log"
    failed_missing = ablate("logs", "patch_pca", "--kind", "fid", "--runs", runs)
    assert "no job of kind 'fid'" in failed_missing.error


def test_doctor_looks_at_everything(ablate, tmp_path):
    answer: Answer = ablate("doctor", "--json", "--runs", tmp_path / "new")
    checks = {check["what"]: check for check in json.loads(answer.out)}
    assert {"python", "torch", "compute", "stages", "embedded images", "run folder", "SLURM"} <= checks.keys()
    assert answer.code == (1 if any(check["state"] == "bad" for check in checks.values()) else 0)
    assert not (tmp_path / "new").exists()


def test_a_very_long_table_is_printed_plainly_with_every_row(capsys):
    from ablation.terminal import LONG_TABLE, coloured, plain, print_table

    rows = [(f"job {n}", coloured("new", {"new": "green"}), plain("reads [a] and [/b]")) for n in range(LONG_TABLE + 1)]
    print_table(("job", "action", "reason"), rows)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(rows) + 1
    assert lines[1].split() == ["job", "0", "new", "reads", "[a]", "and", "[/b]"]
