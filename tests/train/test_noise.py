"""Random numbers and image order depend on the seed and the position in the training, and on nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ablation.train.noise import BLOCK, ImageOrder, NoiseSource, stream_seed

DRAWS = {
    "normal": lambda source: source.normal("noise", (3, 2)),
    "uniform": lambda source: source.uniform("timestep"),
    "integers": lambda source: source.integers("label", 2, 9),
}


@settings(max_examples=40, deadline=None)
@given(
    start=st.integers(0, 3 * BLOCK), parts=st.lists(st.integers(1, BLOCK + 5), min_size=1, max_size=4), kind=st.sampled_from(list(DRAWS))
)
def test_noise_does_not_depend_on_how_a_batch_is_cut(start: int, parts: list[int], kind: str) -> None:
    """Micro-batches of any size, from any position, put together give what one batch gives; so does a resumed training."""
    draw, seed = DRAWS[kind], 11
    whole = draw(NoiseSource(seed, 0, start + sum(parts)))[start:]
    begins = [start + sum(parts[:number]) for number in range(len(parts))]
    assert torch.equal(torch.cat([draw(NoiseSource(seed, begin, count)) for begin, count in zip(begins, parts, strict=True)]), whole)


def test_streams_are_independent_of_each_other_and_of_the_order_of_asking() -> None:
    first, second = NoiseSource(0, 5, 64), NoiseSource(0, 5, 64)
    noise, time = first.normal("noise", (4,)), first.uniform("timestep")
    assert torch.equal(second.uniform("timestep"), time)
    assert torch.equal(second.normal("noise", (4,)), noise)
    assert not torch.equal(first.normal("posterior", (4,)), noise)
    assert not torch.equal(NoiseSource(1, 5, 64).normal("noise", (4,)), noise)


def test_neighbouring_images_get_different_numbers() -> None:
    noise = NoiseSource(3, 0, 4 * BLOCK).normal("noise", (8,))  # (128, 8)
    assert len(torch.unique(noise, dim=0)) == len(noise)


def test_distributions() -> None:
    source = NoiseSource(0, 7, 4000)
    normal: Tensor = source.normal("n", (5,))
    assert normal.shape == (4000, 5)
    assert abs(normal.mean().item()) < 0.03
    assert abs(normal.var().item() - 1) < 0.05
    uniform = source.uniform("u")
    assert uniform.shape == (4000,)
    assert 0 <= uniform.min() < 0.01
    assert 0.99 < uniform.max() < 1
    assert set(source.integers("i", 2, 5).tolist()) == {2, 3, 4}


def test_the_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    NoiseSource(0, 0, 10).normal("noise", (2,))
    ImageOrder(10, 0).indices(0, 10)
    assert torch.equal(torch.get_rng_state(), before)


def test_seeds_are_63_bits_and_separate_their_parts() -> None:
    seeds = {stream_seed(*parts) for parts in [("a", 1), ("a", 2), ("b", 1), ("a1",), (1, "a"), ("a", 1, "")]}
    assert len(seeds) == 6
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert stream_seed("a", 1) == stream_seed("a", "1")


@settings(max_examples=40, deadline=None)
@given(images=st.integers(1, 50), seed=st.integers(0, 2**63 - 1), batch=st.integers(1, 70))
def test_every_epoch_shows_every_image_once(images: int, seed: int, batch: int) -> None:
    order = ImageOrder(images, seed)
    total = 3 * images
    seen = np.concatenate([order.indices(start, min(batch, total - start)) for start in range(0, total, batch)])
    for epoch in range(3):
        assert sorted(seen[epoch * images : (epoch + 1) * images]) == list(range(images))


def test_the_order_changes_with_epoch_and_seed_but_not_with_where_one_starts() -> None:
    order = ImageOrder(40, 0)
    first, second = order.indices(0, 40), order.indices(40, 40)
    assert first.dtype == np.int64
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, ImageOrder(40, 1).indices(0, 40))
    assert np.array_equal(ImageOrder(40, 0).indices(30, 20), np.concatenate([first[30:], second[:10]]))


@pytest.mark.parametrize("start", [39, 0, 79, 40])
def test_going_back_an_epoch_gives_the_same_images(start: int) -> None:
    """A phase that begins its batch again may ask for the epoch before."""
    order = ImageOrder(40, 0)
    expected = ImageOrder(40, 0).indices(start, 2)
    for begin in (0, 39, 79, 120):
        order.indices(begin, 2)
    assert np.array_equal(order.indices(start, 2), expected)
