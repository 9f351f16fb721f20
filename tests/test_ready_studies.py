"""Ready studies: every definition expands at every scale, shares cells with the ladder, and plans no training twice."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from ablation.config import apply
from ablation.design import ladder, make_cell
from ablation.diffusion.process import Process
from ablation.discover import load_scale, scale_names
from ablation.errors import ConfigError
from ablation.plan import build_plan
from ablation.ready_studies import cells_of, expand, resolve
from ablation.report.sweep_definitions import load_sweep, sweep_names

NAMES = sweep_names()
SEEDS = (0, 1)


def entries_at(tree, name, scale="smoke", **settings):
    """Expand a study at a scale."""
    scaled = tree.with_root(load_scale(scale, tree.root))
    return scaled, expand(load_sweep(name), scaled, settings)


def plan_at(tree, name, scale="smoke"):
    """Plan a study at a scale, on the scenes, which need no files."""
    settings = {"data.source": "scenes", "data.train_images": 64, "data.test_images": 32}
    scaled, entries = entries_at(tree, name, scale, **settings)
    return build_plan(scaled, cells_of(entries, scaled, SEEDS, settings))


def column(entries, row=None):
    """Map variants to what they set, or to why they cannot exist."""
    return {e.place.column: e.reason or dict(e.overrides) for e in entries if row in (None, e.place.row)}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", scale_names())
def test_every_study_has_cells_at_every_scale(tree, name, scale):
    _, entries = entries_at(tree, name, scale)
    possible = [entry for entry in entries if not entry.reason]
    assert len(possible) >= 2
    assert not any("{" in entry.place.title for entry in entries)
    places = [(entry.place.row, entry.place.column) for entry in entries]
    assert len(set(places)) == len(places)


@pytest.mark.parametrize("name", NAMES)
def test_at_the_papers_scale_nothing_of_the_paper_is_impossible(tree, name):
    """Only our own question of the best t has rows that cannot vary: the single noise level."""
    _, entries = entries_at(tree, name, "paper")
    assert {entry.stage for entry in entries if entry.reason} <= {"single_noise_level"}


@pytest.mark.parametrize("name", ["timestep", "encoder_depth"])
@pytest.mark.parametrize("scale", ["smoke", "paper"])
def test_probe_sweeps_train_once_per_seed(tree, name, scale):
    plan = plan_at(tree, name, scale)
    kinds = Counter(spec.kind for spec in plan.jobs.values())
    assert kinds["train"] == kinds["fid"] == len(SEEDS)
    assert kinds["probe"] == len(plan.cells) > 2 * len(SEEDS)
    assert (kinds["tokenizer"], kinds["encode"], kinds["reference"]) == (1, 1, 1)


def test_the_best_timestep_of_the_ladder_trains_each_row_once(smoke_tree, tree):
    plan = plan_at(tree, "best_timestep")
    trained = {job for roles in plan.roles.values() for role, job in roles.items() if role == "train"}
    assert len(trained) == 14 * len(SEEDS)


def test_cells_equal_to_the_ladders_are_the_ladders(smoke_tree):
    """By name and by every job, so that neither is trained or measured twice."""
    on_ladder = build_plan(smoke_tree, ladder(smoke_tree, "single_noise_level", [0], {}))
    own = {
        "augmentation": "predict_original", "timestep": "predict_original", "encoder_depth": "predict_original",
        "residual_weight": "predict_original", "sigma": "single_noise_level", "latent_scale": "patch_pca", "fig5": "patch_pca",
        "target_by_tokenizer": "patch_vae", "best_timestep": "baseline", "fid": "drop_input_scaling",
    }  # fmt: skip
    for name, stage in own.items():
        entries = expand(load_sweep(name), smoke_tree, {})
        plan = build_plan(smoke_tree, cells_of(entries, smoke_tree, [0], {}))
        assert plan.roles[f"{stage}-s0"] == on_ladder.roles[f"{stage}-s0"], name


def test_the_tables_own_setting_wins_over_the_studys(smoke_tree):
    """`--set process.residual_weight=0.5` leaves the sweep what its lines say."""
    entries = expand(load_sweep("residual_weight"), smoke_tree, {"process.residual_weight": 0.5})
    cells = cells_of(entries, smoke_tree, [0], {"process.residual_weight": 0.5})
    assert [cell.config.process.residual_weight for cell in cells] == [0.0, 0.01, 0.1, 0.3, 1.0]
    assert all(cell.overrides for cell in cells)


# --- what each study asks for -----------------------------------------------------------------------------------------


def test_pixels_keep_the_number_of_tokens(tree):
    for scale, sizes in (("paper", [32, 64, 128, 256]), ("small", [8, 16, 32, 64]), ("smoke", [8, 16, 32])):
        scaled, entries = entries_at(tree, "fig5", scale)
        cells = [c for c in cells_of(entries, scaled, [0], {}) if c.config.tokenizer.kind == "pixels"]
        assert [cell.config.data.image_size for cell in cells] == sizes
        assert {cell.config.tokens for cell in cells} == {scaled.resolve("patch_pca").tokens}
        assert all(cell.config.tokenizer.latent_dim == cell.config.patch_dim for cell in cells)
    _, entries = entries_at(tree, "fig5", "paper")
    assert [entry.place.paper for entry in entries if entry.place.row == "pixels"] == ["12", "48", "192", "768"]
    assert [entry.place.x for entry in entries if entry.place.row == "patch_pca"] == [8, 16, 32, 64, 128, 256]


def test_training_length_is_counted_as_the_scale_counts_it(tree):
    paper, smoke = (column(entries_at(tree, "training_length", scale)[1]) for scale in ("paper", "smoke"))
    crop = {"data.augmentation": "random_resized_crop"}
    assert paper == {"x1": crop, "x2": {**crop, "train.epochs": 800.0}, "x4": {**crop, "train.epochs": 1600.0}}
    assert smoke == {"x1": crop, "x2": {**crop, "train.steps": 400}, "x4": {**crop, "train.steps": 800}}


def test_sizes_are_the_papers_or_analogous(tree):
    sizes = {}
    for scale in ("paper", "small", "smoke"):
        scaled, entries = entries_at(tree, "model_size", scale)
        sizes[scale] = [cell.config.denoiser.size for cell in cells_of(entries, scaled, [0], {})]
    assert sizes == {
        "paper": ["double_B", "L", "double_L"],
        "small": ["narrow_small", "small", "double_small"],
        "smoke": ["narrow_tiny", "tiny", "double_tiny"],
    }
    _, entries = entries_at(tree, "model_size", "smoke", **{"denoiser.size": "XL"})
    assert column(entries)["narrow"] == "there is no such variant of denoiser.size = XL"


def test_blocks_stand_around_the_middle(tree):
    paper, smoke = (column(entries_at(tree, "encoder_depth", scale)[1]) for scale in ("paper", "smoke"))
    assert [value.get("probe.block", 12) for value in paper.values()] == [9, 10, 11, 12, 13, 14, 15]
    assert smoke["minus1"] == {"probe.block": 1}
    _, entries = entries_at(tree, "encoder_depth", "smoke")
    assert [(entry.place.x, entry.place.paper) for entry in entries] == [(x, str(12 + x)) for x in range(-3, 4)]
    assert smoke["plus3"] == "the network has blocks 1 to 4, so there is no block 5"


def test_matched_noise_power_is_the_mean_of_all_levels(tree):
    """sigma^2 of the matched single level is the mean variance of the multi-level process, up to the discreteness of t."""
    scaled, entries = entries_at(tree, "sigma", "paper")
    process = Process.from_config(scaled.resolve("predict_original").process)
    mean = float((process.sigma[1:] ** 2).mean())
    matched = column(entries)["matched"]["process.sigma_constant"]
    assert matched**2 == pytest.approx(mean, rel=2e-3)
    assert column(entries)["paper"] == {}
    assert float(process.sigma[-1]) == pytest.approx(column(entries)["largest"]["process.sigma_constant"])
    assert torch.isclose(process.sigma[-1] ** 2 / 3, torch.tensor(matched**2, dtype=torch.float64))


def test_targets_go_with_their_weights(smoke_tree):
    cells = cells_of(expand(load_sweep("target_by_tokenizer"), smoke_tree, {}), smoke_tree, [0], {})
    pairs = {(cell.config.process.target, cell.config.process.loss_weight) for cell in cells}
    assert pairs == {("noise", "uniform"), ("clean", "gamma_squared")}
    assert Counter(cell.config.tokenizer.kind for cell in cells) == dict.fromkeys(
        ("conv", "patch_vae", "patch_ae", "patch_pca", "pixels"), 2
    )


def test_one_noise_level_has_one_time_step(smoke_tree):
    entries = [e for e in expand(load_sweep("best_timestep"), smoke_tree, {}) if e.stage == "single_noise_level"]
    assert [entry.place.column for entry in entries if not entry.reason] == ["10"]
    assert "one noise level" in entries[0].reason


# --- relative values --------------------------------------------------------------------------------------------------


def test_values_relative_to_the_scale(smoke_tree):
    own = smoke_tree.resolve("predict_original")
    assert resolve(own, {"data.image_size": {"times": 0.5}, "tokenizer.kind": "patch_pca"}) == {"data.image_size": 16}
    with pytest.raises(ConfigError, match=r"tokenizer\.patch_size would be 0\.5"):
        resolve(own, {"tokenizer.patch_size": {"times": 0.125}})
    with pytest.raises(ConfigError, match=r"unknown setting 'tokenizer\.patchsize'"):
        resolve(own, {"tokenizer.patchsize": {"times": 2}})
    with pytest.raises(ConfigError, match=r"'train\.steps' cannot be 'many'"):
        resolve(own, {"train.steps": "many"})
    assert resolve(apply(own, {"train.steps": None}), {"train.steps": {"times": 2}}) == {}
    config = make_cell(smoke_tree, "patch_pca", 0, resolve(own, {"tokenizer.latent_dim": {"property": "patch_dim"}}), {}).config
    assert config.tokenizer.latent_dim == 48
