"""Export of the encoder as a plain ViT: equal features, and the parameters of a plain ViT."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer

from ablation.denoiser.dit import DiT
from ablation.denoiser.export import CONFIG, WEIGHTS, export_vit, load_vit, save_vit
from ablation.errors import ArtifactError, ConfigError
from ablation.tokenizers.base import patchify

Build = Callable[..., DiT]
TOLERANCE = {"rtol": 1e-5, "atol": 2e-5}
PATCH, TIME = 2, 10.0


@pytest.mark.parametrize("num_classes", [0, 5])
@pytest.mark.parametrize("depth", [None, 3])
@torch.no_grad()
def test_features_equal_the_encoders(random_dit: Build, num_classes: int, depth: int | None) -> None:
    model = random_dit(num_classes=num_classes, modulation_ratio=0.5, in_dim=7)
    images = 2 * torch.rand(4, 3, 6, 6) - 1
    weight, bias = torch.randn(7, 3 * PATCH**2), torch.randn(7)
    tokens = patchify(images, PATCH) @ weight.T + bias  # (B, N, 7)
    expected = model.encode(tokens, torch.full((4,), TIME), blocks=[model.encoder_depth if depth is None else depth])[0]
    vit = export_vit(model, TIME, PATCH, weight, bias, depth)
    assert expected.std() > 0.1
    torch.testing.assert_close(vit.forward_features(images), expected, **TOLERANCE)
    torch.testing.assert_close(vit(images), expected.mean(dim=1), **TOLERANCE)


@torch.no_grad()
def test_without_an_input_map_the_patch_itself_is_the_token(random_dit: Build) -> None:
    model, images = random_dit(), torch.rand(2, 3, 6, 6)
    expected = model.encode(patchify(images, PATCH), torch.full((2,), TIME))
    torch.testing.assert_close(export_vit(model, TIME, PATCH).forward_features(images), expected, **TOLERANCE)
    assert not torch.allclose(export_vit(model, 500.0, PATCH).forward_features(images), expected, **TOLERANCE)


def test_parameters_are_those_of_a_plain_vit(random_dit: Build) -> None:
    vit = export_vit(random_dit(), TIME, PATCH)
    # timm's own defaults, less the parts the study's encoder does not have: class token, norm at the end, head.
    plain = VisionTransformer(
        6, PATCH, embed_dim=32, depth=2, num_heads=2, num_classes=0, class_token=False, global_pool="avg", fc_norm=False
    )
    plain.norm = torch.nn.Identity()
    assert {name: value.shape for name, value in vit.named_parameters()} == {name: value.shape for name, value in plain.named_parameters()}


def test_an_encoder_of_vit_b_size_has_the_parameters_of_vit_b() -> None:
    plain = timm.create_model("vit_base_patch16_224", num_classes=0)  # timm before 1.0.22 cannot build it without memory
    with torch.device("meta"):
        model = DiT(in_dim=768, out_dim=768, grid=14, width=768, depth=24, heads=12, modulation_ratio=0.25)
        block = sum(parameter.numel() for parameter in model.blocks[0].parameters()) + 4 * 768  # two norms get their affine
    ours = 12 * block + (768 + 1) * 768 + 14 * 14 * 768
    theirs = sum(parameter.numel() for parameter in plain.parameters())
    assert theirs - ours == 768 + 768 + 2 * 768  # class token, its position, the last norm


@torch.no_grad()
def test_round_trip(random_dit: Build, tmp_path: Path) -> None:
    vit, images = export_vit(random_dit(), TIME, PATCH), torch.rand(2, 3, 6, 6)
    save_vit(vit, tmp_path)
    torch.testing.assert_close(load_vit(tmp_path)(images), vit(images), rtol=0, atol=0)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    torch.testing.assert_close(again(images), vit(images), rtol=0, atol=0)
    assert sorted(file.name for file in tmp_path.iterdir()) == [CONFIG, WEIGHTS]


def test_a_head_can_be_added_and_saved(random_dit: Build, tmp_path: Path) -> None:
    vit, images = export_vit(random_dit(), TIME, PATCH), torch.rand(2, 3, 6, 6)
    vit.reset_classifier(4)
    save_vit(vit, tmp_path)
    torch.testing.assert_close(load_vit(tmp_path)(images), vit(images), rtol=0, atol=0)


def test_input_maps_and_depths_that_do_not_fit_are_refused(random_dit: Build) -> None:
    model = random_dit(in_dim=7)
    with pytest.raises(ConfigError, match="input map"):
        export_vit(model, TIME, PATCH)
    with pytest.raises(ConfigError, match="input map"):
        export_vit(model, TIME, PATCH, torch.zeros(7, 12), torch.zeros(12))
    with pytest.raises(ConfigError, match="blocks 1 to 4"):
        export_vit(model, TIME, PATCH, torch.zeros(7, 12), torch.zeros(7), depth=5)


def test_unreadable_folders(random_dit: Build, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"config\.json is missing"):
        load_vit(tmp_path)
    save_vit(export_vit(random_dit(), TIME, PATCH), tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    tensors = load_file(tmp_path / WEIGHTS)
    save_file({name: value for name, value in tensors.items() if name != "pos_embed"}, tmp_path / WEIGHTS)
    with pytest.raises(ArtifactError, match="pos_embed"):
        load_vit(tmp_path)
    (tmp_path / CONFIG).write_text(json.dumps({**config, "model_args": {"img_sizes": 6}}))
    with pytest.raises(ArtifactError, match="img_sizes"):
        load_vit(tmp_path)
