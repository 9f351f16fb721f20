"""Export of the encoder half as a plain Vision Transformer (timm), for transfer with a fixed time step.

Once the time is fixed, every modulation is a constant and folds into the weights around it: shift and scale become the
affine of the norms, gates multiply the last linear layer of each branch. What is left is a ViT with the parameters of a
plain ViT of that size, which is how the study counts them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

import ablation.torchvision_compat  # noqa: F401  before timm, which imports torchvision
from ablation.denoiser.dit import DiT
from ablation.denoiser.exchange import portable, read_safetensors
from ablation.errors import ArtifactError, ConfigError
from ablation.store import atomic_path, write_json

from timm.models.vision_transformer import VisionTransformer  # isort: skip

CONFIG, WEIGHTS = "config.json", "model.safetensors"
ARCHITECTURE = "vit_base_patch16_224"
"""The entry of timm's registry that model_args are applied to; they override its size."""

HEAD_STD = 2e-5
"""Spread of a fresh head's weights, as MAE's: the first steps move the head and leave the encoder alone."""

FIX = "Give a folder that was written as an exported ViT, complete and unchanged."


def export_vit(
    model: DiT, time: float, patch_size: int, weight: Tensor | None = None, bias: Tensor | None = None, depth: int | None = None
) -> VisionTransformer:
    """Turn the encoder into a timm VisionTransformer on images (B, 3, H, W) in [-1, 1], on the CPU and in eval mode.

    Its forward_features give the tokens (B, N, width) that `model.encode` gives at this time with the null label; its output
    is their mean. It has no class token, no norm at the end and no head (`reset_classifier` adds one).

    time: what the network is told, `Process.network_time(t)`. patch_size: pixels per token side. weight (in_dim, D), bias
    (in_dim,): the affine map from a patch flattened as (row, column, channel), D = 3 patch_size^2, to an input token (None: the
    patch itself); it holds the tokenizer's projection, the scale of the latents and gamma_t. depth: blocks kept (None: the
    encoder half). Errors: ConfigError if shapes or depth do not fit. Source: study, section 4 (time fixed at transfer).
    """
    arch = model.architecture
    depth = arch.encoder_depth if depth is None else depth
    if not 1 <= depth <= arch.depth:
        raise ConfigError(f"depth {depth} of the exported encoder", f"The network has blocks 1 to {arch.depth}.")
    pixels = 3 * patch_size**2
    weight = torch.eye(pixels) if weight is None else weight
    bias = torch.zeros(len(weight)) if bias is None else bias
    if weight.shape != (arch.in_dim, pixels) or bias.shape != (arch.in_dim,):
        shapes = f"{list(weight.shape)} and {list(bias.shape)}"
        raise ConfigError(
            f"input map of shapes {shapes}", f"The network takes {[arch.in_dim, pixels]} and {[arch.in_dim]} at this patch size."
        )
    vit = VisionTransformer(**_arguments(arch.grid * patch_size, patch_size, arch.width, depth, arch.heads, num_classes=0))
    vit.load_state_dict(_fold(model, time, patch_size, weight, bias, depth))
    return vit.eval()


def _arguments(image_size: int, patch_size: int, width: int, depth: int, heads: int, num_classes: int) -> dict[str, Any]:
    """Return timm's arguments for a ViT without class token and final norm, pooled by average."""
    return {
        "img_size": image_size,
        "patch_size": patch_size,
        "embed_dim": width,
        "depth": depth,
        "num_heads": heads,
        "num_classes": num_classes,
        "class_token": False,
        "global_pool": "avg",
        "final_norm": False,
        "fc_norm": False,
        "act_layer": "gelu_tanh",
    }


@torch.no_grad()
def _fold(model: DiT, time: float, patch_size: int, weight: Tensor, bias: Tensor, depth: int) -> dict[str, Tensor]:
    """Fold time, null label and input map into the weights of a ViT, in float64; returns its state dict in float32."""
    state = model.state_dict()

    def exact(name: str) -> Tensor:
        return state[name].cpu().double()

    now = torch.full((1,), float(time), device=model.position.device)
    modulation = model.block_modulation(now)[0].cpu().double()  # (depth, 6, width)
    weight, bias = weight.detach().cpu().double(), bias.detach().cpu().double()
    channels = weight.shape[1] // patch_size**2
    patch = (exact("embed.weight") @ weight).unflatten(1, (patch_size, patch_size, channels)).permute(0, 3, 1, 2)  # (width, c, p, p)
    folded = {
        "pos_embed": model.position.cpu(),
        "patch_embed.proj.weight": patch,
        "patch_embed.proj.bias": exact("embed.weight") @ bias + exact("embed.bias"),
    }
    for i in range(depth):
        block = f"blocks.{i}"
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation[i]
        folded |= {f"{block}.norm1.weight": 1 + scale1, f"{block}.norm1.bias": shift1}
        folded |= {f"{block}.norm2.weight": 1 + scale2, f"{block}.norm2.bias": shift2}
        for kind in ("weight", "bias"):
            for same in ("attn.qkv", "mlp.fc1"):
                folded[f"{block}.{same}.{kind}"] = exact(f"{block}.{same}.{kind}")
            for gated, gate in (("attn.proj", gate1), ("mlp.fc2", gate2)):
                value = exact(f"{block}.{gated}.{kind}")
                folded[f"{block}.{gated}.{kind}"] = gate[:, None] * value if kind == "weight" else gate * value
    return {name: value.float() for name, value in folded.items()}


def export_classifier(model: DiT, time: float, num_classes: int, drop_path: float, depth: int | None = None) -> VisionTransformer:
    """Turn the encoder into a trainable timm VisionTransformer on maps of its input tokens (B, in_dim, grid, grid), with a head.

    As MAE's for fine-tuning: the tokens' mean, a norm, a linear head of small weights drawn from torch's random state, and
    stochastic depth rising linearly to `drop_path` at the last block. Arguments otherwise as in export_vit.
    """
    arch = model.architecture
    depth = arch.encoder_depth if depth is None else depth
    if not 1 <= depth <= arch.depth:
        raise ConfigError(f"depth {depth} of the exported encoder", f"The network has blocks 1 to {arch.depth}.")
    arguments = _arguments(arch.grid, 1, arch.width, depth, arch.heads, num_classes) | {"final_norm": True, "fc_norm": True}
    vit = VisionTransformer(**arguments, in_chans=arch.in_dim, drop_path_rate=drop_path)
    torch.nn.init.trunc_normal_(vit.head.weight, std=HEAD_STD)
    torch.nn.init.zeros_(vit.head.bias)
    folded = _fold(model, time, 1, torch.eye(arch.in_dim), torch.zeros(arch.in_dim), depth)
    fresh = {name: value for name, value in vit.state_dict().items() if name.startswith(("fc_norm.", "head."))}
    vit.load_state_dict({**folded, **fresh})
    return vit


def save_vit(vit: VisionTransformer, path: Path) -> None:
    """Write an exported ViT to a folder: model.safetensors, and config.json with timm's arguments to build it again.

    The folder is in timm's own format: `timm.create_model("local-dir:FOLDER", pretrained=True)` reads it as well.
    """
    embed = vit.patch_embed
    size, patch = int(embed.img_size[0]), int(embed.patch_size[0])
    arguments = _arguments(size, patch, vit.embed_dim, len(vit.blocks), vit.blocks[0].attn.num_heads, vit.num_classes)
    pretrained = {
        "input_size": [3, size, size],
        "mean": [0.5, 0.5, 0.5],  # so that images in [0, 1] become [-1, 1]
        "std": [0.5, 0.5, 0.5],
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "num_classes": vit.num_classes,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }
    config = {"architecture": ARCHITECTURE, "num_classes": vit.num_classes, "model_args": arguments, "pretrained_cfg": pretrained}
    with atomic_path(path / WEIGHTS) as temporary:
        save_file(portable(vit.state_dict()), temporary, {"format": "pt"})
    write_json(path / CONFIG, config)


def load_vit(path: Path) -> VisionTransformer:
    """Read a ViT written by save_vit, on the CPU and in eval mode; ArtifactError if a file is missing or does not fit."""
    file = path / CONFIG
    try:
        arguments = json.loads(file.read_text(encoding="utf-8"))["model_args"]
        vit = VisionTransformer(**arguments)
    except FileNotFoundError:
        raise ArtifactError(f"{file} is missing", FIX) from None
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise ArtifactError(f"{file} is unreadable: {type(error).__name__}: {error}", FIX) from None
    tensors, _ = read_safetensors(path / WEIGHTS)
    try:
        vit.load_state_dict(tensors)
    except RuntimeError as error:
        raise ArtifactError(f"{path / WEIGHTS} does not fit {CONFIG}: {error}", FIX) from None
    return vit.eval()
