"""The training-step benchmark compares equal work: same outputs, same losses."""

from __future__ import annotations

import pytest
import torch

from benchmarks import training_step
from benchmarks.harness import Comparison, Measure

CPU = torch.device("cpu")


def test_all_networks_predict_the_same():
    steps = training_step.candidates(training_step.QUICK_CASES[0], CPU)
    latents, _, times, labels = steps["ours, float32"].batches[0]
    outputs = {name: step.predict(step.model, latents, times, labels) for name, step in steps.items() if name != "ours, bf16"}
    for name in ("diffusers", "plain DiT"):
        torch.testing.assert_close(outputs[name], outputs["ours, float32"], rtol=1e-4, atol=1e-5)


def test_a_quick_run_gives_every_row_with_equal_losses():
    rows = list(training_step.run(quick=True))
    compared = [row for row in rows if isinstance(row, Comparison)]
    assert {(row.ours, row.against) for row in compared} == {
        (ours, other) for ours in ("ours, float32", "ours, bf16") for other in ("diffusers", "plain DiT")
    }
    for row in compared:
        assert row.checks["loss difference"] < (0.01 if "bf16" in row.ours else 1e-4)
    assert any("share of peak" in row.case for row in rows if isinstance(row, Measure))


def test_operations_of_a_step_are_torchs_count():
    from torch.utils.flop_counter import FlopCounterMode

    case = training_step.QUICK_CASES[0]
    step = training_step.candidates(case, CPU)["ours, float32"]
    with FlopCounterMode(display=False) as counter:
        step()
    assert case.flops() == pytest.approx(counter.get_total_flops(), rel=0.01)
