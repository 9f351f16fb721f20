"""Parameters and operations of the networks, against torch's own counts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ablation import cost
from ablation.config import Config, apply

TINY = {
    "data.image_size": 32,
    "tokenizer.patch_size": 4,
    "tokenizer.stride": 2,
    "tokenizer.block_channels": (16, 32),
    "tokenizer.layers_per_block": 1,
    "tokenizer.perceptual_network": "efficientnet_lite0",
    "denoiser.size": "tiny",
}
IMAGES = 4
CLASSES = 10


def configured(**changes: object) -> Config:
    return apply(Config(), {**TINY, **{name.replace("__", "."): value for name, value in changes.items()}})


class Untracked:
    """Stands in for the counter's tracker of modules, whose hooks do not bear torch.autograd.grad."""

    parents = frozenset({"Global"})

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def counted(work: Callable[[], object]) -> float:
    """Return the operations per image that torch counts."""
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = Untracked()
    with counter:
        work()
    return counter.get_total_flops() / IMAGES


def build(config: Config) -> torch.nn.Module:
    from ablation.denoiser.dit import build_denoiser

    return build_denoiser(config.denoiser, *cost.denoiser_dims(config), config.data.image_size // config.tokenizer.patch_size, CLASSES)


def parameters(*modules: torch.nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


DENOISERS = {
    "tiny": configured(),
    "unconditional": configured(denoiser__class_conditional=False),
    "small": configured(denoiser__size="small", data__image_size=64),
    "learned variance": configured(process__learned_variance=True, denoiser__modulation_ratio=1.0),
    "image to image": configured(
        tokenizer__kind="patch_pca", process__input_space="image", process__output_space="image", process__target="clean"
    ),
}


@pytest.mark.parametrize("config", DENOISERS.values(), ids=DENOISERS)
def test_a_denoiser_costs_what_torch_counts(config):
    network = build(config)
    expected = cost.denoiser(config, CLASSES)
    assert expected.parameters == parameters(network)
    tokens = torch.randn(IMAGES, config.tokens, cost.denoiser_dims(config)[0])
    time, labels = torch.rand(IMAGES), torch.zeros(IMAGES, dtype=torch.int64)
    with torch.no_grad():
        assert cost.denoiser(config, CLASSES).forward == pytest.approx(counted(lambda: network(tokens, time, labels)), rel=0.01)
        half = cost.denoiser(config, CLASSES, cost.encoder_blocks(config)).forward
        assert half == pytest.approx(counted(lambda: network.encode(tokens, time, labels)), rel=0.01)
    assert expected.training == pytest.approx(counted(lambda: network(tokens, time, labels).sum().backward()), rel=0.01)


@pytest.mark.parametrize("target", ["noise", "clean", "original"])
def test_a_training_step_costs_what_torch_counts(target):
    from ablation.diffusion.objective import DenoisingObjective
    from ablation.diffusion.process import Process
    from ablation.diffusion.space import PatchSpace
    from ablation.train.noise import NoiseSource

    space_settings = {} if target == "noise" else {"process__input_space": "image", "process__output_space": "image"}
    config = configured(tokenizer__kind="patch_pca", process__target=target, **space_settings)
    dim, patch = config.tokenizer.latent_dim, config.patch_dim
    basis = torch.linalg.qr(torch.randn(patch, patch))[0]
    space = PatchSpace.build(basis, torch.zeros(patch), torch.zeros(dim), torch.ones(dim), config.tokenizer.patch_size)
    objective = DenoisingObjective(build(config), Process.from_config(config.process), space, num_classes=CLASSES, class_dropout=0.1)
    batch = {
        "latents": torch.randn(IMAGES, config.tokens, dim),
        "images": torch.randn(IMAGES, 3, 32, 32),
        "labels": torch.zeros(IMAGES, dtype=torch.int64),
    }

    def step() -> None:
        objective.begin_step(batch, NoiseSource(0, 0, IMAGES), 0.0)
        objective.loss("denoiser")[0].backward()

    assert cost.denoiser_step(config, CLASSES) == pytest.approx(counted(step), rel=0.01)


@pytest.mark.parametrize("kind", ["conv", "patch_vae", "patch_ae", "patch_pca", "pixels"])
def test_a_tokenizer_costs_what_torch_counts(kind):
    from ablation.tokenizers import build_tokenizer

    config = configured(tokenizer__kind=kind, **({"tokenizer__latent_dim": 48} if kind == "pixels" else {}))
    tokenizer = build_tokenizer(config.tokenizer, 32, {})
    if kind == "patch_pca":
        tokenizer.patches.fill_(1)
    images = torch.randn(IMAGES, 3, 32, 32)
    encoder, decoder = cost.encoder(config.tokenizer, 32), cost.decoder(config.tokenizer, 32)
    if kind not in ("patch_pca", "pixels"):  # their basis is a buffer
        assert encoder.parameters + decoder.parameters == parameters(tokenizer)
    with torch.no_grad():
        assert encoder.forward == pytest.approx(counted(lambda: tokenizer.encode(images)), rel=0.01)
        latents = tokenizer.encode(images)[0]
        assert decoder.forward == pytest.approx(counted(lambda: tokenizer.decode(latents)), rel=0.01)


@pytest.mark.parametrize("adversarial", [False, True])
@pytest.mark.parametrize("kind", ["conv", "patch_vae"])
def test_a_tokenizer_step_costs_what_torch_counts(kind, adversarial):
    from ablation.tokenizers import build_tokenizer
    from ablation.tokenizers.losses import training_objective
    from ablation.train.noise import NoiseSource

    config = configured(tokenizer__kind=kind, tokenizer__adversarial_start=0.5)
    objective = training_objective(build_tokenizer(config.tokenizer, 32, {}), config.tokenizer, 0, {})
    images = torch.randn(IMAGES, 3, 32, 32)

    def step() -> None:
        objective.begin_step({"images": images}, NoiseSource(0, 0, IMAGES), 0.9 if adversarial else 0.0)
        for phase in objective.phases:
            loss, _ = objective.loss(phase)
            if loss is not None:
                loss.backward()

    assert cost.tokenizer_step(config, adversarial) == pytest.approx(counted(step), rel=0.02)


def test_paper_scale_networks_cost_what_their_sources_say():
    """DiT-L/2 takes 80.7 G multiply-adds (Peebles & Xie, Table 4), with a conditioning as wide as the network."""
    config = apply(Config(), {"denoiser.modulation_ratio": 1.0, "process.learned_variance": True})
    assert cost.denoiser(config, 1000).forward / 2e9 == pytest.approx(80.7, rel=0.01)
    assert cost.denoiser(config, 1000).parameters == pytest.approx(458e6, rel=0.01)


@pytest.mark.parametrize("size", [32, 64, 256])
def test_perceptual_networks_cost_what_torch_counts(size):
    from ablation.tokenizers.perceptual import EfficientNetDistance, VGGDistance

    image = torch.empty(1, 3, size, size, device="meta")
    with torch.device("meta"):
        networks = {"lpips_vgg": VGGDistance(False), "st_lpips": VGGDistance(True)}
    networks["efficientnet_lite0"] = EfficientNetDistance(None).to("meta")
    for name, network in networks.items():
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network.features(image)
        assert cost.perceptual(name, size) == pytest.approx(counter.get_total_flops(), rel=0.01), name


@pytest.mark.parametrize("size", [32, 256])
def test_the_networks_of_the_frechet_distance_cost_what_torch_counts(size):
    from ablation.evaluation.extractors import build_extractor

    image = torch.zeros(1, 3, size, size, dtype=torch.uint8)
    with FlopCounterMode(display=False) as counter:
        build_extractor("efficientnet_lite0", None)(image)
    assert cost.extractor("efficientnet_lite0", size) == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_inception_costs_what_torch_counts():
    from torchvision.models import inception_v3

    from ablation import torchvision_compat  # noqa: F401

    with torch.device("meta"):
        network = inception_v3(weights=None, init_weights=False, aux_logits=False).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.empty(1, 3, 299, 299, device="meta"))
    assert counter.get_total_flops() == pytest.approx(cost.INCEPTION_FLOPS, rel=0.01)
