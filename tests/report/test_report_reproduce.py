"""The command beside a row plans exactly the jobs that the row's records came from."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from ablation.collect import read_records
from ablation.report.reproduce import command_of

RECORDS = read_records(Path(__file__).resolve().parents[2] / "results" / "results.jsonl")


def jobs_of(ablate: Any, command: str, runs: Path) -> set[str]:
    """Plan what a printed command would run and return its jobs."""
    words = shlex.split(command)
    assert words[:2] == ["ablate", "run"]
    answer = ablate("plan", *words[2:], "--runs", runs, "--json")
    assert (answer.code, answer.err) == (0, "")
    return {job["id"] for job in json.loads(answer.out)["jobs"]}


@pytest.mark.parametrize("name", ["baseline", "patch_pca", "single_noise_level"])
def test_the_command_of_a_row_plans_its_jobs(ablate: Any, runs: Path, name: str) -> None:
    record = next(one for one in RECORDS if one["stage"] == name)
    assert jobs_of(ablate, command_of([record]), runs) == set(record["jobs"].values())


def test_the_command_of_a_control_plans_its_jobs_among_others(ablate: Any, runs: Path) -> None:
    record = next(one for one in RECORDS if one["control"] == "random_init")
    assert jobs_of(ablate, command_of([record]), runs) >= set(record["jobs"].values())


def test_settings_data_and_seeds_are_spelled_out() -> None:
    record = dict(RECORDS[-4])
    sizes = {"train.steps": None, "tokenizer.block_channels": [8, 16], "denoiser.size": "small", "fid.sampler": "on"}
    record["overrides"] = {"data.source": "folder", **sizes}
    record["config"] = {**record["config"], "data": {"path": "/data/my images"}, "denoiser": {"init_path": "/w.safetensors"}}
    command = command_of([{**record, "seed": 2}, {**record, "seed": 0}])
    words = shlex.split(command)
    assert words[words.index("--seeds") + 1] == "0,2"
    assert words[words.index("--data") + 1] == "folder:/data/my images"
    settings = [words[place + 1] for place, word in enumerate(words) if word == "--set"]
    sizes = ["denoiser.size=small", 'fid.sampler="on"', "tokenizer.block_channels=[8, 16]", "train.steps=null"]
    assert settings == ['denoiser.init_path="/w.safetensors"', *sizes]


def test_timm_data_keeps_its_name_and_path() -> None:
    record = dict(RECORDS[0])
    record["overrides"] = {"data.source": "timm:torch/cifar10"}
    record["config"] = {**record["config"], "data": {"path": "/data"}}
    assert "--data timm:torch/cifar10 --set 'data.path=\"/data\"'" in command_of([record])
