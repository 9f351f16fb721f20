"""Images decoded once into shards: the same pixels, going on after a kill, every unreadable file named, crops from larger squares."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ablation.config import Config, DataConfig, apply
from ablation.data import image_cache, images, storage
from ablation.data.image_cache import CachePlan, build_cache, plan_cache
from ablation.data.images import open_images
from ablation.data.shards import ShardedArray
from ablation.errors import ArtifactError, ConfigError, DataError
from ablation.keys import reads
from ablation.store import IMAGE_CACHE

ROOT = Path(__file__).parents[2]
COUNT = 600  # three shards of 256 at most


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 300 training and 20 test images of unequal sizes."""
    root = tmp_path_factory.mktemp("images")
    draws = np.random.default_rng(0)
    for split, count in (("train", COUNT // 2), ("val", 20)):
        for name in ("ant", "bee"):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = draws.integers(0, 256, (30 + number % 7, 40 - number % 5, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number:03}.png")
    return root


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut caches into shards of 256 images, and never store small sets by themselves."""
    monkeypatch.setattr(image_cache, "IMAGE_SHARD_BYTES", 1)
    monkeypatch.setattr(images, "CACHE_LIMIT", 0)


def config(folder: Path, **settings: object) -> DataConfig:
    return DataConfig(**{"source": "folder", "path": str(folder), "image_size": 16, **settings})  # type: ignore[arg-type]


def build(plan: CachePlan, cache: Path) -> list[tuple[int, int]]:
    seen: list[tuple[int, int]] = []
    build_cache(plan, cache, 2, lambda done, total: seen.append((done, total)), lambda: False)
    return seen


def test_the_cache_holds_the_pixels_that_decoding_gives(folder: Path, tmp_path: Path) -> None:
    data = config(folder)
    plan = plan_cache(data, "train", tmp_path)
    assert (plan.images, plan.finished) == (COUNT, False)
    seen = build(plan, tmp_path)
    assert seen[0] == (0, COUNT)
    assert seen[-1] == (COUNT, COUNT)
    assert len(list(plan.folder.glob("shard-*.npy"))) == 3
    assert sum(path.stat().st_size for path in plan.folder.glob("shard-*.npy")) == COUNT * 16 * 16 * 3 + 3 * storage.FILE_HEADER_BYTES
    cached, fresh = open_images(data, "train", tmp_path), open_images(data, "train")
    assert isinstance(cached.stored, ShardedArray)
    assert fresh.stored is None
    order = np.random.default_rng(0).permutation(COUNT)
    batch = cached.batch(order)
    assert (batch == fresh.batch(order)).all()
    batch[:] = 0  # a copy
    assert (cached.batch(order) == fresh.batch(order)).all()
    assert plan_cache(data, "train", tmp_path).finished
    assert "stored" in cached.where_from(False)
    assert "cannot be cut from stored centre crops" in cached.where_from(True)
    seeds = np.arange(8)
    assert (cached.batch(seeds, seeds) == fresh.batch(seeds, seeds)).all()  # random crops still come from the files


def test_a_command_that_is_killed_goes_on_with_the_missing_shards(folder: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    data = config(folder)
    plan = plan_cache(data, "train", runs / "cache")
    program = (
        "import sys, time; from ablation.data import image_cache; from ablation.cli import main\n"
        "if __name__ == '__main__':\n"
        "    image_cache.IMAGE_SHARD_BYTES = 1\n"
        "    write = image_cache._write_manifest\n"
        "    image_cache._write_manifest = lambda *given, **more: (write(*given, **more), time.sleep(30))\n"
        "    main()\n"
    )
    script = tmp_path / "command.py"
    script.write_text(program)
    settings = ["--scale", "smoke", "--set", "data.image_size=16", "--set", "data.train_images=1000", "--set", "data.test_images=1000"]
    command = ["cache", *settings, "--data", str(folder), "--runs", str(runs), "--workers", "2", "--yes"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, str(script), *command], env=environment, stdout=subprocess.DEVNULL)
    plan = plan_cache(data.model_copy(update={"train_images": 1000, "test_images": 1000}), "train", runs / "cache")
    deadline = time.monotonic() + 90
    while not (plan.folder / IMAGE_CACHE).exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = image_cache._finished(plan.folder)
    assert 0 < len(kept) < 3
    times = {name: (plan.folder / name).stat().st_mtime_ns for name in kept}
    assert open_images(data, "train", runs / "cache").stored is None  # an unfinished cache is not read
    seen = build(plan, runs / "cache")
    assert seen[0][0] >= 88  # it counts what is there
    assert {name: (plan.folder / name).stat().st_mtime_ns for name in kept} == times
    assert not list(plan.folder.glob(".*.tmp"))
    fresh = open_images(data, "train")
    assert (open_images(data, "train", runs / "cache").batch(np.arange(COUNT)) == fresh.batch(np.arange(COUNT))).all()


def test_all_unreadable_files_are_named_at_once_and_whole_shards_are_kept(folder: Path, tmp_path: Path) -> None:
    bad = [folder / "train" / "ant" / f"{number:03}.png" for number in (3, 200)]
    contents = [path.read_bytes() for path in bad]
    for path, content in zip(bad, contents, strict=True):
        path.write_bytes(content[:60] + b"\0" * (len(content) - 60))
    try:
        plan = plan_cache(config(folder), "train", tmp_path)
        with pytest.raises(DataError, match=r"2 images cannot be used: .*003\.png.*200\.png.*Replace or remove"):
            build(plan, tmp_path)
        assert len(list(plan.folder.glob("shard-*.npy"))) == 2
    finally:
        for path, content in zip(bad, contents, strict=True):
            path.write_bytes(content)
    assert build(plan, tmp_path)[0][0] == COUNT - 256  # sizes are as before, so the name is, too


def test_a_disk_without_room_is_noticed_first(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(ArtifactError, match="disk full while writing cached images"):
        build(plan_cache(config(folder), "train", tmp_path), tmp_path)


def test_a_shard_that_was_cut_short_is_not_read(folder: Path, tmp_path: Path) -> None:
    plan = plan_cache(config(folder), "test", tmp_path)
    build(plan, tmp_path)
    assert open_images(config(folder), "test", tmp_path).stored is not None
    (shard,) = plan.folder.glob("shard-*.npy")
    os.truncate(shard, shard.stat().st_size - 1)
    assert open_images(config(folder), "test", tmp_path).stored is None
    assert build(plan, tmp_path)[0][0] == 0


def test_random_crops_from_larger_squares_are_the_same_with_and_without_their_cache(folder: Path, tmp_path: Path) -> None:
    data = config(folder, crop_source_size=24)
    seeds = np.arange(40)
    expected = open_images(data, "train").batch(seeds, seeds)
    assert (expected != open_images(config(folder), "train").batch(seeds, seeds)).any()  # it is another crop, hence in the keys
    build(plan_cache(config(folder, image_size=24), "train", tmp_path), tmp_path)
    cached = open_images(data, "train", tmp_path)
    assert "24 px crops that are stored" in cached.where_from(True)
    assert (cached.batch(seeds, seeds) == expected).all()
    assert open_images(data, "test", tmp_path).crop_source is None
    with pytest.raises(ConfigError, match="crop_source_size is 8, smaller than data.image_size, 16"):
        open_images(config(folder, crop_source_size=8), "train")


def test_the_size_crops_are_cut_from_is_read_only_where_crops_are_cut():
    plain = apply(Config(), {"data.source": "folder", "probe.mode": "cached"})
    assert not any("data.crop_source_size" in reads(kind, plain) for kind in ("encode", "train", "probe", "tokenizer", "fid"))
    random = apply(plain, {"data.augmentation": "random_resized_crop", "probe.mode": "epochs"})
    assert [kind for kind in ("encode", "train", "probe", "tokenizer") if "data.crop_source_size" in reads(kind, random)] == [
        "train",
        "probe",
    ]


def test_only_files_are_cached_and_nobody_is_asked_without_a_terminal(ablate, folder: Path, tmp_path: Path) -> None:
    answer = ablate("cache", "--scale", "smoke", "--runs", tmp_path)
    assert answer.code == 2
    assert "'scenes' is held in memory" in answer.err
    answer = ablate("cache", "--scale", "smoke", "--data", folder, "--runs", tmp_path)
    assert answer.code == 2
    assert "Add --yes" in answer.err
    assert "train: 600 images of 32 px: 1.8 MiB" in answer.out
