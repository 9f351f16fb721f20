"""A network of one's own: built, trained, saved, read back and probed like the DiT; no DiT file is asked of it."""

from __future__ import annotations

import json

import pytest
from commands import SINGLE_LEVEL, set_options

from ablation.checks import check_config
from ablation.config import apply
from ablation.errors import ConfigError

PART = '''
import torch
from torch import nn


class Plain(nn.Module):
    """One linear map in, one out, and the time in between."""

    def __init__(self, cfg, in_dim, out_dim, grid, num_classes):
        super().__init__()
        self.width = 24
        self.inner = nn.Linear(in_dim, self.width)
        self.outer = nn.Linear(self.width, out_dim)

    def encode(self, tokens, time, labels=None, blocks=None):
        x = torch.tanh(self.inner(tokens) + time[:, None, None] / 1000)
        return x if blocks is None else [x for _ in blocks]

    def forward(self, tokens, time, labels=None):
        return self.outer(self.encode(tokens, time))


class NoEncoder(nn.Module):
    def __init__(self, cfg, in_dim, out_dim, grid, num_classes):
        super().__init__()
'''
STAGE = """from ablation.stage import Stage
STAGE = Stage(
    name="plain", after="patch_pca", title="plain network", changes={"denoiser.kind": "plain"}, effects=("parameters",),
    provides={"denoiser:plain": "network.py:%s"},
)
"""


@pytest.fixture
def folder(tmp_path):
    """A folder with a stage that brings a denoiser, and its network."""
    place = tmp_path / "plugin"
    place.mkdir()
    (place / "network.py").write_text(PART)
    (place / "plain.py").write_text(STAGE % "Plain")
    return place


def test_it_is_trained_and_probed(ablate, folder, tiny_settings, warm, tmp_path):
    settings = set_options({**tiny_settings, **SINGLE_LEVEL, "train.steps": 3})
    runs = warm(tmp_path / "runs")
    request = ["--only", "plain", "--scale", "smoke", "--runs", runs, "--stages", folder / "plain.py", *settings]
    answer = ablate("run", *request, "--launcher", "inline", "--threads", 1)
    assert answer.code == 0, answer.err
    (results,) = (runs / "reports").glob("*/results.jsonl")
    records = [json.loads(line) for line in results.read_text().splitlines()]
    trained = next(record for record in records if record["stage"] == "plain")
    assert trained["metrics"]["feature_dim"] == 24
    assert trained["protocol"]["network"] == "plain-tiny"
    untrained = next(record for record in records if record["control"] == "random_init")
    assert untrained["metrics"]["feature_dim"] == 24


def test_the_check_holds_it_to_its_effects(ablate, folder):
    answer = ablate("check", folder / "plain.py", "--json")
    assert answer.code == 0, answer.out
    (verdict,) = json.loads(answer.out)["stages"]
    seen = {one["name"]: one["after"] for one in verdict["seen_effects"]["parameters"]}
    assert seen["inner.weight"] == "(24, 32)"


def test_a_network_without_an_encoder_is_named(ablate, folder):
    (folder / "plain.py").write_text(STAGE % "NoEncoder")
    answer = ablate("check", folder / "plain.py")
    assert answer.code == 1
    assert "denoiser 'plain' is no torch module with encode and width" in answer.out


@pytest.mark.parametrize(("path", "value"), [("denoiser.init_path", "x.safetensors"), ("finetune.enabled", True)])
def test_what_only_the_dit_has_is_refused(tree, path, value):
    config = apply(tree.resolve("patch_pca"), {"denoiser.kind": "plain", path: value})
    with pytest.raises(ConfigError, match=f"{path} = .* is for the DiT, but denoiser.kind = plain"):
        check_config(config, ["denoiser:plain"])
