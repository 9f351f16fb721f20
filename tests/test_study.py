"""From a request to a study, and from a run folder to result records."""

from __future__ import annotations

import base64
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from ablation import cost
from ablation.collect import collect, read_records, write_records
from ablation.config import from_nested
from ablation.errors import ConfigError, DataError
from ablation.results_folder import changed_settings
from ablation.store import PREDICTIONS
from ablation.study import Request, data_settings, parse_designs, parse_seeds, parse_settings, prepare, write_specs


def request(runs: Path, **changes) -> Request:
    return Request(**{"scale": "smoke", "runs": runs, "with_controls": False, **changes})


# --- what a user types ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("train.base_lr=1e-4", 1e-4),
        ("train.base_lr=1", 1.0),
        ("train.steps=7", 7),
        ("train.steps=null", None),
        ("data.horizontal_flip=false", False),
        ("process.target=clean", "clean"),
        ("data.path=a=b", "a=b"),
        ("probe.weight_decays=[1e-3, 0, 0.1]", [1e-3, 0.0, 0.1]),
        ("tokenizer.block_channels=[8, 16]", [8, 16]),
    ],
)
def test_settings_are_typed(text, value):
    parsed = parse_settings([text])[text.partition("=")[0]]
    assert (parsed, type(parsed)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train.steps", "has no '='"),
        ("train.stepz=3", r"unknown setting 'train\.stepz'.*train\.steps"),
        ("train.steps=many", r"'train\.steps' cannot be 'many'.*int or none"),
        ("train.steps=[1", "cannot be read"),
        ("train.steps=2.5", r"'train\.steps' cannot be 2\.5"),
        ("train.base_lr=-1", r"'train\.base_lr' cannot be -1"),
        ("train.base_lr=2026-01-01", r"'train\.base_lr' cannot be"),
        ("train.base_lr=true", r"'train\.base_lr' cannot be True"),
        ("probe.weight_decays=[[1]]", r"'probe\.weight_decays' cannot be"),
        ("data.horizontal_flip=2", r"'data\.horizontal_flip' cannot be 2"),
        ("=3", "unknown setting ''"),
    ],
)
def test_unusable_settings_name_field_value_and_fix(text, said):
    with pytest.raises(ConfigError, match=said):
        parse_settings([text])


@pytest.mark.parametrize(("text", "seeds"), [("0", (0,)), ("0,1,2", (0, 1, 2)), ("3-5", (3, 4, 5)), ("1,0-2, 7", (1, 0, 2, 7))])
def test_seeds(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "1,,2", "-1", "1-", "2-1", "1.5", "0x1", "²", "0-999999999999"])
def test_unusable_seeds(text):
    with pytest.raises(ConfigError, match="--seeds .*Write --seeds 0,1,2"):
        parse_seeds(text)


def test_data_is_a_folder_a_source_or_both(tmp_path):
    assert data_settings(None) == {}
    assert data_settings("fashion_mnist") == {"data.source": "fashion_mnist"}
    assert data_settings("cifar10:/there") == {"data.source": "cifar10", "data.path": "/there"}
    assert data_settings("timm:hfds/x") == {"data.source": "timm:hfds/x"}
    assert data_settings(str(tmp_path)) == {"data.source": "folder", "data.path": str(tmp_path)}
    with pytest.raises(ConfigError, match="neither a folder nor a data source.*fashion_mnist"):
        data_settings("fashion-mnist")


# --- prepare ----------------------------------------------------------------------------------------------------------


def test_the_default_scale_is_said(runs):
    study = prepare(request(runs, scale=None, through="baseline"))
    assert any("no --scale given: using" in note for note in study.notes)


@pytest.mark.parametrize(("table", "cells"), [("1", 5), ("3", 14), (None, 13)])
def test_tables_and_the_default_path(runs, table, cells):
    assert len(prepare(request(runs, table=table)).plan.cells) == cells


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"through": "patch_pcaa"}, ConfigError, "unknown stage 'patch_pcaa'.*patch_pca"),
        ({"table": "4"}, ConfigError, r"--table 4 does not exist.*1, 2, 3,.*timestep"),
        ({"scale": "smok"}, ConfigError, "unknown scale 'smok'.*smoke"),
        ({"name": "../up"}, ConfigError, "cannot be named"),
        ({"data": "folder:/no/such"}, DataError, "'/no/such' does not exist"),
        ({"stages": ("no.py",)}, ConfigError, "no.py does not exist"),
        ({"settings": {"data.image_size": 4, "tokenizer.patch_size": 8}}, ConfigError, "smaller than a patch"),
        ({"settings": {"probe.timestep": 2000}}, ConfigError, r"probe\.timestep = 2000 is beyond process\.num_timesteps = 1000"),
    ],
)
def test_what_is_wrong_is_found_before_anything_runs(runs, changes, error, said):
    with pytest.raises(error, match=said):
        prepare(request(runs, **changes))
    assert not runs.exists()


def test_a_silenced_stage_is_noted(runs):
    study = prepare(request(runs, through="predict_clean", settings={"process.target": "noise", "process.loss_weight": "uniform"}))
    assert [note for note in study.notes if "predict_clean" in note and "--set fixes it" in note]


def test_a_study_describes_every_cell(runs):
    settings = {"train.steps": 3, "fid.extractor_path": "/elsewhere"}
    study = prepare(request(runs, through="patch_pca", settings=settings, with_controls=True, seeds=(0, 1)))
    document = json.loads(json.dumps(study.document("ablate run")))
    cells = {cell["id"]: cell for cell in document["cells"]}
    assert len(cells) == 8 * 2 + 2 * 2
    cell = cells["patch_pca-s1"]
    assert cell["changes"] == {
        "tokenizer.kind": ["patch_ae", "patch_pca"],
        "tokenizer.latent_dim": [16, 32],
        "tokenizer.latent_scale": ["global", "whitened"],
    }
    assert cell["overrides"] == {"train.steps": 3}
    assert (cell["seed"], cell["labels_used"], cells["baseline-s0"]["labels_used"]) == (1, False, True)
    assert cells["patch_pca.random_init-s0"]["title"] == "the same network, untrained"
    assert from_nested(cell["config"]).train.steps == 3
    assert set(document["code"]) == {"commit", "dirty"}


def test_written_specifications_are_all_a_worker_needs(runs):
    study = prepare(request(runs, through="baseline", settings={"probe.weight_decays": (0.5,)}))
    write_specs(study)
    for job, planned in study.plan.jobs.items():
        spec = study.store.spec(job)
        assert spec == json.loads(json.dumps({**asdict(planned), "code": spec["code"]}))
        assert from_nested(spec["config"]) == study.plan.cells["baseline-s0"].config


def test_a_finished_jobs_specification_stays_as_it_ran(runs):
    study = prepare(request(runs, through="baseline"))
    write_specs(study)
    job = next(iter(study.plan.jobs))
    ran = {**study.store.spec(job), "code": {"commit": "then", "dirty": False}}
    study.store.prepare(job, ran)
    study.store.mark_done(job, {"metrics": {}})
    write_specs(study)
    assert study.store.spec(job) == ran


def test_designs_are_noted_named_and_described(runs):
    study = prepare(request(runs, through="predict_original", designs=("ladder", "put_back"), with_controls=True))
    assert study.name == "predict_original-put_back-smoke"
    assert any(note.startswith("left out: put_back of patch_vae: impossible: ") for note in study.notes)
    cells = {cell["id"]: cell for cell in study.document("ablate run")["cells"]}
    final = cells["predict_original-s0"]
    assert [(role["design"], role["stage"]) for role in final["designs"]] == [("ladder", "predict_original"), ("put_back", None)]
    assert {hole["kind"] for hole in final["left_out"]} == {"impossible", "no change"}
    back = next(cell for cell in cells.values() if cell["title"] == "final model, put back predict_clean")
    assert back["changes"] == {"process.target": ["original", "noise"], "process.loss_weight": ["inverse_variance", "uniform"]}
    assert (back["stage"], back["designs"][0]["stage"]) == ("predict_original", "predict_clean")
    assert back["overrides"] == {"process.target": "noise", "process.loss_weight": "uniform"}
    assert cells["inverse_pca_output-s0"]["title"] == "operate on image output with inverse PCA", "a row of the ladder keeps its title"
    controls = [cell for cell in cells.values() if cell["control"]]
    assert {cell["stage"] for cell in controls} == {"predict_original"}


def test_a_design_alone_brings_what_it_is_compared_with(runs):
    study = prepare(request(runs, through="drop_perceptual_loss", designs=("add_one",), with_controls=True, settings={"train.steps": 3}))
    document = study.document("ablate run")
    alone = next(cell for cell in document["cells"] if cell["title"] == "baseline and only drop_perceptual_loss")
    assert alone["path"] == ["baseline", "drop_perceptual_loss"]
    assert alone["changes"] == {"tokenizer.perceptual_weight": [1.0, 0.0]}
    assert {cell["stage"] for cell in document["cells"] if cell["control"]} == {"drop_class_conditioning"}
    records = {record["cell"]: record for record in collect(study.store, document)}
    (role,) = records["baseline-s0"]["designs"]
    assert (role["design"], role["through"], role["stage"], role["remark"]) == ("add_one", "drop_perceptual_loss", None, "")


def test_designs_do_not_go_with_tables_grids_or_single_stages(runs):
    for other in ({"table": "1"}, {"table": "timestep"}, {"only": ("baseline",)}, {"grid": {"tokenizer.latent_dim": (8,)}}):
        with pytest.raises(ConfigError, match="--design goes with --through"):
            prepare(request(runs, designs=("ladder",), **other))
    with pytest.raises(ConfigError, match=r"unknown --design 'putback'.*put_back.*separated by commas"):
        parse_designs(["ladder,putback"])
    assert parse_designs(["ladder, put_back", "ladder"]) == ("ladder", "put_back")


# --- records ----------------------------------------------------------------------------------------------------------


def record_of(metrics: dict) -> dict:
    cost = {"wall_seconds": 1.5, "peak_memory_gib": 0.5}
    return {"metrics": metrics, "protocol": {}, "cost": cost, "code": {"commit": "c", "dirty": False}, "versions": {"torch": "2"}}


def test_records_join_what_the_jobs_left(runs):
    study = prepare(request(runs, through="drop_class_conditioning"))
    write_specs(study)
    document, roles = study.document("ablate run"), study.plan.roles
    for role, metrics in {"tokenizer": {"tokenizer_psnr": 20.0}, "encode": {}, "train": {"final_loss": 0.5}}.items():
        study.store.mark_done(roles["baseline-s0"][role], record_of(metrics))
    study.store.mark_done(roles["baseline-s0"]["probe"], record_of({"linear_probe_top1": 30.0}))
    study.store.mark_done(roles["baseline-s0"]["fid"], record_of({"fid": 9.0}))
    study.store.mark_failed(roles["drop_class_conditioning-s0"]["train"], "diverged", "loss became nan")
    first, second = collect(study.store, document)
    assert first["state"] == "done"
    assert first["metrics"] == {"tokenizer_psnr": 20.0, "final_loss": 0.5, "linear_probe_top1": 30.0, "fid": 9.0}
    assert first["cost"]["wall_seconds"] == 7.5
    assert (second["state"], second["reason"]) == ("diverged", "loss became nan")
    assert second["metrics"] == {"tokenizer_psnr": 20.0}


def test_records_carry_which_test_images_were_right(runs):
    study = prepare(request(runs, through="drop_class_conditioning", with_controls=True))
    write_specs(study)
    right = np.random.default_rng(0).random((2, 2001)) < 0.3
    for cell, content in {
        "baseline-s0": right,
        "drop_class_conditioning-s0": right[:1],
        "drop_class_conditioning.random_init-s0": right,
    }.items():
        probe = study.plan.roles[cell]["probe"]
        np.save(study.store.job_folder(probe) / PREDICTIONS, content)
        study.store.mark_done(probe, record_of({"linear_probe_top1": 30.0, "chance_top1": 6.0}))
    records = {record["cell"]: json.loads(json.dumps(record)) for record in collect(study.store, study.document("ablate run"))}
    stored = records["baseline-s0"]["correct"]
    assert stored["images"] == 2001
    assert len(stored["test_set"]) == 16
    for name, row in zip(("linear_probe_top1", "knn_top1"), right, strict=True):
        assert np.unpackbits(np.frombuffer(base64.b64decode(stored[name]), np.uint8), count=2001).astype(bool).tolist() == row.tolist()
    assert len(stored["linear_probe_top1"]) == 336, "a third more than a bit an image"
    assert records["drop_class_conditioning-s0"]["correct"] == {"reason": "answers unreadable"}
    assert records["drop_class_conditioning.pca_features-s0"]["correct"] == {}, "never run"
    assert "constant answer" in records["drop_class_conditioning.chance-s0"]["correct"]["reason"]


def test_the_smallest_effect_is_kept_and_a_change_of_it_shows(runs):
    def written(sesoi: float | None) -> dict | None:
        study = prepare(request(runs, through="baseline", smallest_effect=sesoi))
        study.store.write_study(study.document("ablate run"))
        return study.store.study()["smallest_effect"]

    assert written(None) is None
    assert written(0.5) == {"points": 0.5, "before": [None]}
    assert written(None) == written(0.5) == {"points": 0.5, "before": [None]}
    assert written(2.0) == {"points": 2.0, "before": [None, 0.5]}
    study = prepare(request(runs, through="drop_class_conditioning", smallest_effect=0.5))
    document = study.document("ablate run")
    assert document["smallest_effect"] == {"points": 0.5, "before": []}
    assert {record["smallest_effect"]["points"] for record in collect(study.store, document)} == {0.5}


def test_a_record_keeps_a_thinned_curve_and_counts_operations(runs):
    study = prepare(request(runs, through="baseline"))
    write_specs(study)
    document, roles = study.document("ablate run"), study.plan.roles["baseline-s0"]
    lines = [json.dumps({"step": step, "loss": float(step % 4)}) for step in range(1, 241)]
    (study.store.job_folder(roles["train"]) / "curve.jsonl").write_text("\n".join([*lines, '{"step": 241, "lo']))
    for role in roles:
        metrics = {"steps": 200} if role == "train" else {}
        protocol = {"classes": 16, "train_images": 100} if role == "probe" else {}
        study.store.mark_done(roles[role], {**record_of(metrics), "protocol": protocol})
    (record,) = collect(study.store, document)
    assert record["curve"]["step"] == list(range(4, 241, 4))
    assert set(record["curve"]["loss"]) == {1.5}
    config = study.plan.cells["baseline-s0"].config
    assert record["cost"]["step_flops"] == pytest.approx(config.train.global_batch * cost.denoiser_step(config, 16), rel=1e-5)
    assert record["cost"]["train_flops"] == pytest.approx(200 * record["cost"]["step_flops"], rel=1e-5)
    assert record["cost"]["tokenizer_flops"] > 0
    assert set(record["evidence"]) == set(roles)


def test_settings_that_differ_from_the_defaults_are_those_of_scale_and_study(runs):
    study = prepare(request(runs, through="predict_clean", settings={"train.clip_grad": 1.0}))
    changed = changed_settings(study.document("ablate run"))
    assert changed["train.clip_grad"] == [None, 1.0]
    assert changed["denoiser.size"] == ["L", "tiny"]
    assert "process.target" not in changed, "a stage's own change is not the study's"


def test_a_cell_that_never_ran_is_missing(runs):
    study = prepare(request(runs, through="single_noise_level"))
    records = {record["stage"]: record for record in collect(study.store, study.document("ablate run"))}
    assert {record["state"] for record in records.values()} == {"missing"}
    assert "single noise level" in records["single_noise_level"]["undefined"]["fid"]
    assert records["predict_original"]["undefined"] == {}


def test_records_survive_the_file(runs, tmp_path):
    study = prepare(request(runs, through="baseline", with_controls=True))
    records = collect(study.store, study.document("ablate run"))
    assert [record["control"] for record in records] == [None, "random_init", "pca_features", "chance"]
    write_records(records, tmp_path / "results.jsonl")
    assert read_records(tmp_path / "results.jsonl") == json.loads(json.dumps(records))


@pytest.mark.parametrize(
    ("line", "said"),
    [(b"{", "line 2 is not JSON"), (b"3", "line 2 is not a record"), (b'{"schema": 9}', "line 2 has schema 9"), (b"\xff", "cannot read")],
)
def test_a_corrupt_line_is_named(tmp_path, line, said):
    path = tmp_path / "results.jsonl"
    path.write_bytes(b'{"schema": 1}\n' + line + b"\n")
    with pytest.raises(ConfigError, match=said):
        read_records(path)
    with pytest.raises(ConfigError, match=r"cannot read .*none\.jsonl"):
        read_records(tmp_path / "none.jsonl")
