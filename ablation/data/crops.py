"""Decoding one image file, and the two crops: DiT's centre crop and the random resized crop."""

from __future__ import annotations

import math
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from ablation.errors import DataError

CROP_SCALE = (0.2, 1.0)  # share of the image's area; MAE's and the paper's choice
CROP_RATIO = (3 / 4, 4 / 3)  # width over height
CROP_ATTEMPTS = 10
MAX_ENLARGEMENT = 16  # a 256 px crop accepts a shorter side of 16 px, one patch; ImageNet has sides far below 256


def decode(file: Path | IO[bytes], name: str) -> Image.Image:
    """Decode one image file to RGB; a file that cannot be decoded raises a DataError with its name."""
    try:
        with Image.open(file) as image:
            if image.mode.startswith("I;16"):  # converting 16 bits to RGB would clip instead of scale
                return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise DataError(f"image '{name}' cannot be read ({reason})", "Replace or remove the file.") from None


def check_size(image: Image.Image, size: int, name: str) -> None:
    """Refuse an image that is too small for a crop of size x size pixels, naming the file and its size."""
    if min(image.size) * MAX_ENLARGEMENT < size:
        problem = f"image '{name}' of {image.width} x {image.height} pixels is too small for data.image_size {size}"
        raise DataError(problem, f"Remove it, or use images of at least {math.ceil(size / MAX_ENLARGEMENT)} pixels a side.")


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """Scale the shorter side to size and cut the middle square.

    Halved by box averages while twice too large, then bicubic, as in ADM's and DiT's data code.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def random_crop_box(width: int, height: int, seed: int) -> tuple[int, int, int, int]:
    """Draw the box (left, top, right, bottom) of a random resized crop; equal seeds give equal boxes.

    Area share uniform in CROP_SCALE, log of width / height uniform over CROP_RATIO; after CROP_ATTEMPTS boxes that do not fit,
    the largest middle box within the ratios (Szegedy et al. 2015, as in torchvision).
    """
    draws = np.random.default_rng(int(seed)).random((CROP_ATTEMPTS, 4))  # area, ratio, left, top
    low, high = math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1])
    for share, ratio, left_share, top_share in draws.tolist():
        area = width * height * (CROP_SCALE[0] + share * (CROP_SCALE[1] - CROP_SCALE[0]))
        aspect = math.exp(low + ratio * (high - low))
        box_width, box_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            left = math.floor(left_share * (width - box_width + 1))
            top = math.floor(top_share * (height - box_height + 1))
            return left, top, left + box_width, top + box_height
    box_width = min(width, round(height * CROP_RATIO[1]))
    box_height = min(height, round(width / CROP_RATIO[0]))
    left, top = (width - box_width) // 2, (height - box_height) // 2
    return left, top, left + box_width, top + box_height


def random_resized_crop(image: Image.Image, size: int, seed: int) -> Image.Image:
    """Cut the random box of a seed and scale it to size x size pixels, bicubic."""
    box = random_crop_box(image.width, image.height, seed)
    return image.crop(box).resize((size, size), Image.Resampling.BICUBIC)
