"""Perceptual distances between images: squared differences of a frozen network's features."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ablation.errors import ConfigError
from ablation.tokenizers.checks import check_perceptual_network

_PART = "perceptual:"
_SMALL = 1e-10  # keeps the direction of an all-zero feature finite, as in LPIPS
_CONVOLUTIONS = (2, 2, 3, 3, 3)  # of VGG16's five stages
_WIDTHS = (64, 128, 256, 512, 512)
_LPIPS_SHIFT = (-0.030, -0.088, -0.188)  # ImageNet's mean and sd, for images in [-1, 1]
_LPIPS_SCALE = (0.458, 0.448, 0.450)
_VGG_URL = "https://download.pytorch.org/models/vgg16-397923af.pth"
_VGG_FIX = (
    "Let tokenizer.perceptual_path name torchvision's VGG16 weight file (vgg16-397923af.pth), or a folder that holds it and LPIPS's "
    "vgg.pth; without a path it is downloaded. The heads also come with 'pip install lpips'."
)
_ST_FIX = (
    "Run 'pip install --no-deps stlpips-pytorch', or let tokenizer.perceptual_path name its file vgg_shift_tolerant.pth "
    "(read the note on its licence in the docstring of st_lpips first)."
)


class PerceptualDistance(nn.Module):
    """A frozen distance between images; `forward` maps two batches (B, 3, H, W) in [-1, 1] to (B,) distances."""

    def features(self, images: Tensor) -> list[Tensor]:
        """Return feature maps (B, C_i, H_i, W_i), shallow to deep."""
        raise NotImplementedError

    def heads(self) -> list[Tensor | None]:
        """Return the weight of each channel per feature map, (C_i,), or None for equal weights."""
        raise NotImplementedError

    def forward(self, images: Tensor, reconstructions: Tensor) -> Tensor:
        """Return the distance of each pair (B,); gradients flow to the reconstructions only."""
        with torch.no_grad():
            targets = [_directions(features) for features in self.features(images)]
        distance = reconstructions.new_zeros(len(reconstructions), dtype=torch.float32)
        for target, features, head in zip(targets, self.features(reconstructions), self.heads(), strict=True):
            difference = (target - _directions(features)).square()  # (B, C, H, W)
            if head is not None:
                difference = difference * head.view(1, -1, 1, 1)
            distance = distance + difference.sum(1).mean((1, 2))  # (B,)
        return distance


class EfficientNetDistance(PerceptualDistance):
    """Mean over five stages of the squared distance between channel-normalised features of EfficientNet-Lite0.

    Not LPIPS: no weights are fitted to human judgement. The network was trained on ImageNet's labels, so the distance
    carries class information, as LPIPS does. Images are taken at their own size: at 32 pixels the five stages still have
    16 to 2 positions a side. Values lie in [0, 4].
    """

    stages = 5

    def __init__(self, path: str | None) -> None:
        super().__init__()
        from ablation.efficientnet import load_efficientnet_lite0, stage_features

        self.network = _channels_last(load_efficientnet_lite0(path))
        self._stage_features = stage_features

    def features(self, images: Tensor) -> list[Tensor]:
        """Return the first five stages' outputs."""
        return self._stage_features(self.network, images.contiguous(memory_format=torch.channels_last), self.stages)

    def heads(self) -> list[Tensor | None]:
        """Return no channel weights."""
        return [None] * self.stages

    def forward(self, images: Tensor, reconstructions: Tensor) -> Tensor:
        """Return the distance of each pair (B,); gradients flow to the reconstructions only."""
        return super().forward(images, reconstructions) / self.stages


class VGGDistance(PerceptualDistance):
    """LPIPS on a VGG16-shaped trunk: channel-normalised features, squared differences, one fitted weight per channel.

    Source: Zhang et al. 2018, arXiv 1801.03924. `anti_aliased` pools as shift-tolerant LPIPS does: maximum over 2x2 at
    stride 1, then a 3x3 binomial blur at stride 2 on a map reflected by 2 pixels (Ghildyal and Liu 2022, arXiv 2207.13686).
    """

    shift: Tensor
    scale: Tensor
    blur: Tensor

    def __init__(self, anti_aliased: bool) -> None:
        super().__init__()
        self.anti_aliased = anti_aliased
        self.register_buffer("shift", torch.tensor(_LPIPS_SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(_LPIPS_SCALE).view(1, 3, 1, 1))
        tap = torch.tensor([0.25, 0.5, 0.25])
        self.register_buffer("blur", torch.outer(tap, tap).view(1, 1, 3, 3))
        stages: list[nn.ModuleList] = []
        before = 3
        for width, count in zip(_WIDTHS, _CONVOLUTIONS, strict=True):
            inputs = [before] + [width] * (count - 1)
            stages.append(nn.ModuleList(nn.Conv2d(channels, width, 3, padding=1) for channels in inputs))
            before = width
        self.stages = nn.ModuleList(stages)
        self.channel_weights = nn.ParameterList(torch.ones(width) for width in _WIDTHS)
        _channels_last(self.requires_grad_(False))

    def features(self, images: Tensor) -> list[Tensor]:
        """Return the last activation of each of the five stages."""
        features = (images - self.shift) / self.scale
        maps: list[Tensor] = []
        for stage in self.stages:
            if maps:
                features = self._pool(features)  # (B, C, H/2, W/2)
            for convolution in cast(nn.ModuleList, stage):
                features = F.relu(convolution(features))
            maps.append(features)
        return maps

    def heads(self) -> list[Tensor | None]:
        """Return the fitted weight of each channel."""
        return list(self.channel_weights)

    def _pool(self, features: Tensor) -> Tensor:
        """Halve the resolution of (B, C, H, W)."""
        if not self.anti_aliased:
            return F.max_pool2d(features, 2)
        channels = features.shape[1]
        smooth = F.pad(F.max_pool2d(features, 2, stride=1), (2, 2, 2, 2), mode="reflect")
        return F.conv2d(smooth, self.blur.expand(channels, 1, 3, 3), stride=2, groups=channels)

    def load(self, convolutions: list[Tensor], channel_weights: list[Tensor], source: str, fix: str) -> None:
        """Copy weights and biases of the 13 convolutions, in order, and the five heads; ConfigError where shapes disagree."""
        targets = [tensor for stage in self.stages for layer in cast(nn.ModuleList, stage) for tensor in layer.parameters()]
        targets += list(self.channel_weights)
        given = convolutions + [weights.flatten() for weights in channel_weights]
        if [tuple(tensor.shape) for tensor in targets] != [tuple(tensor.shape) for tensor in given]:
            raise ConfigError(f"{source} does not hold a VGG16 trunk with its heads", fix)
        for target, tensor in zip(targets, given, strict=True):
            target.data.copy_(tensor)


def lpips_vgg(path: str | None) -> VGGDistance:
    """Build LPIPS with torchvision's VGG16 and the heads of the package lpips (version 0.1), for paper scale.

    `path` names the VGG16 weight file, or a folder with it and the heads' vgg.pth; None downloads the VGG16 file.
    Raises: ConfigError, naming the fix, if a file is missing, not downloadable, or holds other weights.
    """
    trunk = _vgg_state(Path(path) if path else None)
    heads = _load(_lpips_heads(Path(path) if path else None), _VGG_FIX)
    names = sorted((n for n in trunk if n.startswith("features.")), key=lambda n: (int(n.split(".")[1]), n.endswith("bias")))
    distance = VGGDistance(anti_aliased=False)
    distance.load([trunk[name] for name in names], [heads[name] for name in sorted(heads)], "the weight file of LPIPS", _VGG_FIX)
    return distance


def st_lpips(path: str | None) -> VGGDistance:
    """Build shift-tolerant LPIPS (VGG shape) from the weight file of the package stlpips-pytorch 0.0.2.

    `path` names the file vgg_shift_tolerant.pth; None takes the one of the installed package, whose code is never imported.
    Beware of the licence: the package's metadata says BSD-2-Clause (with an MIT classifier), yet some of its source files
    carry a CC BY-NC-SA 4.0 header. This module shares no code with it, and users must fetch the file themselves.
    Raises: ConfigError, naming the fix, if the file is missing or holds other weights.
    """
    file = Path(path) if path else _packaged("stlpips_pytorch", "weights/vST0.0/vgg_shift_tolerant.pth", _ST_FIX)
    state = _load(file, _ST_FIX)
    trunk = [n for n in state if n.startswith("net.") and not n.endswith(".filt")]
    trunk.sort(key=lambda n: (int(n.split(".")[2]), n.endswith("bias")))
    heads = sorted(n for n in state if n.startswith("lin"))
    distance = VGGDistance(anti_aliased=True)
    distance.load([state[name] for name in trunk], [state[name] for name in heads], str(file), _ST_FIX)
    return distance


def build_perceptual(name: str, path: str | None, parts: Mapping[str, Any]) -> PerceptualDistance:
    """Build the frozen perceptual distance that a configuration names.

    `parts` maps "perceptual:NAME" to what a plugin provides; it is called with the path.
    Raises: ConfigError for an unknown name or missing weights.
    """
    check_perceptual_network(name, tuple(part.removeprefix(_PART) for part in parts if part.startswith(_PART)))
    built_in = {"efficientnet_lite0": EfficientNetDistance, "lpips_vgg": lpips_vgg, "st_lpips": st_lpips}
    distance: PerceptualDistance = (parts.get(_PART + name) or built_in[name])(path)
    return distance.eval().requires_grad_(False)


def _channels_last(network: nn.Module) -> nn.Module:
    """Store convolutions' weights channels-last: on a CPU depthwise ones then run about twice as fast."""
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _directions(features: Tensor) -> Tensor:
    """Scale each position's feature vector to length 1: (B, C, H, W) -> same, float32."""
    features = features.float()
    return features / (features.square().sum(1, keepdim=True) + _SMALL).sqrt()


def _vgg_state(path: Path | None) -> dict[str, Tensor]:
    """Read torchvision's VGG16 weights from a file or folder, or download them."""
    if path is not None:
        return _load(path / Path(_VGG_URL).name if path.is_dir() else path, _VGG_FIX)
    try:
        state: dict[str, Tensor] = torch.hub.load_state_dict_from_url(_VGG_URL, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ConfigError(f"the VGG16 weights of LPIPS could not be downloaded ({error})", _VGG_FIX) from None
    return state


def _lpips_heads(path: Path | None) -> Path:
    """Find the heads' file: in the named folder, else in the installed package lpips."""
    if path is not None and path.is_dir() and (path / "vgg.pth").is_file():
        return path / "vgg.pth"
    return _packaged("lpips", "weights/v0.1/vgg.pth", _VGG_FIX)


def _packaged(package: str, file: str, fix: str) -> Path:
    """Find a file inside an installed package without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"the weights of the package {package} are not installed", fix)
    return Path(spec.submodule_search_locations[0]) / file


def _load(file: Path, fix: str) -> dict[str, Tensor]:
    """Read a weight file of plain tensors."""
    if not file.is_file():
        raise ConfigError(f"there is no weight file at {file}", fix)
    state: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    return state
