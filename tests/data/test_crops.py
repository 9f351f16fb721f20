"""The crops against hand cases and against torchvision's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ablation.data.crops import centre_crop, check_size, decode, random_crop_box, random_resized_crop
from ablation.errors import DataError


def image_of(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels.astype(np.uint8))


def test_centre_crop_of_the_right_size_changes_nothing() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3))
    assert (np.asarray(centre_crop(image_of(pixels), 8)) == pixels).all()


def test_centre_crop_cuts_the_middle_of_the_longer_side() -> None:
    pixels = np.zeros((4, 10, 3))
    pixels[:, :, 0] = np.arange(10) * 20
    assert (np.asarray(centre_crop(image_of(pixels), 4))[0, :, 0] == [60, 80, 100, 120]).all()
    assert (np.asarray(centre_crop(image_of(pixels.transpose(1, 0, 2)), 4))[:, 0, 0] == [60, 80, 100, 120]).all()


def test_centre_crop_halves_by_box_averages() -> None:
    pixels = np.zeros((8, 8, 3))
    pixels[::2] = 200  # rows 200, 0, 200, 0: every 2 x 2 box averages to 100
    assert (np.asarray(centre_crop(image_of(pixels), 4)) == 100).all()
    assert (np.asarray(centre_crop(image_of(pixels), 2)) == 100).all()


def test_centre_crop_enlarges_a_small_image() -> None:
    assert centre_crop(image_of(np.full((5, 7, 3), 9)), 16).size == (16, 16)
    assert (np.asarray(centre_crop(image_of(np.full((5, 7, 3), 9)), 16)) == 9).all()


@pytest.mark.parametrize(("width", "height"), [(64, 48), (31, 100), (32, 32)])
def test_random_boxes_lie_inside_with_the_right_areas_and_ratios(width: int, height: int) -> None:
    boxes = np.array([random_crop_box(width, height, seed) for seed in range(400)])
    left, top, right, bottom = boxes.T
    assert left.min() >= 0
    assert top.min() >= 0
    assert right.max() <= width
    assert bottom.max() <= height
    share = (right - left) * (bottom - top) / (width * height)
    assert 0.17 < share.min() < 0.3  # 0.2, less the rounding to whole pixels
    ratio = (right - left) / (bottom - top)
    assert ratio.min() > 0.68
    assert ratio.max() < 1.47
    if width == height:
        assert share.max() > 0.9


def test_random_box_of_an_extreme_image_falls_back_to_the_middle() -> None:
    assert random_crop_box(1000, 10, 0) == (493, 0, 506, 10)  # 10 x 4/3 wide
    assert random_crop_box(10, 1000, 0) == (0, 493, 10, 506)


def test_random_crop_depends_on_its_seed_only() -> None:
    picture = image_of(np.random.default_rng(0).integers(0, 256, (40, 50, 3)))
    first = np.asarray(random_resized_crop(picture, 16, 5))
    assert (first == np.asarray(random_resized_crop(picture, 16, 5))).all()
    assert (first != np.asarray(random_resized_crop(picture, 16, 6))).any()


def test_random_crop_equals_torchvisions_for_the_same_box() -> None:
    import ablation.torchvision_compat  # noqa: F401, I001  (before torchvision)
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import resized_crop

    picture = image_of(np.random.default_rng(0).integers(0, 256, (40, 50, 3)))
    left, top, right, bottom = random_crop_box(50, 40, 3)
    theirs = resized_crop(picture, top, left, bottom - top, right - left, [24, 24], InterpolationMode.BICUBIC)
    assert (np.asarray(random_resized_crop(picture, 24, 3)) == np.asarray(theirs)).all()


@pytest.mark.parametrize(("mode", "value", "expected"), [("L", 90, 90), ("RGBA", (90, 90, 90, 255), 90), ("1", 1, 255)])
def test_decode_turns_every_mode_into_rgb(tmp_path: Path, mode: str, value: object, expected: int) -> None:
    Image.new(mode, (4, 4), value).save(tmp_path / "x.png")  # type: ignore[arg-type]
    decoded = decode(tmp_path / "x.png", "x.png")
    assert decoded.mode == "RGB"
    assert (np.asarray(decoded) == expected).all()


def test_decode_scales_16_bit_grey_instead_of_clipping_it(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 128 * 256, np.uint16)).save(tmp_path / "x.png")
    assert (np.asarray(decode(tmp_path / "x.png", "x.png")) == 128).all()


@pytest.mark.parametrize("damage", ["truncated", "text", "empty"])
def test_decode_names_a_corrupt_file(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "bad.png"
    image_of(np.random.default_rng(0).integers(0, 256, (64, 64, 3))).save(path)
    path.write_bytes({"truncated": path.read_bytes()[:500], "text": b"not an image", "empty": b""}[damage])
    with pytest.raises(DataError, match=r"bad\.png.*cannot be read") as caught:
        decode(path, str(path))
    assert "\n" not in str(caught.value)


def test_too_small_an_image_is_refused_with_its_name_and_size() -> None:
    check_size(Image.new("RGB", (500, 16)), 256, "a.png")
    with pytest.raises(DataError, match=r"a\.png.*500 x 15.*256"):
        check_size(Image.new("RGB", (500, 15)), 256, "a.png")
