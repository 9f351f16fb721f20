"""Figures of images: denoised test images (Figs. 1 and 8), pixel noise against latent noise (Fig. 7), filters (Fig. 4), samples.

They are drawn from the small files of a results folder's pictures/, never from weights.
"""

# ruff: noqa: RUF001 (Greek letters and the minus sign in words that people read)

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ablation.report.diagram import TITLE, diagram
from ablation.report.figures import Omission, Picture, picture_head, render, show_image, start, styled, tiles_of
from ablation.report.results import Row

LIST = "pictures.json"
NEVER = "no pictures were kept beside these results; `ablate report --runs` makes them"
TITLES = {
    "diagram": TITLE, "triplets": "Clean, noised, denoised", "noise": "Noise on pixels and on latents",
    "filters": "Filters of the patch tokenizers",
}  # fmt: skip
FILTER_TITLES = {"patch_vae": "patch VAE", "patch_ae": "patch AE", "patch_pca": "patch PCA"}


@dataclass(frozen=True)
class Strip:
    """Samples of one stage as a PNG of whole images side by side."""

    title: str
    alt: str
    png: bytes


def told(images: Mapping[str, bytes], name: str) -> dict[str, Any]:
    """Return what the list of pictures says of one; a reason where it is not there."""
    if LIST not in images:
        return {"reason": NEVER}
    entry: dict[str, Any] = json.loads(images[LIST]).get(name) or {"reason": NEVER}
    return entry


def photo_pictures(images: Mapping[str, bytes]) -> list[Picture | Omission]:
    """Draw every figure of images that the results folder has the material for."""
    makers = {"diagram": diagram, "triplets": _triplets, "noise": _noise, "filters": _filters}
    drawn: list[Picture | Omission] = []
    for name, make in makers.items():
        about = told(images, "triplets" if name == "diagram" else name)
        drawn.append(Omission(TITLES[name], about["reason"]) if "reason" in about else make(about, images))
    return drawn


HEAD, NAMES = 0.75, 1.35  # inches: the title above the images, the names at their left


def _height(width: float, tiles: np.ndarray) -> float:
    """Return the height of a figure of a width (inches) that holds rows of images and nothing below them."""
    rows, columns = tiles.shape[:2]
    return HEAD + rows * (width - NAMES - 0.1) / columns + 0.08


def _rows(figure: Figure, tiles: np.ndarray, names: Sequence[str]) -> None:
    """Lay rows of images out with their names at the left."""
    width, height = figure.get_size_inches()
    side = (width - NAMES - 0.1) / tiles.shape[1]
    for row, name in enumerate(names):
        bottom = 1 - (HEAD + (row + 1) * side) / height
        figure.text((NAMES - 0.1) / width, bottom + side / height / 2, name, ha="right", va="center", fontsize=9.5)
        for column, tile in enumerate(tiles[row]):
            axes = figure.add_axes(((NAMES + column * side) / width, bottom, 0.95 * side / width, 0.95 * side / height))
            show_image(axes, tile)


def _triplets(about: Mapping[str, Any], images: Mapping[str, bytes]) -> Picture:
    """Draw clean, noised and denoised test images below one another."""
    tiles = tiles_of(images["triplets.png"], about["images"])
    level = f"t = {about['timestep']}, σ = {about['sigma']:.3g}"
    below = f"Test images ({about['dataset']}), stage {about['stage']}, seed {about['seed']}, {level}"
    with styled():
        figure = start(10, _height(10, tiles))
        picture_head(figure, TITLES["triplets"], below)
        _rows(figure, tiles, ("clean", "noised", "denoised"))
    before, after = _errors(tiles)[1:]
    verdict = "falls" if after < before else "does not fall"
    alt = (
        f"{about['images']} test images in columns: clean above, with latent noise of σ = {about['sigma']:.3g} in the middle, the "
        f"network's one-step reconstruction below. The root mean square error to the clean image {verdict} from {before:.1f} grey "
        f"levels noised to {after:.1f} denoised."
    )
    caption = (
        "One step of the final model on test images that it was not trained on (the paper's Fig. 8). Noise is added to the PCA latents "
        "and shown through the inverse PCA; the images are the first of their classes, not chosen."
    )
    return Picture("triplets", TITLES["triplets"], alt, caption, {**render(figure, photo=True), "data.png": images["triplets.png"]}, "")


def _errors(tiles: np.ndarray) -> list[float]:
    """Return each row's root mean square difference from the first row, in grey levels of 255."""
    return [float(np.sqrt(np.mean((row.astype(float) - tiles[0]) ** 2))) for row in tiles]


def _noise(about: Mapping[str, Any], images: Mapping[str, bytes]) -> Picture:
    """Draw clean images, the same with noise on pixels, and with noise on PCA latents."""
    tiles = tiles_of(images["noise.png"], about["images"])
    with styled():
        figure = start(7.2, _height(7.2, tiles))
        below = f"σ = {about['sigma']:.3g} in both; test images ({about['dataset']}), d = {about['latent_dim']}, seed {about['seed']}"
        picture_head(figure, TITLES["noise"], below)
        _rows(figure, tiles, ("clean", "noise on pixels", "noise on latents"))
    on_pixels, on_latents = (_smoothness(row.astype(float) - tiles[0]) for row in tiles[1:])
    alt = (
        "Four images: clean, with Gaussian noise on each pixel, and with Gaussian noise on the patch-PCA latents projected back. "
        f"Neighbouring pixels of the noise have a correlation of {on_pixels:.2f} on pixels and {on_latents:.2f} on latents."
    )
    caption = (
        "The same σ on pixels in [−1, 1] and on scaled latents (the paper's Fig. 7). How strong latent noise looks depends on how "
        "latents are scaled (tokenizer.latent_scale), which the paper leaves open."
    )
    return Picture("noise", TITLES["noise"], alt, caption, {**render(figure, photo=True), "data.png": images["noise.png"]}, "")


def _smoothness(noise: np.ndarray) -> float:
    """Return the correlation of horizontal neighbours, (n, H, W, 3)."""
    left, right = noise[:, :, :-1].ravel(), noise[:, :, 1:].ravel()
    return float(np.corrcoef(left, right)[0, 1]) if left.std() > 0 and right.std() > 0 else 0.0


def _filters(about: Mapping[str, Any], images: Mapping[str, bytes]) -> Picture:
    """Draw the rows of V of each tokenizer as patches, each scaled to its own largest number."""
    with np.load(io.BytesIO(images["filters.npz"]), allow_pickle=False) as arrays:
        filters = {name: arrays[name] for name in FILTER_TITLES if name in arrays}
    count = max(map(len, filters.values()))
    tiles = np.stack([np.stack([_patch(row) for row in _padded(rows, count)]) for rows in filters.values()])
    with styled():
        figure = start(10.6, _height(10.6, tiles))
        dims = ", ".join(f"{FILTER_TITLES[name]} d = {about['stages'][name]['latent_dim']}" for name in filters)
        picture_head(figure, TITLES["filters"], f"First {count} rows of V as patches, each scaled to its own range; {dims}")
        _rows(figure, tiles, [FILTER_TITLES[name] for name in filters])
    names = ", ".join(FILTER_TITLES[name] for name in filters)
    shares = "; ".join(f"{FILTER_TITLES[name]} {_roughness(rows):.0%}" for name, rows in filters.items())
    alt = (
        f"Small patches in rows, one row per tokenizer ({names}), {count} filters each. Energy in differences of neighbouring pixels, "
        f"where 100 % would be unstructured noise: {shares}."
    )
    caption = "What the linear patch tokenizers look for (the paper's Fig. 4). Signs are arbitrary; mid grey is zero."
    return Picture("filters", TITLES["filters"], alt, caption, {**render(figure, photo=True), "npz": images["filters.npz"]}, "")


def _padded(rows: np.ndarray, count: int) -> np.ndarray:
    """Fill up with empty filters, for a tokenizer with fewer."""
    return np.concatenate([rows, np.zeros((count - len(rows), rows.shape[1]), rows.dtype)])


def _patch(row: np.ndarray) -> np.ndarray:
    """Turn a filter (3 p^2,), in the order (row, column, channel), into an image around mid grey: (p, p, 3) uint8."""
    side = round((len(row) / 3) ** 0.5)
    scale = float(np.abs(row).max()) or 1.0
    return np.round(127.5 + 127.5 * row.reshape(side, side, 3) / scale).astype(np.uint8)


def _roughness(rows: np.ndarray) -> float:
    """Return the mean square of horizontal differences over twice the mean square: 1 for white noise, 0 for flat filters."""
    side = round((rows.shape[1] / 3) ** 0.5)
    patches = rows.reshape(len(rows), side, side, 3)
    if side < 2:
        return 0.0
    return float(np.mean(np.diff(patches, axis=2) ** 2) / (2 * np.mean(patches**2)))


def sample_strips(rows: Sequence[Row], images: Mapping[str, bytes]) -> list[Strip] | Omission:
    """Pair every row of the ladder with its samples, in order."""
    about = told(images, "samples")
    if "reason" in about:
        return Omission("Samples", about["reason"])
    strips = []
    for row in rows:
        if (entry := about["stages"].get(row.stage)) is not None:
            words = f"{entry['images']} images sampled from {row.title}, seed {entry['seed']}, the first ones, not chosen"
            strips.append(Strip(row.title, words, images[f"samples-{row.stage}.png"]))
    return strips or Omission("Samples", "no stage of the ladder has sampled images")
