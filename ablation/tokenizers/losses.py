"""The training objective of the tokenizers: reconstruction, KL, perceptual and adversarial terms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ablation.config import TokenizerConfig
from ablation.tokenizers.base import Tokenizer
from ablation.tokenizers.discriminator import PatchDiscriminator, adaptive_weight, hinge_loss
from ablation.tokenizers.perceptual import PerceptualDistance, build_perceptual

GENERATOR = "tokenizer"
DISCRIMINATOR = "discriminator"
_MAX_PSNR = 100.0
_DISCRIMINATOR_WIDTH = 64


class Noise(Protocol):
    """Where random numbers come from; the training loop's source has this method."""

    def normal(self, name: str, shape_per_image: tuple[int, ...]) -> Tensor:
        """Return standard normal numbers (B, *shape_per_image)."""


class TokenizerObjective:
    """What a gradient-fitted tokenizer minimises; implements the training loop's Objective.

    loss = mean (x - x')^2 + kl_weight KL[q(z|x) | N(0, I)] / (3 H W) + perceptual_weight P(x, x') + w adversarial_weight A(x')
    The first two terms are the paper's ||x - g(f(x))||^2 + KL, divided by the numbers in an image, so kl_weight weighs a sum
    against a sum as in LDM. x' is decoded from a posterior sample if the tokenizer is stochastic. P is `perceptual`'s
    distance. A = -mean of the discriminator's logits, w the adaptive weight (see `adaptive_weight`) on this batch; A and the
    discriminator's own phase (hinge loss) begin at cfg.adversarial_start. Unlike the paper's equation LDM uses an absolute
    error with a learned scale.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        cfg: TokenizerConfig,
        perceptual: PerceptualDistance | None,
        discriminator: PatchDiscriminator | None,
        balance: Callable[[Tensor], Tensor] = lambda gradient: gradient,
    ) -> None:
        """balance: averages a gradient over the processes whose images are weighed against one another."""
        self.balance = balance
        self.tokenizer = tokenizer
        self.cfg = cfg
        self.perceptual = perceptual
        self.discriminator = discriminator
        self.phases: tuple[str, ...] = (GENERATOR,) if discriminator is None else (GENERATOR, DISCRIMINATOR)

    def modules(self) -> dict[str, nn.Module]:
        """Return what has weights to train and checkpoint; the frozen perceptual network is not among it."""
        modules: dict[str, nn.Module] = {GENERATOR: self.tokenizer}
        if self.discriminator is not None:
            modules[DISCRIMINATOR] = self.discriminator
        return modules

    def parameters(self, phase: str) -> list[nn.Parameter]:
        """Return the parameters that a phase optimises."""
        return list(self.modules()[phase].parameters())

    def begin_step(self, batch: dict[str, Tensor], noise: Noise, progress: float) -> None:
        """Encode, sample and decode batch["images"] (B, 3, H, W) in [-1, 1]; both phases use the result."""
        self._images = batch["images"]
        mean, std = self.tokenizer.encode(self._images)  # (B, N, d)
        latents = mean
        self._kl: Tensor | None = None
        if std is not None:
            latents = mean + std * noise.normal("posterior", tuple(mean.shape[1:])).to(mean)
            self._kl = kl_to_standard_normal(mean, std)  # (B,)
        self._reconstructions = self.tokenizer.decode(latents)  # (B, 3, H, W)
        self._adversarial = self.discriminator is not None and progress >= self.cfg.adversarial_start

    def loss(self, phase: str) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Return the phase's scalar loss over the batch and the values to log; (None, {}) skips the phase."""
        if phase == GENERATOR:
            return self._generator_loss()
        return self._discriminator_loss() if self._adversarial else (None, {})

    def _generator_loss(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the tokenizer's loss and its terms."""
        if self._adversarial:
            image_loss, logged = self._balanced_loss()
        else:
            image_loss, logged = self._fidelity(self._reconstructions)
        if self._kl is not None:
            kl = self._kl.mean()
            logged["kl"] = kl.detach()
            image_loss = image_loss + self.cfg.kl_weight * kl / self._images[0].numel()
        return image_loss, logged

    def _fidelity(self, reconstructions: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return squared error plus perceptual distance, and both to log."""
        squared = (reconstructions - self._images).square().mean()
        logged = {"reconstruction": squared.detach()}
        if self.perceptual is None:
            return squared, logged
        distance = self.perceptual(self._images, reconstructions).mean()
        logged["perceptual"] = distance.detach()
        return squared + self.cfg.perceptual_weight * distance, logged

    def _balanced_loss(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Return fidelity plus the adversarial term, balanced at the decoder's last layer.

        Both terms are differentiated once, at the images; the balance needs these gradients carried one layer further down,
        and the returned loss carries their weighted sum on. Value and gradients equal those of the plain sum, for half the
        passes through both networks, and the discriminator is left without a gradient.
        """
        assert self.discriminator is not None
        images = self._reconstructions.detach().requires_grad_()
        fidelity, logged = self._fidelity(images)
        adversarial = -self.discriminator(images).mean()
        with torch.autocast(images.device.type, enabled=False):  # a backward pass keeps the precision of its forward pass
            gradients = [torch.autograd.grad(term, images)[0] for term in (fidelity, adversarial)]  # each (B, 3, H, W)
            layer = self.tokenizer.last_layer()
            at_layer = [self.balance(torch.autograd.grad(self._reconstructions, layer, g, retain_graph=True)[0]) for g in gradients]
        weight = self.cfg.adversarial_weight * adaptive_weight(*at_layer)
        logged |= {"adversarial": adversarial.detach(), "adversarial_weight": weight}
        carried = (self._reconstructions * (gradients[0] + weight * gradients[1])).sum()
        value = fidelity.detach() + weight * adversarial.detach()
        return value + carried - carried.detach(), logged

    def _discriminator_loss(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the discriminator's hinge loss and its mean logits; nothing flows to the tokenizer."""
        assert self.discriminator is not None
        real = self.discriminator(self._images)
        fake = self.discriminator(self._reconstructions.detach())
        loss = hinge_loss(real, fake)
        return loss, {"discriminator": loss.detach(), "logit_real": real.detach().mean(), "logit_fake": fake.detach().mean()}


def training_objective(
    tokenizer: Tokenizer,
    cfg: TokenizerConfig,
    seed: int,
    parts: Mapping[str, Any],
    balance: Callable[[Tensor], Tensor] = lambda gradient: gradient,
) -> TokenizerObjective:
    """Build the objective of a gradient-fitted tokenizer; perceptual and adversarial terms only where it has image losses.

    Both networks are put on the tokenizer's device. `seed` fixes the discriminator's first weights. `parts` may hold a
    plugin's "perceptual:NAME".
    Raises: ConfigError for an unknown perceptual network or missing weights.
    """
    perceptual, discriminator = None, None
    device = next(tokenizer.parameters()).device
    if tokenizer.image_losses and cfg.perceptual_weight > 0:
        perceptual = build_perceptual(cfg.perceptual_network, cfg.perceptual_path, parts).to(device)
    if tokenizer.image_losses and cfg.adversarial_weight > 0:
        width = min(_DISCRIMINATOR_WIDTH, cfg.block_channels[0])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            discriminator = PatchDiscriminator(tokenizer.grid * tokenizer.patch_size, width).to(device)
    return TokenizerObjective(tokenizer, cfg, perceptual, discriminator, balance)


def kl_to_standard_normal(mean: Tensor, std: Tensor) -> Tensor:
    """Return KL[N(mean, std^2) | N(0, I)] per image, in nats: (B, N, d) twice -> (B,)."""
    variance = std.square()
    return 0.5 * (mean.square() + variance - 1 - variance.log()).flatten(1).sum(1)


def reconstruction_psnr(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Return each image's peak signal-to-noise ratio in decibel: (B, 3, H, W) twice, in [-1, 1] -> (B,).

    Reconstructions are clipped to the range first. Values stop at 100 dB, so that an exact reconstruction stays finite.
    """
    error = (images - reconstructions.clamp(-1, 1)).float().square().flatten(1).mean(1)  # (B,)
    return (10 * (4 / error).log10()).clamp(max=_MAX_PSNR)  # the range is 2 wide, its square 4
