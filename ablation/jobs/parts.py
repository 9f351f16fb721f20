"""Load what earlier jobs made: tokenizers, latents, denoisers; and build what belongs to them. Shared by the job kinds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ablation.config import Config, DenoiserConfig
from ablation.data.images import ImageSet, open_images
from ablation.data.latents import LatentScaler, LatentStore
from ablation.denoiser.diffusers_format import from_diffusers
from ablation.denoiser.dit import DiT, build_denoiser
from ablation.denoiser.exchange import load_denoiser, portable, save_denoiser
from ablation.diffusion.prediction import input_dim, output_dim
from ablation.diffusion.process import Process
from ablation.diffusion.space import PatchSpace
from ablation.errors import ArtifactError, ConfigError
from ablation.jobs.context import JobIO
from ablation.store import DENOISER, DENOISER_AVERAGE, TOKENIZER
from ablation.tokenizers import build_tokenizer
from ablation.tokenizers.base import Tokenizer
from ablation.train.checkpoint import load_tensors, save_tensors
from ablation.train.noise import stream_seed


def images_of(io: JobIO, split: Literal["train", "test"]) -> ImageSet:
    """Open a split of the job's data."""
    return open_images(io.config.data, split, io.store.cache)


def load_tokenizer(io: JobIO, job_id: str) -> Tokenizer:
    """Load a fitted tokenizer, frozen, on the job's device."""
    config = io.config
    tokenizer = build_tokenizer(config.tokenizer, config.data.image_size, io.parts)
    path = io.store.artifact(job_id, TOKENIZER)
    tensors, _ = load_tensors(path)
    try:
        tokenizer.load_state_dict(tensors)
    except RuntimeError as error:
        raise ArtifactError(
            f"{path} does not fit the tokenizer: {error}", "Remove the job's folder and run the same command again."
        ) from None
    return tokenizer.requires_grad_(False).eval().to(io.device)


@dataclass(frozen=True)
class Setting:
    """Everything around the denoiser of one cell: process, latents, their scale, and the inverse PCA where it is used."""

    config: Config
    process: Process
    latents: LatentStore
    scaler: LatentScaler
    tokenizer: Tokenizer
    space: PatchSpace | None
    parts: Mapping[str, Any]

    def fresh_denoiser(self, num_classes: int, seed: int) -> DiT:
        """Build the cell's network with weights drawn from the seed, or read from denoiser.init_path.

        The global random state is left as it was. Raises ConfigError, naming the field, where the weights are of another network.
        """
        config, dim = self.config, self.tokenizer.latent_dim
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(seed, "denoiser"))
            sizes = (input_dim(self.process, self.space, dim), output_dim(self.process, self.space, dim), self.tokenizer.grid)
            if config.denoiser.kind != "dit":
                return _provided_denoiser(config.denoiser, self.parts[f"denoiser:{config.denoiser.kind}"], *sizes, num_classes)
            built = build_denoiser(config.denoiser, *sizes, num_classes)
        return built if config.denoiser.init_path is None else initial_denoiser(Path(config.denoiser.init_path), built)


def _provided_denoiser(cfg: DenoiserConfig, part: Any, in_dim: int, out_dim: int, grid: int, num_classes: int) -> Any:
    """Build a plugin's network. Raises ConfigError, naming it, where it is none."""
    built = part(cfg, in_dim, out_dim, grid, num_classes if cfg.class_conditional else 0)
    whole = callable(getattr(built, "encode", None)) and isinstance(getattr(built, "width", None), int)
    if not isinstance(built, nn.Module) or not whole:
        raise ConfigError(f"denoiser '{cfg.kind}' is no torch module with encode and width", "See ablation/protocols.py: Denoiser.")
    return built


def save_network(network: nn.Module, path: Path) -> None:
    """Write a trained network: ours with its architecture, a plugin's by its tensors alone."""
    if isinstance(network, DiT):
        save_denoiser(network, path)
    else:
        save_tensors(path, portable(network.state_dict()))


def load_network(io: JobIO, setting: Setting, num_classes: int, weights: Literal["ema", "online"]) -> Any:
    """Read the network that the train job wrote, averaged or as last trained, in eval mode on the job's device."""
    path = io.input("train", DENOISER_AVERAGE if weights == "ema" else DENOISER)
    if io.config.denoiser.kind == "dit":
        return load_denoiser(path).to(io.device).eval()
    network = setting.fresh_denoiser(num_classes, io.seed)
    tensors, _ = load_tensors(path)
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise ArtifactError(
            f"{path} does not fit the denoiser: {error}", "Remove the job's folder and run the same command again."
        ) from None
    return network.to(io.device).eval()


def initial_denoiser(path: Path, wanted: DiT) -> DiT:
    """Read a denoiser to start from, ours or in diffusers' format, and check that it is the network the cell asks for."""
    read = from_diffusers(path, wanted.architecture.encoder_depth) if path.is_dir() else load_denoiser(path)
    ours, theirs = asdict(wanted.architecture), asdict(read.architecture)
    if differing := [name for name in ours if ours[name] != theirs[name]]:
        name = differing[0]
        raise ConfigError(
            f"denoiser.init_path holds a network with {name} = {theirs[name]}, but this cell's has {ours[name]}",
            "Choose denoiser.size, denoiser.modulation_ratio, process.learned_variance and the tokenizer to match it.",
        )
    read.checkpoint_activations = wanted.checkpoint_activations
    return read


def load_setting(io: JobIO, encode_job: str, tokenizer_job: str) -> Setting:
    """Load tokenizer and latents of a cell and build its process, on the job's device."""
    config = io.config
    tokenizer = load_tokenizer(io, tokenizer_job)
    latents = LatentStore(io.store.job_folder(encode_job))
    scaler = latents.scaler(config.tokenizer.latent_scale).to(io.device)
    process = Process.from_config(config.process, io.parts).to(io.device)
    space = None
    if tokenizer.orthonormal:
        basis, center = tokenizer.get_buffer("basis"), tokenizer.get_buffer("center")
        space = PatchSpace.build(basis, center, scaler.shift, scaler.scale, tokenizer.patch_size).to(io.device)
    return Setting(config, process, latents, scaler, tokenizer, space, io.parts)


def batches_of(total: int, size: int) -> list[np.ndarray]:
    """Cut 0 ... total - 1 into consecutive index arrays of at most `size`."""
    return [np.arange(start, min(start + size, total)) for start in range(0, total, size)]


def save_progress(io: JobIO, name: str, tensors: dict[str, Tensor], done: int) -> None:
    """Write sums over the first `done` batches to a checkpoint of the job's folder."""
    save_tensors(io.folder / name, tensors, {"done": str(done)})


def read_progress(io: JobIO, name: str) -> tuple[dict[str, Tensor], int] | None:
    """Read what `save_progress` wrote; nothing, with a line in the log, where it cannot be used."""
    if not (io.folder / name).exists():
        return None
    try:
        tensors, metadata = load_tensors(io.folder / name)
        return tensors, int(metadata["done"])
    except (ArtifactError, KeyError, ValueError) as error:
        io.log(f"{name} cannot be used ({error}); starting over")
        return None
