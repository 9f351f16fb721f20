"""Sums over a whole data set, interrupted: the fit of the PCA and the reference statistics go on and end the same, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ablation.jobs import probe
from ablation.jobs import reference as reference_job
from ablation.jobs import tokenizer as tokenizer_job
from ablation.launch.worker import run_job
from ablation.store import REFERENCE, TOKENIZER
from ablation.study import Request, Study, prepare, write_specs
from ablation.train.checkpoint import load_tensors


def plan(runs: Path, tiny_settings: dict) -> Study:
    made = prepare(Request(only=("patch_pca",), scale="smoke", settings=tiny_settings, runs=runs, with_controls=False))
    write_specs(made)
    return made


def quiet(*_: object) -> None: ...


@pytest.mark.parametrize(("role", "artifact"), [("tokenizer", TOKENIZER), ("reference", REFERENCE)])
def test_sums_that_are_interrupted_go_on_bit_for_bit(role, artifact, tmp_path, tiny_settings, warm: Callable[[Path], Path], monkeypatch):
    monkeypatch.setattr(tokenizer_job, "FIT_BATCH", 16)
    monkeypatch.setattr(reference_job, "BATCH", 8)
    whole, cut = (plan(warm(tmp_path / name), tiny_settings) for name in ("whole", "cut"))
    (roles,) = whole.plan.roles.values()
    job = roles[role]
    assert run_job(whole.store, job, quiet, lambda: False) == "done"
    asked = 0

    def stop_at_the_third() -> bool:
        nonlocal asked
        asked += 1
        return asked >= 3

    seen: list[int] = []
    assert run_job(cut.store, job, quiet, stop_at_the_third) == "interrupted"
    assert cut.store.has_checkpoint(job)
    assert run_job(cut.store, job, lambda done, *_: seen.append(done), lambda: False) == "done"
    assert seen[0] > 1  # it did not start over
    expected, found = (load_tensors(study.store.artifact(job, artifact))[0] for study in (whole, cut))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert not cut.store.has_checkpoint(job)


def test_large_features_are_mapped_from_a_file_that_nobody_sees(tmp_path, monkeypatch):
    io = type("IO", (), {"folder": tmp_path})()
    monkeypatch.setattr(probe, "MEMORY_LIMIT", 1000)
    array = probe.feature_array(io, (2, 50, 4))
    assert list(tmp_path.iterdir()) == []
    array[1, 3] = torch.arange(4.0)
    assert array[1, 3].tolist() == [0, 1, 2, 3]
    maps = Path("/proc/self/maps").read_text()
    assert f"{tmp_path}/.features" in maps
    assert np.prod(probe.feature_array(io, (1, 2, 3)).shape) == 6
