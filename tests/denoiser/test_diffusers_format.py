"""Exchange with diffusers: equal outputs both ways, checked against that library's own class."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from ablation.denoiser.diffusers_format import CONFIG, PICKLED, WEIGHTS, from_diffusers, to_diffusers
from ablation.denoiser.dit import DiT
from ablation.errors import ArtifactError, ConfigError
from ablation.tokenizers.base import patchify, unpatchify

Build = Callable[..., DiT]
TIMES, LABELS = torch.tensor([0, 10, 999]), torch.tensor([0, 3, 5])


def published(**changes: Any) -> DiTTransformer2DModel:
    """Build a small DiT of diffusers with all weights random and, as in published files, one embedding copied to all blocks."""
    settings = {"num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 3, "out_channels": 6, "num_layers": 3}
    theirs = DiTTransformer2DModel(**{**settings, "sample_size": 6, "patch_size": 2, "num_embeds_ada_norm": 5, **changes})
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(std=0.2)
    for block in theirs.transformer_blocks:
        block.norm1.emb.load_state_dict(theirs.transformer_blocks[0].norm1.emb.state_dict())
    return theirs.eval()


@torch.no_grad()
def assert_equal_outputs(ours: DiT, theirs: DiTTransformer2DModel, labels: Tensor) -> None:
    """Compare the two on the same latents, in float64; a learned variance is the second half of our numbers and their channels."""
    ours, theirs, side = ours.double(), theirs.double(), theirs.config.patch_size
    latents = torch.randn(3, theirs.config.in_channels, theirs.config.sample_size, theirs.config.sample_size).double()
    expected = theirs(latents, timestep=TIMES, class_labels=labels).sample
    output = ours(patchify(latents, side), TIMES.double(), labels)  # (B, N, out_dim)
    learned = theirs.config.out_channels == 2 * theirs.config.in_channels
    parts = output.chunk(2, dim=-1) if learned else (output,)
    found = torch.cat([unpatchify(part, side) for part in parts], dim=1)  # (B, out_channels, H, W)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "changes", [{}, {"out_channels": None}, {"norm_eps": 1e-2}, {"patch_size": 1, "sample_size": 4}, {"patch_size": 3, "out_channels": 4}]
)
def test_reading_a_published_model(tmp_path: Path, changes: dict[str, Any]) -> None:
    theirs = published(**changes)
    theirs.save_pretrained(tmp_path / "transformer")
    assert_equal_outputs(from_diffusers(tmp_path / "transformer"), theirs, LABELS)
    assert_equal_outputs(from_diffusers(tmp_path), theirs, LABELS)  # the pipeline's folder serves as well


def test_reading_a_pickled_file_as_bare_tensors(tmp_path: Path) -> None:
    theirs = published()
    theirs.save_pretrained(tmp_path, safe_serialization=False)
    assert (tmp_path / PICKLED).is_file()
    assert_equal_outputs(from_diffusers(tmp_path, encoder_depth=2), theirs, LABELS)
    assert from_diffusers(tmp_path, encoder_depth=2).encoder_depth == 2


def test_a_pickled_file_with_code_is_refused(tmp_path: Path) -> None:
    published().save_pretrained(tmp_path, safe_serialization=False)
    torch.save({"proj_out_1.weight": Path("code")}, tmp_path / PICKLED)
    with pytest.raises(ArtifactError, match="more than tensors"):
        from_diffusers(tmp_path)


@pytest.mark.parametrize("changes", [{}, {"out_dim": 12}, {"modulation_ratio": 0.25}, {"mlp_norm_eps": 1e-2}])
@pytest.mark.parametrize("patch_size", [1, 2])
def test_writing_ours(random_dit: Build, tmp_path: Path, changes: dict[str, Any], patch_size: int) -> None:
    ours = random_dit(**changes)
    to_diffusers(ours, tmp_path, patch_size)
    theirs, report = DiTTransformer2DModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert_equal_outputs(ours, theirs.eval(), LABELS)


def test_writing_a_network_without_classes(random_dit: Build, tmp_path: Path) -> None:
    ours = random_dit(num_classes=0, modulation_ratio=0.25)
    to_diffusers(ours, tmp_path, 2)
    theirs = DiTTransformer2DModel.from_pretrained(tmp_path).eval()
    assert_equal_outputs(ours, theirs, torch.tensor([0, 1, 0]))
    assert from_diffusers(tmp_path).num_classes == 0


def test_there_and_back(random_dit: Build, tmp_path: Path) -> None:
    ours = random_dit()
    to_diffusers(ours, tmp_path, 2)
    back = from_diffusers(tmp_path)
    assert back.architecture == ours.architecture
    torch.testing.assert_close(back.state_dict(), ours.state_dict(), rtol=0, atol=0)


def test_networks_without_such_a_form_are_refused(random_dit: Build, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="frequency_shift"):
        to_diffusers(random_dit(frequency_shift=0), tmp_path, 2)
    with pytest.raises(ConfigError, match="patch_size 5"):
        to_diffusers(random_dit(), tmp_path, 5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_layers": None}, "'num_layers' is None"),
        ({"patch_size": 0}, "'patch_size' is 0"),
        ({"norm_type": "layer_norm"}, "'norm_type' is 'layer_norm'"),
        ({"activation_fn": "geglu"}, "'activation_fn'"),
        ({"sample_size": 7}, "'sample_size' 7"),
        ({"num_attention_heads": 4}, "'embed.weight' has shape"),
        ({"num_layers": 4}, r"'transformer_blocks.3.* is missing"),
        ({"num_layers": 2}, r"'transformer_blocks.2.* belongs to no part"),
        ({"in_channels": 4}, r"'pos_embed.proj.weight' .* 'in_channels' 4"),
        ({"out_channels": 4}, r"'proj_out_2.weight' .* 'out_channels' 4"),
        ({"num_embeds_ada_norm": 9}, "'class_embed.weight' has shape"),
    ],
)
def test_settings_that_do_not_fit(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    published().save_pretrained(tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps({**config, **changes}))
    with pytest.raises(ArtifactError, match=message):
        from_diffusers(tmp_path)


def test_blocks_with_embeddings_of_their_own_are_refused(tmp_path: Path) -> None:
    published().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    name = "transformer_blocks.2.norm1.emb.class_embedder.embedding_table.weight"
    save_file({**tensors, name: tensors[name] + 1}, tmp_path / WEIGHTS)
    with pytest.raises(ArtifactError, match=f"'{name}' differs"):
        from_diffusers(tmp_path)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"config\.json is missing"):
        from_diffusers(tmp_path)
    (tmp_path / CONFIG).write_text("{")
    with pytest.raises(ArtifactError, match=r"config\.json is unreadable"):
        from_diffusers(tmp_path)
    published().save_pretrained(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(b"not a tensor")
    with pytest.raises(ArtifactError, match=f"{WEIGHTS} is unreadable"):
        from_diffusers(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(ArtifactError, match=f"{WEIGHTS} is missing"):
        from_diffusers(tmp_path)
