"""The network itself: shapes, adaLN-Zero, the split, conditioning, sizes, and its two ways of attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import pytest
import torch
from torch import Tensor

from ablation.config import DenoiserConfig, field_type
from ablation.denoiser import layers
from ablation.denoiser.dit import SIZES, DiT, build_denoiser
from ablation.errors import ConfigError

Build = Callable[..., DiT]


def inputs(model: DiT, batch: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Draw tokens, times and labels that a model takes."""
    arch = model.architecture
    tokens = torch.randn(batch, arch.grid**2, arch.in_dim)
    return tokens, 1000 * torch.rand(batch), torch.randint(0, arch.num_classes + 1, (batch,))


def parameters(model: torch.nn.Module) -> int:
    """Count a model's parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def test_shapes(random_dit: Build) -> None:
    model = random_dit(encoder_depth=1)
    tokens, time, labels = inputs(model)
    assert model(tokens, time, labels).shape == (3, 9, 24)
    assert model.encode(tokens, time, labels).shape == (3, 9, 32)
    assert [part.shape for part in model.encode(tokens, time, labels, blocks=[1, 4])] == [(3, 9, 32)] * 2
    assert model.block_modulation(time, labels).shape == (3, 4, 6, 32)


def test_fresh_network_outputs_zero_and_its_blocks_are_the_identity() -> None:
    model = DiT(in_dim=6, out_dim=6, grid=4, width=32, depth=3, heads=2, modulation_ratio=0.25, num_classes=5)
    tokens, time, labels = inputs(model)
    assert not model(tokens, time, labels).any()
    first, last = model.embed(tokens) + model.position, model.encode(tokens, time, labels, blocks=[3])[0]
    assert first.abs().mean() > 0.1
    torch.testing.assert_close(last, first, rtol=0, atol=0)


def test_gradient_reaches_every_parameter_after_two_steps() -> None:
    model = DiT(in_dim=6, out_dim=6, grid=4, width=32, depth=3, heads=2, modulation_ratio=0.25, num_classes=5)
    tokens, time, _ = inputs(model)
    labels = torch.tensor([0, 2, 5])
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for _ in range(3):  # the output learns first, then the gates, then what the gates let through
        optimizer.zero_grad()
        (model(tokens, time, labels) - tokens).square().mean().backward()
        optimizer.step()
    still = [name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert still == []


def test_encode_is_the_prefix_of_forward(random_dit: Build) -> None:
    model = random_dit()
    tokens, time, labels = inputs(model)
    seen: list[Tensor] = []
    for block in model.blocks:
        block.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    model(tokens, time, labels)
    whole = list(seen)
    torch.testing.assert_close(model.encode(tokens, time, labels), whole[1])  # half of four blocks
    for found, number in zip(model.encode(tokens, time, labels, blocks=[4, 1, 3]), (4, 1, 3), strict=True):
        torch.testing.assert_close(found, whole[number - 1])
    seen.clear()
    model.encode(tokens, time, labels, blocks=[1])
    assert len(seen) == 1  # nothing beyond the last block asked for is computed


@pytest.mark.parametrize("blocks", [[0], [5], []])
def test_blocks_that_do_not_exist_are_refused(random_dit: Build, blocks: list[int]) -> None:
    model = random_dit()
    tokens, time, labels = inputs(model)
    with pytest.raises(ConfigError, match="1 to 4"):
        model.encode(tokens, time, labels, blocks=blocks)


def test_labels_default_to_the_null_label(random_dit: Build) -> None:
    model = random_dit()
    tokens, time, labels = inputs(model)
    null = torch.full_like(labels, model.null_label)
    torch.testing.assert_close(model(tokens, time), model(tokens, time, null))
    assert not torch.allclose(model(tokens, time, torch.zeros_like(labels)), model(tokens, time, null))


def test_a_network_without_classes_is_blind_to_labels(random_dit: Build) -> None:
    model = random_dit(num_classes=0)
    tokens, time, _ = inputs(model)
    torch.testing.assert_close(model(tokens, time, torch.tensor([0, 1, 2])), model(tokens, time, torch.tensor([2, 0, 1])), rtol=0, atol=0)
    assert not any("class" in name for name, _ in model.named_parameters())


def test_time_matters_and_may_be_shared_by_the_batch(random_dit: Build) -> None:
    model = random_dit()
    tokens, _, _ = inputs(model)
    early, late = torch.full((3,), 10.0), torch.full((3,), 900.0)
    torch.testing.assert_close(model(tokens, early[:1]), model(tokens, early))
    assert not torch.allclose(model(tokens, early), model(tokens, late))


def test_attention_paths_agree(random_dit: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_dit()
    tokens, time, labels = inputs(model)
    plain = torch.func.functional_call(model, dict(model.named_parameters()), (tokens, time, labels))
    calls: list[int] = []
    fused_attention = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(layers, "PLAIN_ATTENTION_TOKENS", 0)
    monkeypatch.setattr(layers.F, "scaled_dot_product_attention", lambda *parts: calls.append(1) or fused_attention(*parts))
    torch.testing.assert_close(model(tokens, time, labels), plain, rtol=1e-4, atol=1e-4)
    assert len(calls) == 4


def test_activation_checkpointing_changes_no_gradient(random_dit: Build) -> None:
    model = random_dit()
    tokens, time, labels = inputs(model)

    def gradients(checkpointed: bool) -> list[Tensor]:
        model.checkpoint_activations = checkpointed
        model.zero_grad()
        model(tokens, time, labels).square().mean().backward()
        return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]

    torch.testing.assert_close(gradients(True), gradients(False))


def test_bfloat16_autocast_stays_close_and_keeps_the_residual_stream_exact(random_dit: Build) -> None:
    model = random_dit()
    tokens, time, labels = inputs(model)
    exact = model.encode(tokens, time, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model.encode(tokens, time, labels)
        assert model(tokens, time, labels).dtype == torch.bfloat16
    assert rough.dtype == torch.float32
    assert (rough - exact).norm() / exact.norm() < 0.03


def test_positions_differ_by_row_and_by_column() -> None:
    table = layers.position_embedding(width=16, grid=3).unflatten(0, (3, 3))  # (row, column, width)
    columns, rows = table.split(8, dim=2)
    assert torch.equal(columns[0], columns[2])
    assert torch.equal(rows[:, 0], rows[:, 2])
    assert torch.pdist(table.flatten(0, 1)).min() > 0.1
    torch.testing.assert_close(table[2, 1, :4], torch.tensor([1.0, 0.1, 0.01, 0.001]).sin())


@pytest.mark.parametrize(("size", "millions"), [("S", 33), ("B", 130), ("L", 458), ("XL", 675)])
def test_parameter_counts_are_those_published(size: str, millions: int) -> None:
    """The published DiT-{S,B,L,XL}/2: 4 latent channels, patches of 2 x 2, learned variance, 1000 classes."""
    cfg = DenoiserConfig(size=size, modulation_ratio=1.0)
    with torch.device("meta"):
        model = build_denoiser(cfg, in_dim=16, out_dim=32, grid=16, num_classes=1000)
    assert round(parameters(model) / 1e6) == millions


@pytest.mark.parametrize("ratio", [0.25, 0.5, 1.0])
def test_parameter_count_follows_the_modulation_ratio(ratio: float) -> None:
    width, depth, classes, c = 64, 3, 7, round(64 * ratio)
    model = DiT(in_dim=6, out_dim=6, grid=4, width=width, depth=depth, heads=2, modulation_ratio=ratio, num_classes=classes)
    conditioning = (256 * c + c) + (c * c + c) + (classes + 1) * c + (c + 1) * (6 * depth + 2) * width
    block = (width + 1) * 3 * width + (width + 1) * width + (width + 1) * 4 * width + (4 * width + 1) * width
    assert parameters(model) == conditioning + depth * block + (6 + 1) * width + (width + 1) * 6


def test_size_names_are_those_of_the_settings() -> None:
    assert set(SIZES) == set(get_args(field_type("denoiser.size")))
    assert (SIZES["double_B"].depth, SIZES["double_L"].depth) == (2 * 12, 2 * 24)  # encoders of a plain ViT-B and ViT-L


def test_build_follows_the_settings() -> None:
    cfg = DenoiserConfig(size="tiny", encoder_depth=3, modulation_ratio=0.5, class_conditional=False)
    arch = build_denoiser(cfg, in_dim=4, out_dim=8, grid=5, num_classes=10).architecture
    assert (arch.width, arch.depth, arch.heads) == SIZES["tiny"]
    assert (arch.in_dim, arch.out_dim, arch.grid, arch.encoder_depth, arch.modulation_ratio, arch.num_classes) == (4, 8, 5, 3, 0.5, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder_depth": 9}, "encoder_depth"),
        ({"heads": 3}, "3 heads"),
        ({"modulation_ratio": 0.0}, "modulation_ratio"),
        ({"in_dim": 0}, "in_dim"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(random_dit: Build, changes: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        random_dit(**changes)


def test_conditioning_on_classes_needs_classes() -> None:
    with pytest.raises(ConfigError, match="class_conditional"):
        build_denoiser(DenoiserConfig(size="tiny"), in_dim=4, out_dim=4, grid=4, num_classes=0)


@pytest.mark.slow
def test_compiles_without_graph_breaks(random_dit: Build) -> None:
    model = random_dit()
    tokens, time, labels = inputs(model)
    compiled = torch.compile(model, fullgraph=True)
    torch.testing.assert_close(compiled(tokens, time, labels), model(tokens, time, labels), rtol=1e-4, atol=1e-4)
