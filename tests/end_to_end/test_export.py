"""A trained encoder leaves the project as a plain ViT that gives the same features, and weights come in from outside."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import Answer, Recorder, never, set_options
from safetensors.torch import load_file

from ablation.data.latents import to_tensor
from ablation.denoiser.export import load_vit
from ablation.evaluation.features import extract
from ablation.export import job_io
from ablation.jobs.parts import images_of, load_setting
from ablation.jobs.probe import make_extractor
from ablation.store import Store

STAGES = ("baseline", "patch_vae", "predict_clean", "predict_original")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, tiny_settings: dict) -> tuple[Store, dict]:
    """Train four cells of different tokenizers and input spaces, with one probe each."""
    from ablation.launch.inline import InlineLauncher
    from ablation.study import Request, prepare, write_plan

    runs = tmp_path_factory.mktemp("export") / "runs"
    settings = {**tiny_settings, "train.steps": 6}
    planned = prepare(Request(only=STAGES, scale="smoke", settings=settings, runs=runs, with_controls=False, name="four"))
    write_plan(planned, "ablate run")
    outcome = InlineLauncher(threads=1).run(planned.plan, planned.store, Recorder(), never)
    assert set(outcome.states.values()) == {"done"}
    return planned.store, {cell["stage"]: cell for cell in planned.store.study("four")["cells"]}


@pytest.mark.parametrize("stage", ["patch_vae", "predict_clean", "predict_original"])
def test_the_exported_vit_gives_the_probed_features(study, ablate: Callable[..., Answer], tmp_path: Path, stage: str) -> None:
    store, cells = study
    answer = ablate("export", stage, "--runs", store.root, "--out", tmp_path / "vit")
    assert answer.code == 0, answer.err
    vit = load_vit(tmp_path / "vit")
    probe = job_io(store, cells[stage]["jobs"]["probe"])
    setting = load_setting(probe, probe.ancestor("train", "encode"), probe.ancestor("train", "encode", "tokenizer"))
    images = images_of(probe, "test")
    extractor = make_extractor(probe, setting, images.num_classes)
    pixels = to_tensor(images.batch(np.arange(16)))
    with torch.no_grad():
        raw, _ = setting.tokenizer.encode(pixels)
        ours = extractor(raw, pixels if extractor.needs_images else None)
        theirs = vit(pixels)
    assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    assert float(ours.std()) > 0.01
    stored = extract(extractor, setting.latents.means("test"), images, mirrored=False, seed=0, batch=16, device=torch.device("cpu"))
    assert torch.allclose(stored[:16], theirs, rtol=1e-2, atol=1e-2)  # latents are stored in half precision


def test_the_exported_vit_has_the_parameters_of_a_plain_one(study, ablate: Callable[..., Answer], tmp_path: Path) -> None:
    store, _ = study
    assert ablate("export", "predict_original", "--runs", store.root, "--out", tmp_path / "vit").code == 0
    vit = load_vit(tmp_path / "vit")
    width, depth = vit.embed_dim, len(vit.blocks)
    blocks = depth * (12 * width**2 + 13 * width)  # four matrices with biases, two norms with affine
    plain = 49 * width + 64 * width + blocks  # patch embedding of 4 x 4 x 3 numbers, 64 positions, no class token, no last norm
    assert sum(p.numel() for p in vit.parameters()) == plain


def test_what_cannot_be_exported_is_refused(study, ablate: Callable[..., Answer], tmp_path: Path) -> None:
    store, _ = study
    for words, said in (
        (("baseline",), "a convolutional tokenizer cannot be folded"),
        (("predict_original", "--format", "onnx"), "unknown format 'onnx'"),
        (("predict_orignal",), "no stage 'predict_orignal'"),
        (("predict_original", "--seed", 7), "was not run with seed 7"),
    ):
        answer = ablate("export", *words, "--runs", store.root, "--out", tmp_path / "out")
        assert answer.code == 2
        assert said in answer.error


def test_weights_go_out_to_diffusers_and_come_back_as_a_start(
    study, ablate: Callable[..., Answer], tmp_path: Path, tiny_settings: dict
) -> None:
    store, cells = study
    folder = tmp_path / "dit"
    assert ablate("export", "predict_original", "--format", "diffusers", "--runs", store.root, "--out", folder).code == 0
    settings = {**tiny_settings, "train.steps": 0, "denoiser.init_path": str(folder)}
    common = [
        "run",
        "--only",
        "predict_original",
        "--scale",
        "smoke",
        "--no-controls",
        "--no-report",
        "--launcher",
        "inline",
        "--runs",
        store.root,
    ]
    refused = ablate(*common, "--name", "other", *set_options(settings))
    assert refused.code == 1
    assert "modulation_ratio = 1.0, but this cell's has 0.25" in refused.err
    started = ablate(*common, "--name", "start", *set_options({**settings, "denoiser.modulation_ratio": 1.0}))
    assert started.code == 0, started.err
    (cell,) = store.study("start")["cells"]
    ours, theirs = (store.done(jobs["probe"])["metrics"]["linear_probe_top1"] for jobs in (cells["predict_original"]["jobs"], cell["jobs"]))
    assert ours == pytest.approx(theirs, abs=2.0)  # the same network; its time embedding went through a zero-padded copy
    weights = load_file(store.job_folder(cell["jobs"]["train"]) / "denoiser.safetensors")
    assert json.loads((folder / "config.json").read_text())["num_layers"] == 4
    assert weights
