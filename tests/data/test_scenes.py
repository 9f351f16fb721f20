"""Generated scenes: the same bytes from the same seed, nothing shared between train and test, and something to learn."""

from __future__ import annotations

import functools
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ablation.config import DataConfig
from ablation.data.images import Images, open_images
from ablation.data.scenes import Scenes, balanced_labels, colour_matrices
from ablation.data.sources import ASSETS, SCENE_COUNTS, Split

INDEX = json.loads((ASSETS / "index.json").read_text())
ROOT = Path(__file__).parents[2]

KNOWN_MEANS = [[198.3, 109.7, 88.5], [111.6, 143.5, 151.2], [136.0, 103.2, 70.2], [207.9, 143.1, 88.9]]
KNOWN_LABELS = [2, 1, 4, 13, 7, 12, 6, 14]


def scenes(**settings: object) -> DataConfig:
    return DataConfig(**{"source": "scenes", "image_size": 32, "train_images": 48, "test_images": 32, **settings})  # type: ignore[arg-type]


@functools.cache
def opened(data: DataConfig, split: Split = "train") -> Images:
    """Open once per configuration: decoding the sheets is the slow part."""
    return open_images(data, split)


def pixels(data: DataConfig, split: Split = "train") -> np.ndarray:
    images = opened(data, split)
    return images.batch(np.arange(len(images)))


def test_the_same_seed_gives_the_same_bytes_in_another_process() -> None:
    program = (
        "import hashlib, numpy as np; from ablation.config import DataConfig; from ablation.data.images import open_images;"
        "images = open_images(DataConfig(source='scenes', image_size=32, train_images=48), 'train');"
        "print(hashlib.sha256(images.batch(np.arange(48)).tobytes() + images.labels.tobytes()).hexdigest())"
    )
    other = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    here = pixels(scenes()).tobytes() + opened(scenes(), "train").labels.tobytes()
    assert other == hashlib.sha256(here).hexdigest()


def test_another_seed_gives_other_pixels_and_labels() -> None:
    assert (pixels(scenes()) != pixels(scenes(scene_seed=1))).mean() > 0.5
    assert (opened(scenes(), "train").labels != opened(scenes(scene_seed=1), "train").labels).any()


def test_more_images_keep_the_first_ones() -> None:
    few, many = opened(scenes(), "train"), opened(scenes(train_images=100), "train")
    assert (few.labels == many.labels[:48]).all()
    assert (few.batch(np.arange(48)) == many.batch(np.arange(48))).all()


def test_images_do_not_depend_on_the_batch_they_are_rendered_in() -> None:
    renderer = Scenes("train", 300, 32, seed=0)
    everything = renderer.render(np.arange(300))  # two chunks
    assert (renderer.render(np.array([299, 3, 260])) == everything[[299, 3, 260]]).all()
    assert renderer.render(np.array([], np.int64)).shape == (0, 32, 32, 3)


def test_the_generator_still_draws_what_version_1_drew() -> None:
    # coarse, so that another Pillow may round otherwise; a change here asks for a new SCENES_VERSION in fingerprint.py
    means = pixels(scenes(), "test")[:4].reshape(4, -1, 3).mean(1)
    assert means == pytest.approx(np.array(KNOWN_MEANS), abs=1.0)
    assert opened(scenes(), "test").labels[:8].tolist() == KNOWN_LABELS


def test_train_and_test_share_no_concept_drawing_or_photograph() -> None:
    def of(split: str, key: str) -> set[object]:
        return {(concept["class"], concept[key]) for concept in INDEX["concepts"] if concept["split"] == split}

    assert not of("train", "name") & of("test", "name")
    drawings = [(split, vendor, cell) for c in INDEX["concepts"] for split in [c["split"]] for vendor, cell, _ in c["sprites"]]
    assert len({drawing[1:] for drawing in drawings}) == len(drawings)
    photos = {split: {photo["original"] for photo in INDEX["photos"] if photo["split"] == split} for split in ("train", "test")}
    assert not photos["train"] & photos["test"]
    assert len(photos["train"]) + len(photos["test"]) >= 20
    assert min(len(photos["train"]), len(photos["test"])) >= 5


def test_genders_and_sides_of_one_concept_are_on_one_side() -> None:
    split_of = {(c["class"], name): c["split"] for c in INDEX["concepts"] for _, _, name in c["sprites"]}
    pairs = [("male-doctor", "female-doctor"), ("point_left", "point_right"), ("+1", "-1"), ("man-surfing", "woman-surfing")]
    by_name = {name: split for (_, name), split in split_of.items()}
    for one, other in pairs:
        assert by_name[one] == by_name[other], (one, other)


def test_renderer_draws_from_its_own_split_only() -> None:
    for split in ("train", "test"):
        renderer = Scenes(split, 1, 32, seed=0)
        held = {(c["class"], name) for c in INDEX["concepts"] if c["split"] == split for _, _, name in c["sprites"]}
        reachable = {(k, name) for k, concepts in enumerate(renderer._concepts) for sprites in concepts for _, _, name in sprites}
        assert reachable == held
        assert len(renderer._photos) == sum(photo["split"] == split for photo in INDEX["photos"])


def test_every_class_has_concepts_in_both_splits() -> None:
    for split in ("train", "test"):
        counts = np.bincount([c["class"] for c in INDEX["concepts"] if c["split"] == split], minlength=16)
        assert counts.min() >= 5


def test_classes_are_balanced_in_any_number_of_images() -> None:
    for count in (16, 48, 100, 1000):
        counts = np.bincount(balanced_labels(count, 16, [0, 0]), minlength=16)
        assert counts.sum() == count
        assert counts.max() - counts.min() <= 1
    assert (balanced_labels(32, 16, [0, 0])[:16] != np.arange(16)).any()


def test_default_counts_and_the_name_say_what_it_is() -> None:
    images = open_images(DataConfig(source="scenes", image_size=32), "test")
    assert len(images) == SCENE_COUNTS["test"] == 2000
    assert images.composite
    assert "composite" in images.name
    assert images.num_classes == len(images.class_names) == 16
    assert images.labels.dtype == np.int64


def test_other_sizes_show_the_same_scene() -> None:
    small, large = pixels(scenes(train_images=32)), pixels(scenes(train_images=32, image_size=64))
    assert large.shape == (32, 64, 64, 3)
    halved = large.reshape(32, 32, 2, 32, 2, 3).mean((2, 4))
    difference = np.abs(halved - small).mean()
    shuffled = np.abs(np.roll(halved, 1, axis=0) - small).mean()
    assert difference < 12
    assert shuffled > 3 * difference


def test_neutral_colour_matrix_changes_nothing_and_saturation_zero_is_grey() -> None:
    neutral, grey = colour_matrices(np.zeros(2), np.array([1.0, 0.0]), np.ones(2))
    assert neutral == pytest.approx(np.eye(3), abs=1e-9)
    assert grey @ np.array([1.0, 0, 0]) == pytest.approx(np.full(3, 0.299), abs=1e-3)  # BT.601 luma of red


def test_labels_can_be_learnt_from_pixels_and_carry_over_to_unseen_concepts() -> None:
    data = scenes(train_images=4000, test_images=2000)
    train, test = opened(data, "train"), opened(data, "test")

    def features(images: np.ndarray) -> np.ndarray:
        blocks = images.reshape(len(images), 8, 4, 8, 4, 3).astype(np.float32).mean((2, 4)).reshape(len(images), -1) / 255  # 192
        return np.concatenate([blocks, blocks**2, np.ones((len(images), 1), np.float32)], 1)

    known = features(train.batch(np.arange(4000)))
    targets = np.eye(16, dtype=np.float32)[train.labels]
    weights = np.linalg.solve(known.T @ known + 10 * np.eye(known.shape[1], dtype=np.float32), known.T @ targets)
    accuracy = ((features(test.batch(np.arange(2000))) @ weights).argmax(1) == test.labels).mean()
    assert 0.09 < accuracy < 0.4  # chance 0.0625, standard error 0.006; far above the upper limit would mean a leak


def test_assets_are_small_and_credited() -> None:
    files = [path for path in ASSETS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 12e6
    credits = (ASSETS / "CREDITS.md").read_text()
    used = [*INDEX["sheets"], *(photo["file"] for photo in INDEX["photos"])]
    rows = {row.split("|")[1].strip(): row for row in credits.splitlines() if row.startswith("| ")}
    for name in used:
        assert (ASSETS / name).is_file(), name
        author, licence = rows[name].split("|")[3:5]
        assert author.strip(), name
        assert re.search(r"Apache-2.0|CC-BY|CC0|MIT|public domain", licence), name
    assert {path.name for path in files if path.suffix == ".webp"} == set(used)


def test_every_licence_has_its_text_or_its_address() -> None:
    credits = (ASSETS / "CREDITS.md").read_text()
    for licence in {photo["licence"] for photo in INDEX["photos"]} | {"Apache-2.0", "CC-BY-4.0", "MIT"}:
        has_text = (ASSETS / "licences" / f"{licence}.txt").is_file()
        assert has_text or f"[{licence}](http" in credits or licence == "public domain", licence
