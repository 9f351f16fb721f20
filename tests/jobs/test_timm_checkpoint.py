"""Networks from elsewhere, probed by the same protocol: packaged weights, exported encoders, files, and what cannot be had."""

from __future__ import annotations

import re

import pytest
import torch
from commands import Recorder, never, set_options

from ablation.collect import collect
from ablation.errors import ConfigError
from ablation.evaluation import checkpoints
from ablation.evaluation.checkpoints import open_checkpoint
from ablation.store import Store

pytestmark = pytest.mark.usefixtures("one_thread")
SETTINGS = {
    "data.image_size": 16, "train.steps": 4, "train.global_batch": 8, "probe.weight_decays": [0.01], "fid.samples": 4,
    "fid.reference_images": 8, "fid.sampler_steps": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory, coloured_images):
    """One trained cell on the coloured images, its encoder exported."""
    from ablation.launch.inline import InlineLauncher
    from ablation.study import Request, prepare, write_plan

    folder = tmp_path_factory.mktemp("checkpoint")
    settings = {**SETTINGS, "probe.weight_decays": (0.01,)}
    planned = prepare(
        Request(
            only=("predict_original",),
            scale="smoke",
            data=str(coloured_images),
            settings=settings,
            runs=folder / "runs",
            with_controls=False,
        )
    )
    write_plan(planned, "ablate run")
    assert set(InlineLauncher(threads=1).run(planned.plan, planned.store, Recorder(), never).states.values()) == {"done"}
    return planned.store, folder


def probe(ablate, study, coloured_images, name, *words):
    """Run `ablate probe` on the study's images with its settings."""
    store, _ = study
    return ablate(
        "probe", name, *words, "--runs", store.root, "--scale", "smoke", "--data", coloured_images, "--threads", 1, *set_options(SETTINGS)
    )


def checkpoint_records(store: Store):
    """Collect the study and return what was probed beside it, by title."""
    return {record["title"]: record for record in collect(store, store.study()) if record["control"] == "checkpoint"}


def test_packaged_weights_are_probed_without_a_network(ablate, study, coloured_images):
    answer = probe(ablate, study, coloured_images, "efficientnet_lite0", "--input-size", 32)
    assert (answer.code, answer.err) == (0, "")
    assert "its own pooled features, images resized from 16 to 32 px" in answer.out
    record = checkpoint_records(study[0])["efficientnet_lite0"]
    assert record["metrics"]["linear_probe_top1"] > 90
    assert record["protocol"]["probe"].startswith("linear, cached")
    assert "probe_timestep" not in record["protocol"]


def test_an_exported_encoder_gives_its_rows_own_numbers(ablate, study, coloured_images):
    """The same network on the same images by the same protocol, the long way round."""
    store, folder = study
    assert ablate("export", "predict_original", "--runs", store.root, "--out", folder / "vit").code == 0
    answer = probe(ablate, study, coloured_images, folder / "vit")
    assert (answer.code, answer.err) == (0, "")
    assert "the mean of its image tokens" in answer.out
    row = next(record for record in collect(store, store.study()) if record["stage"] == "predict_original")
    found = checkpoint_records(store)["vit"]["metrics"]
    for metric in ("linear_probe_top1", "knn_top1"):
        assert found[metric] == pytest.approx(row["metrics"][metric], abs=100 * 1.01 / 48), metric  # one image of 48


def test_probes_of_other_images_or_protocols_stay_away(ablate, study, coloured_images):
    store, _ = study
    other = ("--set", "data.test_images=20")
    assert probe(ablate, study, coloured_images, "efficientnet_lite0", "--random", "--input-size", 32, *other).code == 0
    assert "efficientnet_lite0 (random weights)" not in checkpoint_records(store)
    assert probe(ablate, study, coloured_images, "efficientnet_lite0", "--random", "--input-size", 32).code == 0
    assert "efficientnet_lite0 (random weights)" in checkpoint_records(store)


def test_the_report_shows_them_in_the_system_table(ablate, study, coloured_images, tmp_path):
    assert probe(ablate, study, coloured_images, "efficientnet_lite0", "--input-size", 32).code == 0
    answer = ablate("report", "--runs", study[0].root, "--out", tmp_path)
    assert answer.code == 0, answer.err
    text = (tmp_path / "system.md").read_text(encoding="utf-8")
    assert r"efficientnet\_lite0" in text
    assert "MoCo v3 (cited)" in text
    assert ablate("verify", "--runs", study[0].root, "--reports", tmp_path).code == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["resnet19"], "timm has no model 'resnet19'. Did you mean .*resnet18"),
        (["resnet18", "--weights", "none.pth"], "--weights none.pth is not a file"),
        (["resnet18", "--weights", __file__], "cannot be read"),
    ],
)
def test_what_cannot_be_had_is_one_line(ablate, study, coloured_images, words, said):
    answer = probe(ablate, study, coloured_images, *words)
    assert answer.code in (1, 2)
    assert re.search(said, answer.err), answer.err
    assert "Traceback" not in answer.err


def test_a_failed_download_says_what_to_do(monkeypatch):
    def refuse(name, pretrained, **_):
        raise OSError("no route to host")

    monkeypatch.setattr(checkpoints.timm, "create_model", refuse)
    with pytest.raises(ConfigError, match=r"weights of resnet18 cannot be had: OSError: no route to host.*--weights FILE"):
        open_checkpoint("resnet18", None, None, 16, None)


def test_weights_from_a_file_are_timms(tmp_path):
    """A ViT of timm's: the mean of its image tokens, without the class token, after its own normalisation."""
    small = checkpoints.timm.create_model("vit_tiny_patch16_224", img_size=32)
    torch.save({"state_dict": {k: v for k, v in small.state_dict().items() if not k.startswith("head")}}, tmp_path / "w.pth")
    found = open_checkpoint("vit_tiny_patch16_224", str(tmp_path / "w.pth"), None, 32, 32)
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        expected = small.eval().forward_features(images)[:, 1:].mean(dim=1)  # its mean and deviation are 0.5
    assert torch.allclose(found(images), expected, atol=1e-5)
    torch.save({"patch_embed.proj.bias": torch.zeros(192)}, tmp_path / "half.pth")
    with pytest.raises(ConfigError, match="lacks cls_token and"):
        open_checkpoint("vit_tiny_patch16_224", str(tmp_path / "half.pth"), None, 32, 32)


def test_random_weights_come_from_the_seed():
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    first, same, other = (open_checkpoint("resnet18", None, seed, 32, 32)(images) for seed in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_an_exported_encoder_takes_its_own_size(study):
    _, folder = study
    if not (folder / "vit").is_dir():
        pytest.skip("nothing was exported")
    with pytest.raises(ConfigError, match="takes 16 pixels a side"):
        open_checkpoint(str(folder / "vit"), None, None, 16, 32)
