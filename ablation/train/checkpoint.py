"""Checkpoints: everything a training needs to go on bit for bit, in one safetensors file written atomically.

Random state is not among it: noise and order derive from the seed and the number of images seen.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ablation.errors import ArtifactError
from ablation.store import CHECKPOINT_PREFIX, atomic_path
from ablation.train.ema import Ema

KEEP = 2
"""Checkpoints kept: the newest, and the one before in case the newest cannot be read."""
SIGHT_SECONDS = 60.0
"""How long a file that one node has read may take to be seen on another."""


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Flatten an optimizer's state to tensors named INDEX/NAME."""
    state = optimizer.state_dict()["state"]
    return {f"{index}/{name}": torch.as_tensor(value) for index, entry in state.items() for name, value in entry.items()}


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Restore an optimizer's state from tensors named INDEX/NAME; learning rates are set by the loop."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, _, entry = name.partition("/")
        state.setdefault(int(index), {})[entry] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors to a safetensors file atomically."""
    with atomic_path(path) as temporary:
        save_file({name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}, temporary, metadata)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file to CPU tensors and its metadata; an unreadable file raises with its name."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtifactError(f"{path} is unreadable: {error}", "Remove the file and run the same command again.") from None


def save_checkpoint(
    folder: Path, step: int, modules: dict[str, nn.Module], optimizers: dict[str, torch.optim.Optimizer], averages: dict[str, Ema]
) -> Path:
    """Write checkpoint-STEP.safetensors and remove all but the newest two; returns its path."""
    tensors: dict[str, Tensor] = {}
    for name, module in modules.items():
        tensors |= {f"module/{name}/{key}": value for key, value in module.state_dict().items()}
    for name, average in averages.items():
        tensors |= {f"average/{name}/{key}": value for key, value in average.state().items()}
    for name, optimizer in optimizers.items():
        tensors |= {f"optimizer/{name}/{key}": value for key, value in _optimizer_tensors(optimizer).items()}
    path = _path(folder, step)
    save_tensors(path, tensors, {"step": json.dumps(step)})
    for old in sorted(folder.glob(f"{CHECKPOINT_PREFIX}*.safetensors"))[:-KEEP]:
        old.unlink(missing_ok=True)
    return path


def load_checkpoint(
    folder: Path,
    modules: dict[str, nn.Module],
    optimizers: dict[str, torch.optim.Optimizer],
    averages: dict[str, Ema],
    log: Callable[[str], None],
) -> int:
    """Restore the newest readable checkpoint and return its step, or 0 where there is none.

    An unreadable newest file falls back to the one before it, with a line in the log; when none can be read, raises and
    leaves the files as they are.
    """
    paths = sorted(folder.glob(f"{CHECKPOINT_PREFIX}*.safetensors"), reverse=True)
    for path in paths:
        try:
            tensors, metadata = load_tensors(path)
            _restore(tensors, modules, optimizers, averages)
            return int(json.loads(metadata["step"]))
        except (ArtifactError, KeyError, RuntimeError, ValueError) as error:
            log(f"checkpoint {path.name} cannot be used ({error}); trying the one before it")
    if paths:
        raise ArtifactError(
            f"no checkpoint in {folder} can be read; newest: {paths[0].name}",
            "Remove the checkpoint files there to start this training over, then run the same command again.",
        )
    return 0


def load_step(
    folder: Path, step: int, modules: dict[str, nn.Module], optimizers: dict[str, torch.optim.Optimizer], averages: dict[str, Ema]
) -> None:
    """Restore the checkpoint of a step that another process has read; a shared file system may take a while to show it."""
    path, deadline = _path(folder, step), time.monotonic() + SIGHT_SECONDS
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.5)
    _restore(load_tensors(path)[0], modules, optimizers, averages)


def _path(folder: Path, step: int) -> Path:
    """Return the checkpoint file of a step."""
    return folder / f"{CHECKPOINT_PREFIX}{step:09d}.safetensors"


def _restore(
    tensors: dict[str, Tensor], modules: dict[str, nn.Module], optimizers: dict[str, torch.optim.Optimizer], averages: dict[str, Ema]
) -> None:
    """Copy a checkpoint's tensors into modules, averages and optimizers."""

    def below(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

    for name, module in modules.items():
        module.load_state_dict(below(f"module/{name}/"))
    for name, average in averages.items():
        average.load(below(f"average/{name}/"))
    for name, optimizer in optimizers.items():
        _load_optimizer(optimizer, below(f"optimizer/{name}/"))
