"""Shared fixtures: few threads, and the smallest study that exercises every job kind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from ablation.discover import discover, load_scale
from ablation.stage import StageTree

torch.set_num_threads(min(2, len(os.sched_getaffinity(0))))

TINY = {
    "data.train_images": 96,
    "data.test_images": 64,
    "tokenizer.steps": 4,
    "tokenizer.global_batch": 8,
    "train.steps": 4,
    "train.global_batch": 8,
    "fid.samples": 16,
    "fid.reference_images": 32,
    "fid.sampler_steps": 2,
    "probe.weight_decays": (1e-2,),
}


@pytest.fixture(scope="session")
def tree() -> StageTree:
    """The built-in stages over the paper's baseline."""
    return discover(installed=False)


@pytest.fixture(scope="session")
def smoke_tree(tree: StageTree) -> StageTree:
    """The built-in stages over the smoke scale."""
    return tree.with_root(load_scale("smoke", tree.root))


@pytest.fixture(scope="session")
def tiny_settings() -> dict:
    """Settings that make every job take about a second."""
    return dict(TINY)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """An empty run folder."""
    return tmp_path / "runs"
