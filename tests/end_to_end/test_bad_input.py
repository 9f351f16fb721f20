"""Whatever a user can get wrong: one line that names it and the fix, the right exit code, and nothing finished is lost."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from commands import SINGLE_LEVEL, Answer, run, set_options, starts
from PIL import Image

from ablation.store import Store

SMALL = {**SINGLE_LEVEL, "data.image_size": 16}
REQUEST = ["--only", "patch_pca", "--scale", "smoke", "--no-controls"]
RUN_OPTIONS = ["--launcher", "inline", "--no-report", "--threads", "1"]


@pytest.fixture
def runs(tmp_path: Path, warm: Callable[[Path], Path]) -> Path:
    """A run folder that has the image cache and nothing else."""
    return warm(tmp_path / "runs")


@pytest.fixture
def study(ablate: Callable[..., Answer], runs: Path, tiny_settings: dict) -> Callable[..., Answer]:
    """Run a small study; later options override earlier ones."""

    def call(*options: object, settings: dict | None = None, request: list[str] = REQUEST) -> Answer:
        chosen = set_options({**tiny_settings, **SMALL, **(settings or {})})
        return ablate("run", *request, *chosen, *RUN_OPTIONS, "--runs", runs, *options)

    return call


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of two classes with twelve small images each."""
    for label in range(2):
        folder = tmp_path / "images" / f"class{label}"
        folder.mkdir(parents=True)
        for number in range(12):
            pixels = np.random.default_rng(number).integers(0, 128, (20, 20, 3)) + 100 * label
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return tmp_path / "images"


# --- usage: exit 2, and nothing is written ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--only", "patch_pac"], "unknown stage 'patch_pac'. Did you mean patch_pca"),
        (["--set", "train.stepz=3"], "unknown setting 'train.stepz'. Did you mean train.steps"),
        (["--set", "train.steps=many"], "setting 'train.steps' cannot be 'many'"),
        (["--set", "process.target=cleen"], "unknown process.target 'cleen'. Did you mean clean"),
        (["--set", "train.steps"], "--set 'train.steps' has no '='"),
        (["--seeds", "one"], "--seeds 'one' is not a list of whole numbers. Write --seeds 0,1,2"),
        (["--scale", "smokey"], "unknown scale 'smokey'. Did you mean smoke?"),
        (["--launcher", "lokal"], "unknown launcher 'lokal'. Did you mean local?"),
        (["--table", "7"], "--table 7 does not exist. Give one of 1, 2, 3, augmentation, "),
        (["--data", "/no/such/folder"], "--data '/no/such/folder' is neither a folder nor a data source"),
        (["--data", "folder:/no/such/folder"], "data.path '/no/such/folder' does not exist"),
        (["--data", "folder"], "data.source 'folder' needs data.path"),
        (["--set", "data.image_size=5"], "image_size"),
        (["--set", "data.image_size=4", "--set", "tokenizer.patch_size=8"], "data.image_size = 4 is smaller than a patch"),
        (["--set", "tokenizer.kind=pixel"], "tokenizer.kind"),
        (["--set", "probe.timestep=2000"], "probe.timestep = 2000 is beyond process.num_timesteps = 1000"),
        (["--name", "a/b"], "a study cannot be named 'a/b'"),
        (["--grid", "train.steps"], "--grid 'train.steps' has no values"),
        (["--grid", "tokenizer.latent_dim=64,128"], "there is nothing to run. Left out: patch_pca with tokenizer.latent_dim=64: "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_is_one_line_before_anything_runs(ablate, tmp_path, options, said):
    request = [] if "--only" in options or "--table" in options else REQUEST
    answer = ablate("run", "--scale", "smoke", *request, *options, "--runs", tmp_path / "new")
    assert answer.code == 2
    assert answer.error.startswith("error: ")
    assert said in answer.error
    assert not (tmp_path / "new").exists()


def test_as_a_process_the_same_one_line(tmp_path):
    answer = run(["ablation", "run", "--through", "predict_orignal", "--runs", str(tmp_path / "new")])
    assert answer.code == 2
    assert answer.error.startswith("error: unknown stage 'predict_orignal'. Did you mean predict_original")
    assert answer.out == ""


# --- data: exit 2 where it is seen before the start, a failed job where it is met -------------------------------------


def test_an_empty_folder_and_one_class_only_are_refused(study, images):
    (images.parent / "empty").mkdir()
    answer = study("--data", images.parent / "empty")
    assert (answer.code, "no images in class folders below" in answer.error) == (2, True)
    (images / "class1").rename(images.parent / "aside")
    answer = study("--data", images)
    assert (answer.code, "only one class, 'class0', below" in answer.error) == (2, True)


def test_a_corrupt_image_is_named_and_mended_by_replacing_it(study, images, runs):
    victim = images / "class1" / "7.png"
    good = victim.read_bytes()
    victim.write_bytes(good[: len(good) // 2])
    answer = study("--data", images)
    assert answer.code == 1
    assert answer.error.startswith("failed tokenizer-")
    assert str(victim) in answer.error
    assert "3 jobs skipped: parent tokenizer failed (tokenizer-" in answer.out
    status = Store(runs).study()["cells"][0]["jobs"]
    assert {role: Store(runs).state(job).name for role, job in status.items()} == {
        "tokenizer": "failed",
        "encode": "skipped",
        "train": "skipped",
        "probe": "skipped",
    }
    victim.write_bytes(good)
    assert study("--data", images).code == 0


def test_an_image_too_small_to_be_enlarged_is_named(study, images):
    """A speck can be scaled to any size, and would be a flat square."""
    Image.new("RGB", (1, 1)).save(images / "class0" / "3.png")
    answer = study("--data", images, settings={"data.image_size": 32})
    assert answer.code == 1
    assert answer.error.startswith("failed tokenizer-")
    assert f"{images / 'class0' / '3.png'}' of 1 x 1 pixels is too small for data.image_size 32" in answer.error


# --- training ---------------------------------------------------------------------------------------------------------


def test_a_diverging_cell_says_so_and_the_others_finish(study, runs, tmp_path, ablate):
    stage = tmp_path / "hot.py"
    stage.write_text(
        "from ablation.stage import Stage\n"
        "STAGE = Stage(name='hot', after='patch_pca', title='far too fast', changes={'train.base_lr': 1e12})\n"
    )
    request = ["--only", "patch_pca", "--only", "hot", "--stages", str(stage), "--scale", "smoke", "--no-controls"]
    answer = study(request=request, settings={"train.steps": 12})
    assert answer.code == 1
    assert answer.error.startswith("diverged train-")
    assert " at step 10 of 12; last good checkpoint: none. Lower the learning rate" in answer.error
    cells = {cell["stage"]: cell for cell in json.loads(ablate("status", "--runs", runs, "--json").out)["cells"]}
    assert (cells["patch_pca"]["state"], cells["hot"]["state"]) == ("done", "diverged")
    assert cells["hot"]["jobs"]["probe"] == "skipped"
    report = ablate("report", "--runs", runs)
    assert (report.code, report.err) == (0, "")
    assert "diverged" in (runs / "reports" / Store(runs).study()["name"] / "results.jsonl").read_text()


def test_an_unreadable_checkpoint_fails_its_job_and_is_kept(study, runs):
    assert study().code == 0
    store = Store(runs)
    train = store.study()["cells"][0]["jobs"]["train"]
    (store.job_folder(train) / "DONE.json").unlink()
    checkpoint = store.job_folder(train) / "checkpoint-000000002.safetensors"
    checkpoint.write_bytes(b"torn")
    answer = study()
    assert answer.code == 1
    assert answer.error.startswith(f"failed {train}: no checkpoint in ")
    assert checkpoint.read_bytes() == b"torn"
    checkpoint.unlink()
    assert study().code == 0


# --- the run folder ---------------------------------------------------------------------------------------------------


def test_a_corrupt_record_of_a_finished_job_costs_that_job_only(study, runs):
    assert study().code == 0
    store = Store(runs)
    jobs = store.study()["cells"][0]["jobs"]
    (store.job_folder(jobs["train"]) / "DONE.json").write_text("{torn")
    answer = study()
    assert (answer.code, answer.err) == (0, "")
    assert [starts(store, jobs[role]) for role in ("tokenizer", "encode", "train", "probe")] == [1, 1, 2, 1]


@pytest.mark.parametrize("content", ["{torn", "[]"])
def test_a_corrupt_study_file_is_named_and_its_jobs_are_kept(study, runs, ablate, content):
    assert study().code == 0
    store = Store(runs)
    (path,) = (runs / "studies").glob("*.json")
    path.write_text(content)
    for answer in (study(), ablate("status", "--runs", runs), ablate("report", "--runs", runs)):
        assert answer.code == 1
        assert answer.error.startswith(f"error: {path} is ")
        assert "Remove it and run the same command again" in answer.error
    path.unlink()
    assert study().code == 0
    assert all(starts(store, job) == 1 for job in store.jobs())


def test_a_corrupt_line_of_results_is_named(ablate, tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text('{"schema": 1}\n{torn\n')
    answer = ablate("report", "--results", path)
    assert answer.code == 2
    assert answer.error.startswith(f"error: {path} line 2 is not JSON")


def test_a_run_folder_that_is_a_file_is_one_line(study, tmp_path):
    (tmp_path / "file").write_text("")
    answer = study("--runs", tmp_path / "file")
    assert answer.code == 1
    assert answer.error.startswith("error: cannot write ")
    assert "choose another with --runs" in answer.error


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere; the read-only file system below stands for it")
def test_a_run_folder_without_permission_is_one_line(study, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    answer = study("--runs", tmp_path / "closed")
    assert (answer.code, "Permission denied" in answer.error) == (1, True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mount a small file system of its own, or change the one mounted; needs root."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options: str) -> Path:
        words = f"remount,{options}" if os.path.ismount(folder) else options
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", words, "tmpfs", str(folder)], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
        return folder

    if os.geteuid():
        pytest.skip("mounting a small disk needs root")
    yield mount
    if os.path.ismount(folder):
        subprocess.run(["umount", str(folder)], check=True)


def test_a_read_only_run_folder_is_one_line(study, disk):
    answer = study("--runs", disk("size=1m,ro") / "runs")
    assert answer.code == 1
    assert answer.error.startswith("error: cannot write ")
    assert "Read-only file system" in answer.error


def test_a_full_disk_stops_a_job_in_one_line_and_with_more_room_the_rest_is_run(study, disk, runs, tiny_settings):
    """First there is no room for the latents, whose pages are written through a map; then none for the network.

    The first run is a process of its own: writing to a page that the disk cannot hold would kill it.
    """
    full = disk("size=120k") / "runs"
    full.mkdir()
    (full / "cache").symlink_to(runs / "cache")
    command = ["run", *REQUEST, *set_options({**tiny_settings, **SMALL}), *RUN_OPTIONS, "--runs", str(full)]
    study("--runs", runs)  # fills the image cache
    answer = run(["ablation", *command])
    assert answer.code == 1
    assert answer.error.startswith(("failed encode-", "error: disk full while writing "))
    assert "disk full while writing" in answer.error
    assert "Free some space and run the same command again; finished work is kept." in answer.error
    store = Store(full)
    tokenizer, encode, train, probe = (store.study()["cells"][0]["jobs"][role] for role in ("tokenizer", "encode", "train", "probe"))
    assert store.state(tokenizer).name == "done"
    assert not list(store.job_folder(encode).glob("latents-*")) or store.state(encode).name != "done"

    disk("size=3m")
    answer = study("--runs", full)
    assert answer.code == 1
    assert f"{train}/denoiser" in answer.error
    assert "disk full while writing" in answer.error
    assert [starts(store, job) for job in (tokenizer, encode)] == [1, 2]

    disk("size=40m")
    answer = study("--runs", full)
    assert (answer.code, answer.err) == (0, "")
    assert [starts(store, job) for job in (tokenizer, encode, probe)] == [1, 2, 1]
    assert {path.name for path in store.job_folder(encode).glob(".*")} <= {".lock.json.guard", ".verified.json"}
