"""Shapes, round trips and refused settings of every tokenizer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tokenizer_cases import SIZE, settings, smooth_images
from torch import Tensor

from ablation.config import TokenizerConfig
from ablation.errors import ConfigError
from ablation.tokenizers import build_tokenizer
from ablation.tokenizers.base import Tokenizer, patchify, unpatchify
from ablation.tokenizers.checks import BUILT_IN
from ablation.tokenizers.conv_vae import ConvVAE
from ablation.tokenizers.patch_vae import PatchVAE

IMAGES = smooth_images(8)


@hypothesis_settings(deadline=None)
@given(channels=st.integers(1, 4), grid=st.integers(1, 3), patch=st.sampled_from([1, 2, 4]))
def test_cutting_into_patches_and_back_is_exact(channels: int, grid: int, patch: int) -> None:
    images = torch.randn(2, channels, grid * patch, grid * patch)
    tokens = patchify(images, patch)
    assert tokens.shape == (2, grid**2, channels * patch**2)
    assert torch.equal(unpatchify(tokens, patch), images)


def test_a_patch_is_flattened_as_row_column_channel() -> None:
    images = torch.arange(2 * 3 * 4 * 6).reshape(2, 3, 4, 6)
    second_patch = images[0, :, 0:2, 2:4]  # raster order: right of the first
    assert patchify(images, 2)[0, 1].tolist() == [int(second_patch[c, r, k]) for r in range(2) for k in range(2) for c in range(3)]


@pytest.mark.parametrize("kind", BUILT_IN)
def test_shapes_and_attributes(kind: str) -> None:
    tokenizer = build_tokenizer(settings(kind), SIZE, {})
    if tokenizer.fit_kind == "closed_form":
        tokenizer.fit([IMAGES])
    d = 48 if kind == "pixels" else 8
    assert (tokenizer.grid, tokenizer.tokens, tokenizer.latent_dim, tokenizer.patch_size) == (4, 16, d, 4)
    mean, std = tokenizer.encode(IMAGES)
    assert mean.shape == (8, 16, d)
    assert (std is not None) == tokenizer.stochastic == (kind in ("conv", "patch_vae"))
    if std is not None:
        assert std.shape == mean.shape
        assert (std > 0).all()
    assert tokenizer.decode(mean).shape == IMAGES.shape
    if tokenizer.orthonormal:
        assert tokenizer.basis.shape == (48, 48)
        assert tokenizer.center.shape == tokenizer.eigenvalues.shape == (48,)


def test_pixels_are_the_identity_and_a_trivial_basis() -> None:
    tokenizer = build_tokenizer(settings("pixels"), SIZE, {})
    latents, _ = tokenizer.encode(IMAGES)
    assert torch.equal(tokenizer.decode(latents), IMAGES)
    torch.testing.assert_close((latents - tokenizer.center) @ tokenizer.basis.T, latents)


def test_a_conv_token_holds_the_latent_pixels_under_its_patch() -> None:
    tokenizer = ConvVAE(settings("conv"), SIZE)
    posterior = tokenizer.network.encode(IMAGES).latent_dist
    assert posterior.mean.shape == (8, 2, 8, 8)  # 8 numbers per token over 2x2 latent pixels
    mean, std = tokenizer.encode(IMAGES)
    expected = posterior.mean[:, :, 2:4, 4:6].permute(0, 2, 3, 1).flatten(1)  # token of row 1, column 2
    torch.testing.assert_close(mean[:, 1 * 4 + 2], expected)
    torch.testing.assert_close(unpatchify(std, 2), posterior.std)
    torch.testing.assert_close(tokenizer.decode(mean), tokenizer.network.decode(posterior.mean).sample)


def test_the_paper_scale_tokenizer_is_kl_f8_with_four_channels() -> None:
    with torch.device("meta"):
        tokenizer = ConvVAE(TokenizerConfig(), 256)
    network = tokenizer.network
    assert (tokenizer.tokens, network.config.latent_channels, network.config.norm_num_groups) == (256, 4, 32)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count == 83_653_863  # Stable Diffusion's first stage


def test_an_extreme_log_variance_stays_finite() -> None:
    conv, linear = ConvVAE(settings("conv"), SIZE), PatchVAE(settings("patch_vae"), SIZE)
    for value in (-1e9, 1e9):
        conv.network.quant_conv.bias.data[2:] = value
        linear.log_variance.data.fill_(value)
        for tokenizer in (conv, linear):
            std = tokenizer.encode(IMAGES)[1]
            assert std is not None
            assert torch.isfinite(std).all()
            assert (std > 0).all()


def test_the_conv_tokenizer_starts_with_a_narrow_posterior_and_idle_residual_blocks() -> None:
    tokenizer = ConvVAE(settings("conv"), SIZE)
    std = tokenizer.encode(IMAGES)[1]
    assert std is not None
    assert 0.04 < std.min() < std.max() < 0.07  # exp(-6 / 2) = 0.05
    block = tokenizer.network.decoder.mid_block.resnets[0]
    maps = torch.randn(2, 8, 4, 4)
    assert torch.equal(block(maps, None), maps)


def test_any_channel_counts_can_be_normalised() -> None:
    for channels in ((6, 10), (7, 7), (12, 36), (144, 144)):
        tokenizer = ConvVAE(settings("conv", block_channels=channels), SIZE)
        assert torch.isfinite(tokenizer.decode(tokenizer.encode(IMAGES[:1])[0])).all()


def test_both_ways_of_attending_give_the_same_images() -> None:
    tokenizer = ConvVAE(settings("conv"), SIZE)
    plain = tokenizer.encode(IMAGES)[0]
    processor = tokenizer.network.encoder.mid_block.attentions[0].processor
    processor.plain = processor.fused
    torch.testing.assert_close(tokenizer.encode(IMAGES)[0], plain, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("patch_pca", {"latent_dim": 49}, "latent_dim = 49 is larger than the 48 numbers"),
        ("patch_vae", {"latent_dim": 49}, "at most 48"),
        ("pixels", {"latent_dim": 16}, "Set tokenizer.latent_dim to 48"),
        ("patch_pca", {"patch_size": 5}, "Valid patch sizes here: 1, 2, 4, 8, 16"),
        ("conv", {"patch_size": 5}, "does not divide data.image_size = 16"),
        ("conv", {"stride": 4}, "the 2 resolutions of tokenizer.block_channels give stride 2"),
        ("conv", {"block_channels": (8, 8, 8, 8), "stride": 8}, "stride = 8 does not divide tokenizer.patch_size = 4"),
        ("conv", {"latent_dim": 10}, "multiple of 4"),
        ("conv", {"block_channels": (8, 0)}, "empty resolution"),
        ("patch_pac", {}, "Did you mean patch_pca"),
        ("vqgan", {}, "Valid names: conv, patch_ae, patch_pca, patch_vae, pixels"),
    ],
)
def test_impossible_settings_are_refused(kind: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        build_tokenizer(settings(kind, **changes), SIZE, {})


class Halves(Tokenizer):
    """A plugin's tokenizer: pixels divided by two."""

    fit_kind = "none"

    def encode(self, images: Tensor) -> tuple[Tensor, None]:
        return patchify(images, self.patch_size) / 2, None

    def decode(self, latents: Tensor) -> Tensor:
        return unpatchify(latents * 2, self.patch_size)


def test_a_plugins_tokenizer_is_built_by_its_name() -> None:
    tokenizer = build_tokenizer(settings("halves"), SIZE, {"tokenizer:halves": Halves})
    assert isinstance(tokenizer, Halves)
    torch.testing.assert_close(tokenizer.decode(tokenizer.encode(IMAGES)[0]), IMAGES)
    with pytest.raises(ConfigError, match="Did you mean halves"):
        build_tokenizer(settings("halvs"), SIZE, {"tokenizer:halves": Halves})
    with pytest.raises(ConfigError, match="does not divide"):
        build_tokenizer(settings("halves", patch_size=3), SIZE, {"tokenizer:halves": Halves})


def test_what_a_tokenizer_lacks_is_said() -> None:
    tokenizer = build_tokenizer(settings("patch_ae"), SIZE, {})
    with pytest.raises(TypeError, match="no closed form"):
        tokenizer.fit([IMAGES])
    with pytest.raises(TypeError, match="no last layer"):
        tokenizer.last_layer()
