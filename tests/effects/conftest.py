"""One workshop for all tests: every built-in configuration is built once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from ablation.effects.observe import Workshop
from ablation.effects.verdict import Verdict, check_stage
from ablation.stage import StageTree
from ablation.store import Store


@pytest.fixture(scope="session")
def workshop(smoke_tree: StageTree, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    """The built-in stages at the smallest size, built when first asked for."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Workshop(smoke_tree, Store(tmp_path_factory.mktemp("workshop")))
    torch.set_num_threads(threads)


@pytest.fixture
def judge(workshop: Workshop) -> Callable[..., Verdict]:
    """Check a stage with some of its declarations replaced; what is built stays the same."""

    def check(name: str, **declared: Any) -> Verdict:
        return check_stage(workshop, replace(workshop.tree.stage(name), **declared))

    return check
