"""Augmentation of the fine-tuning: positions alone decide what is drawn, and targets stay distributions."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from ablation.config import DataConfig, FinetuneConfig
from ablation.data.augmentations import FinetuneBatches, seeded
from ablation.data.images import open_images
from ablation.errors import ConfigError
from ablation.train.noise import NoiseSource

IMAGES = open_images(DataConfig(image_size=16, train_images=80, test_images=16), "train")


def batch(start: int, count: int, **changes):
    """Draw the batch at some positions."""
    cfg = FinetuneConfig(**changes)
    positions = np.arange(start, start + count)
    batches = FinetuneBatches(IMAGES, cfg, horizontal_flip=True, device=torch.device("cpu"))
    noise = NoiseSource(7, start, count)
    return batches.finish(batches.load(positions % len(IMAGES), positions, noise), noise)


def test_a_batch_depends_on_its_positions_alone():
    """Whole blocks of 32 positions are the same in any batch, whatever the global random states are."""
    together = batch(0, 64)
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    apart = [batch(0, 32), batch(32, 32)]
    for name in ("images", "targets"):
        assert torch.equal(together[name], torch.cat([part[name] for part in apart]))


def test_the_global_random_states_are_left_alone():
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    batch(0, 33)
    assert random.getstate() == before[0]
    assert (np.random.get_state()[1] == before[1]).all()
    assert torch.equal(torch.get_rng_state(), before[2])


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.0, 0.0), (0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
@pytest.mark.parametrize("count", [1, 31, 64])
def test_targets_are_distributions(mixup, cutmix, count):
    found = batch(0, count, mixup=mixup, cutmix=cutmix)
    assert found["images"].shape == (count, 3, 16, 16)
    assert torch.allclose(found["targets"].sum(dim=1), torch.ones(count))
    smooth = 0.1 / IMAGES.num_classes
    assert torch.allclose(found["targets"].min(dim=1).values, torch.full((count,), smooth))
    single = (found["targets"] > 2 * smooth).sum(dim=1)
    assert (single.max() == 2) == (count > 1 and mixup + cutmix > 0)


def test_an_odd_one_out_is_not_mixed():
    mixed, plain = batch(0, 33), batch(0, 33, mixup=0.0, cutmix=0.0)
    assert torch.equal(mixed["images"][32], plain["images"][32])
    assert torch.equal(mixed["targets"][32], plain["targets"][32])
    assert not torch.equal(mixed["images"][:32], plain["images"][:32])


def test_mixed_targets_say_what_was_mixed():
    """MixUp's image is the mixture of the plain ones in the proportion its target states."""
    plain, mixed = (batch(0, 32, cutmix=0.0, mixup=alpha, label_smoothing=0.0) for alpha in (0.0, 0.8))
    labels = plain["targets"].argmax(dim=1)
    for place in range(32):
        other = 31 - place
        if labels[place] != labels[other]:
            share = float(mixed["targets"][place, labels[place]])
            expected = share * plain["images"][place] + (1 - share) * plain["images"][other]
            assert torch.allclose(mixed["images"][place], expected, atol=1e-5)


def test_augmentations_switch_off():
    off = {"rand_augment": None, "random_erasing": 0.0, "mixup": 0.0, "cutmix": 0.0}
    plain, erased, augmented = (
        batch(0, 16, **off),
        batch(0, 16, **{**off, "random_erasing": 1.0}),
        batch(0, 16, **{**off, "rand_augment": "rand-m9-mstd0.5-inc1"}),
    )
    assert plain["images"].abs().max() <= 1
    changed = (erased["images"] != plain["images"]).any(dim=1).flatten(1).float().mean(dim=1)
    assert (changed > 0).all()
    assert (changed < 0.5).all()
    assert not torch.equal(augmented["images"], plain["images"])


def test_threads_draw_the_same_side_by_side():
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda start: batch(start, 32), [0, 32, 0, 32, 0, 32]))
    for one in found[2:]:
        assert any(torch.equal(one["images"], first["images"]) and torch.equal(one["targets"], first["targets"]) for first in found[:2])


def test_the_strongest_rand_augment_runs():
    """At full magnitude timm posterises to no bits at all, which Pillow refuses."""
    found = batch(0, 80, rand_augment="rand-m10-inc1-n3", random_erasing=0.0, mixup=0.0, cutmix=0.0)
    assert torch.isfinite(found["images"]).all()


def test_a_rand_augment_that_timm_cannot_read_is_named():
    with pytest.raises(ConfigError, match=r"finetune\.rand_augment = 'rand-z9' cannot be read"):
        batch(0, 2, rand_augment="rand-z9")


def test_seeding_is_undone_after_an_error():
    state = random.getstate()
    with pytest.raises(ValueError, match="inside"), seeded(3):
        random.random()
        raise ValueError("inside")
    assert random.getstate() == state
