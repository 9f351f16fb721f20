"""Networks from elsewhere as frozen encoders: timm's pretrained models, weight files, exported encoders, or random weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import ablation.torchvision_compat  # noqa: F401  before timm, which imports torchvision
from ablation.data.augmentations import seeded
from ablation.denoiser.export import load_vit
from ablation.efficientnet import load_efficientnet_lite0
from ablation.errors import ConfigError, nearest

import timm  # isort: skip

PACKAGED = "efficientnet_lite0"
"""The one name whose weights come inside an ordinary Python package, so that no download is needed."""

HEADS = ("head", "fc", "classifier", "last_linear")  # prefixes of what timm calls a classifier
FIX = (
    "Give a weight file with --weights FILE, an exported encoder's folder as the name, --random, "
    "or efficientnet_lite0, whose weights are installed."
)


@dataclass(frozen=True)
class Checkpoint:
    """A frozen network, how its images are prepared, and what is said of both."""

    network: Any
    side: int  # pixels a side that it sees
    mean: tuple[float, ...]
    std: tuple[float, ...]
    words: str
    parameters: int

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return features (B, C) float32 of images (B, 3, H, W) in [-1, 1], resized and normalised as the network was trained."""
        pixels = (images + 1) / 2
        if pixels.shape[-1] != self.side:
            size = (self.side, self.side)
            pixels = nn.functional.interpolate(pixels, size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        mean, std = (torch.tensor(values, device=pixels.device)[:, None, None] for values in (self.mean, self.std))  # (3, 1, 1)
        pixels = (pixels - mean) / std
        return pooled(self.network, pixels).float()


def pooled(network: Any, pixels: Tensor) -> Tensor:
    """Return the mean of a transformer's image tokens, without its class token, or another network's own pooled features."""
    features = network.forward_features(pixels)
    if features.ndim == 3:  # (B, N, C) tokens
        return features[:, getattr(network, "num_prefix_tokens", 0) :].mean(dim=1)
    return network.forward_head(features, pre_logits=True)


def open_checkpoint(name: str, weights: str | None, seed: int | None, image_size: int, input_size: int | None) -> Checkpoint:
    """Load a network in evaluation mode on the CPU.

    name: a timm model, efficientnet_lite0, or the folder of an exported encoder. weights: a file instead of timm's own download.
    seed: draw the weights at random instead. image_size: of the data; input_size: pixels a side the network shall see (None: its own).
    Raises ConfigError for an unknown name, or weights that cannot be had or do not fit.
    """
    if Path(name).is_dir():
        network = load_vit(Path(name))
    elif name == PACKAGED:
        network = _randomised(timm.create_model("tf_efficientnet_lite0"), seed) if seed is not None else load_efficientnet_lite0(weights)
    else:
        network = _timm_model(name, weights, seed, input_size)
    network = network.eval().requires_grad_(False)
    exported = Path(name).is_dir()
    cfg = _exported_input(network) if exported else network.pretrained_cfg
    side = input_size or int(cfg["input_size"][-1])
    if exported and side != cfg["input_size"][-1]:
        raise ConfigError(f"the exported encoder in {name} takes {cfg['input_size'][-1]} pixels a side", "Leave --input-size out.")
    tokens = hasattr(network, "patch_embed") and hasattr(network, "blocks")
    words = "the mean of its image tokens" if tokens else "its own pooled features"
    resized = "" if side == image_size else f", images resized from {image_size} to {side} px (bicubic)"
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return Checkpoint(network, side, tuple(cfg["mean"]), tuple(cfg["std"]), f"{words}{resized}", parameters)


def _exported_input(network: Any) -> dict[str, Any]:
    """Say what images an exported encoder takes: those in [-1, 1], at the size it was trained at."""
    return {"mean": (0.5,) * 3, "std": (0.5,) * 3, "input_size": (3, *network.patch_embed.img_size)}


def _timm_model(name: str, weights: str | None, seed: int | None, input_size: int | None) -> Any:
    """Build a timm model with weights drawn, read from a file, or fetched by timm."""
    if not timm.is_model(name):
        raise ConfigError(f"timm has no model '{name}'", nearest(name.split(".")[0], timm.list_models()))
    sized = {"img_size": input_size} if input_size is not None and "vit" in name else {}
    if seed is not None:
        with seeded(seed):
            return timm.create_model(name, pretrained=False, **sized)
    if weights is not None:
        network = timm.create_model(name, pretrained=False, **sized)
        _load(network, Path(weights))
        return network
    try:
        return timm.create_model(name, pretrained=True, **sized)
    except Exception as error:  # noqa: BLE001  (timm and its hub raise whatever their transport does)
        raise ConfigError(f"the weights of {name} cannot be had: {type(error).__name__}: {str(error).rstrip('.')}", FIX) from None


def _randomised(network: nn.Module, seed: int) -> nn.Module:
    """Draw a network's weights anew from a seed, as its layers do when they are made."""
    with seeded(seed):
        for module in network.modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
    return network


def _load(network: nn.Module, path: Path) -> None:
    """Read weights from a safetensors or torch file; a classifier's may be missing or of other classes, nothing else."""
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001  (a bad file can raise anything)
        raise ConfigError(f"--weights {path} cannot be read: {type(error).__name__}: {error}", FIX) from None
    for key in ("state_dict", "model"):
        state = state[key] if isinstance(state, dict) and isinstance(state.get(key), dict) else state
    wanted = network.state_dict()
    fitting = {name: value for name, value in state.items() if name in wanted and wanted[name].shape == value.shape}
    absent = [name for name in wanted if name not in fitting and not name.startswith(HEADS)]
    if absent:
        raise ConfigError(f"--weights {path} lacks {absent[0]} and {len(absent) - 1} more of the network's tensors", FIX)
    network.load_state_dict({**wanted, **fitting})
