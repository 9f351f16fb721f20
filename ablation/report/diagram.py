"""The final model as a drawing, with one test image on its way through it (the paper's Fig. 1)."""

# ruff: noqa: RUF001 (Greek letters in words that people read)

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from ablation.report.figures import INK, OURS, SOFT, Picture, picture_head, render, show_image, start, styled, tiles_of

TITLE = "The final model"
WIDTH, HEIGHT, MIDDLE = 12.0, 2.9, 1.3  # inches, which are the drawing's units
IMAGES = ((0.25, "original image"), (6.15, "noisy image"), (10.65, "prediction"))
STEPS = ((1.95, "patch-wise\nPCA"), (3.35, "add\nGaussian\nnoise"), (4.75, "inverse\nPCA"), (7.85, "encoder"), (9.25, "decoder"))
IMAGE, BOX = 1.1, 0.95  # widths


def diagram(about: Mapping[str, Any], images: Mapping[str, bytes]) -> Picture:
    """Draw an image through PCA, noise, inverse PCA, encoder and decoder."""
    tiles = tiles_of(images["triplets.png"], about["images"])[:, 0]
    with styled():
        figure = start(WIDTH, HEIGHT)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set_xlim(0, WIDTH)
        axes.set_ylim(0, HEIGHT)
        picture_head(
            figure, TITLE, "A denoising autoencoder whose noise lives in the latent space of a patch-wise PCA (after the paper's Fig. 1)"
        )
        for (x, words), tile in zip(IMAGES, tiles, strict=True):
            show_image(figure.add_axes((x / WIDTH, 0.75 / HEIGHT, IMAGE / WIDTH, IMAGE / HEIGHT)), tile)
            axes.text(x + IMAGE / 2, 0.52, words, ha="center", va="center", fontsize=9)
        for x, words in STEPS:
            _box(axes, x, words)
        _arrows(axes)
        axes.text(7.85 + BOX / 2, 0.52, "its output is\nthe representation", ha="center", va="center", fontsize=8.5, color=SOFT)
        axes.plot([0.8, 0.8, 11.2, 11.2], [0.33, 0.18, 0.18, 0.33], color=SOFT, lw=1, ls="--")
        loss = "squared error, components outside the latent space weighted down"
        halo = {"facecolor": "white", "edgecolor": "none", "pad": 2}
        axes.text(6, 0.18, loss, ha="center", va="center", fontsize=8.5, color=SOFT, bbox=halo)
        files = render(figure, photo=True)
    alt = (
        "Diagram from left to right: original image, patch-wise PCA, added Gaussian noise, inverse PCA, noisy image, encoder, decoder, "
        "prediction. The loss compares the prediction with the original image. The encoder's output is the representation."
    )
    caption = (
        f"With the first of the triplets below on its way through stage {about['stage']}, seed {about['seed']}, σ = {about['sigma']:.3g}."
    )
    return Picture("diagram", TITLE, alt, caption, files, "")


def _box(axes: Axes, x: float, words: str) -> None:
    """Draw one step: the network's halves plain and shaded, what surrounds them dotted."""
    network = words in ("encoder", "decoder")
    face = "#e7eef7" if network else "white"
    look: dict[str, Any] = {"facecolor": face, "edgecolor": OURS if network else SOFT, "hatch": None if network else "....", "lw": 1.4}
    axes.add_patch(FancyBboxPatch((x, MIDDLE - 0.5), BOX, 1.0, boxstyle="round,pad=0.04", **look))
    halo = {"facecolor": face, "edgecolor": "none", "pad": 1}
    axes.text(x + BOX / 2, MIDDLE, words, ha="center", va="center", fontsize=9.5, color=INK, bbox=halo)


def _arrows(axes: Axes) -> None:
    """Join everything from left to right."""
    places = sorted([(x, IMAGE) for x, _ in IMAGES] + [(x, BOX + 0.06) for x, _ in STEPS])
    for (x, width), (after, _) in pairwise(places):
        axes.add_patch(
            FancyArrowPatch((x + width + 0.02, MIDDLE), (after - 0.06, MIDDLE), arrowstyle="-|>", mutation_scale=11, color=INK, lw=1)
        )
