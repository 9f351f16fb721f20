"""The tokenizers' objective: each term against a hand-computed case, and who moves in which phase."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from tokenizer_cases import SIZE, settings, smooth_images, train
from torch import Tensor, nn

from ablation.errors import ConfigError
from ablation.tokenizers import build_tokenizer
from ablation.tokenizers.discriminator import PatchDiscriminator, adaptive_weight, hinge_loss
from ablation.tokenizers.losses import TokenizerObjective, kl_to_standard_normal, reconstruction_psnr, training_objective
from ablation.tokenizers.patch_pca import PatchPCA
from ablation.tokenizers.perceptual import PerceptualDistance
from ablation.train.noise import NoiseSource

IMAGES = smooth_images(8)


class Slopes(PerceptualDistance):
    """A plugin's perceptual network without weights: differences of neighbouring pixels."""

    def __init__(self, path: str | None) -> None:
        super().__init__()

    def features(self, images: Tensor) -> list[Tensor]:
        return [images.diff(dim=3)]

    def heads(self) -> list[Tensor | None]:
        return [None]


PARTS = {"perceptual:slopes": Slopes}


def objective_of(kind: str = "conv", parts: dict[str, type] = PARTS, **changes: object) -> TokenizerObjective:
    cfg = settings(kind, perceptual_network="slopes", **changes)
    return training_objective(build_tokenizer(cfg, SIZE, {}), cfg, seed=0, parts=parts)


def begin(objective: TokenizerObjective, progress: float = 0.5) -> None:
    objective.begin_step({"images": IMAGES}, NoiseSource(0, 0, len(IMAGES)), progress)


def weights(module: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


def moved(before: list[Tensor], module: nn.Module) -> list[bool]:
    return [not torch.equal(old, new) for old, new in zip(before, module.parameters(), strict=True)]


@pytest.mark.parametrize(("kind", "lr"), [("conv", 2e-3), ("patch_vae", 1e-2), ("patch_ae", 1e-2)])
def test_training_lowers_the_loss_and_moves_every_weight(kind: str, lr: float) -> None:
    objective = objective_of(kind)
    before = weights(objective.tokenizer)
    history = train(objective, IMAGES, steps=25, lr=lr)
    assert history[-1]["tokenizer_loss"] < 0.5 * history[0]["tokenizer_loss"]
    assert all(moved(before, objective.tokenizer))
    assert objective.phases == ("tokenizer",)


def test_a_trained_patch_autoencoder_comes_close_to_the_optimum_which_is_pca() -> None:
    cfg = settings("patch_ae")
    pca = PatchPCA(cfg, SIZE)
    pca.fit([IMAGES])
    objective = objective_of("patch_ae")
    start = reconstruction_psnr(IMAGES, objective.tokenizer.decode(objective.tokenizer.encode(IMAGES)[0])).mean()
    train(objective, IMAGES, steps=300, lr=2e-2)
    found = reconstruction_psnr(IMAGES, objective.tokenizer.decode(objective.tokenizer.encode(IMAGES)[0])).mean()
    best = reconstruction_psnr(IMAGES, pca.decode(pca.encode(IMAGES)[0])).mean()
    assert start < best - 10
    assert best - 0.7 < found < best + 0.1


def test_kl_agrees_with_torch_and_vanishes_at_the_prior() -> None:
    mean, std = torch.randn(3, 4, 5), torch.rand(3, 4, 5) + 0.1
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mean, std), normal(torch.zeros(()), torch.ones(()))).sum((1, 2))
    torch.testing.assert_close(kl_to_standard_normal(mean, std), expected)
    assert kl_to_standard_normal(torch.zeros(2, 3, 1), torch.ones(2, 3, 1)).tolist() == [0, 0]


def test_the_loss_is_the_papers_sum_over_the_numbers_of_an_image() -> None:
    """||x - x'||^2 + kl_weight KL, per image, with x' decoded from the posterior sample that the noise source gives."""
    objective = objective_of("patch_vae", kl_weight=0.25)
    begin(objective)
    loss, logged = objective.loss("tokenizer")
    mean, std = objective.tokenizer.encode(IMAGES)
    sample = mean + std * NoiseSource(0, 0, 8).normal("posterior", (16, 8))
    squared = (objective.tokenizer.decode(sample) - IMAGES).square().sum((1, 2, 3))
    kl = 0.5 * (mean**2 + std**2 - 1 - 2 * std.log()).sum((1, 2))
    torch.testing.assert_close(loss, ((squared + 0.25 * kl) / (3 * SIZE**2)).mean())
    torch.testing.assert_close(logged["kl"], kl.mean().detach())
    assert not any(value.requires_grad for value in logged.values())


def test_a_strong_kl_weight_pulls_the_posterior_to_the_prior() -> None:
    """The variances start at exp(-6); the prior's are 1."""
    objective = objective_of("patch_vae", kl_weight=100.0)
    history = train(objective, IMAGES, steps=150, lr=5e-2)
    assert history[-1]["kl"] < 0.05 * history[0]["kl"]
    np.testing.assert_allclose(objective.tokenizer.log_variance.detach().numpy(), 0, atol=0.3)


def test_the_deterministic_autoencoder_draws_no_noise_and_has_no_kl() -> None:
    objective = objective_of("patch_ae")
    objective.begin_step({"images": IMAGES}, None, 0.0)  # type: ignore[arg-type]
    assert set(objective.loss("tokenizer")[1]) == {"reconstruction"}


def test_the_perceptual_term_is_added_with_its_weight() -> None:
    without, within = objective_of(), objective_of(perceptual_weight=0.5)
    within.tokenizer.load_state_dict(without.tokenizer.state_dict())
    begin(without)
    begin(within)
    loss, logged = within.loss("tokenizer")
    assert logged["perceptual"] > 0
    torch.testing.assert_close(loss - without.loss("tokenizer")[0], 0.5 * logged["perceptual"])


def test_the_adaptive_weight_in_a_case_done_by_hand() -> None:
    assert adaptive_weight(torch.tensor([3.0, 4.0]), torch.tensor([0.0, 2.0])).item() == pytest.approx(5 / 2.0001)
    assert adaptive_weight(torch.tensor([3.0, 4.0]), torch.zeros(2)).item() == 1e4  # 5 / 1e-4 is clamped


def test_hinge_loss_in_a_case_done_by_hand() -> None:
    real, fake = torch.tensor([2.0, 0.0]), torch.tensor([-3.0, 0.5])
    assert hinge_loss(real, fake).item() == pytest.approx(0.5 * ((0 + 1) / 2 + (0 + 1.5) / 2))


def test_the_balanced_loss_has_the_value_and_gradients_of_the_plain_sum() -> None:
    objective = objective_of(perceptual_weight=0.3, adversarial_weight=0.7, adversarial_start=0.0)
    tokenizer, discriminator = objective.tokenizer, objective.discriminator
    assert discriminator is not None
    begin(objective)
    loss, logged = objective.loss("tokenizer")
    assert loss is not None
    loss.backward()
    found = [parameter.grad.clone() for parameter in tokenizer.parameters()]  # type: ignore[union-attr]
    assert all(parameter.grad is None for parameter in discriminator.parameters())

    mean, std = tokenizer.encode(IMAGES)
    assert std is not None
    images = tokenizer.decode(mean + std * NoiseSource(0, 0, 8).normal("posterior", (16, 8)))
    fidelity = (images - IMAGES).square().mean() + 0.3 * Slopes(None)(IMAGES, images).mean()
    adversarial = -discriminator(images).mean()
    layer = tokenizer.last_layer()
    norms = [torch.autograd.grad(term, layer, retain_graph=True)[0].norm() for term in (fidelity, adversarial)]
    weight = 0.7 * norms[0] / (norms[1] + 1e-4)
    torch.testing.assert_close(logged["adversarial_weight"], weight)
    kl = objective.cfg.kl_weight * kl_to_standard_normal(mean, std).mean() / (3 * SIZE**2)
    expected = fidelity + weight.detach() * adversarial + kl
    torch.testing.assert_close(loss, expected)
    for gradient, parameter in zip(found, torch.autograd.grad(expected, list(tokenizer.parameters())), strict=True):
        torch.testing.assert_close(gradient, parameter, atol=1e-6, rtol=1e-3)


def test_the_discriminator_joins_after_its_start_and_each_phase_moves_its_own_weights() -> None:
    objective = objective_of(adversarial_weight=0.5, adversarial_start=0.5)
    assert objective.phases == ("tokenizer", "discriminator")
    assert objective.discriminator is not None
    discriminator = weights(objective.discriminator)
    early = train(objective, IMAGES, steps=2, lr=1e-3, total=4)
    assert not any(moved(discriminator, objective.discriminator))
    assert "adversarial" not in early[-1]
    late = train(objective, IMAGES, steps=2, lr=1e-3, start=2, total=4)
    assert all(moved(discriminator, objective.discriminator))
    assert late[-1]["adversarial_weight"] > 0


def test_the_discriminators_phase_leaves_no_gradient_in_the_tokenizer() -> None:
    objective = objective_of(adversarial_weight=0.5, adversarial_start=0.0)
    begin(objective)
    loss, _ = objective.loss("discriminator")
    assert loss is not None
    loss.backward()
    assert all(parameter.grad is None for parameter in objective.tokenizer.parameters())


def test_the_discriminator_learns_to_tell_reconstructions() -> None:
    """With the tokenizer at rest (a rate of zero), its hinge loss falls well below the 1 of not knowing."""
    objective = objective_of(adversarial_weight=0.5, adversarial_start=0.0)
    assert objective.discriminator is not None
    optimizer = torch.optim.Adam(objective.discriminator.parameters(), lr=2e-3)
    for _ in range(30):
        begin(objective)
        loss, logged = objective.loss("discriminator")
        assert loss is not None
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5
    assert logged["logit_real"] > logged["logit_fake"] + 1


def test_a_verdict_does_not_depend_on_the_other_images_of_the_batch() -> None:
    discriminator = PatchDiscriminator(SIZE, 8)
    torch.testing.assert_close(discriminator(IMAGES)[:2], discriminator(IMAGES[:2]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("size", "shape", "field"), [(16, 6, 16), (32, 14, 16), (64, 14, 34), (128, 14, 70), (256, 30, 70)])
def test_the_discriminators_field_of_view(size: int, shape: int, field: int) -> None:
    discriminator = PatchDiscriminator(size, 4).double()
    images = torch.zeros(1, 3, size, size, dtype=torch.double, requires_grad=True)
    for layer in discriminator.layers:
        if isinstance(layer, nn.GroupNorm):  # it looks at the whole map; the field of view is the convolutions'
            layer.weight.data.zero_()
    convolutions = nn.Sequential(*(layer for layer in discriminator.layers if not isinstance(layer, nn.GroupNorm)))
    logits = convolutions(images)
    assert logits.shape == (1, 1, shape, shape)
    logits[0, 0, shape // 2, shape // 2].backward()
    seen = images.grad.abs().sum((0, 1, 2)).nonzero()  # type: ignore[union-attr]
    assert int(seen.max() - seen.min()) + 1 <= field
    assert int(seen.max() - seen.min()) + 1 >= min(field, size // 2)


def test_the_seed_fixes_the_discriminator_and_disturbs_no_other_random_numbers() -> None:
    torch.manual_seed(3)
    expected = torch.rand(3)
    tokenizer = build_tokenizer(settings("conv"), SIZE, {})
    cfg = settings("conv", adversarial_weight=0.5)
    torch.manual_seed(3)
    first = training_objective(tokenizer, cfg, seed=5, parts={}).discriminator
    assert torch.equal(torch.rand(3), expected)
    same, other = (training_objective(tokenizer, cfg, seed=seed, parts={}).discriminator for seed in (5, 6))
    assert first is not None
    assert same is not None
    assert other is not None
    assert not any(moved(weights(first), same))
    assert any(moved(weights(first), other))


def test_patch_tokenizers_have_no_image_losses_whatever_their_weights() -> None:
    objective = objective_of("patch_vae", perceptual_weight=1.0, adversarial_weight=0.5)
    assert objective.perceptual is None
    assert objective.phases == ("tokenizer",)
    assert set(objective.modules()) == {"tokenizer"}


def test_frozen_networks_are_neither_trained_nor_checkpointed() -> None:
    objective = objective_of(perceptual_weight=1.0, adversarial_weight=0.5)
    assert set(objective.modules()) == {"tokenizer", "discriminator"}
    assert objective.perceptual is not None
    tokenizer, discriminator = (set(map(id, objective.parameters(phase))) for phase in objective.phases)
    assert tokenizer == set(map(id, objective.tokenizer.parameters()))
    assert not tokenizer & discriminator


def test_every_network_is_put_on_the_tokenizers_device() -> None:
    cfg = settings("conv", perceptual_weight=1.0, perceptual_network="efficientnet_lite0", adversarial_weight=0.5)
    tokenizer = build_tokenizer(cfg, SIZE, {}).to("meta")
    objective = training_objective(tokenizer, cfg, seed=0, parts={})
    assert objective.perceptual is not None
    assert objective.discriminator is not None
    for network in (objective.perceptual, objective.discriminator):
        assert {parameter.device.type for parameter in network.parameters()} == {"meta"}


def test_mixed_precision_trains_too() -> None:
    objective = objective_of(perceptual_weight=0.3, adversarial_weight=0.5, adversarial_start=0.0)
    before = copy.deepcopy(objective.tokenizer.state_dict())
    with torch.autocast("cpu", torch.bfloat16):
        history = train(objective, IMAGES, steps=6, lr=2e-3)
    assert history[-1]["reconstruction"] < history[0]["reconstruction"]
    assert not torch.equal(before["network.encoder.conv_in.weight"], objective.tokenizer.state_dict()["network.encoder.conv_in.weight"])


def test_psnr_in_cases_done_by_hand() -> None:
    images = torch.zeros(4, 3, 2, 2)
    reconstructions = torch.stack([torch.full((3, 2, 2), value) for value in (0.2, 0.0, 1.0, 5.0)])
    found = reconstruction_psnr(images, reconstructions)
    # 10 log10(4 / 0.04) = 20; exact is capped; 10 log10(4 / 1); out of range is clipped to 1
    np.testing.assert_allclose(found.numpy(), [20, 100, 6.0206, 6.0206], atol=1e-4)


def test_psnr_agrees_with_scikit_image() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    noisy = (IMAGES + 0.1 * torch.randn_like(IMAGES)).clamp(-1, 1)
    expected = [metrics.peak_signal_noise_ratio(a.numpy(), b.numpy(), data_range=2) for a, b in zip(IMAGES, noisy, strict=True)]
    np.testing.assert_allclose(reconstruction_psnr(IMAGES, noisy).numpy(), expected, rtol=1e-4)


def test_an_unknown_perceptual_network_is_refused() -> None:
    cfg = settings("conv", perceptual_weight=1.0, perceptual_network="slope")
    tokenizer = build_tokenizer(cfg, SIZE, {})
    with pytest.raises(ConfigError, match="Did you mean slopes"):
        training_objective(tokenizer, cfg, seed=0, parts=PARTS)
