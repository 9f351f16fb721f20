"""Sizes and counts from the configuration alone, against what is really there."""

from pathlib import Path

import numpy as np
import pytest

from ablation.config import Config, DataConfig, apply
from ablation.data import storage
from ablation.data.images import open_images
from ablation.discover import discover, load_scale
from ablation.tokenizers import build_tokenizer
from ablation.tokenizers.checks import BUILT_IN, WITHOUT_POSTERIOR


@pytest.mark.parametrize("limit", [None, 4])
def test_counts_are_those_of_the_opened_data(split_folder, limit):
    for data in (
        DataConfig(source="folder", path=str(split_folder), image_size=16, train_images=limit),
        DataConfig(source="scenes", image_size=16, train_images=limit, test_images=5),
    ):
        counts = storage.image_counts(data)
        assert counts == {split: len(open_images(data, split)) for split in ("train", "test")}
    assert storage.image_counts(DataConfig(source="timm:folder", path=str(split_folder), train_images=limit))["train"] == limit


def test_kinds_without_a_posterior_are_those_that_say_so():
    config = apply(Config(), {"tokenizer.latent_dim": 48, "tokenizer.patch_size": 4, "tokenizer.stride": 2, "data.image_size": 32})
    for kind in BUILT_IN:
        changes = {"tokenizer.kind": kind, "tokenizer.block_channels": (8, 16)}
        tokenizer = build_tokenizer(apply(config, changes).tokenizer, 32, {})
        assert tokenizer.stochastic == (kind not in WITHOUT_POSTERIOR)


def test_ranges_cover_every_image_once_in_whole_batches():
    for images in (1, 255, 256, 1000, 100_000):
        ranges = storage.shard_ranges(images, 1000, 700_000)
        assert np.concatenate([np.arange(*each) for each in ranges]).tolist() == list(range(images))
        assert all((last - first) % 256 == 0 for first, last in ranges[:-1])
        assert all((last - first) * 1000 <= 700_000 for first, last in ranges)


def test_imagenet_latents_take_what_their_numbers_take():
    config = apply(Config(), {"data.source": "folder"})
    images, test = 1_281_167, 50_000
    expected = 2 * (2 * images + test) * 256 * 16 * 2  # mean and std; two mirrors; tokens, dimensions, bytes
    assert storage.latent_bytes(config, images, test) == pytest.approx(expected, rel=1e-5)
    assert len(storage.shard_ranges(images, 256 * 16 * 2, storage.LATENT_SHARD_BYTES)) < 50


def test_sizes_have_units():
    assert [storage.in_words(size) for size in (5, 2048, 3 * 2**20, 2**30, 5 * 2**40)] == ["5 B", "2 KiB", "3.0 MiB", "1.0 GiB", "5.00 TiB"]


def test_the_documented_sizes_are_the_codes():
    tree = discover(installed=False)
    tree = tree.with_root(load_scale("paper", tree.root))
    train, test = 1_281_167, 50_000
    expected = {
        "latents, convolutional VAE or patch VAE, 16 per token": storage.latent_bytes(tree.resolve("baseline"), train, test),
        "latents, patch autoencoder, 16 per token": storage.latent_bytes(tree.resolve("patch_ae"), train, test),
        "latents, patch PCA, 32 per token": storage.latent_bytes(tree.resolve("patch_pca"), train, test),
        "cached centre crops, 256 px, training": storage.image_cache_bytes(256, train),
        "cached centre crops, 256 px, validation": storage.image_cache_bytes(256, test),
        "squares for random crops, 320 px, training": storage.image_cache_bytes(320, train),
        "a probe's training features, width 1024 (while it runs)": storage.feature_bytes(1024, train),
    }
    assert storage.latent_bytes(tree.resolve("patch_vae"), train, test) == storage.latent_bytes(tree.resolve("baseline"), train, test)
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    for what, size in expected.items():
        assert f"| {what} | {storage.in_words(size)} |" in page
