"""Shared fixtures: few threads, and the smallest study that exercises every job kind."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from commands import TINY, Answer

from ablation.cli import main
from ablation.discover import discover, load_scale
from ablation.stage import StageTree

torch.set_num_threads(min(2, len(os.sched_getaffinity(0))))


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


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """Give a new run folder the image cache that all tests share, so that scenes are rendered once."""
    cache = tmp_path_factory.mktemp("cache")

    def link(runs: Path) -> Path:
        runs.mkdir(parents=True)
        (runs / "cache").symlink_to(cache)
        return runs

    return link


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Compute as a worker with --threads 1 does, so that results can be compared bit for bit."""
    from ablation.compute import enable_fast_products, set_threads

    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    set_threads(1)
    enable_fast_products()
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)


@pytest.fixture
def ablate(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Answer]]:
    """Call the command line in this process, which saves the start of another."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
    handlers = [signal.getsignal(number) for number in numbers]
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()

    def call(*arguments: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["ablate", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return Answer(int(ended.value.code or 0), out, err)

    yield call
    for number, handler in zip(numbers, handlers, strict=True):
        signal.signal(number, handler)
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)
