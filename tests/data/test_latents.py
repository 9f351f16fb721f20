"""The scale of latents: what each of the three readings does to mean and variance, and to dimensions without any."""

import pytest
import torch

from ablation.data.latents import LatentScaler, to_tensor, to_uint8
from ablation.diffusion.statistics import StatisticsAccumulator


def raw_latents() -> torch.Tensor:
    """Latents of unequal means and variances, (images, N, d)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(500, 16, 4, generator=generator) * torch.tensor([9.0, 3.0, 1.0, 0.1]) + torch.tensor([5.0, 0.0, -1.0, 0.2])


def scaled(kind: str) -> torch.Tensor:
    raw = raw_latents()
    return LatentScaler.fit(kind, raw.mean((0, 1)), raw.var((0, 1), unbiased=False))(raw)  # type: ignore[arg-type]


def test_none_leaves_latents_alone():
    assert torch.equal(scaled("none"), raw_latents())


def test_global_is_one_divisor_that_makes_the_overall_deviation_one():
    z, raw = scaled("global"), raw_latents()
    assert float(z.std(unbiased=False)) == pytest.approx(1, rel=1e-5)
    ratios = raw / z
    assert float(ratios.max() - ratios.min()) < 1e-3


def test_whitened_gives_every_dimension_mean_zero_and_variance_one():
    z = scaled("whitened")
    assert z.mean((0, 1)).abs().max() < 1e-5
    assert torch.allclose(z.var((0, 1), unbiased=False), torch.ones(4), atol=1e-4)


@pytest.mark.parametrize("kind", ["none", "global", "whitened"])
def test_the_scale_can_be_undone(kind):
    raw = raw_latents()
    scaler = LatentScaler.fit(kind, raw.mean((0, 1)), raw.var((0, 1)))
    assert torch.allclose(scaler.inverse(scaler(raw)), raw, atol=1e-4)


def test_dimensions_without_variance_are_not_blown_up():
    scaler = LatentScaler.fit("whitened", torch.zeros(3), torch.tensor([4.0, 1.0, 1e-15]))
    rounding = torch.full((1, 1, 3), 1e-6)
    assert scaler(rounding).abs().max() < 0.01
    assert torch.isfinite(LatentScaler.fit("whitened", torch.zeros(2), torch.zeros(2))(torch.ones(1, 1, 2))).all()


def test_statistics_follow_the_scale():
    raw = raw_latents()
    scaler = LatentScaler.fit("whitened", raw.mean((0, 1)), raw.var((0, 1)))
    one, other = StatisticsAccumulator(), StatisticsAccumulator()
    one.update(raw)
    other.update(scaler(raw).double())
    expected, found = other.result(), scaler.statistics(one.result())
    assert torch.allclose(found.mean, expected.mean, atol=1e-4)
    assert torch.allclose(found.token_covariance, expected.token_covariance, atol=1e-4)


def test_images_survive_the_way_through_the_network_range():
    pixels = torch.randint(0, 256, (4, 8, 8, 3), dtype=torch.uint8)
    assert torch.equal(to_uint8(to_tensor(pixels.numpy())).permute(0, 2, 3, 1), pixels)
