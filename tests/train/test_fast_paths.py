"""What makes training fast leaves its numbers alone, or its losses within rounding: bf16, compiling, checkpointing, micro-batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ablation import cost
from ablation.config import Config, apply
from ablation.denoiser import layers
from ablation.denoiser.dit import DiT, build_denoiser
from ablation.diffusion.objective import DenoisingObjective
from ablation.diffusion.process import Process
from ablation.jobs.train import CPU_MICRO_BATCH, fitting_batch, micro_batch
from ablation.keys import reads
from ablation.train.loop import Monitor, Recipe, Trainer
from ablation.train.noise import NoiseSource

IMAGES, TOKENS, LATENT, STEPS, BATCH = 32, 16, 8, 25, 8
TINY = {"data.image_size": 16, "tokenizer.patch_size": 4, "tokenizer.latent_dim": LATENT, "denoiser.size": "tiny"}


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Networks this small only wait for a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Latents:
    """Latents that can be learned: each image's tokens are one vector, repeated."""

    images = IMAGES

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.latents = torch.randn(IMAGES, 1, LATENT, generator=generator).expand(-1, TOKENS, -1)

    def load(self, indices: np.ndarray, positions: np.ndarray, noise: NoiseSource) -> torch.Tensor:
        return self.latents[torch.from_numpy(indices)]

    def finish(self, loaded: torch.Tensor, noise: NoiseSource) -> dict[str, torch.Tensor]:
        return {"latents": loaded}


def trained(folder, *, precision: str = "fp32", compiled: bool = False, checkpointing: bool = False, micro: int = BATCH):
    """Train a tiny denoiser and return its losses and weights."""
    config = apply(Config(), TINY)
    torch.manual_seed(0)
    denoiser = DiT(LATENT, LATENT, 4, width=32, depth=2, heads=2, modulation_ratio=0.25, checkpoint_activations=checkpointing)
    if compiled:
        denoiser.compile()
    objective = DenoisingObjective(denoiser, Process.from_config(config.process), num_classes=0, class_dropout=0.0)
    losses: list[float] = []
    recipe = Recipe(
        steps=STEPS,
        global_batch=BATCH,
        lr={"denoiser": 2e-3},
        warmup_steps=3,
        betas=(0.9, 0.999),
        weight_decay=0.0,
        clip_grad=None,
        ema_decay={"denoiser": 0.9},
        precision=precision,
        seed=1,
        micro_batch=micro,
        log_every=1,
    )
    monitor = Monitor(lambda *_: losses.append(trainer.last["loss"]), lambda _: None, lambda: False)
    trainer = Trainer(objective, Latents(), recipe, folder, monitor, torch.device("cpu"))
    trainer.fit()
    return np.array(losses), {name: value.clone() for name, value in denoiser.state_dict().items()}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    losses, weights = trained(tmp_path_factory.mktemp("plain"))
    assert losses[-5:].mean() < 0.9 * losses[:5].mean()  # something is learned, so a curve can differ
    return losses, weights


def test_losses_in_bf16_follow_those_in_float32(plain, tmp_path):
    losses, _ = trained(tmp_path, precision="bf16")
    np.testing.assert_allclose(losses, plain[0], rtol=0.03)
    assert not np.array_equal(losses, plain[0])  # bf16 it was


def test_checkpointing_changes_no_bit(plain, tmp_path):
    losses, weights = trained(tmp_path, checkpointing=True)
    assert np.array_equal(losses, plain[0])
    assert all(torch.equal(weights[name], value) for name, value in plain[1].items())


def test_micro_batches_change_rounding_alone(plain, tmp_path):
    losses, _ = trained(tmp_path, micro=4)
    np.testing.assert_allclose(losses, plain[0], rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_losses_of_the_compiled_network_follow_the_plain_ones(plain, tmp_path, precision):
    losses, weights = trained(tmp_path, compiled=True, precision=precision)
    np.testing.assert_allclose(losses, plain[0], rtol=1e-3 if precision == "fp32" else 0.03)
    assert set(weights) == set(plain[1])  # names of weights stay


def test_checkpointing_is_in_no_key_but_compiling_is():
    config = apply(Config(), {"denoiser.activation_checkpointing": True, "train.compile": True})
    assert "denoiser.activation_checkpointing" not in reads("train", config)
    assert "train.compile" in reads("train", config)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_memory_of_activations_is_what_autograd_keeps(monkeypatch, precision, checkpointing):
    monkeypatch.setattr(layers, "PLAIN_ATTENTION_TOKENS", 0)  # as on a GPU
    config = apply(Config(), {**TINY, "denoiser.size": "small", "data.image_size": 32, "denoiser.activation_checkpointing": checkpointing})
    network = build_denoiser(config.denoiser, LATENT, LATENT, 8, 10)
    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}

    def kept_by(images: int) -> int:
        kept: dict[int, int] = {}
        alive = []

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            alive.append(tensor)  # so that no address is used twice
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16")
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), autocast:
            network(torch.randn(images, 64, LATENT), torch.rand(images))
        return sum(size for address, size in kept.items() if address not in own)

    expected = cost.activation_bytes(config, precision)
    if checkpointing:  # the formula adds the one block that is being computed anew
        expected -= 64 * 256 * {"fp32": 81, "bf16": 48}[precision]
    assert (kept_by(4) - kept_by(2)) / 2 == pytest.approx(expected, rel=0.1)  # without what does not depend on the images


def test_the_micro_batch_fits_the_memory():
    config = Config()  # the paper's
    assert micro_batch(config, torch.device("cpu")) == CPU_MICRO_BATCH
    assert fitting_batch(config, 80 * 2**30) == 128
    assert fitting_batch(config, 24 * 2**30) == 32
    assert fitting_batch(apply(config, {"denoiser.activation_checkpointing": True}), 24 * 2**30) >= 256
    assert fitting_batch(config, 2**30) == 1  # too small: it fails with CUDA's own message rather than a wrong guess
