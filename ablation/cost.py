"""What networks and training steps take: parameters and floating-point operations, from the configuration alone.

A multiplication with its addition counts as two operations. Matrix products and convolutions are counted; what is left
out (norms, activations, optimizer) is below 2 % of a step. Backward passes count only the gradients that are needed: no
gradient flows to a network's input, nor to frozen weights. This module is light.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ablation.config import Config, TokenizerConfig
from ablation.denoiser.sizes import FREQUENCIES, SIZES

INCEPTION_FLOPS = 11.4e9
"""One image of 299 x 299 through the FID Inception up to its pooled features (checked against torchvision's Inception v3)."""

_VGG = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # channels and convolutions of VGG16's stages
_LITE0 = ((1, 3, 1, 16, 1), (2, 3, 6, 24, 2), (2, 5, 6, 40, 2), (3, 3, 6, 80, 2), (3, 5, 6, 112, 1), (4, 5, 6, 192, 2), (1, 3, 6, 320, 1))
"""EfficientNet-Lite0's stages: blocks, kernel, expansion, channels, stride (Tan & Le 2019, Table 1, without attention)."""
_LITE0_STEM = 32
_DISCRIMINATOR_WIDTH = 64
_BLOCK_BYTES = {"fp32": 81.0, "bf16": 48.0}
_CHECKPOINTED_BYTES = {"fp32": 4.5, "bf16": 4.0}  # a block's input, and its modulation
_ENDS_BYTES = 13.0


@dataclass(frozen=True)
class Cost:
    """Parameters of a network, and operations for one image: forward, and what the gradients add to it."""

    parameters: int = 0
    forward: float = 0.0
    input_gradient: float = 0.0  # to pass the loss on to what came before
    weight_gradient: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        """Add the parts of a network up."""
        return Cost(
            self.parameters + other.parameters,
            self.forward + other.forward,
            self.input_gradient + other.input_gradient,
            self.weight_gradient + other.weight_gradient,
        )

    @property
    def training(self) -> float:
        """Operations of a forward pass with all gradients."""
        return self.forward + self.input_gradient + self.weight_gradient

    def first(self) -> Cost:
        """Return the cost of a network's first layer, whose input needs no gradient."""
        return replace(self, input_gradient=0.0)


def linear(inputs: int, outputs: int, rows: int = 1, bias: bool = True) -> Cost:
    """Return the cost of a linear layer applied to `rows` vectors per image."""
    flops = 2.0 * rows * inputs * outputs
    return Cost(inputs * outputs + bias * outputs, flops, flops, flops)


def convolution(inputs: int, outputs: int, kernel: int, side: int, groups: int = 1, bias: bool = True) -> Cost:
    """Return the cost of a square convolution with an output of side x side."""
    weights = inputs // groups * outputs * kernel**2
    flops = 2.0 * weights * side**2
    return Cost(weights + bias * outputs, flops, flops, flops)


def attention(tokens: int, width: int) -> Cost:
    """Return the cost of the two products of self-attention; the backward pass multiplies four times, all of it for the input."""
    flops = 4.0 * tokens**2 * width
    return Cost(0, flops, 2 * flops, 0)


def denoiser(config: Config, num_classes: int, blocks: int | None = None) -> Cost:
    """Return the cost of the configured DiT, or of its first `blocks` blocks alone, as a probe runs it.

    num_classes: classes of the data; they count only where the denoiser is conditioned on them.
    """
    width, depth, _ = SIZES[config.denoiser.size]
    tokens, condition = config.tokens, max(1, round(config.denoiser.modulation_ratio * width))
    inputs, outputs = denoiser_dims(config)
    last = depth if blocks is None else blocks
    cost = linear(inputs, width, tokens).first()
    cost += linear(FREQUENCIES, condition).first() + linear(condition, condition)
    cost += linear(condition, 6 * last * width)
    block = linear(width, 3 * width, tokens) + attention(tokens, width) + linear(width, width, tokens)
    block += linear(width, 4 * width, tokens) + linear(4 * width, width, tokens)
    for _ in range(last):
        cost += block
    if config.denoiser.class_conditional:
        cost += Cost((num_classes + 1) * condition)
    if blocks is None:
        cost += linear(condition, 2 * width) + linear(width, outputs, tokens)
    return cost


def denoiser_dims(config: Config) -> tuple[int, int]:
    """Return the numbers per token that the denoiser reads and writes."""
    process, latent = config.process, config.tokenizer.latent_dim
    inputs = config.patch_dim if process.input_space == "image" else latent
    if process.output_space == "image":
        return inputs, config.patch_dim
    return inputs, 2 * latent if process.learned_variance else latent


def encoder_blocks(config: Config) -> int:
    """Return how many blocks a probe runs: up to the probed block, or the encoder half."""
    half = max(1, SIZES[config.denoiser.size].depth // 2)
    return config.probe.block or config.denoiser.encoder_depth or half


def denoiser_step(config: Config, num_classes: int) -> float:
    """Return the operations of one image in one training step: the network's, and the products with the PCA basis around it."""
    process, tokens, latent, patch = config.process, config.tokens, config.tokenizer.latent_dim, config.patch_dim
    flops = denoiser(config, num_classes).training
    to_image = linear(latent, patch, tokens).forward
    if process.input_space == "image":
        flops += to_image
    if process.output_space == "image":
        if process.target != "original":
            flops += to_image  # the target
        if process.image_loss_units == "latent" or (process.target == "original" and process.residual_weight != 1):
            flops += 2 * linear(patch, patch, tokens).forward  # the residual in the PCA basis, and its gradient
    return flops


def activation_bytes(config: Config, precision: str) -> float:
    """Return the memory that one image holds between the forward and the backward pass of the denoiser, in bytes.

    Counted for fused attention, without the products of a compiler; the factors are bytes per token and width, measured.
    """
    width, depth, _ = SIZES[config.denoiser.size]
    block, kept = _BLOCK_BYTES[precision], _CHECKPOINTED_BYTES[precision]
    held = depth * kept + block if config.denoiser.activation_checkpointing else depth * block
    return config.tokens * width * (held + _ENDS_BYTES)


def denoiser_call(config: Config, num_classes: int) -> float:
    """Return the operations of one image in one step of sampling, guidance included."""
    calls = 2 if config.fid.guidance != 1 and config.denoiser.class_conditional else 1
    spaces = (config.process.input_space == "image") * calls + (config.process.output_space == "image")
    around = spaces * linear(config.tokenizer.latent_dim, config.patch_dim, config.tokens).forward
    return calls * denoiser(config, num_classes).forward + around


def encoder(cfg: TokenizerConfig, image_size: int) -> Cost:
    """Return the cost of a tokenizer's encoder; a plugin's tokenizer is taken to be patch-wise."""
    if cfg.kind == "conv":
        return _conv_encoder(cfg, image_size)
    if cfg.kind == "pixels":
        return Cost()
    tokens, patch = (image_size // cfg.patch_size) ** 2, 3 * cfg.patch_size**2
    return linear(patch, cfg.latent_dim, tokens, bias=False).first() + Cost(cfg.latent_dim if cfg.kind == "patch_vae" else 0)


def decoder(cfg: TokenizerConfig, image_size: int) -> Cost:
    """Return the cost of a tokenizer's decoder."""
    if cfg.kind == "conv":
        return _conv_decoder(cfg, image_size)
    if cfg.kind == "pixels":
        return Cost()
    tokens, patch = (image_size // cfg.patch_size) ** 2, 3 * cfg.patch_size**2
    cost = linear(cfg.latent_dim, patch, tokens, bias=False)
    return replace(cost, parameters=0) if cfg.kind == "patch_pca" else cost  # the same basis


def _norm(channels: int) -> Cost:
    """Return a norm with a learned scale and shift."""
    return Cost(2 * channels)


def _residual(inputs: int, outputs: int, side: int) -> Cost:
    """Return a residual block: two norms, two convolutions, and a 1 x 1 shortcut where the width changes."""
    cost = _norm(inputs) + convolution(inputs, outputs, 3, side) + _norm(outputs) + convolution(outputs, outputs, 3, side)
    return cost + convolution(inputs, outputs, 1, side) if inputs != outputs else cost


def _middle(channels: int, side: int) -> Cost:
    """Return the block between the halves of the convolutional tokenizer: residual, self-attention, residual."""
    heads = _norm(channels) + attention(side**2, channels)
    for _ in range(4):
        heads += linear(channels, channels, side**2)
    return _residual(channels, channels, side) + heads + _residual(channels, channels, side)


def _conv_encoder(cfg: TokenizerConfig, side: int) -> Cost:
    """Return LDM's convolutional encoder, with the 1 x 1 map to mean and log-variance."""
    channels = cfg.block_channels
    latent = cfg.latent_dim // (cfg.patch_size // cfg.stride) ** 2
    cost = convolution(3, channels[0], 3, side).first()
    before = channels[0]
    for level, width in enumerate(channels):
        for _ in range(cfg.layers_per_block):
            cost += _residual(before, width, side)
            before = width
        if level < len(channels) - 1:
            side //= 2
            cost += convolution(width, width, 3, side)
    cost += _middle(before, side) + _norm(before) + convolution(before, 2 * latent, 3, side)
    return cost + convolution(2 * latent, 2 * latent, 1, side)


def _conv_decoder(cfg: TokenizerConfig, image_size: int) -> Cost:
    """Return LDM's convolutional decoder, one residual block deeper per resolution than the encoder."""
    channels, side = cfg.block_channels[::-1], image_size // cfg.stride
    latent = cfg.latent_dim // (cfg.patch_size // cfg.stride) ** 2
    cost = convolution(latent, latent, 1, side) + convolution(latent, channels[0], 3, side) + _middle(channels[0], side)
    before = channels[0]
    for level, width in enumerate(channels):
        for _ in range(cfg.layers_per_block + 1):
            cost += _residual(before, width, side)
            before = width
        if level < len(channels) - 1:
            side *= 2
            cost += convolution(width, width, 3, side)
    return cost + _norm(before) + convolution(before, 3, 3, side)


def discriminator(cfg: TokenizerConfig, image_size: int) -> Cost:
    """Return the cost of the patch discriminator on one image."""
    width = min(_DISCRIMINATOR_WIDTH, cfg.block_channels[0])
    halvings = min(3, max(1, image_size.bit_length() - 5))
    side = image_size // 2
    cost = convolution(3, width, 4, side).first()
    before = width
    for level in range(1, halvings + 1):
        after = width * 2**level
        side = side // 2 if level < halvings else side - 1
        cost += convolution(before, after, 4, side, bias=False) + _norm(after)
        before = after
    return cost + convolution(before, 1, 4, side - 1)


def perceptual(name: str, side: int) -> float:
    """Return the operations of one image through a frozen perceptual network; a plugin's is taken to be VGG's."""
    if name == "efficientnet_lite0":
        return efficientnet_lite0(side, 5)
    flops, before = 0.0, 3
    for stage, (width, count) in enumerate(_VGG):
        if stage:
            if name == "st_lpips":  # pooled by a blur of 3 x 3, on a map one pixel wider
                side = (side + 2) // 2
                flops += convolution(before, before, 3, side, groups=before).forward
            else:
                side //= 2
        for _ in range(count):
            flops += convolution(before, width, 3, side).forward
            before = width
    return flops


def efficientnet_lite0(side: int, stages: int) -> float:
    """Return the operations of one image through the stem and the first stages of EfficientNet-Lite0."""
    side = -(-side // 2)
    flops, before = convolution(3, _LITE0_STEM, 3, side, bias=False).forward, _LITE0_STEM
    for blocks, kernel, expansion, width, stride in _LITE0[:stages]:
        for block in range(blocks):
            inner = before * expansion
            if expansion > 1:
                flops += convolution(before, inner, 1, side, bias=False).forward
            side = -(-side // (stride if block == 0 else 1))
            flops += convolution(inner, inner, kernel, side, groups=inner, bias=False).forward
            flops += convolution(inner, width, 1, side, bias=False).forward
            before = width
    return flops


def extractor(name: str, image_size: int) -> float:
    """Return the operations of one image through the network of a Frechet distance; a plugin's is taken to be Inception's."""
    if name == "efficientnet_lite0":
        return efficientnet_lite0(min(max(image_size, 64), 224), 5)
    return INCEPTION_FLOPS


def tokenizer_step(config: Config, adversarial: bool) -> float:
    """Return the operations of one image in one training step of a tokenizer, with or without the adversarial phase.

    The frozen perceptual network runs on the image and on its reconstruction, and passes a gradient back. The discriminator
    judges the reconstruction for the tokenizer (forward and input gradient), then both images for itself.
    """
    cfg, size = config.tokenizer, config.data.image_size
    if cfg.kind == "patch_pca":
        return linear(config.patch_dim, config.patch_dim, config.tokens).forward  # the covariance
    flops = encoder(cfg, size).training + decoder(cfg, size).training
    if cfg.kind != "conv":
        return flops
    if cfg.perceptual_weight > 0:
        flops += 3 * perceptual(cfg.perceptual_network, size)
    if adversarial:
        judge = discriminator(cfg, size)
        last = convolution(cfg.block_channels[0], 3, 3, size).forward
        full_gradient = judge.forward  # at the images too, which training the discriminator alone does not need
        flops += judge.forward + full_gradient + 2 * last + 2 * judge.training
    return flops
