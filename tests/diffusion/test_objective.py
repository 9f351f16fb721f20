"""The loss against its definition, for every target and space."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ablation.config import ProcessConfig
from ablation.diffusion.objective import DenoisingObjective
from ablation.diffusion.process import Process
from ablation.diffusion.space import PatchSpace
from ablation.train.noise import NoiseSource

BuildSpace = Callable[..., PatchSpace]
IMAGE = {"input_space": "image", "output_space": "image"}


class TokenNetwork(nn.Module):
    """A per-token linear map that also sees the time and the label; records its last inputs."""

    def __init__(self, in_dim: int, out_dim: int, num_classes: int = 0) -> None:
        super().__init__()
        self.map = nn.Linear(in_dim + 1, out_dim)
        self.embed = nn.Embedding(num_classes + 1, out_dim)
        self.seen: dict[str, Tensor | None] = {}

    def forward(self, tokens: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        self.seen = {"tokens": tokens, "time": time, "labels": labels}
        clock = (time / 1000)[:, None, None].expand(*tokens.shape[:2], 1)
        out = self.map(torch.cat([tokens, clock], dim=-1))
        return out if labels is None else out + self.embed(labels)[:, None]


def process(**settings: Any) -> Process:
    return Process.from_config(ProcessConfig(**settings))


def run(
    built: Process, space: PatchSpace | None, network: nn.Module, batch: dict[str, Tensor], seed: int = 0
) -> tuple[Tensor, dict[str, Tensor]]:
    objective = DenoisingObjective(network, built, space, num_classes=0, class_dropout=0.0)
    objective.begin_step(batch, NoiseSource(seed, 0, len(batch["latents"])), 0.0)
    return objective.loss("denoiser")


def data(space: PatchSpace, count: int = 16) -> dict[str, Tensor]:
    images = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(3)) * 2 - 1
    return {"images": images, "latents": space.to_latent(space.normalise(images))}


def test_loss_is_equation_3_by_hand(build_space: BuildSpace) -> None:
    """lambda_t ||z_0 - net(z_t)||^2 from the same draws, with a network that answers zero."""
    space = build_space(latent_dim=5)
    built = process(schedule="linear_sigma", target="clean", loss_weight="inverse_variance")
    batch, source = data(space), NoiseSource(7, 0, 16)
    network = TokenNetwork(5, 5)
    nn.init.zeros_(network.map.weight)
    nn.init.zeros_(network.map.bias)
    loss, logged = run(built, None, network, batch, seed=7)
    t = (source.uniform("timestep") * 1000).long() + 1
    sigma = math.sqrt(2) * t / 1000
    errors = (batch["latents"] ** 2).mean(dim=(1, 2))
    assert loss.item() == pytest.approx((errors / (1 + sigma**2)).mean().item(), rel=1e-5)
    assert logged["unweighted_loss"].item() == pytest.approx(errors.mean().item(), rel=1e-5)
    assert logged["loss"].item() == loss.item()
    expected = batch["latents"] + sigma[:, None, None] * source.normal("noise", (4, 5))
    assert network.seen["tokens"] is not None
    assert torch.allclose(network.seen["tokens"], expected, atol=1e-5)
    assert torch.equal(network.seen["time"], t.float())  # type: ignore[arg-type]


@pytest.mark.parametrize("target", ["noise", "clean"])
@pytest.mark.parametrize(("scale", "units"), [("global", "pixel"), ("global", "latent"), ("whitened", "latent")])
def test_at_full_rank_image_and_latent_losses_are_equal(build_space: BuildSpace, target: str, scale: str, units: str) -> None:
    """With d = D, an image-space network that wraps the latent one has the same loss and the same gradients."""
    space = build_space(latent_dim=12, scale=torch.full((12,), 1.7) if scale == "global" else None)
    settings = {"schedule": "linear_sigma", "target": target, "loss_weight": "inverse_variance"}
    inner = TokenNetwork(12, 12)

    class InImageSpace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, tokens: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
            output = self.inner(space.to_latent(tokens), time, labels)
            return space.noise_to_image(output) if target == "noise" else space.to_image(output)

    batch = data(space)
    latent, _ = run(process(**settings), None, inner, batch)
    image, _ = run(process(**settings, **IMAGE, image_loss_units=units), space, InImageSpace(), batch)
    assert image.item() == pytest.approx(latent.item(), rel=1e-4)
    grads = [torch.autograd.grad(loss, list(inner.map.parameters())) for loss in (latent, image)]
    for mine, other in zip(*grads, strict=True):
        assert torch.allclose(mine, other, rtol=1e-3, atol=1e-5)


def test_whitened_latents_in_pixel_units_weigh_components_differently(build_space: BuildSpace) -> None:
    space = build_space(latent_dim=12)
    losses = {}
    for units in ("pixel", "latent"):
        network = TokenNetwork(12, 12)
        nn.init.zeros_(network.map.weight)
        nn.init.zeros_(network.map.bias)
        built = process(target="clean", **IMAGE, image_loss_units=units)
        losses[units] = run(built, space, network, data(space))[0].item()
    assert losses["pixel"] != pytest.approx(losses["latent"], rel=0.05)


@pytest.mark.parametrize("residual_weight", [1.0, 0.1, 0.0])
def test_original_target_is_equation_4_by_hand(build_space: BuildSpace, residual_weight: float) -> None:
    space = build_space(latent_dim=5)
    built = process(schedule="constant", target="original", **IMAGE, residual_weight=residual_weight)
    network, batch = TokenNetwork(12, 12), data(space)
    loss, _ = run(built, space, network, batch)
    assert network.seen["tokens"] is not None
    output = network(network.seen["tokens"], torch.zeros(16))
    difference = output - space.normalise(batch["images"])
    r = difference @ space.basis.T
    w = torch.tensor([1.0] * 5 + [residual_weight] * 7)
    assert loss.item() == pytest.approx((w * r**2).mean().item(), rel=1e-5)
    if residual_weight == 1.0:
        assert loss.item() == pytest.approx((difference**2).mean().item(), rel=1e-5)


def test_lossy_target_ignores_the_residual_weight_but_not_the_residual(build_space: BuildSpace) -> None:
    """Before the last step the target is V^T V x_0 and what the network puts off the subspace counts fully."""
    space = build_space(latent_dim=5)
    network, batch = TokenNetwork(12, 12), data(space)
    losses = [run(process(target="clean", **IMAGE, residual_weight=w), space, network, batch)[0].item() for w in (0.1, 0.9)]
    assert losses[0] == losses[1]
    output = network(network.seen["tokens"], network.seen["time"])
    expected = (output - space.to_image(batch["latents"])).square().mean()
    assert losses[0] == pytest.approx(expected.item(), rel=1e-5)


def test_labels_are_dropped_at_the_configured_rate() -> None:
    network = TokenNetwork(5, 5, num_classes=10)
    objective = DenoisingObjective(network, process(), None, num_classes=10, class_dropout=0.1)
    labels = torch.arange(6000) % 10
    objective.begin_step({"latents": torch.zeros(6000, 4, 5), "labels": labels}, NoiseSource(0, 0, 6000), 0.0)
    objective.loss("denoiser")
    seen = network.seen["labels"]
    assert seen is not None
    dropped = seen == 10
    assert dropped.float().mean().item() == pytest.approx(0.1, abs=0.012)
    assert torch.equal(seen[~dropped], labels[~dropped])


def test_an_unconditional_denoiser_sees_no_labels() -> None:
    network = TokenNetwork(5, 5)
    objective = DenoisingObjective(network, process(), None, num_classes=0, class_dropout=0.1)
    objective.begin_step({"latents": torch.zeros(2, 4, 5), "labels": torch.tensor([1, 2])}, NoiseSource(0, 0, 2), 0.0)
    objective.loss("denoiser")
    assert network.seen["labels"] is None


def test_single_level_network_is_told_no_time(build_space: BuildSpace) -> None:
    network = TokenNetwork(5, 5)
    run(process(schedule="constant", target="clean"), None, network, data(build_space(latent_dim=5)))
    assert torch.equal(network.seen["time"], torch.zeros(16))  # type: ignore[arg-type]


def test_same_noise_same_loss_and_micro_batches_add_up(build_space: BuildSpace) -> None:
    space = build_space(latent_dim=5)
    network, batch = TokenNetwork(5, 5), data(space)
    whole = run(process(), None, network, batch)[0]
    assert torch.equal(whole, run(process(), None, network, batch)[0])
    assert not torch.equal(whole, run(process(), None, network, batch, seed=1)[0])
    objective = DenoisingObjective(network, process(), None, num_classes=0, class_dropout=0.0)
    parts = []
    for start in (0, 8):
        objective.begin_step({"latents": batch["latents"][start : start + 8]}, NoiseSource(0, start, 8), 0.0)
        parts.append(objective.loss("denoiser")[0])
    assert torch.stack(parts).mean().item() == pytest.approx(whole.item(), rel=1e-5)


def test_learned_variance_adds_the_bound_without_moving_the_mean(build_space: BuildSpace) -> None:
    space = build_space(latent_dim=5)
    network, batch = TokenNetwork(5, 10), data(space)
    grads = {}
    for weight in (0.0, 1e-3):
        built = process(learned_variance=True, variational_weight=weight)
        loss, logged = run(built, None, network, batch)
        grads[weight] = torch.autograd.grad(loss, network.map.weight)[0]
        assert loss.item() == pytest.approx((logged["unweighted_loss"] + weight * logged["variational_bound"]).item(), rel=1e-4)
    assert torch.allclose(grads[0.0][:5], grads[1e-3][:5])  # prediction channels: the simple loss only
    assert grads[0.0][5:].abs().max() == 0
    assert grads[1e-3][5:].abs().max() > 0


@pytest.mark.parametrize("settings", [{}, {"target": "original", **IMAGE}])
def test_loss_is_float32_under_autocast(build_space: BuildSpace, settings: dict[str, Any]) -> None:
    space = build_space(latent_dim=5)
    dim = 12 if settings else 5
    network, batch = TokenNetwork(dim, dim), data(space)
    exact = run(process(**settings), space, network, batch)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = run(process(**settings), space, network, batch)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=0.02)


def test_training_reaches_the_wiener_filter() -> None:
    """At one level the best linear denoiser of N(0, s^2) is s^2 / (s^2 + sigma^2) times its input."""
    torch.manual_seed(0)
    network = nn.Linear(2, 2)
    objective = DenoisingObjective(_Timeless(network), process(schedule="constant", target="clean"), None, num_classes=0, class_dropout=0.0)
    optimizer = torch.optim.Adam(objective.parameters("denoiser"), lr=0.08)
    spread = torch.tensor([1.0, 0.5])
    for step in range(90):
        latents = torch.randn(256, 2, 2) * spread
        objective.begin_step({"latents": latents}, NoiseSource(0, 256 * step, 256), step / 90)
        loss, _ = objective.loss("denoiser")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    gain = spread**2 / (spread**2 + 1 / 3)
    assert torch.allclose(network.weight, torch.diag(gain), atol=0.06)
    assert set(objective.modules()) == {"denoiser"}
    assert objective.phases == ("denoiser",)


class _Timeless(nn.Module):
    """A network that ignores time and label."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, tokens: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        out: Tensor = self.inner(tokens)
        return out


def test_image_space_without_a_patch_space_is_refused() -> None:
    with pytest.raises(ValueError, match="PatchSpace"):
        DenoisingObjective(nn.Identity(), process(**IMAGE), None, num_classes=0, class_dropout=0.0)
