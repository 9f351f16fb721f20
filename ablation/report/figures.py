"""What the pictures share: style, headings, and how a figure becomes files.

Each picture is readable without colour, comes with the data it shows as CSV, and is the same file byte for byte
whenever the data is the same. No pyplot: a figure holds all of its own state.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import matplotlib.style
import numpy as np
import PIL
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from ablation.report.notes import same_scale, scale_of
from ablation.report.published import Published
from ablation.report.results import Record, is_composite

DPI = 200
METRIC = "linear_probe_top1"
INK, SOFT, FAINT, OURS, PAPER = "#1b1f24", "#5b6470", "#d9dde2", "#1d5fa6", "#8a5a12"
LOOKS: tuple[tuple[str, Any, str], ...] = (
    ("o", "-", "#1d5fa6"),
    ("s", (0, (5, 1.5)), "#b3541e"),
    ("^", (0, (1, 1.2)), "#3b7d4f"),
    ("D", (0, (6, 1.5, 1, 1.5)), "#6b4a94"),
)
"""Marker, dashes and shade of the curves of one panel: told apart without colour."""
STYLE: Any = {
    "font.family": "DejaVu Sans", "font.size": 9.5, "text.color": INK, "axes.labelcolor": INK,
    "xtick.color": SOFT, "ytick.color": INK, "axes.edgecolor": SOFT, "axes.linewidth": 0.8,
    "hatch.linewidth": 0.6, "pdf.fonttype": 42, "svg.hashsalt": "deconstruction",
}  # fmt: skip


def styled() -> AbstractContextManager[None]:
    """Draw in this project's style on matplotlib's own defaults, whatever the user's settings say."""
    return matplotlib.style.context(["default", STYLE])


def start(width: float, height: float) -> Figure:
    """Open an empty figure (inches) with the canvas that will draw it."""
    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    return figure


@dataclass(frozen=True)
class Picture:
    """One figure: its words, its files by ending (png, pdf and the data), and the data that the page shows, as CSV."""

    name: str
    title: str
    alt: str
    caption: str
    files: Mapping[str, bytes]
    data: str


@dataclass(frozen=True)
class Omission:
    """A figure that these results cannot give, and why."""

    title: str
    reason: str


def render(figure: Figure, photo: bool = False) -> dict[str, bytes]:
    """Save a figure as PNG (200 dpi) and PDF without dates or versions, so that equal data gives equal bytes.

    photo: keep every colour of the PNG; a drawing is stored in a palette of 255, which takes a third of the space.
    """
    files = {}
    for kind, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None, "Producer": None, "Creator": None})):
        out = io.BytesIO()
        with styled():
            figure.savefig(out, format=kind, dpi=DPI, metadata=metadata)
        files[kind] = out.getvalue()
    files["png"] = _smaller(files["png"], photo)
    return files


def _smaller(png: bytes, photo: bool) -> bytes:
    """Write a PNG again without its alpha channel, and as a palette unless it holds photographs."""
    with Image.open(io.BytesIO(png)) as picture:
        drawn = picture.convert("RGB")
    if not photo:
        drawn = drawn.quantize(255, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    out = io.BytesIO()
    drawn.save(out, format="PNG", optimize=True, dpi=(DPI, DPI))
    return out.getvalue()


def versions() -> str:
    """Name, as JSON, the libraries whose versions may change a picture's bytes."""
    return json.dumps({"matplotlib": matplotlib.__version__, "pillow": PIL.__version__}, indent=1) + "\n"


def picture_head(figure: Figure, text: str, below: str) -> None:
    """Write the title of a figure of images and a line below it."""
    height = figure.get_figheight()
    figure.text(0.012, 1 - 0.26 / height, text, fontsize=14, fontweight="bold", va="center")
    figure.text(0.012, 1 - 0.56 / height, below, fontsize=9, color=SOFT, va="center")


def tiles_of(sheet: bytes, images: int) -> np.ndarray:
    """Cut a PNG of rows of square images, without gaps, into (rows, images, H, W, 3) uint8."""
    with Image.open(io.BytesIO(sheet)) as picture:
        canvas = np.asarray(picture.convert("RGB"))
    side = canvas.shape[1] // images
    return canvas.reshape(canvas.shape[0] // side, side, images, side, 3).swapaxes(1, 2)  # (r H, n W, 3) -> (r, n, H, W, 3)


def show_image(axes: Axes, image: np.ndarray) -> None:
    """Show an image without axes, its pixels as squares."""
    axes.imshow(image, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_linewidth(0.4)


def title(figure: Figure, text: str, records: Sequence[Record]) -> None:
    """Write a figure's title and, below it, its data, scale and seeds."""
    height = figure.get_figheight()
    figure.text(0.015, 1 - 0.36 / height, text, fontsize=14, fontweight="bold", va="center")
    figure.text(0.015, 1 - 0.66 / height, subtitle(records), fontsize=9, color=SOFT, va="center")


def paper_heading(records: Sequence[Record], published: Published) -> str:
    """Title the paper's panel; only records made under the paper's conditions take the warning away."""
    done = [record for record in records if record["state"] == "done"]
    comparable = bool(done) and same_scale(done, published.contexts["main"].requires, records)
    return f"Paper: ImageNet{'' if comparable else ', other scale'}, top-1 (%)"


def subtitle(records: Sequence[Record]) -> str:
    """Name the data, the scale and the seeds of the finished records."""
    done = [record for record in records if record["state"] == "done"]
    if not done:
        return "No results yet"
    sizes: dict[str, set[int]] = {}
    for record in done:
        sizes.setdefault(_dataset(record), set()).add(int(record["protocol"]["image_size"]))
    datasets = " | ".join(f"{name}, {', '.join(map(str, sorted(found)))} px" for name, found in sorted(sizes.items()))
    seeds = ", ".join(str(seed) for seed in sorted({record["seed"] for record in done}))
    scale = scale_of(records)
    warning = "" if scale == "paper" else ", not comparable with the paper's numbers"
    return f"{datasets} · {scale} scale{warning} · seeds {seeds}"


def _dataset(record: Record) -> str:
    """Name a record's images, composites as such."""
    name = str(record["protocol"]["dataset"])
    return f"{name} (generated composites)" if is_composite(record) and "composite" not in name else name


def heading(axes: Axes, text: str) -> None:
    """Title a panel at its left edge."""
    axes.annotate(text, (0, 1), (0, 8), "axes fraction", textcoords="offset points", fontsize=10, fontweight="bold")


def number(value: float | None) -> str:
    """Write a number for a data file, nothing for None."""
    return "" if value is None else f"{value:.6g}"


def fit(axes: Axes, values: Sequence[float], right: float) -> None:
    """Set an axis to its values, leaving a share of its width free on the right for words."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    span = max(high - low, 1.0)
    axes.set_xlim(low - 0.05 * span, high + right / (1 - right) * 1.05 * span)
    axes.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10], integer=span > 4))
    if not values:
        axes.set_xticks([])
