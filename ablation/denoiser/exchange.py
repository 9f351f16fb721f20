"""Denoiser files: weights as safetensors with the architecture in the metadata, so that a file alone gives the network back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ablation.denoiser.dit import Architecture, DiT
from ablation.denoiser.layers import position_embedding
from ablation.errors import ArtifactError, ConfigError
from ablation.store import atomic_path

KEY = "denoiser"
"""Name of the metadata entry that holds the architecture as JSON."""

REMAKE = "Remove the file and run the same command again."


def save_denoiser(model: DiT, path: Path) -> None:
    """Write a denoiser to one safetensors file, atomically. Errors: ArtifactError if the file cannot be written."""
    architecture = json.dumps(dataclasses.asdict(model.architecture), sort_keys=True)
    with atomic_path(path) as temporary:
        save_file(portable(model.state_dict()), temporary, {"format": "pt", KEY: architecture})


def load_denoiser(path: Path) -> DiT:
    """Read a denoiser written by save_denoiser, on the CPU and in eval mode; the global random state is left alone.

    Errors: ArtifactError if the file is missing, unreadable, no denoiser, or its tensors do not fit its architecture.
    """
    tensors, metadata = read_safetensors(path)
    if KEY not in metadata:
        raise ArtifactError(f"{path} holds no denoiser: its metadata has no '{KEY}' entry", "Give a file that a train job wrote.")
    return assemble(_architecture(path, metadata[KEY]), tensors, path, REMAKE)


def _architecture(path: Path, text: str) -> Architecture:
    """Read the architecture from a file's metadata; the names and types of its fields are checked."""
    try:
        values = json.loads(text)
    except ValueError:
        raise ArtifactError(f"{path}: the metadata entry '{KEY}' is not JSON", REMAKE) from None
    fields = {field.name: field.type for field in dataclasses.fields(Architecture)}
    if not isinstance(values, dict) or set(values) != set(fields):
        odd = sorted(set(fields) ^ set(values)) if isinstance(values, dict) else ["everything"]
        raise ArtifactError(
            f"{path}: missing or unknown in its architecture: {', '.join(odd)}",
            "It was written by another version of this program.",
        )
    for name, kind in fields.items():
        allowed = int if kind == "int" else (int, float)
        if isinstance(values[name], bool) or not isinstance(values[name], allowed):
            raise ArtifactError(f"{path}: its architecture says {name} = {values[name]!r}", f"It must be a number of type {kind}. {REMAKE}")
    try:
        return Architecture(**values)
    except ConfigError as error:
        raise ArtifactError(f"{path}: {error.problem}", REMAKE) from None


def assemble(architecture: Architecture, tensors: Mapping[str, Tensor], path: Path, fix: str) -> DiT:
    """Build a denoiser around tensors, in eval mode; a missing, unknown or misshapen one raises ArtifactError with its name."""
    model = empty_denoiser(architecture)
    expected = model.state_dict()
    for name, value in expected.items():
        if name not in tensors:
            raise ArtifactError(f"{path}: tensor '{name}' is missing", fix)
        if tensors[name].shape != value.shape:
            shapes = f"{list(tensors[name].shape)}, its architecture asks for {list(value.shape)}"
            raise ArtifactError(f"{path}: tensor '{name}' has shape {shapes}", fix)
    if unknown := sorted(set(tensors) - set(expected)):
        raise ArtifactError(f"{path}: tensor '{unknown[0]}' belongs to no part of the denoiser", fix)
    model.load_state_dict(dict(tensors), assign=True)
    return model.eval()


def empty_denoiser(architecture: Architecture) -> DiT:
    """Build a denoiser whose parameters have shapes but no memory, to be assigned; draws no random numbers."""
    values: dict[str, Any] = dataclasses.asdict(architecture)
    with torch.device("meta"):
        model = DiT(**values)
    model.position = position_embedding(architecture.width, architecture.grid)[None]  # (1, N, width)
    return model


def portable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring tensors into the form safetensors writes: on the CPU, contiguous, sharing no memory."""
    return {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file to CPU tensors and its metadata; a missing or unreadable one raises ArtifactError."""
    if not path.is_file():
        raise ArtifactError(f"{path} is missing", "Check the path, or run the command that makes it.")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtifactError(f"{path} is unreadable: {error}", REMAKE) from None
