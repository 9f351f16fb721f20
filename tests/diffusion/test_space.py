"""The map between latents and image patches, and the loss units in it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ablation.config import TokenizerConfig
from ablation.diffusion.space import PatchSpace
from ablation.tokenizers import build_tokenizer
from ablation.tokenizers.base import patchify

BuildSpace = Callable[..., PatchSpace]


def test_image_tokens_have_the_latents_unit_scale(build_space: BuildSpace) -> None:
    space = build_space(latent_dim=12)
    z = torch.randn(4000, 4, 12)
    tokens = space.noise_to_image(z)
    assert tokens.square().mean().item() == pytest.approx(1, rel=0.03)
    assert space.unit.item() == pytest.approx(space.scale.square().mean().sqrt().item())


@pytest.mark.parametrize("latent_dim", [1, 5, 12])
def test_latents_survive_the_round_trip(build_space: BuildSpace, latent_dim: int) -> None:
    space = build_space(latent_dim)
    z = torch.randn(3, 4, latent_dim)
    assert torch.allclose(space.to_latent(space.to_image(z)), z, atol=1e-5)
    assert torch.allclose(space.noise_to_latent(space.noise_to_image(z)), z, atol=1e-5)
    assert torch.allclose(space.to_image(z) - space.to_image(torch.zeros_like(z)), space.noise_to_image(z), atol=1e-5)


def test_images_survive_the_round_trip_and_projection_is_idempotent(build_space: BuildSpace) -> None:
    space = build_space(latent_dim=5)
    images = torch.rand(2, 3, 4, 4) * 2 - 1
    tokens = space.normalise(images)
    assert torch.allclose(space.denormalise(tokens), images, atol=1e-6)
    projected = space.project(tokens)
    assert torch.allclose(space.project(projected), projected, atol=1e-5)
    assert torch.allclose(space.to_image(space.to_latent(tokens)), projected, atol=1e-5)
    off = tokens - projected
    assert torch.allclose(off @ space.basis[:5].T, torch.zeros(2, 4, 5), atol=1e-5)


def test_agrees_with_the_tokenizer_that_made_the_latents() -> None:
    """Scaled latents of PCA, mapped to image tokens and back to pixels, are the tokenizer's reconstruction."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(64, 3, 4, 4, generator=generator) * 2 - 1
    tokenizer = build_tokenizer(TokenizerConfig(kind="patch_pca", latent_dim=5, patch_size=2), 4, {})
    tokenizer.fit([images])
    raw, _ = tokenizer.encode(images)
    shift, scale = raw.mean(dim=(0, 1)), raw.std(dim=(0, 1))
    space = PatchSpace.build(tokenizer.basis, tokenizer.center, shift, scale, 2)
    z = (raw - shift) / scale
    assert torch.allclose(space.denormalise(space.to_image(z)), tokenizer.decode(raw), atol=1e-5)
    assert torch.allclose(space.to_latent(space.normalise(images)), z, atol=1e-4)


def test_pixels_need_no_rotation() -> None:
    tokenizer = build_tokenizer(TokenizerConfig(kind="pixels", latent_dim=12, patch_size=2), 4, {})
    space = PatchSpace.build(tokenizer.basis, tokenizer.center, torch.zeros(12), torch.full((12,), 0.5), 2)
    images = torch.rand(2, 3, 4, 4) * 2 - 1
    z = patchify(images, 2) / 0.5
    assert torch.allclose(space.to_image(z), z, atol=1e-6)
    assert torch.allclose(space.normalise(images), z, atol=1e-6)


@given(seed=st.integers(0, 50), latent_dim=st.integers(1, 12))
def test_equal_weights_give_the_plain_squared_error(seed: int, latent_dim: int) -> None:
    """Eq. 4 with every w_i = 1 is the image-space squared error, since V is orthonormal."""
    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(12, 12, generator=generator, dtype=torch.float64))
    space = PatchSpace.build(basis, torch.zeros(12), torch.zeros(latent_dim), torch.full((latent_dim,), 2.0), 2)
    difference = torch.randn(3, 4, 12, generator=generator)
    weighted = (space.residual(difference) ** 2 * space.residual_weights(1.0, "pixel")).sum()
    assert weighted.item() == pytest.approx(difference.square().sum().item(), rel=1e-5)


def test_weights_by_component() -> None:
    basis = torch.eye(12)
    space = PatchSpace.build(basis, torch.zeros(12), torch.zeros(2), torch.tensor([1.0, 7.0]), 2)  # unit = 5
    assert space.residual_weights(0.1, "pixel").tolist() == pytest.approx([1, 1] + [0.1] * 10)
    assert space.residual_weights(0.1, "latent").tolist() == pytest.approx([25, 25 / 49] + [0.1] * 10)


def test_unscaled_pca_noise_is_nearly_invisible_and_scaled_noise_is_not(build_space: BuildSpace) -> None:
    """sigma = sqrt(1/3) on 16 of 768 axes adds sigma^2 16/768 to each pixel's variance unless latents are scaled."""
    index = torch.arange(1, 17, dtype=torch.float64)
    eigenvalues = 169 * index**-2.3  # of the order measured on photographs: 169, 34, 7.0, 1.4, 0.29 at 1, 2, 4, 8, 16
    noise = (1 / 3) ** 0.5 * torch.randn(64, 16, 16, generator=torch.Generator().manual_seed(0))
    scales = {
        "none": torch.ones(16),
        "global": eigenvalues.mean().sqrt().expand(16),
        "whitened": eigenvalues.sqrt(),
    }
    variance = {}
    for name, scale in scales.items():
        space = build_space(latent_dim=16, patch_size=16, scale=scale)
        variance[name] = (space.noise_to_image(noise) * space.unit).square().mean().item()  # per pixel, on [-1, 1]
    assert variance["none"] == pytest.approx(16 / 768 / 3, rel=0.05)
    assert variance["none"] ** 0.5 * 127.5 < 11  # grey levels of 255
    for name in ("global", "whitened"):
        assert variance[name] == pytest.approx(eigenvalues.sum().item() / 768 / 3, rel=0.1)
        assert variance[name] ** 0.5 * 127.5 > 35
    ratio = space.noise_to_latent(space.noise_to_image(noise)).square().mean()
    assert ratio.item() == pytest.approx(1 / 3, rel=0.05)


def test_stays_in_full_precision_under_autocast(build_space: BuildSpace) -> None:
    space = build_space(latent_dim=12)
    z = torch.randn(2, 4, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(space.to_image(z), space.to_image(z).float())
        inside = space.to_latent(space.to_image(z))
    assert inside.dtype == torch.float32
    assert torch.allclose(inside, z, atol=1e-5)


def test_refuses_a_basis_of_another_patch_size() -> None:
    with pytest.raises(ValueError, match="patch size 4"):
        PatchSpace.build(torch.eye(12), torch.zeros(12), torch.zeros(2), torch.ones(2), 4)


def test_to_moves_every_tensor(build_space: BuildSpace) -> None:
    moved = build_space(latent_dim=3).to("meta")
    devices = {getattr(moved, name).device.type for name in ("basis", "center", "shift", "scale", "unit")}
    assert devices == {"meta"}
