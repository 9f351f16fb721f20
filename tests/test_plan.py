import json
from collections import Counter
from dataclasses import asdict

import pytest

from ablation.config import apply
from ablation.design import controls, grid, ladder, make_cell
from ablation.discover import load_scale
from ablation.errors import ConfigError
from ablation.keys import EXCLUDED, KIND_VERSIONS, canonical_json, digest, job_slice
from ablation.plan import build_plan, decide
from ablation.store import Store


def test_sharing_counts_through_predict_original(smoke_tree):
    plan = build_plan(smoke_tree, ladder(smoke_tree, "predict_original", [0], {}))
    assert (len(plan.jobs), plan.unshared) == (52, 66)
    assert Counter(spec.kind for spec in plan.jobs.values()) == {
        "reference": 1,
        "tokenizer": 6,
        "encode": 6,
        "train": 13,
        "probe": 13,
        "fid": 13,
    }


@pytest.mark.parametrize(
    ("through", "seeds", "jobs", "unshared"),
    [("baseline", [0], 6, 6), ("single_noise_level", [0], 54, 70), ("predict_original", [0, 1], 101, 131), ("patch_pca", [0], 37, 41)],
)
def test_sharing_counts(smoke_tree, through, seeds, jobs, unshared):
    plan = build_plan(smoke_tree, ladder(smoke_tree, through, seeds, {}))
    assert (len(plan.jobs), plan.unshared) == (jobs, unshared)


def test_the_single_level_row_is_not_sampled_from(smoke_tree):
    plan = build_plan(smoke_tree, ladder(smoke_tree, "single_noise_level", [0], {}))
    assert "fid" not in plan.roles["single_noise_level-s0"]
    assert "fid" in plan.roles["predict_original-s0"]


def test_parents_come_first(smoke_tree):
    seen = set()
    for job, spec in build_plan(smoke_tree, ladder(smoke_tree, "single_noise_level", [0, 1], {})).jobs.items():
        assert set(spec.inputs.values()) <= seen
        seen.add(job)


def test_stages_share_what_they_do_not_change(smoke_tree):
    plan = build_plan(smoke_tree, ladder(smoke_tree, "single_noise_level", [0], {}))
    roles = plan.roles
    assert roles["baseline-s0"]["tokenizer"] == roles["drop_class_conditioning-s0"]["tokenizer"]
    assert roles["drop_adversarial_loss-s0"]["encode"] == roles["linear_gamma_schedule-s0"]["encode"]
    assert len({roles[f"{name}-s0"]["tokenizer"] for name in ("patch_pca", "predict_clean", "predict_original", "single_noise_level")}) == 1
    trained = [roles[cell]["train"] for cell in roles]
    assert len(set(trained)) == len(trained)


def test_controls_measure_the_last_stage(smoke_tree):
    cells = ladder(smoke_tree, "predict_original", [0, 1], {})
    found = controls(cells)
    assert [cell.id for cell in found] == [
        "predict_original.random_init-s0",
        "predict_original.pca_features-s0",
        "predict_original.random_init-s1",
        "predict_original.pca_features-s1",
    ]
    plan = build_plan(smoke_tree, [*cells, *found])
    assert len(plan.jobs) == 101 + 4


def test_controls_of_a_convolutional_stage_use_a_patch_pca(smoke_tree):
    control = next(c for c in controls(ladder(smoke_tree, "baseline", [0], {})) if c.control == "pca_features")
    assert control.config.tokenizer.kind == "patch_pca"


def keys(tree, settings=(), through="predict_original", seeds=(0,)):
    return {
        (cell, role): job
        for cell, roles in build_plan(tree, ladder(tree, through, seeds, dict(settings))).roles.items()
        for role, job in roles.items()
    }


@pytest.mark.parametrize(
    ("setting", "kinds"),
    [
        ({"probe.timestep": 20}, {"probe"}),
        ({"fid.sampler_steps": 11}, {"fid"}),
        ({"fid.reference_images": 64}, {"reference", "fid"}),
        ({"train.base_lr": 1e-3}, {"train", "probe", "fid"}),
        ({"tokenizer.latent_scale": "none"}, {"train", "probe", "fid"}),
        ({"data.image_size": 64}, {"reference", "tokenizer", "encode", "train", "probe", "fid"}),
        ({"fid.extractor_path": "/elsewhere"}, set()),
        ({"tokenizer.perceptual_path": "/elsewhere"}, set()),
    ],
)
def test_a_setting_changes_the_keys_of_what_reads_it(smoke_tree, setting, kinds):
    before, after = keys(smoke_tree, through="patch_vae"), keys(smoke_tree, setting, through="patch_vae")
    changed = {role for (cell, role) in before if before[cell, role] != after[cell, role] and cell == "patch_vae-s0"}
    assert changed == kinds


def test_switched_off_settings_are_not_read(smoke_tree):
    """The perceptual network matters only where its loss is on; the PCA reads neither steps nor the latent dimension."""
    config = smoke_tree.resolve("drop_perceptual_loss")
    assert "tokenizer.perceptual_network" not in job_slice("tokenizer", config)
    assert set(job_slice("tokenizer", smoke_tree.resolve("patch_pca"))) & {"tokenizer.steps", "tokenizer.latent_dim"} == set()
    assert "process.beta_end" not in job_slice("train", smoke_tree.resolve("linear_gamma_schedule"))


def test_keys_hold_no_places_and_no_scale_names(smoke_tree):
    plan = build_plan(smoke_tree, ladder(smoke_tree, "single_noise_level", [0], {}))
    for spec in plan.jobs.values():
        assert not set(spec.reads) & set(EXCLUDED)
        assert "smoke" not in canonical_json({**asdict(spec), "reads": dict(spec.reads), "inputs": dict(spec.inputs)})


def test_seeds_and_data_are_in_every_key_that_reads_them(smoke_tree):
    first, second = keys(smoke_tree), keys(smoke_tree, seeds=(1,))
    assert first["predict_original-s0", "reference"] == second["predict_original-s1", "reference"]
    assert first["predict_original-s0", "tokenizer"] == second["predict_original-s1", "tokenizer"]  # a PCA draws nothing
    assert first["baseline-s0", "tokenizer"] != second["baseline-s1", "tokenizer"]
    assert first["predict_original-s0", "train"] != second["predict_original-s1", "train"]
    other = keys(smoke_tree, {"data.scene_seed": 5})
    assert not {first[key] for key in first} & {other[key] for key in other}


def test_golden_keys(smoke_tree):
    """A key that moves orphans every result of its kind: move it knowingly, by a version in KIND_VERSIONS."""
    assert list(KIND_VERSIONS) == ["reference", "tokenizer", "encode", "train", "probe", "fid", "finetune", "checkpoint", "evaluation"]
    config = apply(smoke_tree.resolve("predict_original"), {"train.steps": 300})
    assert canonical_json(job_slice("train", config))[:80] == canonical_json(job_slice("train", config))[:80]


def test_a_new_setting_at_its_default_keeps_old_keys(smoke_tree, monkeypatch):
    """Only settings that differ from their default are hashed."""
    from ablation import keys as module

    before = keys(smoke_tree, through="baseline")
    real = module._reads
    monkeypatch.setattr(module, "_reads", lambda kind, config: [*real(kind, config), "process.sigma_max"])
    assert keys(smoke_tree, through="baseline") == before


def test_table_2_shares_the_ladders_cells_and_names_what_cannot_be(smoke_tree):
    stages = ["linear_gamma_schedule", "patch_vae", "patch_ae", "patch_pca"]
    cells, infeasible = grid(smoke_tree, stages, {"tokenizer.latent_dim": [8, 16, 32, 64]}, [0], {})
    assert [name for name, _ in infeasible] == [f"{stage} with tokenizer.latent_dim=64" for stage in stages[1:]]
    assert all("48 numbers of a patch" in reason for _, reason in infeasible)
    ids = {cell.id for cell in cells}
    assert {"linear_gamma_schedule-s0", "patch_vae-s0", "patch_ae-s0", "patch_pca-s0"} <= ids
    assert len(ids) == 13


def test_impossible_cells_name_the_stage(smoke_tree):
    with pytest.raises(ConfigError, match=r"stage 'patch_pca'.*patch_size = 5"):
        make_cell(smoke_tree, "patch_pca", 0, {"tokenizer.patch_size": 5}, {})


def finish(store, plan, skip=()):
    for job, spec in plan.jobs.items():
        if job not in skip:
            store.prepare(job, json.loads(json.dumps(asdict(spec), default=dict)))
            store.mark_done(job, {"metrics": {}, "protocol": {}, "cost": {}})


def study_of(plan):
    return {"name": "s", "cells": [{"id": cell, "jobs": dict(roles)} for cell, roles in plan.roles.items()]}


def test_decisions_give_reasons(smoke_tree, runs):
    store = Store(runs)
    plan = build_plan(smoke_tree, ladder(smoke_tree, "drop_class_conditioning", [0], {}))
    assert {d.action for d in decide(plan, store).values()} == {"new"}
    finish(store, plan)
    store.write_study(study_of(plan))
    assert {d.action for d in decide(plan, store).values()} == {"reuse"}
    changed = build_plan(smoke_tree, ladder(smoke_tree, "drop_class_conditioning", [0], {"train.base_lr": 1e-3}))
    decisions = decide(changed, store)
    train = decisions[changed.roles["baseline-s0"]["train"]]
    assert train.action == "stale"
    assert "train.base_lr was" in train.reason
    assert "its train changed" in decisions[changed.roles["baseline-s0"]["probe"]].reason
    assert decisions[changed.roles["baseline-s0"]["tokenizer"]].action == "reuse"


def test_a_changed_default_is_refused_by_name(smoke_tree, runs):
    store = Store(runs)
    plan = build_plan(smoke_tree, ladder(smoke_tree, "baseline", [0], {}))
    finish(store, plan)
    job = plan.roles["baseline-s0"]["train"]
    spec = store.spec(job)
    spec["reads"]["train.beta2"] = 0.95  # what it ran with, when that was the default
    (store.job_folder(job) / "spec.json").write_text(json.dumps(spec))
    decision = decide(plan, store)[job]
    assert decision.action == "stale"
    assert "the default of train.beta2 changed from 0.95 to 0.999" in decision.reason


def test_no_key_of_the_built_in_stages_has_moved(smoke_tree):
    """All ids of the ladder, its controls and two seeds; a change here orphans results that people have."""
    cells = ladder(smoke_tree, "single_noise_level", [0, 1], {})
    plan = build_plan(smoke_tree, [*cells, *controls(cells)])
    assert digest(sorted(plan.jobs)) == "e182c0045284468a"


def test_paper_scale_plans_the_same_jobs(tree):
    scaled = tree.with_root(load_scale("paper", tree.root))
    plan = build_plan(scaled, ladder(scaled, "predict_original", [0], {"data.source": "scenes"}))
    assert len(plan.jobs) == 52


def test_what_seeds_share_is_worked_out_once(tree):
    cells, _ = grid(tree, ["patch_pca"], {"train.beta1": [0.9, 0.95]}, range(200), {"data.source": "scenes"})
    plan = build_plan(tree, cells)
    assert len(plan.jobs) == 3 + 400 * 3  # one reference, one tokenizer, one set of latents
    assert sum(len(plan.cells_of(job)) for job in plan.jobs) == 400 * 6
    assert len({id(cell.config) for cell in cells}) == 2  # resolved once for all seeds
