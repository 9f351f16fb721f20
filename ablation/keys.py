"""Content keys: a job is named by a hash of exactly what it reads.

Equal keys are the same job, so stages share tokenizers, latents and reference statistics without anyone arranging it.
Settings equal to their declared default are left out of the hash, so that a new setting does not orphan old results.
This module is light.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from ablation.config import Config, field_names, get_value

EXCLUDED = ("data.path", "tokenizer.perceptual_path", "fid.extractor_path", "denoiser.init_path", "denoiser.activation_checkpointing")
"""Settings that say where something lies or how it is computed, never what it is; no key contains them."""

KIND_VERSIONS = {
    "reference": 1,
    "tokenizer": 1,
    "encode": 1,
    "train": 1,
    "probe": 1,
    "fid": 1,
    "finetune": 1,
    "checkpoint": 1,
    "evaluation": 1,
}
"""Job kinds in the order in which a cell runs them; raise a number when a kind's results change meaning."""

_DATA = ("data.source", "data.image_size", "data.train_images", "data.scene_seed")
_TEST = ("data.test_images",)
_TOKENIZER_READS: dict[str, tuple[str, ...]] = {
    "pixels": (),
    "patch_pca": (),
    "patch_ae": ("latent_dim", "steps", "global_batch", "base_lr", "linear_lr_ratio", "precision"),
    "patch_vae": ("latent_dim", "steps", "global_batch", "base_lr", "linear_lr_ratio", "precision", "kl_weight"),
}
_SCHEDULE_READS = {
    "ddpm_linear_beta": ("beta_start", "beta_end", "num_timesteps"),
    "linear_gamma_squared": ("num_timesteps",),
    "linear_sigma": ("sigma_max", "num_timesteps"),
    "constant": ("sigma_constant",),
}
_COEFFICIENTS = ("beta_start", "beta_end", "sigma_max", "sigma_constant", "num_timesteps")
"""What a plugin's schedule may read."""
_FID_READS = tuple(f"fid.{name}" for name in ("samples", "sampler", "sampler_steps", "guidance", "weights", "precision"))
_PROBE_BOTH = ("block", "timestep", "noisy_input", "input", "weights", "held_out", "neighbours", "knn_temperature", "precision")
_CHECKPOINT_PROBE = ("held_out", "neighbours", "knn_temperature", "precision")
_PROBE_EPOCHS = ("optimizer", "base_lr", "global_batch", "epochs", "warmup_epochs")


def canonical_json(value: Any) -> str:
    """Write a value as JSON with sorted keys and no spaces, so that equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def digest(value: Any) -> str:
    """Hash a JSON-able value to 16 hexadecimal digits (64 bits)."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]


def reads(kind: str, config: Config) -> tuple[str, ...]:
    """List the settings that a job of this kind reads under this configuration, by dotted path."""
    return tuple(path for path in _reads(kind, config) if path not in EXCLUDED)


def _reads(kind: str, config: Config) -> list[str]:
    """List what a job kind reads; a setting that another setting switches off is not read."""
    if kind == "reference":
        return [*_DATA, "fid.extractor", "fid.reference_images"]
    if kind == "tokenizer":
        return [*_DATA, *_TEST, *_tokenizer_fit(config)]
    if kind == "encode":
        return [*_DATA, *_TEST, "data.horizontal_flip", "tokenizer.latent_dim"]
    if kind == "train":
        return _train(config)
    if kind == "probe":
        names = _PROBE_BOTH + (_PROBE_EPOCHS if config.probe.mode == "epochs" else ("weight_decays",))
        crops = ["data.crop_source_size"] if config.probe.mode == "epochs" else []
        return [*_DATA, *_TEST, *crops, "probe.mode", *(f"probe.{name}" for name in names)]
    if kind == "finetune":
        return [*_DATA, *_TEST, "data.horizontal_flip", "data.crop_source_size", *_finetune(config)]
    if kind == "checkpoint":
        names = _CHECKPOINT_PROBE + (_PROBE_EPOCHS if config.probe.mode == "epochs" else ("weight_decays",))
        crops = ["data.crop_source_size"] if config.probe.mode == "epochs" else []
        return [*_DATA, *_TEST, *crops, "data.horizontal_flip", "probe.mode", *(f"probe.{name}" for name in names)]
    if kind == "evaluation":  # a plugin: what it can ask for is what it reads
        return [*_DATA, *_TEST, *(f"probe.{name}" for name in type(config.probe).model_fields if name != "evaluations")]
    return ["fid.extractor", *_FID_READS]


def _tokenizer_fit(config: Config) -> list[str]:
    """List the tokenizer settings its fit reads."""
    tokenizer = config.tokenizer
    read = ["tokenizer.kind", "tokenizer.patch_size"]
    if tokenizer.kind in _TOKENIZER_READS:
        names = _TOKENIZER_READS[tokenizer.kind]
        return [*read, *(f"tokenizer.{name}" for name in names), *(["data.horizontal_flip"] if names else [])]
    off = {"latent_scale", "sample_posterior", "kind", "patch_size"} | ({"linear_lr_ratio"} if tokenizer.kind == "conv" else set())
    if tokenizer.perceptual_weight == 0:
        off |= {"perceptual_network"}
    if tokenizer.adversarial_weight == 0:
        off |= {"adversarial_start", "discriminator_lr_ratio"}
    return [*read, "data.horizontal_flip", *(f"tokenizer.{name}" for name in type(tokenizer).model_fields if name not in off)]


def _finetune(config: Config) -> list[str]:
    """List what fine-tuning reads: its own settings, and which encoder the probe would measure."""
    off = ("enabled", "epochs" if config.finetune.steps is not None else "steps")
    names = [f"finetune.{name}" for name in type(config.finetune).model_fields if name not in off]
    return ["probe.block", "probe.timestep", "probe.input", "probe.weights", *names]


def _train(config: Config) -> list[str]:
    """List what a denoiser's training reads."""
    process, train = config.process, config.train
    read = ["data.augmentation", "data.horizontal_flip", "tokenizer.latent_scale"]
    if config.data.augmentation == "random_resized_crop":
        read.append("data.crop_source_size")
    if config.tokenizer.kind not in ("patch_ae", "patch_pca", "pixels"):
        read.append("tokenizer.sample_posterior")
    read += [f"process.{name}" for name in ("schedule", "target", "loss_weight", "input_space", "output_space", "learned_variance")]
    read += [f"process.{name}" for name in _SCHEDULE_READS.get(process.schedule, _COEFFICIENTS)]
    if process.target == "original":
        read.append("process.residual_weight")
    if process.output_space == "image":
        read.append("process.image_loss_units")
    if process.learned_variance:
        read.append("process.variational_weight")
    read += [f"denoiser.{name}" for name in ("kind", "size", "encoder_depth", "modulation_ratio", "class_conditional")]
    if config.denoiser.class_conditional:
        read.append("denoiser.class_dropout")
    off = "epochs" if train.steps is not None else "steps"
    return read + [f"train.{name}" for name in type(train).model_fields if name != off]


def job_slice(kind: str, config: Config) -> dict[str, Any]:
    """Return the settings a job reads with their values, defaults included; it is stored beside the job."""
    sections: dict[str, Any] = {name: getattr(config, name) for name in type(config).model_fields}
    slice_: dict[str, Any] = {}
    for path in reads(kind, config):
        section, _, name = path.partition(".")
        slice_[path] = getattr(sections[section], name)
    return slice_


@cache
def _defaults() -> dict[str, Any]:
    """Map every setting's path to its declared default."""
    default = Config()
    return {path: get_value(default, path) for path in field_names()}


def changed_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Keep the settings that differ from their declared default: those that a key contains."""
    defaults = _defaults()
    return {path: value for path, value in values.items() if value != defaults[path]}


def content_key(kind: str, values: Mapping[str, Any], inputs: Mapping[str, str], extra: Mapping[str, Any]) -> str:
    """Hash a job: its kind and version, the settings it reads that differ from their default, its inputs and extras.

    `inputs` maps roles to the keys of input jobs; `extra` holds what no setting says: seed, data fingerprint, plugin sources.
    """
    return changed_key(kind, changed_settings(values), inputs, extra)


def changed_key(kind: str, changed: Mapping[str, Any], inputs: Mapping[str, str], extra: Mapping[str, Any]) -> str:
    """Hash a job as `content_key` does, from settings that are known to differ from their default."""
    return digest({"kind": kind, "version": KIND_VERSIONS[kind], "reads": changed, "inputs": dict(inputs), "extra": dict(extra)})
