"""The whole ladder by the command line: on the embedded scenes, on a folder of images, and on Fashion-MNIST."""

from __future__ import annotations

import gzip
import json
import math
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from commands import Answer, run, set_options, starts
from PIL import Image

from ablation.collect import collect, read_records
from ablation.data.sources import DEBIAN_FASHION_MNIST
from ablation.discover import discover
from ablation.store import Store

STAGES = [stage.name for stage in discover(installed=False).path("single_noise_level")]
SMALL = {"data.image_size": 16, "tokenizer.block_channels": [8, 16]}
MEASURED = {"linear_probe_top1", "knn_top1", "tokenizer_psnr", "final_loss"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ladder") / "runs"


@pytest.fixture(scope="module")
def command(runs: Path, tiny_settings: dict) -> list[str]:
    """The command that runs the whole ladder with the tiny settings."""
    options = set_options({**tiny_settings, **SMALL})
    return [
        "run",
        "--through",
        "single_noise_level",
        "--scale",
        "smoke",
        *options,
        "--launcher",
        "inline",
        "--threads",
        "1",
        "--runs",
        str(runs),
    ]


@pytest.fixture(scope="module")
def ladder(command: list[str]) -> Answer:
    """The first run, in a process of its own."""
    return run(["ablation", *command])


def check_records(records: list[dict], stages: list[str]) -> None:
    """Fail unless every cell is done, with finite numbers for all that is defined for it."""
    assert [record["stage"] for record in records if record["stage"]] == stages
    for record in records:
        assert (record["state"], record["reason"]) == ("done", ""), record["cell"]
        assert all(math.isfinite(value) for value in record["metrics"].values()), record["cell"]
        if record["stage"] is None:
            continue
        assert record["metrics"].keys() >= MEASURED
        assert 0 <= record["metrics"]["linear_probe_top1"] <= record["metrics"].get("linear_probe_top5", 100) <= 100
        assert ("fid" in record["metrics"]) == ("fid" not in record["undefined"])
        assert record["protocol"]["dataset"]


def test_the_whole_ladder_runs_on_the_embedded_images(ladder, runs):
    assert (ladder.code, ladder.err) == (0, "")
    folder = runs / "reports" / "single_noise_level-smoke"
    records = read_records(folder / "results.jsonl")
    check_records(records, STAGES)
    assert [record["control"] for record in records if record["stage"] is None] == ["random_init", "pca_features", "chance"]
    assert "fid" in next(record for record in records if record["stage"] == "single_noise_level")["undefined"]
    assert all("Table " + number in ladder.out for number in "123")
    for ending in ("html", "md", "csv", "tex", "png", "pdf"):
        assert any(path.stat().st_size > 100 for path in folder.rglob(f"*.{ending}")), ending
    store = Store(runs)
    assert all(starts(store, job) == 1 for job in store.jobs())
    assert len(store.jobs()) == 56


def test_a_second_run_reuses_every_job_in_seconds(ladder, command, runs, ablate):
    assert ladder.code == 0
    began = time.monotonic()
    again = ablate(*command, "--no-report")
    assert time.monotonic() - began < 15
    assert (again.code, again.err) == (0, "")
    assert "56 jobs (76 without sharing), 56 already done" in again.out
    store = Store(runs)
    assert all(starts(store, job) == 1 for job in store.jobs())
    plan = json.loads(ablate("plan", *command[1:-6], "--runs", runs, "--json").out)
    assert {job["action"] for job in plan["jobs"]} == {"reuse"}
    status = json.loads(ablate("status", "--runs", runs, "--json").out)
    assert {cell["state"] for cell in status["cells"]} == {"done"}


def test_reports_are_made_again_from_the_records_alone(ladder, runs, ablate, tmp_path):
    assert ladder.code == 0
    first = runs / "reports" / "single_noise_level-smoke"
    answer = ablate("report", "--results", first / "results.jsonl", "--out", tmp_path)
    assert (answer.code, answer.err) == (0, "")
    for name in ("table1.csv", "table2.csv", "table3.csv"):
        assert without_provenance(tmp_path / name) == without_provenance(first / name)


def test_every_file_of_the_report_is_made_again_from_the_results_folder_byte_for_byte(ladder, runs, ablate, tmp_path):
    assert ladder.code == 0
    first, results = runs / "reports" / "single_noise_level-smoke", tmp_path / "results"
    results.mkdir()
    for name in ("results.jsonl", "provenance.json"):
        shutil.copy(first / name, results)
    shutil.copytree(first / "pictures", results / "pictures")
    answer = ablate("report", "--results", results / "results.jsonl", "--out", tmp_path / "reports")
    assert (answer.code, answer.err) == (0, "")
    made = {path.name for path in (tmp_path / "reports").iterdir()}
    assert made == {path.name for path in first.iterdir()} - {"results.jsonl", "provenance.json", "pictures"}
    figures = {"trajectory", "plane", "learning", "schedules", "diagram", "triplets", "noise", "filters"}
    assert {f"{name}.{kind}" for name in figures for kind in ("png", "pdf")} <= made
    assert [name for name in sorted(made) if (tmp_path / "reports" / name).read_bytes() != (first / name).read_bytes()] == []
    page = (first / "index.html").read_text(encoding="utf-8")
    assert page.count("images sampled from") == 13
    assert "GFLOP a step" in page or "MFLOP a step" in page
    assert "cost not recorded" not in page


def test_a_study_verifies_and_a_flipped_digit_is_named(ladder, runs, ablate):
    assert ladder.code == 0
    assert ablate("report", "--runs", runs).code == 0  # the command was given again since, without a report
    good = ablate("verify", "--runs", runs)
    assert (good.code, good.out) == (0, "")
    assert "everything agrees" in good.err
    store = Store(runs)
    job = next(cell for cell in store.study()["cells"] if cell["stage"] == "predict_clean")["jobs"]["probe"]
    path = store.job_folder(job) / "DONE.json"
    content = path.read_text()
    value = json.loads(content)["metrics"]["linear_probe_top1"]
    try:
        path.write_text(content.replace(f'"linear_probe_top1": {value}', f'"linear_probe_top1": {value + 1}'))
        bad = ablate("verify", "--runs", runs)
    finally:
        path.write_text(content)
    assert bad.code == 1
    assert f"stage predict_clean, seed 0, probe ({job}): linear_probe_top1 is {value + 1} in DONE.json" in bad.out
    assert f"results.jsonl: stage predict_clean, seed 0: metrics.linear_probe_top1 is {value} in the file" in bad.out


def without_provenance(path: Path) -> str:
    """Return a table's text without the sentence that says when and by which command it was written."""
    text, found = re.subn(r"Report written at .*? by: .*?(?= Run keys:)", "", path.read_text(encoding="utf-8"))
    assert found
    return text


def run_here(ablate, runs: Path, settings: dict, data: str) -> list[dict]:
    """Run the default ladder in this process and return its records."""
    options = set_options({**settings, **SMALL, "tokenizer.steps": 2, "train.steps": 2})
    command = ["run", "--scale", "smoke", "--launcher", "inline", "--threads", 1, "--no-report", "--no-controls", "--runs", runs]
    answer = ablate(*command, "--data", data, *options)
    assert (answer.code, answer.err) == (0, "")
    store = Store(runs)
    return collect(store, store.study())


def test_the_ladder_runs_on_a_folder_of_images(ablate, tmp_path, tiny_settings):
    """PNGs of several sizes and modes, in one folder per class, without a test split of their own."""
    draws = np.random.default_rng(0)
    for label in range(5):
        folder = tmp_path / "images" / f"class{label}"
        folder.mkdir(parents=True)
        for number in range(14):
            height, width = 20 + number, 34 - number
            noise = draws.integers(0, 60, (height, width, 3)) + 35 * label
            image = Image.fromarray(noise.astype(np.uint8))
            image.convert(("RGB", "L", "RGBA", "P")[number % 4]).save(folder / f"{number}.png")
    records = run_here(ablate, tmp_path / "runs", tiny_settings, str(tmp_path / "images"))
    check_records(records, STAGES[:-1])
    assert {record["protocol"]["dataset"] for record in records} == {"folder"}
    assert {record["protocol"]["train_images"] for record in records} == {55}


@pytest.mark.skipif(not DEBIAN_FASHION_MNIST.is_dir(), reason="the Debian package dataset-fashion-mnist is not installed")
def test_the_ladder_runs_on_fashion_mnist(ablate, tmp_path, tiny_settings):
    """On its first images: reading all 70,000 anew in each of 52 jobs would take longer than the jobs."""
    for source in DEBIAN_FASHION_MNIST.glob("*-ubyte.gz"):
        with gzip.open(source) as file:
            header = file.read(16 if "images" in source.name else 8)
            body = file.read(400 * (28 * 28 if "images" in source.name else 1))
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / source.name).write_bytes(gzip.compress(header[:4] + (400).to_bytes(4, "big") + header[8:] + body))
    records = run_here(ablate, tmp_path / "runs", tiny_settings, f"fashion_mnist:{tmp_path / 'data'}")
    check_records(records, STAGES[:-1])
    assert {record["protocol"]["dataset"] for record in records} == {"fashion_mnist"}
    assert {record["protocol"]["train_images"] for record in records} == {96}
