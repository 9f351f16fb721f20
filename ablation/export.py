"""Write a trained denoiser for use elsewhere: its encoder as a plain timm ViT, or the whole network for diffusers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ablation.config import from_nested
from ablation.denoiser.diffusers_format import to_diffusers
from ablation.denoiser.exchange import load_denoiser
from ablation.denoiser.export import export_vit, save_vit
from ablation.errors import ConfigError, nearest
from ablation.jobs.context import JobIO
from ablation.jobs.parts import Setting, load_setting
from ablation.launch.worker import checked_sources
from ablation.store import DENOISER, DENOISER_AVERAGE, Store
from ablation.tokenizers.base import unpatchify

FORMATS = ("vit", "diffusers")


def export(store: Store, cell: Mapping[str, Any], target: str, out: Path) -> str:
    """Write a cell's trained network to a folder and say in a sentence what it is.

    target "vit": the encoder half with the probed time step, the tokenizer and the latent scale folded in, on images in
    [-1, 1]; needs a patch-wise tokenizer. target "diffusers": the whole network as DiTTransformer2DModel reads it.
    Raises ConfigError for an unknown format, an unfinished training, or a network the format cannot hold.
    """
    if target not in FORMATS:
        raise ConfigError(f"unknown format '{target}'", nearest(target, FORMATS))
    train = cell["jobs"].get("train")
    if train is None or store.state(train).name != "done":
        raise ConfigError(f"cell '{cell['id']}' has no finished training", "Run the study first; `ablate status` shows how far it is.")
    io = job_io(store, train)
    config = io.config
    denoiser = load_denoiser(store.artifact(train, DENOISER_AVERAGE if config.probe.weights == "ema" else DENOISER))
    setting = load_setting(io, io.inputs["encode"], io.ancestor("encode", "tokenizer"))
    if target == "diffusers":
        side = config.tokenizer.patch_size // config.tokenizer.stride if config.tokenizer.kind == "conv" else 1
        to_diffusers(denoiser, out, side if setting.process.input_space == "latent" else config.tokenizer.patch_size)
        return f"{sum(p.numel() for p in denoiser.parameters()):,} parameters for diffusers' DiTTransformer2DModel; it is told t - 1"
    if config.tokenizer.kind == "conv":
        raise ConfigError(
            "a convolutional tokenizer cannot be folded into a patch embedding", "Export for diffusers, or a stage with a patch tokenizer."
        )
    weight, bias = input_map(setting)
    t = torch.tensor([config.probe.timestep])
    vit = export_vit(denoiser, float(setting.process.network_time(t)), config.tokenizer.patch_size, weight, bias)
    save_vit(vit, out)
    return f"{sum(p.numel() for p in vit.parameters()):,} parameters as a plain ViT, time step {config.probe.timestep} folded in"


@torch.no_grad()
def input_map(setting: Setting) -> tuple[Tensor, Tensor]:
    """Return the affine map from a flattened patch in [-1, 1] to the network's input token at the probed time step.

    weight (in_dim, D), bias (in_dim,). It is read off by sending the zero patch and every unit patch through the tokenizer,
    the scaler and the inverse PCA, so it holds whatever patch-wise affine tokenizer is used. Clean input: gamma_t z_0.
    """
    tokenizer, dim = setting.tokenizer, setting.tokenizer.patch_dim
    gamma = float(setting.process.gamma[setting.config.probe.timestep])
    patches = torch.cat([torch.zeros(1, dim), torch.eye(dim)])  # (1 + D, D)
    tokens = torch.zeros(1 + dim, tokenizer.tokens, dim)
    tokens[:, 0] = patches
    images = unpatchify(tokens, tokenizer.patch_size)  # (1 + D, N, D) -> (1 + D, 3, H, W)
    if setting.process.input_space == "image":
        assert setting.space is not None
        seen = setting.space.normalise(images)[:, 0]  # (1 + D, D)
    else:
        seen = setting.scaler(tokenizer.encode(images)[0])[:, 0]  # (1 + D, d)
    seen = gamma * seen
    return (seen[1:] - seen[0]).T.contiguous(), seen[0]


def _silent(*said: object) -> None:
    """Say nothing."""


def job_io(store: Store, job_id: str) -> JobIO:
    """Build the view of a finished job that loading its inputs needs, on the CPU."""
    spec = store.spec(job_id)
    if spec is None:
        raise ConfigError(f"{store.job_folder(job_id)} has no readable specification", "Run the study again.")
    return JobIO(
        store=store, job_id=job_id, config=from_nested(spec["config"]), seed=spec["seed"], control=None, inputs=spec["inputs"],
        parts=checked_sources(spec), device=torch.device("cpu"), progress=_silent, log=_silent,
        should_stop=lambda: False, checkpoint_seconds=0.0,
    )  # fmt: skip
