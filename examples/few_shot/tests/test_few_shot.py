"""The measure on features whose answer is known."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from ablation_few_shot import DRAWS, SHOTS, few_shot

from ablation.discover import discover
from ablation.jobs.evaluation import checked_answer
from ablation.parts import load_part


def context(separation, seed=0, per_class=20):
    generator = torch.Generator().manual_seed(1)
    means = separation * torch.randn(4, 16, generator=generator)
    sets = {split: torch.arange(4).repeat_interleave(per_class) for split in ("train", "test")}
    features = {split: means[labels] + torch.randn(len(labels), 16, generator=generator) for split, labels in sets.items()}
    said = []
    return SimpleNamespace(
        seed=seed,
        classes=("a", "b", "c", "d"),
        features=features.__getitem__,
        labels=sets.__getitem__,
        progress=lambda *at: said.append(at),
        said=said,
    )


def test_separate_classes_are_told_apart_and_equal_ones_are_not():
    apart, _ = few_shot(context(10.0))
    assert min(apart.values()) > 99
    same, _ = few_shot(context(0.0))
    assert all(abs(value - 25) < 8 for value in same.values())


def test_the_seed_decides_and_progress_is_told():
    asked = context(0.7)
    assert few_shot(asked) == few_shot(context(0.7))
    assert few_shot(context(0.7, seed=1))[0] != few_shot(asked)[0]
    assert asked.said[0] == (0, DRAWS, "few-shot draws")


def test_classes_with_too_few_images_are_left_out_and_counted():
    _, protocol = few_shot(context(1.0, per_class=SHOTS))
    assert protocol["classes"] == 4
    sparse = context(1.0, per_class=SHOTS)
    labels = sparse.labels("train").clone()
    labels[0] = 1
    sparse.labels = lambda split: labels if split == "train" else torch.arange(4).repeat_interleave(SHOTS)
    assert few_shot(sparse)[1]["classes"] == 3


def test_the_answer_has_the_form_that_the_job_asks_for():
    metrics, protocol = checked_answer("few_shot", few_shot(context(1.0)))
    assert set(metrics) == set(few_shot.titles)
    assert protocol["shots"] == SHOTS


def test_it_is_found_once_installed():
    part = discover().parts.get("evaluation:few_shot")
    if part is None:
        pytest.skip("the package is not installed")
    assert load_part(part.entry()).__name__ == "few_shot"
