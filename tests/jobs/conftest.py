"""What the tests of whole jobs share: images that are easy to tell apart, and few threads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def coloured_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 4 classes, each with its own colour under noise: 24 training and 12 test images a class, 16 px."""
    folder, draws = tmp_path_factory.mktemp("coloured"), np.random.default_rng(0)
    colours = ((200, 60, 60), (60, 200, 60), (60, 60, 200), (190, 190, 60))
    for split, count in (("train", 24), ("val", 12)):
        for label, colour in enumerate(colours):
            (folder / split / f"class{label}").mkdir(parents=True)
            for number in range(count):
                pixels = np.clip(np.array(colour) + draws.normal(0, 40, (16, 16, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / f"class{label}" / f"{number}.png")
    return folder
