"""Generated scenes: one emoji drawing on a photograph, 16 classes, with concepts and photographs kept for test only.

A composition of real art on real photographs, not a set of natural images: the name says so wherever a number is printed.
Sources and licences of the art: assets/CREDITS.md.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from ablation.data.sources import ASSETS, SPLITS, Split

NAME = "scenes (composite: emoji art on photos)"

SIDE = (0.65, 1.0)  # side of the drawing over the side of the image
OVERHANG = 0.1  # share of the drawing's side that may leave the image
ANGLE = math.radians(20)  # rotation, either way
HUE = 0.04  # turns of the colour circle, either way
SATURATION = (0.7, 1.25)
BRIGHTNESS = (0.75, 1.2)
WINDOW = (0.25, 1.0)  # side of the part of the photograph shown, over the photograph's shorter side
MARGIN = 2  # transparent pixels around a drawing, without which its cut edges stay jagged when turned
CHUNK = 256  # images composed at a time

# one uniform draw per image and column
COLUMNS = ("concept", "drawing", "photo", "window", "window_x", "window_y", "photo_mirror", "side", "x", "y", "mirror", "angle",
           "hue", "saturation", "brightness", "photo_saturation", "photo_brightness")  # fmt: skip

# RGB to luma and two chroma axes (YIQ of ITU-R BT.601); a hue shift turns the chroma plane
YIQ = np.array([[0.299, 0.587, 0.114], [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])

T = TypeVar("T")


class Scenes:
    """Renders scenes of one split; image i depends on (seed, split, i) and the image size only, so more images keep the first."""

    def __init__(self, split: Split, count: int, image_size: int, seed: int) -> None:
        index: dict[str, Any] = json.loads((ASSETS / "index.json").read_text(encoding="utf-8"))
        entropy = [seed, SPLITS.index(split)]
        uniform = np.random.Generator(np.random.PCG64(entropy)).random((count, len(COLUMNS)))  # (n, columns), row by row
        self.image_size = image_size
        self.class_names: tuple[str, ...] = tuple(index["classes"])
        self.labels = balanced_labels(count, len(self.class_names), entropy)  # (n,)
        self._draws = dict(zip(COLUMNS, uniform.T, strict=True))
        self._index, self._split = index, split
        concepts = [concept for concept in index["concepts"] if concept["split"] == split]
        self._concepts = [[c["sprites"] for c in concepts if c["class"] == k] for k in range(len(self.class_names))]

    # decoding takes a third of a second: not before something is rendered, which a filled cache makes needless
    @cached_property
    def _sprites(self) -> _Sprites:
        sheets = [ASSETS / name for name in self._index["sheets"]]
        return _Sprites(sheets, self._index["sprite"], self._index["columns"])

    @cached_property
    def _photos(self) -> list[_Pyramid]:
        photos = [photo["file"] for photo in self._index["photos"] if photo["split"] == self._split]
        return [_Pyramid(Image.open(ASSETS / name).convert("RGB")) for name in photos]

    def render(self, indices: np.ndarray) -> np.ndarray:
        """Render the scenes of some indices (B,) to uint8 (B, H, W, 3)."""
        chunks = [self._compose(indices[start : start + CHUNK]) for start in range(0, len(indices), CHUNK)]
        size = self.image_size
        return np.concatenate(chunks) if chunks else np.empty((0, size, size, 3), np.uint8)

    def _compose(self, indices: np.ndarray) -> np.ndarray:
        """Lay the coloured drawings (B, H, W, 4) over the photographs (B, H, W, 3)."""
        photos = np.stack([self._photo(int(i)) for i in indices]).astype(np.float32)  # (B, H, W, 3)
        drawings = np.stack([self._drawing(int(i)) for i in indices]).astype(np.float32)  # (B, H, W, 4), colour times alpha
        draw = {name: values[indices] for name, values in self._draws.items()}
        alpha = drawings[..., 3]  # (B, H, W)
        hue = (2 * draw["hue"] - 1) * HUE * 2 * math.pi
        front = colour_matrices(hue, _between(draw["saturation"], SATURATION), _between(draw["brightness"], BRIGHTNESS))
        saturation, brightness = _between(draw["photo_saturation"], SATURATION), _between(draw["photo_brightness"], BRIGHTNESS)
        back = colour_matrices(0 * hue, saturation, brightness)
        scene = np.empty(photos.shape, np.uint8)
        for channel in range(3):
            colour = np.clip(_mix(front, channel, drawings), 0, alpha)  # (B, H, W); colour times alpha never exceeds alpha
            ground = np.clip(_mix(back, channel, photos), 0, 255)
            scene[..., channel] = np.rint(colour + ground * (1 - alpha / 255))
        return scene

    def _photo(self, i: int) -> np.ndarray:
        """Cut the i-th window out of its photograph, (H, W, 3)."""
        draw = {name: float(values[i]) for name, values in self._draws.items()}
        pyramid = _pick(self._photos, draw["photo"])
        width, height = pyramid.size
        side = min(width, height) * (WINDOW[0] + draw["window"] * (WINDOW[1] - WINDOW[0]))
        left, top = draw["window_x"] * (width - side), draw["window_y"] * (height - side)
        image, scale = pyramid.level(side / self.image_size)
        box = (left * scale, top * scale, min((left + side) * scale, image.width), min((top + side) * scale, image.height))
        pixels = np.asarray(image.resize((self.image_size, self.image_size), Image.Resampling.BILINEAR, box=box))
        return pixels[:, ::-1] if draw["photo_mirror"] < 0.5 else pixels

    def _drawing(self, i: int) -> np.ndarray:
        """Place the i-th drawing on a transparent canvas, (H, W, 4), colour times alpha."""
        draw = {name: float(values[i]) for name, values in self._draws.items()}
        size = self.image_size
        side = size * (SIDE[0] + draw["side"] * (SIDE[1] - SIDE[0]))
        slack = size - side + 2 * OVERHANG * side  # room for the drawing's corner
        centre = [draw[axis] * slack - OVERHANG * side + side / 2 for axis in ("x", "y")]
        vendor, cell, _ = _pick(_pick(self._concepts[self.labels[i]], draw["concept"]), draw["drawing"])
        pyramid = self._sprites.sprite(vendor, cell)
        padded_side = side * (1 + 2 * MARGIN / self._sprites.side)
        sprite, _ = pyramid.level(pyramid.size[0] / padded_side)
        ratio = sprite.width / padded_side  # sprite pixels per canvas pixel
        angle = (2 * draw["angle"] - 1) * ANGLE
        cosine, sine = ratio * math.cos(angle), ratio * math.sin(angle)
        sign = -1.0 if draw["mirror"] < 0.5 else 1.0
        middle = sprite.width / 2
        # canvas (x, y) -> sprite: mirror, rotate and scale about the centres
        inverse = (sign * cosine, sign * sine, middle - sign * (cosine * centre[0] + sine * centre[1]),
                   -sine, cosine, middle + sine * centre[0] - cosine * centre[1])  # fmt: skip
        resample = Image.Resampling.BILINEAR if ratio >= 1 else Image.Resampling.BICUBIC
        return np.asarray(sprite.transform((size, size), Image.Transform.AFFINE, inverse, resample))


class _Pyramid:
    """An image and its halvings, made when first asked for."""

    def __init__(self, image: Image.Image) -> None:
        self.size = image.size
        self._levels = [image]

    def level(self, shrink: float) -> tuple[Image.Image, float]:
        """Return the smallest level still larger than a shrinking by this factor, and its scale."""
        wanted = max(0, math.floor(math.log2(shrink))) if shrink > 0 else 0
        while len(self._levels) <= wanted:
            self._levels.append(self._levels[-1].reduce(2))
        image = self._levels[wanted]
        return image, image.width / self.size[0]


class _Sprites:
    """The drawings of all sheets; a sheet is decoded at once, a drawing is cut out when first used."""

    def __init__(self, sheets: Sequence[Path], side: int, columns: int) -> None:
        self._sheets = [Image.open(path).convert("RGBA") for path in sheets]
        self.side, self._columns = side, columns
        self._cut: dict[tuple[int, int], _Pyramid] = {}

    def sprite(self, sheet: int, cell: int) -> _Pyramid:
        """Return one drawing, its colour multiplied by alpha (so that resampling draws no dark or coloured rim)."""
        if (sheet, cell) not in self._cut:
            left, top = cell % self._columns * self.side, cell // self._columns * self.side
            drawing = self._sheets[sheet].crop((left, top, left + self.side, top + self.side))
            padded = Image.new("RGBA", (self.side + 2 * MARGIN, self.side + 2 * MARGIN))
            padded.paste(drawing, (MARGIN, MARGIN))
            self._cut[sheet, cell] = _Pyramid(padded.convert("RGBa"))
        return self._cut[sheet, cell]


def balanced_labels(count: int, classes: int, entropy: Sequence[int]) -> np.ndarray:
    """Draw labels (count,) int64 in shuffled runs that hold every class once, so that counts differ by one at most."""
    runs = -(-count // classes)
    generator = np.random.Generator(np.random.PCG64([*entropy, 1]))
    order = np.argsort(generator.random((runs, classes)), axis=1, kind="stable")  # (runs, classes)
    return order.reshape(-1)[:count].astype(np.int64)  # (count,)


def colour_matrices(hue: np.ndarray, saturation: np.ndarray, brightness: np.ndarray) -> np.ndarray:
    """Return RGB matrices (B, 3, 3) that turn the hue (radians), scale the chroma and scale everything."""
    chroma = np.zeros((len(hue), 3, 3))
    chroma[:, 0, 0] = 1
    chroma[:, 1, 1] = chroma[:, 2, 2] = saturation * np.cos(hue)
    chroma[:, 1, 2], chroma[:, 2, 1] = -saturation * np.sin(hue), saturation * np.sin(hue)
    return brightness[:, None, None] * (np.linalg.inv(YIQ) @ chroma @ YIQ)  # (B, 3, 3)


def _mix(matrices: np.ndarray, channel: int, pixels: np.ndarray) -> np.ndarray:
    """Return one output channel (B, H, W) of pixels (B, H, W, >= 3) under matrices (B, 3, 3)."""
    weights = matrices[:, channel, :, None, None].astype(np.float32)  # (B, 3, 1, 1)
    # written out: the order of a matrix product's sums differs between machines, and with it the rounding
    return weights[:, 0] * pixels[..., 0] + weights[:, 1] * pixels[..., 1] + weights[:, 2] * pixels[..., 2]


def _between(uniform: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """Stretch draws from [0, 1) to limits."""
    return limits[0] + uniform * (limits[1] - limits[0])


def _pick(items: Sequence[T], uniform: float) -> T:
    """Pick an item by a draw from [0, 1)."""
    return items[int(uniform * len(items))]
