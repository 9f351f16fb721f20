"""Latents in one file or in shards: the same numbers, going on after a kill, checked by their checksums, at the promised size."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ablation.data import storage
from ablation.data.latents import LatentStore
from ablation.data.shards import ShardedArray, checksum
from ablation.errors import ArtifactError
from ablation.jobs import encode
from ablation.launch.worker import run_job
from ablation.store import DONE, LATENTS, STATISTICS
from ablation.study import Request, Study, prepare, write_specs
from ablation.train.checkpoint import load_tensors

ROOT = Path(__file__).parents[2]
STAGE = "patch_vae"
IMAGES = 700  # three shards of 256 at most
SETTINGS = {"data.train_images": IMAGES, "data.test_images": 300, "tokenizer.steps": 2, "tokenizer.global_batch": 8}


def quiet(*_: object) -> None: ...


def run(study: Study, role: str) -> str:
    """Run a cell's job of one kind and return its id."""
    (roles,) = study.plan.roles.values()
    assert run_job(study.store, roles[role], quiet, lambda: False) == "done"
    return roles[role]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, tiny_settings: dict, warm: Callable[[Path], Path]) -> Callable[[str], Study]:
    """Plan one cell with a stochastic tokenizer, already fitted, in a new run folder."""
    folder = tmp_path_factory.mktemp("encode")
    fitted: list[Path] = []

    def make(name: str) -> Study:
        runs = warm(folder / name)
        settings = {**tiny_settings, **SETTINGS}
        made = prepare(Request(only=(STAGE,), scale="smoke", settings=settings, runs=runs, with_controls=False))
        write_specs(made)
        (roles,) = made.plan.roles.values()
        target = made.store.job_folder(roles["tokenizer"])
        if fitted:
            shutil.copytree(fitted[0], target, dirs_exist_ok=True)
        else:
            run(made, "tokenizer")
            fitted.append(target)
        return made

    return make


@pytest.fixture(scope="module")
def expected(study: Callable[[str], Study]) -> dict[str, np.ndarray]:
    """Everything that an undisturbed encoding writes, in one file for each statistic."""
    whole = study("whole")
    run(whole, "encode")
    size = sum(path.stat().st_size for path in folder_of(whole).glob("latents-*.npy"))
    config = next(iter(whole.plan.cells.values())).config
    assert size == storage.latent_bytes(config, IMAGES, 300)
    assert len(list(folder_of(whole).glob("latents-*.npy"))) == 6
    return arrays(folder_of(whole))


def folder_of(study: Study) -> Path:
    (roles,) = study.plan.roles.values()
    return study.store.job_folder(roles["encode"])


def arrays(folder: Path) -> dict[str, np.ndarray]:
    """Read everything that an encoding wrote."""
    store = LatentStore(folder)
    found = {f"{split}-{mirrored}": np.asarray(store.means(split, mirrored)) for split, mirrored in
             (("train", False), ("train", True), ("test", False))}  # fmt: skip
    found |= {"deviations": np.asarray(store.deviations("train", True))}
    return found | {name: value.numpy() for name, value in load_tensors(folder / STATISTICS)[0].items()}


def equal(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> bool:
    return found.keys() == expected.keys() and all(np.array_equal(found[name], expected[name]) for name in expected)


def test_shards_hold_the_numbers_of_one_file_at_the_size_that_is_promised(study, expected, monkeypatch):
    cut = study("shards")
    for module in (encode, storage):
        monkeypatch.setattr(module, "LATENT_SHARD_BYTES", 1)
    run(cut, "encode")
    config = next(iter(cut.plan.cells.values())).config
    names = [path.name for path in sorted(folder_of(cut).glob("latents-train-plain-mean*.npy"))]
    assert names == [f"latents-train-plain-mean-{number:05d}.npy" for number in range(3)]
    assert equal(arrays(folder_of(cut)), expected)
    assert sum(path.stat().st_size for path in folder_of(cut).glob("latents-*.npy")) == storage.latent_bytes(config, IMAGES, 300)
    order = np.array([699, 0, 256, 255, 512, 3])
    assert np.array_equal(LatentStore(folder_of(cut)).means("train")[order], expected["train-False"][order])


def test_an_encoding_that_is_killed_goes_on_at_the_shard_it_was_in(study, expected, monkeypatch):
    cut = study("killed")
    folder = folder_of(cut)
    program = (  # shards of 256 images, and slow enough to be killed between two
        "import sys, time; from ablation.jobs import encode; from ablation.data.images import Images; from ablation.launch import worker;"
        "encode.LATENT_SHARD_BYTES = 1; read = Images.batch;"
        "Images.batch = lambda *given: (time.sleep(0.05), read(*given))[1]; sys.exit(worker.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", program, "--runs", str(cut.store.root), folder.name]
    process = subprocess.Popen(command, cwd=ROOT)
    deadline = time.monotonic() + 60
    while len(list(folder.glob("latents-train-mirrored-*.npy"))) < 2 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -9
    kept = {path.name: path.stat().st_mtime_ns for path in folder.glob("latents-*.npy")}
    assert 0 < len(kept) < 16
    assert not (folder / DONE).exists()
    assert cut.store.has_checkpoint(folder.name)
    monkeypatch.setattr(encode, "LATENT_SHARD_BYTES", 1)
    run(cut, "encode")
    untouched = sum((folder / name).stat().st_mtime_ns == when for name, when in kept.items())
    assert untouched >= len(kept) - 2  # the shard it was in, mean and std, may be there without being noted
    assert equal(arrays(folder), expected)
    assert not cut.store.has_checkpoint(folder.name)


def test_a_flipped_byte_is_found_and_named_and_only_that_file_is_made_again(study, expected, monkeypatch):
    monkeypatch.setattr(encode, "LATENT_SHARD_BYTES", 1)
    cut = study("flipped")
    run(cut, "encode")
    folder = folder_of(cut)
    bad = folder / "latents-train-plain-std-00001.npy"
    content = bytearray(bad.read_bytes())
    content[5000] ^= 1
    bad.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"latents-train-plain-std-00001\.npy is damaged"):
        LatentStore(folder).deviations("train")
    LatentStore(folder).means("train")  # the others are whole
    bad.unlink()
    assert cut.store.state(folder.name).name == "new"
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("latents-*.npy")}
    run(cut, "encode")
    after = {path.name: path.stat().st_mtime_ns for path in folder.glob("latents-*.npy")}
    assert {name for name in after if before.get(name) != after[name]} == {bad.name, bad.name.replace("std", "mean")}
    assert equal(arrays(folder), expected)


def test_verify_files_names_what_was_flipped_behind_the_back_of_the_clock(study, ablate):
    """The size and the time stay: only reading every byte again finds it."""
    one = study("verified")
    run(one, "encode")
    answer = ablate("verify", "--files", "--runs", one.store.root)
    assert (answer.code, answer.out) == (0, "")
    bad = folder_of(one) / "latents-train-mirrored-mean.npy"
    LatentStore(folder_of(one)).means("train", mirrored=True)
    stat, content = bad.stat(), bytearray(bad.read_bytes())
    content[-1] ^= 128
    bad.write_bytes(content)
    os.utime(bad, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    LatentStore(folder_of(one)).means("train", mirrored=True)
    answer = ablate("verify", "--files", "--runs", one.store.root)
    assert answer.code == 1
    assert f"{bad} is damaged" in answer.out


def test_files_are_hashed_once_and_again_when_they_change(study, monkeypatch):
    from ablation.data import shards

    hashed: list[str] = []
    monkeypatch.setattr(shards, "checksum", lambda path: (hashed.append(path.name), checksum(path))[1])
    one = study("hashed")
    run(one, "encode")
    for _ in range(2):
        LatentStore(folder_of(one)).means("test")
    assert hashed == ["latents-test-plain-mean.npy"]
    (folder_of(one) / hashed[0]).touch()
    LatentStore(folder_of(one)).means("test")
    assert len(hashed) == 2
    assert one.store.state(folder_of(one).name).name == "done"


def test_folders_from_before_the_manifest_are_read(study, expected):
    one = study("older")
    run(one, "encode")
    assert set(json.loads((folder_of(one) / LATENTS).read_text())["arrays"]) == {
        path.stem + ".npy" for path in folder_of(one).glob("latents-*.npy")
    }
    (folder_of(one) / LATENTS).unlink()
    assert LatentStore(folder_of(one)).stochastic
    assert equal(arrays(folder_of(one)), expected)


def test_an_encoding_larger_than_the_disk_is_refused_before_it_starts(study, monkeypatch):
    one = study("disk")
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    assert run_job(one.store, folder_of(one).name, quiet, lambda: False) == "failed"
    assert "disk full while writing latents" in one.store.state(folder_of(one).name).reason
    assert not list(folder_of(one).glob("latents-*"))


def test_a_sharded_array_refuses_rows_outside():
    array = ShardedArray([np.zeros((3, 2)), np.ones((2, 2))])
    assert array.shape == (5, 2)
    for bad in (-1, 5):
        with pytest.raises(IndexError, match=r"0\.\.4"):
            array[np.array([0, bad])]
    assert array[np.array([], np.int64)].shape == (0, 2)
    assert array[2:4].tolist() == [[0, 0], [1, 1]]
