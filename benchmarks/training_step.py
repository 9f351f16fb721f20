"""A denoiser's training step: ours against diffusers' DiT and a plain DiT of timm's parts, same weights, same batch, same loss."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ablation.compute import bf16_is_fast, matmul_rate
from ablation.denoiser.dit import DiT
from ablation.denoiser.layers import position_embedding
from ablation.train.ema import Ema
from benchmarks.harness import Measure, Row, alternate, compare, main, use_fast_products
from benchmarks.reference_dit import ReferenceDiT

NAME = "training_step"
TITLE = "Training step of the denoiser"
ABOUT = """
Forward, loss, backward, AdamW and the moving average of the weights, from the same weights on the same batches. The others run
as their users run them: eager, torch's default float32 products (TF32 on a GPU), AdamW and the average as loops over parameters.
Ours runs as a job does: fast float32 products where they are exact enough, one product for all modulations, plain attention for
short sequences on a CPU, fused AdamW, one call for the average; "bf16" under autocast. `loss difference` is the largest relative
difference of the loss over the first steps: rounding, no more. `share of peak` is the operations of the matrix products of a
step (`ablation/cost.py`) over what a large product alone reaches on the same machine in the same precision. On a machine with a
GPU the same command measures the GPU: DiT-L, with `torch.compile`.
"""

Predict = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]
"""A model, latents (B, N, C), times (B,) and labels (B,) to a prediction (B, N, C)."""

CLASSES, LATENT, LR, DECAY = 16, 16, 1e-4, 0.9999


class Case(NamedTuple):
    """A network's size and the batch of a step."""

    label: str
    grid: int
    width: int
    depth: int
    heads: int
    batch: int
    rounds: int

    def flops(self) -> float:
        """Return the operations of one training step."""
        from ablation.cost import attention, linear

        tokens, w = self.grid**2, self.width
        block = linear(w, 3 * w, tokens) + attention(tokens, w) + linear(w, w, tokens) + linear(w, 4 * w, tokens) + linear(4 * w, w, tokens)
        ends = linear(LATENT, w, tokens).first() + linear(w, LATENT, tokens)
        condition = linear(256, w).first() + linear(w, w) + linear(w, (6 * self.depth + 2) * w)
        return self.batch * (self.depth * block.training + ends.training + condition.training)


CPU_CASES = (Case("6 x 256, 64 tokens, batch 32", 8, 256, 6, 4, 32, 9), Case("S, 256 tokens, batch 8", 16, 384, 12, 6, 8, 5))
GPU_CASES = (Case("L, 256 tokens, batch 128", 16, 1024, 24, 16, 128, 20),)
QUICK_CASES = (Case("2 x 32, 16 tokens, batch 2", 4, 32, 2, 2, 2, 1),)


class Step:
    """A model with its optimizer and average; calling it takes one training step and returns the loss."""

    def __init__(
        self,
        model: nn.Module,
        predict: Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor],
        batches: list[Any],
        *,
        ours: bool,
        bf16: bool,
    ) -> None:
        self.model, self.predict, self.batches, self.ours = model, predict, batches, ours
        self.device = batches[0][0].device
        self.bf16 = bf16
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0, fused=ours or None)
        self.average: Any = Ema(model, DECAY) if ours else deepcopy(model).requires_grad_(False)
        self.step = 0

    def __call__(self) -> float:
        """Take one step on the next batch."""
        latents, noise, times, labels = self.batches[self.step % len(self.batches)]
        self.step += 1
        with torch.autocast(self.device.type, dtype=torch.bfloat16) if self.bf16 else nullcontext():
            output = self.predict(self.model, latents, times, labels)
        loss = (output.float() - noise).square().mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        if self.ours:
            self.average.update()
        else:
            with torch.no_grad():
                averages = dict(self.average.named_parameters())
                for name, parameter in self.model.named_parameters():
                    averages[name].mul_(DECAY).add_(parameter, alpha=1 - DECAY)
        return float(loss.detach())


def run(quick: bool) -> Iterator[Row]:
    """Yield, for every size, the comparison with each of the others, and the share of the machine's peak."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    use_fast_products()
    peaks = {False: matmul_peak(device, torch.float32, quick)}
    yield Measure("large matrix product, float32", peaks[False] / 1e9, "GFLOP/s")
    if bf16_is_fast(device):
        peaks[True] = matmul_peak(device, torch.bfloat16, quick)
        yield Measure("large matrix product, bf16", peaks[True] / 1e9, "GFLOP/s")
    else:
        rate = matmul_rate(device, torch.bfloat16, 256, 0.05)
        yield Measure("small matrix product, bf16", rate / 1e9, "GFLOP/s", note="emulated on this processor: left out below")
    cases = QUICK_CASES if quick else GPU_CASES if device.type == "cuda" else CPU_CASES
    for case in cases:
        yield from _case(case, device, peaks, quick)


def _case(case: Case, device: torch.device, peaks: dict[bool, float], quick: bool) -> Iterator[Row]:
    """Yield one size's rows."""
    steps = candidates(case, device)
    if True not in peaks and not quick:
        del steps["ours, bf16"]
    differences = loss_differences(steps, 2 if quick else 4)
    if not quick and device.type == "cuda":
        compiled = Step(deepcopy(steps["ours, bf16"].model), _ours, steps["ours, bf16"].batches, ours=True, bf16=True)
        compiled.model = torch.compile(compiled.model)  # type: ignore[assignment]
        steps["ours, bf16, compiled"] = compiled
    times = alternate({name: _as_used(step) for name, step in steps.items()}, case.rounds, warmup=1 if quick else 2)
    for ours in [name for name in steps if name.startswith("ours")]:
        wanted = 2.0 if device.type == "cuda" else 3.0 if "bf16" in ours else 1.8
        for other in ("diffusers", "plain DiT"):
            checks = {"loss difference": differences[ours, other]} if (ours, other) in differences else {}
            yield compare(case.label, ours, other, times, wanted, checks)
        if ("bf16" in ours) not in peaks:
            continue
        share = case.flops() / statistics.median(times[ours]) / peaks["bf16" in ours]
        images = case.batch / statistics.median(times[ours])
        bound = 0.45 if device.type == "cuda" and "compiled" in ours else None
        yield Measure(f"{case.label}, {ours}: share of peak", share, "", at_least=bound, note=f"{images:.0f} images/s")


def _as_used(step: Step) -> Callable[[], object]:
    """Return a call of the step under the float32 products that its users have, and leave ours switched on afterwards."""

    def call() -> None:
        precision = torch.get_float32_matmul_precision()
        if not step.ours:
            torch.set_float32_matmul_precision("high" if step.device.type == "cuda" else "highest")
        try:
            step()
            if step.device.type == "cuda":
                torch.cuda.synchronize()
        finally:
            torch.set_float32_matmul_precision(precision)

    return call


def candidates(case: Case, device: torch.device) -> dict[str, Step]:
    """Build all three networks with equal weights, and ours once more for bf16."""
    torch.manual_seed(0)
    ours = DiT(LATENT, LATENT, case.grid, case.width, case.depth, case.heads, modulation_ratio=1.0, num_classes=CLASSES).to(device)
    with torch.no_grad():  # zeroed layers would hide differences
        for layer in (ours.modulation, ours.out):
            layer.weight.normal_(std=0.02)
    batches = [
        (
            torch.randn(case.batch, case.grid**2, LATENT, device=device),
            torch.randn(case.batch, case.grid**2, LATENT, device=device),
            torch.randint(0, 1000, (case.batch,), device=device).float(),
            torch.randint(0, CLASSES, (case.batch,), device=device),
        )
        for _ in range(4)
    ]
    return {
        "ours, float32": Step(ours, _ours, batches, ours=True, bf16=False),
        "ours, bf16": Step(deepcopy(ours), _ours, batches, ours=True, bf16=True),
        "diffusers": Step(diffusers_copy(ours).to(device), _diffusers, batches, ours=False, bf16=False),
        "plain DiT": Step(plain_copy(ours).to(device), _plain, batches, ours=False, bf16=False),
    }


def _ours(model: nn.Module, latents: Tensor, times: Tensor, labels: Tensor) -> Tensor:
    """Predict with ours."""
    output: Tensor = model(latents, times, labels)
    return output


def _maps(tokens: Tensor) -> Tensor:
    """Turn tokens (B, N, C) into maps (B, C, H, W)."""
    side = round(tokens.shape[1] ** 0.5)
    return tokens.transpose(1, 2).unflatten(2, (side, side))


def _plain(model: nn.Module, latents: Tensor, times: Tensor, labels: Tensor) -> Tensor:
    """Predict with the plain DiT."""
    output: Tensor = model(_maps(latents), times, labels)
    return output.flatten(2).transpose(1, 2)


def _diffusers(model: nn.Module, latents: Tensor, times: Tensor, labels: Tensor) -> Tensor:
    """Predict with diffusers' DiT."""
    output: Tensor = model(_maps(latents), timestep=times, class_labels=labels, return_dict=False)[0]
    return output.flatten(2).transpose(1, 2)


def diffusers_copy(ours: DiT) -> nn.Module:
    """Build diffusers' DiTTransformer2DModel with our weights, through the exchange format."""
    import tempfile
    from pathlib import Path

    from ablation import torchvision_compat  # noqa: F401  (must come before diffusers)
    from ablation.denoiser.diffusers_format import to_diffusers

    from diffusers import DiTTransformer2DModel  # isort: skip

    with tempfile.TemporaryDirectory() as folder:
        to_diffusers(ours, Path(folder), patch_size=1)
        model: nn.Module = DiTTransformer2DModel.from_pretrained(folder)
    for block in model.transformer_blocks:  # type: ignore[union-attr]
        block.norm1.emb.class_embedder.dropout_prob = 0.0  # so that all three see the same labels
    return model.train()


def plain_copy(ours: DiT) -> ReferenceDiT:
    """Build the plain DiT with our weights."""
    arch = ours.architecture
    model = ReferenceDiT(arch.grid, arch.in_dim, arch.width, arch.depth, arch.heads, arch.num_classes)
    state, own = model.state_dict(), ours.state_dict()
    rows = arch.width * 6
    renamed: dict[str, Tensor] = {
        "position": position_embedding(arch.width, arch.grid)[None],
        "embed.weight": own["embed.weight"][:, :, None, None],
        "embed.bias": own["embed.bias"],
        "label_embed.weight": own["class_embed.weight"],
        "time_embed.mlp.0.weight": own["time_embed.fc1.weight"],
        "time_embed.mlp.0.bias": own["time_embed.fc1.bias"],
        "time_embed.mlp.2.weight": own["time_embed.fc2.weight"],
        "time_embed.mlp.2.bias": own["time_embed.fc2.bias"],
        "modulation.1.weight": own["modulation.weight"][rows * arch.depth :],
        "modulation.1.bias": own["modulation.bias"][rows * arch.depth :],
        "out.weight": own["out.weight"],
        "out.bias": own["out.bias"],
    }
    for i in range(arch.depth):
        for kind in ("weight", "bias"):
            renamed[f"blocks.{i}.modulation.1.{kind}"] = own[f"modulation.{kind}"][rows * i : rows * (i + 1)]
            for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
                renamed[f"blocks.{i}.{layer}.{kind}"] = own[f"blocks.{i}.{layer}.{kind}"]
    assert set(renamed) == set(state)
    model.load_state_dict(renamed)
    return model


def loss_differences(steps: dict[str, Step], count: int) -> dict[tuple[str, str], float]:
    """Train every candidate for some steps and return the largest relative difference of the loss, ours to each other."""
    losses = {name: [step() for _ in range(count)] for name, step in steps.items()}
    return {
        (ours, other): max(abs(a - b) / abs(b) for a, b in zip(losses[ours], losses[other], strict=True))
        for ours in steps
        for other in ("diffusers", "plain DiT")
        if ours.startswith("ours")
    }


def matmul_peak(device: torch.device, dtype: torch.dtype, quick: bool) -> float:
    """Return the operations a second of a large matrix product, the fastest of several."""
    return matmul_rate(device, dtype, 256 if quick else 8192 if device.type == "cuda" else 2048)


if __name__ == "__main__":
    main(run, NAME)
