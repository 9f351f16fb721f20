"""Our own files: what is saved comes back, and what is damaged is named."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ablation.denoiser.dit import DiT
from ablation.denoiser.exchange import load_denoiser, save_denoiser
from ablation.errors import ArtifactError

Build = Callable[..., DiT]


def rewrite(path: Path, model: DiT, tensors: dict[str, Tensor] | None = None, **changes: object) -> None:
    """Write a denoiser's file again with other tensors or another architecture."""
    architecture = json.dumps({**dataclasses.asdict(model.architecture), **changes})
    save_file(load_file(path) if tensors is None else tensors, path, {"format": "pt", "denoiser": architecture})


@pytest.mark.parametrize(
    "changes", [{}, {"num_classes": 0, "modulation_ratio": 0.25, "encoder_depth": 1, "mlp_norm_eps": 1e-5, "frequency_shift": 0}]
)
def test_round_trip(random_dit: Build, tmp_path: Path, changes: dict[str, float]) -> None:
    model = random_dit(**changes)
    save_denoiser(model, tmp_path / "folder" / "denoiser.safetensors")
    before = torch.random.get_rng_state()
    loaded = load_denoiser(tmp_path / "folder" / "denoiser.safetensors")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert loaded.architecture == model.architecture
    tokens, time = torch.randn(2, 9, 12), torch.tensor([3.0, 700.0])
    torch.testing.assert_close(loaded(tokens, time), model(tokens, time), rtol=0, atol=0)
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert [file.name for file in (tmp_path / "folder").iterdir()] == ["denoiser.safetensors"]  # no temporary file left


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="missing"):
        load_denoiser(tmp_path / "none.safetensors")


def test_damaged_file(random_dit: Build, tmp_path: Path) -> None:
    path = tmp_path / "denoiser.safetensors"
    save_denoiser(random_dit(), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match="unreadable"):
        load_denoiser(path)


def test_another_safetensors_file(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ArtifactError, match="holds no denoiser"):
        load_denoiser(tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 64}, r"tensor '.*' has shape .* asks for"),
        ({"depth": 5}, "tensor 'modulation.weight' has shape"),
        ({"heads": 3}, "3 heads"),
        ({"heads": "two"}, "heads = 'two'"),
        ({"encoder_depth": None}, "encoder_depth = None"),
        ({"colour": 1}, "colour"),
    ],
)
def test_architecture_that_does_not_fit(random_dit: Build, tmp_path: Path, changes: dict[str, object], message: str) -> None:
    path, model = tmp_path / "denoiser.safetensors", random_dit()
    save_denoiser(model, path)
    rewrite(path, model, **changes)
    with pytest.raises(ArtifactError, match=message):
        load_denoiser(path)


def test_tensors_that_do_not_fit(random_dit: Build, tmp_path: Path) -> None:
    path, model = tmp_path / "denoiser.safetensors", random_dit()
    save_denoiser(model, path)
    tensors = load_file(path)
    rewrite(path, model, {name: value for name, value in tensors.items() if name != "blocks.2.mlp.fc1.bias"})
    with pytest.raises(ArtifactError, match=r"'blocks.2.mlp.fc1.bias' is missing"):
        load_denoiser(path)
    rewrite(path, model, {**tensors, "blocks.4.extra": torch.zeros(1)})
    with pytest.raises(ArtifactError, match=r"'blocks.4.extra' belongs to no part"):
        load_denoiser(path)
