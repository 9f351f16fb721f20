"""Every printed number follows from the jobs' files, and one flipped digit anywhere in between is named."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ablation.report.compare import compare_files
from ablation.results_folder import Source, gather, report_of
from ablation.store import CURVE, DONE, PREDICTIONS, Store
from ablation.study import Request, prepare, write_specs
from ablation.verify import check_study

ANYWHERE = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
IMAGES = 200


def finish(store: Store, job: str, metrics: dict[str, float], files: dict[str, Any]) -> None:
    """Leave what a job leaves: artifacts, and the record that lists them."""
    folder = store.job_folder(job)
    for name, content in files.items():
        if name == PREDICTIONS:
            np.save(folder / name, content)
        else:
            (folder / name).write_text(content)
    cost = {"wall_seconds": 12.5, "cpu_seconds": 20.25, "peak_memory_gib": 0.5, "device": "cpu"}
    protocol = {"dataset": "scenes", "composite": True, "image_size": 32, "train_images": 100, "test_images": IMAGES, "distance": "FD"}
    code = {"commit": "0123456789ab", "dirty": False}
    store.mark_done(job, {"metrics": metrics, "protocol": protocol, "cost": cost, "code": code, "versions": {"torch": "2.13.0"}})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, dict[str, Any], Source, Path]:
    """A study of two stages and two seeds whose jobs have left predictions, curves and records."""
    runs = tmp_path_factory.mktemp("verify") / "runs"
    study = prepare(Request(runs=runs, through="drop_class_conditioning", scale="smoke", seeds=(0, 1), with_controls=False))
    write_specs(study)
    draws = np.random.default_rng(3)
    for job, spec in study.plan.jobs.items():
        metrics, files = {}, {}
        if spec.kind == "probe":
            correct = draws.random((2, IMAGES)) < 0.4
            metrics = {"linear_probe_top1": 100 * float(correct[0].mean()), "knn_top1": 100 * float(correct[1].mean())}
            files = {PREDICTIONS: correct}
        elif spec.kind == "train":
            losses = [round(2 / (1 + step), 6) for step in range(20)]
            metrics = {"final_loss": sum(losses[-2:]) / 2, "steps": 200}
            files = {CURVE: "".join(json.dumps({"step": 10 * n + 10, "loss": loss}) + "\n" for n, loss in enumerate(losses))}
        elif spec.kind == "fid":
            metrics = {"fid": 812.375}
        finish(study.store, job, metrics, files)
    document = study.document("ablate run")
    study.store.write_study(document)
    document = study.store.study(study.name)
    folder = runs / "reports" / study.name
    return study.store, document, gather(study.store, document, folder, {}), folder


@pytest.fixture(scope="module")
def wanted(finished: tuple[Store, dict[str, Any], Source, Path]) -> dict[str, bytes]:
    """The report of that study, made once."""
    return report_of(finished[2])


@lru_cache(maxsize=64)
def digits(content: bytes) -> list[int]:
    """Return the places of digits in a file."""
    return [found.start() for found in re.finditer(rb"\d", content)]


def flip(content: bytes, draw: Callable[..., Any]) -> bytes:
    """Replace one digit by another one."""
    place = digits(content)[draw(st.integers(0, len(digits(content)) - 1))]
    other = draw(st.sampled_from([digit for digit in b"0123456789" if digit != content[place]]))
    return content[:place] + bytes([other]) + content[place + 1 :]


def test_an_untouched_study_agrees(finished: Any) -> None:
    store, document, source, _ = finished
    assert check_study(store, document, source) == []


@ANYWHERE
@given(data=st.data())
def test_a_flipped_digit_in_a_jobs_record_is_named(finished: Any, data: st.DataObject) -> None:
    store, document, source, _ = finished
    cell = data.draw(st.sampled_from(document["cells"]))
    path = store.job_folder(data.draw(st.sampled_from(sorted(cell["jobs"].values())))) / DONE
    content = path.read_bytes()
    try:
        path.write_bytes(flip(content, data.draw))
        said = check_study(store, document, source)
    finally:
        path.write_bytes(content)
    assert any("stage" in line and "seed" in line for line in said), said


@ANYWHERE
@given(data=st.data())
def test_a_flipped_digit_in_the_results_is_named(finished: Any, data: st.DataObject) -> None:
    store, document, source, _ = finished
    place = data.draw(st.integers(0, len(source.records) - 1))
    line = flip(json.dumps(source.records[place], sort_keys=True).encode(), data.draw)
    try:
        record = json.loads(line)
    except ValueError:
        return  # no number any more: reading the file says so
    changed = Source([*source.records[:place], record, *source.records[place + 1 :]], source.provenance)
    said = check_study(store, document, changed)
    assert said
    assert all(text.startswith("results.jsonl: ") for text in said)


def test_a_wrong_accuracy_is_named_with_stage_seed_metric_and_both_values(finished: Any) -> None:
    store, document, source, _ = finished
    job = document["cells"][1]["jobs"]["probe"]
    path = store.job_folder(job) / DONE
    content = path.read_text()
    true = json.loads(content)["metrics"]["linear_probe_top1"]
    try:
        path.write_text(content.replace(f'"linear_probe_top1": {true}', '"linear_probe_top1": 99.5'))
        said = check_study(store, document, source)
    finally:
        path.write_text(content)
    assert f"stage baseline, seed 1, probe ({job}): linear_probe_top1 is 99.5 in DONE.json, {true:.6g} from the job's own files" in said
    assert f"results.jsonl: stage baseline, seed 1: metrics.linear_probe_top1 is {true} in the file, 99.5 from the run folder" in said, said


@pytest.mark.parametrize("name", [PREDICTIONS, CURVE])
def test_a_changed_artifact_of_the_same_size_is_named(finished: Any, name: str) -> None:
    store, document, source, _ = finished
    job = document["cells"][0]["jobs"]["probe" if name == PREDICTIONS else "train"]
    path = store.job_folder(job) / name
    content = path.read_bytes()
    changed = content[:-1] + bytes([content[-1] ^ 1]) if name == PREDICTIONS else content.replace(b"2.0", b"3.0", 1)
    assert changed != content
    try:
        path.write_bytes(changed)
        said = check_study(store, document, source)
    finally:
        path.write_bytes(content)
    assert any(f"{name} is not the file that the job wrote" in line for line in said), said


def test_missing_and_surplus_cells_are_named(finished: Any) -> None:
    store, document, source, _ = finished
    surplus = {**source.records[0], "cell": "invented-s0"}
    said = check_study(store, document, Source([*source.records[1:], surplus], source.provenance))
    assert "results.jsonl: cell baseline-s0 of the study is not in the file" in said
    assert "results.jsonl: cell invented-s0 is not in the study" in said


@settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flipped_digit_in_a_report_is_named(wanted: dict[str, bytes], data: st.DataObject) -> None:
    tables = sorted(name for name in wanted if name.endswith((".csv", ".md", ".tex", ".html")))
    name = data.draw(st.sampled_from(tables))
    changed = {**wanted, name: flip(wanted[name], data.draw)}
    said = compare_files(changed, wanted)
    assert len(said) >= 1
    assert all(text.startswith(f"{name}: ") for text in said)


@pytest.mark.parametrize("kind", ["csv", "md", "tex", "html"])
def test_a_changed_cell_is_named_by_row_and_column(wanted: dict[str, bytes], finished: Any, kind: str) -> None:
    """The accuracy of the first row of Table 1, in each format."""
    text = wanted[f"table1.{kind}"].decode()
    words = re.search(r"\d+\.\d (±|\$\\pm\$) \d+\.\d", text)
    assert words is not None
    changed = ("9" if words[0][0] != "9" else "8") + words[0][1:]
    said = compare_files({**wanted, f"table1.{kind}": text.replace(words[0], changed, 1).encode()}, wanted)
    assert len(said) == 1, said
    assert "Linear probe top-1" in said[0]
    assert re.search(rf"'{re.escape(changed)}.* in the file, '{re.escape(words[0])}.* from the results", said[0])
    assert "row '" in said[0]


def test_the_command_ends_with_1_and_names_the_table_cell(finished: Any, wanted: dict[str, bytes], ablate: Any, tmp_path: Path) -> None:
    _, _, _, folder = finished
    reports = tmp_path / "reports"
    shutil.copytree(folder, reports)
    for name, content in wanted.items():
        (reports / name).write_bytes(content)
    good = ablate("verify", "--results", reports / "results.jsonl")
    assert (good.code, good.out) == (0, "")
    assert "everything agrees" in good.err
    path = reports / "table1.md"
    path.write_text(path.read_text().replace("(2/2)", "(3/2)", 1))
    (reports / "trajectory.png").write_bytes(wanted["trajectory.png"][:-1])
    (reports / "table2.csv").unlink()
    bad = ablate("verify", "--results", reports / "results.jsonl")
    assert bad.code == 1
    lines = bad.out.splitlines()
    assert lines[0].startswith("table1.md: row 'DiT baseline', column 'Linear probe top-1")
    assert lines[1:] == ["table2.csv: the file is missing", "trajectory.png: differs from the picture that the results give"]


def test_a_results_file_changed_after_it_was_written_is_noticed(finished: Any, wanted: Any, ablate: Any, tmp_path: Path) -> None:
    """Even in a number that no table prints."""
    _, _, _, folder = finished
    shutil.copytree(folder, tmp_path / "reports")
    for name, content in wanted.items():
        (tmp_path / "reports" / name).write_bytes(content)
    path = tmp_path / "reports" / "results.jsonl"
    path.write_text(path.read_text().replace('"beta_end": 0.02', '"beta_end": 0.03', 1))
    bad = ablate("verify", "--results", path)
    assert bad.code == 1
    assert bad.out.startswith("results.jsonl: its SHA-256 is not the one in provenance.json")


def test_pictures_of_another_drawing_library_are_not_compared_and_that_is_said(
    finished: Any, wanted: Any, ablate: Any, tmp_path: Path
) -> None:
    _, _, _, folder = finished
    shutil.copytree(folder, tmp_path / "reports")
    for name, content in wanted.items():
        (tmp_path / "reports" / name).write_bytes(content)
    (tmp_path / "reports" / "versions.json").write_text('{"matplotlib": "0.1", "pillow": "1"}')
    (tmp_path / "reports" / "trajectory.png").write_bytes(b"drawn elsewhere")
    answer = ablate("verify", "--results", tmp_path / "reports" / "results.jsonl")
    assert answer.code == 0
    assert re.match(r"note: \d+ pictures were not compared, only their data", answer.out)


def test_without_reports_the_fix_is_named(finished: Any, ablate: Any, tmp_path: Path) -> None:
    store = finished[0]
    answer = ablate("verify", "--runs", store.root, "--reports", tmp_path)
    assert answer.code == 2
    assert "Write the reports first" in answer.error
