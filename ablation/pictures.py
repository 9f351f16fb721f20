"""The small images and arrays that figures show, made once from a run folder: filters, noise, denoised test images, samples.

Everything is computed on the CPU with fixed random numbers, and images are kept as 8-bit PNG, so a folder of results stays a
few hundred kilobytes. What cannot be made (not trained yet, data not on this machine) is named with the reason.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ablation.data.latents import to_tensor, to_uint8
from ablation.denoiser.exchange import load_denoiser
from ablation.diffusion.prediction import denoise
from ablation.diffusion.process import Process
from ablation.errors import AblationError, ArtifactError
from ablation.export import job_io
from ablation.jobs.context import JobIO
from ablation.jobs.parts import Setting, images_of, load_setting, load_tokenizer
from ablation.store import DENOISER_AVERAGE, SAMPLES, Store
from ablation.tokenizers.patch_ae import PatchAE
from ablation.tokenizers.patch_pca import PatchPCA

LIST = "pictures.json"
FINAL = "predict_original"
SIGMA = (1 / 3) ** 0.5
"""The noise of Figs. 7 and 8 (paper, section 4.3)."""
TRIPLETS, NOISY, FILTERS = 8, 4, 16
WIDEST = 96
"""Pixels a side, at most, of an image that is kept; larger ones are averaged down."""
SAMPLE_COLUMNS, SAMPLE_PIXELS = 8, 64
SEED = 20240125


def make_pictures(store: Store, document: Mapping[str, Any]) -> dict[str, bytes]:
    """Make every picture of a study, by file name, and the list that says what each is, or why it is not there."""
    cells = {cell["stage"]: cell for cell in reversed(document["cells"]) if not cell["control"] and _plain(cell, document)}
    files: dict[str, bytes] = {}
    told: dict[str, Any] = {}
    makers: dict[str, Callable[[], dict[str, Any]]] = {
        "triplets": lambda: _triplets(store, _need(cells, FINAL), files),
        "noise": lambda: _noise(store, next((cells[s] for s in (FINAL, "patch_pca") if s in cells), None), files),
        "filters": lambda: _filters(store, cells, files),
        "samples": lambda: _samples(store, cells, files),
    }
    for name, make in makers.items():
        try:
            told[name] = make()
        except (AblationError, OSError, ValueError) as error:
            told[name] = {"reason": " ".join(str(error).split())}
    files[LIST] = (json.dumps(told, indent=1, sort_keys=True) + "\n").encode()
    return files


def _plain(cell: Mapping[str, Any], document: Mapping[str, Any]) -> bool:
    """Say whether a cell is a stage of the ladder itself, with the study's own settings alone."""
    return set(cell["overrides"]) <= set(document["settings"])


def _need(cells: Mapping[str, Any], stage: str) -> Mapping[str, Any]:
    """Return a stage's cell, or say that the study has none."""
    if stage not in cells:
        raise ArtifactError(f"the study has no stage {stage}")
    cell: Mapping[str, Any] = cells[stage]
    return cell


def _setting(store: Store, cell: Mapping[str, Any]) -> tuple[JobIO, Setting]:
    """Load what surrounds a cell's denoiser, from its finished training."""
    io_ = job_io(store, _done(store, cell, "train"))
    return io_, load_setting(io_, io_.inputs["encode"], io_.ancestor("encode", "tokenizer"))


def _done(store: Store, cell: Mapping[str, Any], role: str) -> str:
    """Return a cell's job in a role; raises ArtifactError unless it is finished."""
    job = cell["jobs"].get(role)
    if job is None or store.state(job).name != "done":
        raise ArtifactError(f"the {role} job of {cell['id']} is not finished")
    return str(job)


@torch.no_grad()
def _triplets(store: Store, cell: Mapping[str, Any], files: dict[str, bytes]) -> dict[str, Any]:
    """Noise test images as in training and let the final model denoise them (Figs. 1 and 8)."""
    io_, setting = _setting(store, cell)
    denoiser = load_denoiser(store.artifact(io_.job_id, DENOISER_AVERAGE)).eval()
    indices, pixels = _test_images(io_, TRIPLETS)
    images = to_tensor(pixels, io_.device)
    level = nearest_level(setting.process, SIGMA)
    t = torch.full((len(images),), level)
    z0 = setting.scaler(setting.tokenizer.encode(images)[0])
    z_t = setting.process.corrupt(z0, t, _normal(z0))
    rows = [images, _to_image(setting, z_t), _decoded(setting, denoise(denoiser, setting.process, setting.space, z_t, t))]
    files["triplets.png"] = sheet(rows)
    return {
        **_about(io_, cell, rows[0]), "indices": indices, "timestep": level, "sigma": float(setting.process.sigma[level]),
        "gamma": float(setting.process.gamma[level]),
    }  # fmt: skip


@torch.no_grad()
def _noise(store: Store, cell: Mapping[str, Any] | None, files: dict[str, bytes]) -> dict[str, Any]:
    """Add the same strength of noise to pixels, and to PCA latents that are then projected back (Fig. 7)."""
    if cell is None:
        raise ArtifactError("the study has no stage with a patch-PCA tokenizer")
    io_, setting = _setting(store, cell)
    indices, pixels = _test_images(io_, NOISY)
    images = to_tensor(pixels, io_.device)
    z0 = setting.scaler(setting.tokenizer.encode(images)[0])
    rows = [images, images + SIGMA * _normal(images), _to_image(setting, z0 + SIGMA * _normal(z0))]
    files["noise.png"] = sheet(rows)
    return {**_about(io_, cell, rows[0]), "indices": indices, "sigma": SIGMA, "latent_dim": setting.tokenizer.latent_dim}


def _filters(store: Store, cells: Mapping[str, Any], files: dict[str, bytes]) -> dict[str, Any]:
    """Keep the first rows of V of every patch-wise linear tokenizer (Fig. 4)."""
    arrays: dict[str, np.ndarray] = {}
    told: dict[str, Any] = {}
    for stage in ("patch_vae", "patch_ae", "patch_pca"):
        if stage not in cells:
            continue
        io_ = job_io(store, _done(store, cells[stage], "tokenizer"))
        tokenizer = load_tokenizer(io_, io_.job_id)
        if isinstance(tokenizer, PatchPCA | PatchAE):
            rows = tokenizer.basis[: tokenizer.latent_dim] if isinstance(tokenizer, PatchPCA) else tokenizer.encoder.detach()
            arrays[stage] = rows[:FILTERS].numpy().astype(np.float32)
            told[stage] = {"latent_dim": tokenizer.latent_dim, "patch_size": tokenizer.patch_size, "seed": cells[stage]["seed"]}
    if not arrays:
        raise ArtifactError("the study has no stage with a patch-wise linear tokenizer")
    out = io.BytesIO()
    np.savez_compressed(out, **arrays)  # type: ignore[arg-type]
    files["filters.npz"] = out.getvalue()
    return {"stages": told}


def _samples(store: Store, cells: Mapping[str, Any], files: dict[str, bytes]) -> dict[str, Any]:
    """Keep the first samples of every stage that has some."""
    told: dict[str, Any] = {}
    for stage, cell in cells.items():
        job = cell["jobs"].get("fid")
        if job is None or store.state(job).name != "done":
            continue
        size = cell["config"]["data"]["image_size"]
        with Image.open(store.artifact(job, SAMPLES)) as picture:
            grid = np.asarray(picture.convert("RGB"))
        rows = max(1, SAMPLE_PIXELS // size)
        grid = grid[: rows * size, : SAMPLE_COLUMNS * size]
        files[f"samples-{stage}.png"] = _png(_reduced(grid, size))
        told[stage] = {"seed": cell["seed"], "images": min(rows * SAMPLE_COLUMNS, cell["config"]["fid"]["samples"])}
    if not told:
        raise ArtifactError("no stage has sampled images")
    return {"stages": told}


def _about(io_: JobIO, cell: Mapping[str, Any], images: Tensor) -> dict[str, Any]:
    """Say which network and images a picture shows."""
    return {
        "stage": cell["stage"],
        "seed": cell["seed"],
        "images": len(images),
        "size": min(WIDEST, images.shape[-1]),
        "dataset": io_.config.data.source,
    }


def _test_images(io_: JobIO, count: int) -> tuple[list[int], np.ndarray]:
    """Return the first test image of each of the first classes, and further ones where classes are fewer: (B, H, W, 3) uint8."""
    images = images_of(io_, "test")
    labels = np.asarray(images.labels)
    firsts = [int(np.flatnonzero(labels == label)[0]) for label in np.unique(labels)][:count]
    others = [index for index in range(len(labels)) if index not in firsts]
    indices = (firsts + others)[:count]
    return indices, images.batch(np.array(indices))


def nearest_level(process: Process, sigma: float) -> int:
    """Return the timestep whose noise-to-signal ratio is closest to sigma to 1."""
    ratio = process.sigma[1:] / process.gamma[1:].clamp(min=1e-6)
    return int((ratio - sigma).abs().argmin()) + 1


def _normal(like: Tensor) -> Tensor:
    """Return the same standard normal numbers every time, in a tensor's shape."""
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(SEED))


def _to_image(setting: Setting, z: Tensor) -> Tensor:
    """Map scaled latents to an image."""
    return setting.tokenizer.decode(setting.scaler.inverse(z))


def _decoded(setting: Setting, output: Tensor) -> Tensor:
    """Map what `denoise` returns to an image."""
    if setting.process.output_space == "image":
        assert setting.space is not None
        return setting.space.denormalise(output)
    return _to_image(setting, output)


def sheet(rows: list[Tensor]) -> bytes:
    """Lay rows of images (B, 3, H, W) in [-1, 1] out in one PNG, without gaps."""
    lines = [np.concatenate(list(to_uint8(row).permute(0, 2, 3, 1).numpy()), axis=1) for row in rows]  # (B, 3, H, W) -> (H, B W, 3)
    return _png(_reduced(np.concatenate(lines), rows[0].shape[-1]))


def _reduced(canvas: np.ndarray, size: int) -> np.ndarray:
    """Average a canvas of images of one size down, so that none is wider than WIDEST."""
    if size <= WIDEST:
        return canvas
    height, width = (round(length * WIDEST / size) for length in canvas.shape[:2])
    return np.asarray(Image.fromarray(canvas).resize((width, height), Image.Resampling.BOX))


def _png(canvas: np.ndarray) -> bytes:
    """Write an image (H, W, 3) uint8 as PNG."""
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(canvas)).save(out, format="PNG", optimize=True)
    return out.getvalue()
