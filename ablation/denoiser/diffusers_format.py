"""Exchange of denoisers with the diffusers library: read a published DiT, write ours for DiTTransformer2DModel.

Neither way needs that library. Beware of what differs there: every block owns a copy of the embeddings of time and label, a
learned variance is interleaved with the prediction pixel by pixel, and the norm before the MLP has its own epsilon.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from ablation.denoiser.dit import Architecture, DiT
from ablation.denoiser.exchange import assemble, portable, read_safetensors
from ablation.errors import ArtifactError, ConfigError
from ablation.store import atomic_path, write_json

CONFIG, WEIGHTS, PICKLED = "config.json", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"

FIXED: dict[str, Any] = {
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "norm_elementwise_affine": False,
    "norm_type": "ada_norm_zero",
}
"""Settings of diffusers' class that our network has built in."""

FIX = "Give the transformer folder of a DiT as diffusers saves it, complete and unchanged."

COUNTS = (
    *("num_attention_heads", "attention_head_dim", "num_layers", "num_embeds_ada_norm"),
    *("in_channels", "out_channels", "sample_size", "patch_size"),
)
"""Settings of diffusers' class that are whole numbers above 0."""

EMBEDDINGS = {
    "time_embed.fc1.weight": "norm1.emb.timestep_embedder.linear_1.weight",
    "time_embed.fc1.bias": "norm1.emb.timestep_embedder.linear_1.bias",
    "time_embed.fc2.weight": "norm1.emb.timestep_embedder.linear_2.weight",
    "time_embed.fc2.bias": "norm1.emb.timestep_embedder.linear_2.bias",
    "class_embed.weight": "norm1.emb.class_embedder.embedding_table.weight",
}
"""Ours to theirs, of which every block there has a copy."""

LAYERS = {"attn.proj": "attn1.to_out.0", "mlp.fc1": "ff.net.0.proj", "mlp.fc2": "ff.net.2"}
"""Ours to theirs, within a block."""


def from_diffusers(path: Path, encoder_depth: int | None = None) -> DiT:
    """Read a DiT in diffusers' format (config.json with .safetensors, or .bin loaded as bare tensors), in eval mode.

    path: the transformer's folder, or the pipeline's folder around it. Tokens are patch_size x patch_size latent pixels
    flattened in the order (row, column, channel); with learned variance the output has the prediction's numbers first, then
    the variance's. time is diffusers' timestep, 0 to 999. encoder_depth: as in DiT (None: half).
    Errors: ArtifactError naming the file, and the setting or tensor that does not fit.
    """
    folder = path / "transformer" if (path / "transformer" / CONFIG).is_file() else path
    config = _read_config(folder / CONFIG)
    theirs, file = _read_weights(folder)
    width = config["num_attention_heads"] * config["attention_head_dim"]
    side, channels, depth = config["patch_size"], config["in_channels"], config["num_layers"]
    grid = config["sample_size"] // side
    theirs.pop("pos_embed.pos_embed", None)  # the fixed sinusoids, which old versions saved
    _check_copies(theirs, depth, file)
    ours = _to_ours(theirs, config, file)
    if not ours["class_embed.weight"].any():  # how to_diffusers writes a network without class conditioning
        del ours["class_embed.weight"]
    try:
        architecture = Architecture(
            in_dim=side**2 * channels,
            out_dim=side**2 * config["out_channels"],
            grid=grid,
            width=width,
            depth=depth,
            heads=config["num_attention_heads"],
            modulation_ratio=1.0,
            encoder_depth=max(1, depth // 2) if encoder_depth is None else encoder_depth,
            num_classes=config["num_embeds_ada_norm"] if "class_embed.weight" in ours else 0,
            frequency_shift=1,
            mlp_norm_eps=float(config["norm_eps"]),
        )
    except ConfigError as error:
        raise ArtifactError(f"{folder / CONFIG}: {error.problem}", error.fix) from None
    return assemble(architecture, ours, file, FIX)


def to_diffusers(model: DiT, path: Path, patch_size: int) -> None:
    """Write a denoiser as a folder that diffusers' DiTTransformer2DModel.from_pretrained reads, with equal outputs.

    patch_size: latent pixels per token side, so that in_dim = patch_size^2 x channels (1 for one token per latent pixel). An
    output twice as wide as the input is written as prediction and learned variance. A narrower conditioning is padded with
    zeros, a missing class embedding becomes one class of zeros. Errors: ConfigError if the model has no such form.
    """
    arch = model.architecture
    if arch.in_dim % patch_size**2 or arch.out_dim % patch_size**2:
        raise ConfigError(
            f"patch_size {patch_size} does not divide {arch.in_dim} numbers per token",
            "Give 1, or a side whose square divides it.",
        )
    if arch.frequency_shift != 1:
        raise ConfigError(
            f"denoiser frequency_shift is {arch.frequency_shift}", "Only a network built with 1 has diffusers' sinusoids of t."
        )
    config = {
        **FIXED,
        "_class_name": "DiTTransformer2DModel",
        "num_attention_heads": arch.heads,
        "attention_head_dim": arch.width // arch.heads,
        "in_channels": arch.in_dim // patch_size**2,
        "out_channels": arch.out_dim // patch_size**2,
        "num_layers": arch.depth,
        "sample_size": arch.grid * patch_size,
        "patch_size": patch_size,
        "num_embeds_ada_norm": max(1, arch.num_classes),
        "norm_eps": arch.mlp_norm_eps,
        "dropout": 0.0,
        "norm_num_groups": 32,
        "upcast_attention": False,
    }
    weights = _to_theirs(model, patch_size)
    with atomic_path(path / WEIGHTS) as temporary:
        save_file(portable(weights), temporary, {"format": "pt"})
    write_json(path / CONFIG, config)


def _read_config(file: Path) -> dict[str, Any]:
    """Read and check config.json; out_channels and norm_eps may be absent, as in older files: then as in diffusers."""
    if not file.is_file():
        raise ArtifactError(f"{file} is missing", FIX)
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{file} is unreadable: {error}", FIX) from None
    if not isinstance(config, dict):
        raise ArtifactError(f"{file} holds no settings", FIX)
    if config.get("norm_eps") is None:
        config["norm_eps"] = 1e-5
    if config.get("out_channels") is None:
        config["out_channels"] = config.get("in_channels")
    for name in COUNTS:
        if type(config.get(name)) is not int or config[name] < 1:
            raise ArtifactError(f"{file}: '{name}' is {config.get(name)!r}, not a whole number above 0", FIX)
    if not isinstance(config["norm_eps"], float):
        raise ArtifactError(f"{file}: 'norm_eps' is {config['norm_eps']!r}, not a number", FIX)
    if config["sample_size"] % config["patch_size"]:
        raise ArtifactError(f"{file}: 'sample_size' {config['sample_size']} is no multiple of 'patch_size' {config['patch_size']}", FIX)
    for name, value in FIXED.items():
        if config.get(name, value) != value:
            raise ArtifactError(f"{file}: '{name}' is {config[name]!r}, but a DiT has {value!r}", FIX)
    return config


def _read_weights(folder: Path) -> tuple[dict[str, Tensor], Path]:
    """Read the weights as float32 and say from which file; a .bin is loaded as bare tensors, never as code."""
    file = folder / WEIGHTS
    if file.is_file() or not (folder / PICKLED).is_file():
        tensors, _ = read_safetensors(file)
    else:
        file = folder / PICKLED
        try:
            tensors = torch.load(file, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ArtifactError(f"{file} holds more than tensors, or is damaged: {reason}", f"Use {WEIGHTS} instead.") from None
    if not isinstance(tensors, Mapping) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise ArtifactError(f"{file} holds no named tensors", FIX)
    return {name: value.float() for name, value in tensors.items()}, file


def _take(theirs: dict[str, Tensor], name: str, file: Path) -> Tensor:
    """Remove a tensor from what the file holds and return it."""
    if name not in theirs:
        raise ArtifactError(f"{file}: tensor '{name}' is missing", FIX)
    if not theirs[name].dim():
        raise ArtifactError(f"{file}: tensor '{name}' is a single number", FIX)
    return theirs.pop(name)


def _check_copies(theirs: dict[str, Tensor], depth: int, file: Path) -> None:
    """Drop the copies of the embeddings in blocks 1 and up; our network has one, so they must be equal."""
    for name in EMBEDDINGS.values():
        for i in range(1, depth):
            copy = _take(theirs, f"transformer_blocks.{i}.{name}", file)
            if f"transformer_blocks.0.{name}" in theirs and not torch.equal(copy, theirs[f"transformer_blocks.0.{name}"]):
                problem = f"{file}: 'transformer_blocks.{i}.{name}' differs from block 0's"
                raise ArtifactError(problem, "A DiT has one such embedding; blocks fine-tuned apart cannot be read.")


def _to_ours(theirs: dict[str, Tensor], config: Mapping[str, Any], file: Path) -> dict[str, Tensor]:
    """Rename and rearrange diffusers' tensors; what is left over keeps its name, for the error message."""
    depth, side, channels = config["num_layers"], config["patch_size"], config["in_channels"]

    def take(name: str) -> Tensor:
        return _take(theirs, name, file)

    def stack(names: list[str]) -> Tensor:
        parts = [take(name) for name in names]
        if len({part.shape[1:] for part in parts}) > 1:
            raise ArtifactError(f"{file}: '{names[0]}' and the tensors like it differ in shape", FIX)
        return torch.cat(parts)

    patch = take("pos_embed.proj.weight")
    if patch.shape[1:] != (channels, side, side):
        wanted = f"'in_channels' {channels} and 'patch_size' {side} of config.json"
        raise ArtifactError(f"{file}: 'pos_embed.proj.weight' has shape {list(patch.shape)}, which does not fit {wanted}", FIX)
    ours = {"embed.weight": patch.permute(0, 2, 3, 1).flatten(1), "embed.bias": take("pos_embed.proj.bias")}  # (width, p p C)
    ours.update({name: take(f"transformer_blocks.0.{other}") for name, other in EMBEDDINGS.items()})
    for kind in ("weight", "bias"):
        blocks = [f"transformer_blocks.{i}" for i in range(depth)]
        ours[f"modulation.{kind}"] = stack([*(f"{block}.norm1.linear.{kind}" for block in blocks), f"proj_out_1.{kind}"])
        for i, block in enumerate(blocks):
            ours[f"blocks.{i}.attn.qkv.{kind}"] = stack([f"{block}.attn1.to_{part}.{kind}" for part in "qkv"])
            ours.update({f"blocks.{i}.{name}.{kind}": take(f"{block}.{other}.{kind}") for name, other in LAYERS.items()})
        out = take(f"proj_out_2.{kind}")
        if len(out) != side**2 * config["out_channels"]:
            wanted = f"'out_channels' {config['out_channels']} and 'patch_size' {side} of config.json"
            raise ArtifactError(f"{file}: 'proj_out_2.{kind}' has {len(out)} rows, which does not fit {wanted}", FIX)
        ours[f"out.{kind}"] = _variance_last(out, side**2) if config["out_channels"] == 2 * channels else out
    return {**ours, **theirs}


def _to_theirs(model: DiT, side: int) -> dict[str, Tensor]:
    """Rename and rearrange our tensors to diffusers' names, one copy of the embeddings per block."""
    arch, ours = model.architecture, {name: value.float().cpu() for name, value in model.state_dict().items()}
    narrow = arch.width - arch.conditioning_width  # columns and rows of zeros: silu(0) = 0, so they change nothing
    if "class_embed.weight" not in ours:
        ours["class_embed.weight"] = torch.zeros(2, arch.conditioning_width)
    for name in EMBEDDINGS:
        pad = {"time_embed.fc1.weight": (0, 0, 0, narrow), "time_embed.fc2.weight": (0, narrow, 0, narrow)}
        ours[name] = F.pad(ours[name], pad.get(name, (0, narrow)))
    ours["modulation.weight"] = F.pad(ours["modulation.weight"], (0, narrow))
    patch = ours["embed.weight"].unflatten(1, (side, side, -1)).permute(0, 3, 1, 2)  # (width, C, p, p)
    theirs = {"pos_embed.proj.weight": patch, "pos_embed.proj.bias": ours["embed.bias"]}
    for kind in ("weight", "bias"):
        rows = ours[f"modulation.{kind}"].split(6 * arch.width)  # one part per block, then the final norm's
        theirs[f"proj_out_1.{kind}"] = rows[-1]
        out = ours[f"out.{kind}"]
        theirs[f"proj_out_2.{kind}"] = _variance_interleaved(out, side**2) if arch.out_dim == 2 * arch.in_dim else out
        for i in range(arch.depth):
            block = f"transformer_blocks.{i}"
            theirs[f"{block}.norm1.linear.{kind}"] = rows[i]
            for part, rows_of in zip("qkv", ours[f"blocks.{i}.attn.qkv.{kind}"].chunk(3), strict=True):
                theirs[f"{block}.attn1.to_{part}.{kind}"] = rows_of
            theirs.update({f"{block}.{other}.{kind}": ours[f"blocks.{i}.{name}.{kind}"] for name, other in LAYERS.items()})
    for i in range(arch.depth):
        theirs.update({f"transformer_blocks.{i}.{other}": ours[name] for name, other in EMBEDDINGS.items()})
    return theirs


def _variance_last(rows: Tensor, pixels: int) -> Tensor:
    """Reorder output rows from (pixel, prediction or variance, channel) to (prediction or variance, pixel, channel)."""
    return rows.unflatten(0, (pixels, 2, -1)).transpose(0, 1).flatten(0, 2)


def _variance_interleaved(rows: Tensor, pixels: int) -> Tensor:
    """Undo _variance_last."""
    return rows.unflatten(0, (2, pixels, -1)).transpose(0, 1).flatten(0, 2)
