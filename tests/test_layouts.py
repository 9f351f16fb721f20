"""The designs over a path: which cells, which are shared, and what cannot be, with its reason."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ablation.checks import check_config
from ablation.config import Config, apply, diff, get_value
from ablation.design import DESIGNS, Cell, LeftOut
from ablation.errors import ConfigError
from ablation.layouts import design_cells
from ablation.plan import build_plan
from ablation.stage import Stage, StageTree

ALL = ("ladder", "leave_one_out", "add_one", "put_back")


def lay(tree: StageTree, through: str, *designs: str, seeds: tuple[int, ...] = (0,), **fixed: Any) -> tuple[list[Cell], list[LeftOut]]:
    return design_cells(tree, through, designs or ALL, seeds, {path.replace("__", "."): value for path, value in fixed.items()})


def cells_by_role(cells: list[Cell]) -> dict[tuple[str, str | None], Cell]:
    return {(role.design, role.stage): cell for cell in cells for role in cell.roles}


# --- the built-in path ------------------------------------------------------------------------------------------------

PUT_BACK = {
    "drop_class_conditioning": {"denoiser.class_conditional": True},
    "linear_gamma_schedule": {"process.schedule": "ddpm_linear_beta"},
    "predict_clean": {"process.target": "noise", "process.loss_weight": "uniform"},
    "drop_input_scaling": {"process.schedule": "linear_gamma_squared", "process.loss_weight": "gamma_squared"},
    "inverse_pca_input": {"process.input_space": "latent"},
    "predict_original": {"process.target": "clean"},
}
"""What each put-back cell through predict_original differs in from the final model."""

LEFT_OUT = {
    ("leave_one_out", "drop_perceptual_loss"): ("impossible", "'patch_vae' requires tokenizer.perceptual_weight = 0.0, but it is 1.0"),
    ("leave_one_out", "drop_adversarial_loss"): ("impossible", "'patch_vae' requires tokenizer.adversarial_weight = 0.0, but it is 0.5"),
    ("leave_one_out", "linear_gamma_schedule"): ("no change", "overridden by 'drop_input_scaling'"),
    ("leave_one_out", "patch_vae"): ("no change", "overridden by 'patch_ae'"),
    ("leave_one_out", "patch_ae"): ("no change", "overridden by 'patch_pca'"),
    ("leave_one_out", "patch_pca"): ("impossible", "'inverse_pca_input' requires tokenizer.kind = patch_pca or pixels, but it is patch_ae"),
    ("leave_one_out", "predict_clean"): ("impossible", "'predict_original' requires process.target = clean, but it is noise"),
    ("leave_one_out", "inverse_pca_output"): ("impossible", "'predict_original' requires process.output_space = image, but it is latent"),
    ("add_one", "patch_vae"): ("impossible", "'patch_vae' requires tokenizer.perceptual_weight = 0.0, but it is 1.0"),
    ("add_one", "inverse_pca_input"): ("impossible", "'inverse_pca_input' requires tokenizer.kind = patch_pca or pixels, but it is conv"),
    ("add_one", "inverse_pca_output"): ("impossible", "'inverse_pca_output' requires tokenizer.kind = patch_pca or pixels, but it is conv"),
    ("add_one", "predict_original"): ("impossible", "'predict_original' requires process.output_space = image, but it is latent"),
    ("put_back", "drop_perceptual_loss"): ("no change", "overridden by 'patch_vae'"),
    ("put_back", "drop_adversarial_loss"): ("no change", "overridden by 'patch_vae'"),
    ("put_back", "patch_vae"): ("impossible", "'inverse_pca_input' requires tokenizer.kind = patch_pca or pixels, put back it is conv"),
    ("put_back", "patch_ae"): ("impossible", "'inverse_pca_input' requires tokenizer.kind = patch_pca or pixels, put back it is patch_vae"),
    ("put_back", "patch_pca"): ("impossible", "'inverse_pca_input' requires tokenizer.kind = patch_pca or pixels, put back it is patch_ae"),
    ("put_back", "inverse_pca_output"): ("impossible", "'predict_original' requires process.output_space = image, put back it is latent"),
}


def test_the_built_in_path_in_all_four_designs(smoke_tree):
    cells, left_out = lay(smoke_tree, "predict_original")
    path = [stage.name for stage in smoke_tree.path("predict_original")]
    found = cells_by_role(cells)
    assert [stage for design, stage in found if design == "ladder"] == path
    final = found["put_back", None].config
    assert {stage: {p: pair[1] for p, pair in diff(final, cell.config).items()} for (design, stage), cell in found.items()
            if design == "put_back" and stage} == PUT_BACK  # fmt: skip
    assert {stage for design, stage in found if design == "leave_one_out" and stage} == {
        "drop_class_conditioning", "drop_input_scaling", "inverse_pca_input", "predict_original",
    }  # fmt: skip
    assert {stage for design, stage in found if design == "add_one" and stage} == {
        "drop_class_conditioning", "drop_perceptual_loss", "drop_adversarial_loss", "linear_gamma_schedule", "patch_ae", "patch_pca",
        "predict_clean", "drop_input_scaling",
    }  # fmt: skip
    assert {(hole.design, hole.stage) for hole in left_out} == set(LEFT_OUT)
    for hole in left_out:
        kind, said = LEFT_OUT[hole.design, hole.stage]
        assert hole.kind == kind
        assert said in hole.reason
    assert len(cells) == 25


def test_equal_configurations_are_one_cell_with_every_role(smoke_tree):
    found = cells_by_role(lay(smoke_tree, "predict_original")[0])
    assert found["ladder", "inverse_pca_output"] is found["put_back", "predict_original"] is found["leave_one_out", "predict_original"]
    assert found["ladder", "drop_class_conditioning"] is found["add_one", "drop_class_conditioning"]
    assert found["ladder", "baseline"] is found["add_one", None]
    assert found["ladder", "predict_original"] is found["put_back", None] is found["leave_one_out", None]
    assert found["put_back", "inverse_pca_input"] is found["leave_one_out", "inverse_pca_input"]
    assert found["put_back", "predict_original"].id == "inverse_pca_output-s0"


def test_a_cell_has_one_name_whichever_designs_ask_for_it(smoke_tree):
    together = {role: cell.id for role, cell in cells_by_role(lay(smoke_tree, "predict_original", seeds=(3,))[0]).items()}
    for design in ALL:
        for role, cell in cells_by_role(lay(smoke_tree, "predict_original", design, seeds=(3,))[0]).items():
            assert cell.id == together[role]


def test_shared_cells_and_jobs_are_planned_once(smoke_tree):
    cells, _ = lay(smoke_tree, "predict_original", seeds=(0, 1))
    plan = build_plan(smoke_tree, cells)
    assert len(plan.cells) == len(cells) == 50
    trained = Counter(roles["train"] for roles in plan.roles.values())
    assert set(trained.values()) == {1}, "cells that differ are trained apart"
    tokenizers = {plan.roles[cell]["tokenizer"] for cell in plan.roles if cell.startswith("predict_original") and cell.endswith("s0")}
    assert len(tokenizers) == 1, "variants of the final model share its tokenizer"


def test_putting_back_says_what_else_it_undoes(smoke_tree):
    found = cells_by_role(lay(smoke_tree, "predict_original", "put_back")[0])
    remarks = {role.stage: role.remark for cell in found.values() for role in cell.roles}
    assert remarks["predict_clean"] == "also undoes process.loss_weight of 'drop_input_scaling', process.target of 'predict_original'"
    assert remarks["inverse_pca_input"] == ""


def test_what_set_fixes_is_no_change(smoke_tree):
    _, left_out = lay(smoke_tree, "drop_class_conditioning", "put_back", "leave_one_out", denoiser__class_conditional=False)
    assert {hole.reason for hole in left_out} == {"--set fixes what 'drop_class_conditioning' changes"}


def test_impossible_settings_of_the_path_itself_are_an_error(smoke_tree):
    with pytest.raises(ConfigError, match=r"stage 'inverse_pca_input': process\.input_space = image needs the inverse PCA"):
        lay(smoke_tree, "inverse_pca_input", "add_one", tokenizer__kind="patch_ae")


def test_holes_ride_on_the_cell_they_would_be_compared_with(smoke_tree):
    found = cells_by_role(lay(smoke_tree, "predict_original")[0])
    final, root = found["put_back", None], found["add_one", None]
    assert {hole.design for hole in final.left_out} == {"put_back", "leave_one_out"}
    assert {hole.design for hole in root.left_out} == {"add_one"}
    assert not any(cell.left_out for cell in found.values() if cell not in (final, root))


# --- a registry of five stages with prerequisites -----------------------------------------------------------------------


def five_stages() -> StageTree:
    """root > a > b > c > d > e: c needs b's value, e needs what d sets, d overrides a."""
    stages = [
        Stage(name="root", after=None, title="root"),
        Stage(name="a", after="root", title="a", changes={"train.beta1": 0.5}),
        Stage(name="b", after="a", title="b", changes={"train.weight_decay": 0.1}),
        Stage(name="c", after="b", title="c", changes={"train.clip_grad": 1.0}, requires={"train.weight_decay": 0.1}),
        Stage(name="d", after="c", title="d", changes={"train.beta1": 0.8, "train.ema_decay": 0.5}),
        Stage(name="e", after="d", title="e", changes={"train.warmup_fraction": 0.5}, requires={"train.ema_decay": (0.5, 0.6)}),
    ]
    return StageTree.build(stages, Config())


def test_five_stages_with_prerequisites():
    tree = five_stages()
    cells, left_out = lay(tree, "e")
    found = {role: cell.id for role, cell in cells_by_role(cells).items()}
    by_id = {cell.id: dict(cell.overrides) for cell in cells if cell.overrides}
    assert {role: found[role] for role in found if role[0] == "ladder"} == {("ladder", name): f"{name}-s0" for name in ("root", *"abcde")}
    assert {stage: by_id.get(found[design, stage], found[design, stage]) for design, stage in found if design == "add_one"} == {
        None: "root-s0", "a": "a-s0", "b": {"train.weight_decay": 0.1}, "d": {"train.beta1": 0.8, "train.ema_decay": 0.5},
    }  # fmt: skip
    assert {stage: by_id.get(found[design, stage], found[design, stage]) for design, stage in found if design == "leave_one_out"} == {
        None: "e-s0", "c": {"train.clip_grad": None}, "e": "d-s0",
    }  # fmt: skip
    assert {stage: by_id.get(found[design, stage], found[design, stage]) for design, stage in found if design == "put_back"} == {
        None: "e-s0", "a": {"train.beta1": 0.9}, "c": {"train.clip_grad": None}, "e": "d-s0",
    }  # fmt: skip
    assert [str(hole) for hole in left_out] == [
        "leave_one_out of a: no change: overridden by 'd'",
        "leave_one_out of b: impossible: stage 'c' requires train.weight_decay = 0.1, but it is 0.0 before it",
        "leave_one_out of d: impossible: stage 'e' requires train.ema_decay = 0.5 or 0.6, but it is 0.9999 before it",
        "add_one of c: impossible: stage 'c' requires train.weight_decay = 0.1, but it is 0.0 before it",
        "add_one of e: impossible: stage 'e' requires train.ema_decay = 0.5 or 0.6, but it is 0.9999 before it",
        "put_back of b: impossible: stage 'c' requires train.weight_decay = 0.1, put back it is 0.0",
        "put_back of d: impossible: stage 'e' requires train.ema_decay = 0.5 or 0.6, put back it is 0.9999",
    ]
    assert len({cell.id for cell in cells}) == len(cells) == 10


def test_a_stage_that_turns_an_earlier_one_back_is_no_obstacle():
    """Without `a`, what `b` sets already is so; that is no error of the design, as it would be of a path."""
    stages = [
        Stage(name="root", after=None, title="root"),
        Stage(name="a", after="root", title="a", changes={"train.beta1": 0.5}),
        Stage(name="b", after="a", title="b", changes={"train.beta1": 0.9}),
    ]
    cells, left_out = lay(StageTree.build(stages, Config()), "b", "leave_one_out", "add_one", "put_back")
    assert [str(hole) for hole in left_out] == [
        "leave_one_out of a: no change: overridden by 'b'",
        "add_one of b: no change: 'root' already is so, or reads nothing that 'b' changes",
        "put_back of a: no change: overridden by 'b'",
    ]
    assert {role: cell.id for role, cell in cells_by_role(cells).items()} == {
        ("leave_one_out", None): "b-s0", ("leave_one_out", "b"): "a-s0", ("add_one", None): "b-s0", ("add_one", "a"): "a-s0",
        ("put_back", None): "b-s0", ("put_back", "b"): "a-s0",
    }  # fmt: skip


def test_a_part_travels_with_its_stage_and_is_missed_without_it(tree):
    """A plugin's tokenizer: its own stage alone can use it, the path without that stage cannot."""
    stages = [
        *tree.path("predict_clean"),
        Stage(name="dct", after="predict_clean", title="dct", changes={"tokenizer.kind": "dct"}, provides={"tokenizer:dct": "x:Y"}),
        Stage(name="images", after="dct", title="images", changes={"process.input_space": "image"}),
    ]
    grown = StageTree.build(stages, tree.root)
    cells, left_out = lay(grown, "images")
    found = cells_by_role(cells)
    assert found["add_one", "dct"].path == ("baseline", "dct")
    assert "tokenizer:dct" in found["add_one", "dct"].steps(grown)[-1].provides
    reasons = {(hole.design, hole.stage): hole.reason for hole in left_out}
    assert "process.input_space = image needs the inverse PCA" in reasons["add_one", "images"]
    assert ("leave_one_out", "dct") in found, "a patch PCA has an inverse as well"
    assert found["leave_one_out", "dct"].config.tokenizer.kind == "patch_pca"


# --- any registry -------------------------------------------------------------------------------------------------------

VALUES = {
    "train.beta1": (0.9, 0.5, 0.8),
    "train.weight_decay": (0.0, 0.1, 0.2),
    "process.target": ("noise", "clean", "original"),
    "process.output_space": ("latent", "image"),
    "tokenizer.kind": ("conv", "patch_ae", "patch_pca"),
}


@st.composite
def registries(draw: st.DrawFn) -> StageTree:
    """Draw a path of up to six stages that is feasible as a ladder, with random prerequisites that hold on it."""
    config, parent = Config(), None
    stages = []
    for number in range(draw(st.integers(2, 7))):
        changes, requires = {}, {}
        if parent is not None:
            for path in draw(st.lists(st.sampled_from(sorted(VALUES)), min_size=1, max_size=2, unique=True)):
                options = [value for value in VALUES[path] if value != get_value(config, path)]
                changes[path] = draw(st.sampled_from(options))
            for path in draw(st.lists(st.sampled_from(sorted(VALUES)), max_size=2, unique=True)):
                requires[path] = get_value(config, path)
            child = apply(config, changes)
            try:
                check_config(child, [])
            except ConfigError:
                continue
            config = child
        stages.append(Stage(name=f"s{number}", after=parent, title="x", changes=changes, requires=requires))
        parent = f"s{number}"
    return StageTree.build(stages, Config())


@settings(max_examples=200, deadline=None)
@given(tree=registries())
def test_no_design_breaks_a_prerequisite_and_none_forgets_a_stage(tree):
    through = list(tree.stages)[-1]
    path = tree.path(through)
    cells, left_out = lay(tree, through, *DESIGNS)
    assert len({cell.id for cell in cells}) == len(cells)
    beside = [cell.config for cell in cells if cell.overrides]
    assert len(set(beside)) == len(beside), "equal configurations are one cell"
    final = tree.resolve(through)
    for cell in cells:
        check_config(cell.config, [])
        assert apply(tree.resolve(cell.stage), dict(cell.overrides)) == cell.config, "the name says what the cell is"
        for role in cell.roles:
            if role.stage is None:
                assert cell.config == (tree.root if role.design == "add_one" else final)
            elif role.design == "put_back":
                here = [stage.name for stage in path].index(role.stage)
                before, after = tree.resolve(path[here - 1].name), tree.resolve(role.stage)
                put_back = {name: pair[0] for name, pair in diff(before, after).items()}
                assert cell.config == apply(final, put_back)
                for stage in path[here + 1 :]:
                    own = tree.resolve(stage.name)
                    if any(get_value(cell.config, name) == get_value(own, name) for name in stage.changes):
                        assert all(get_value(cell.config, name) == wanted for name, wanted in stage.requires.items() if name in put_back)
            else:
                kept = {
                    "ladder": path[: [stage.name for stage in path].index(role.stage) + 1],
                    "add_one": [path[0], tree.stage(role.stage)],
                    "leave_one_out": [stage for stage in path if stage.name != role.stage],
                }[role.design]
                config = tree.root
                for stage in kept:
                    assert all(get_value(config, name) == wanted for name, wanted in stage.requires.items())
                    config = apply(config, stage.changes)
                assert config == cell.config
    roles = Counter((role.design, role.stage) for cell in cells for role in cell.roles)
    holes = Counter((hole.design, hole.stage) for hole in left_out)
    for design in ("add_one", "leave_one_out", "put_back"):
        assert all(roles[design, stage.name] + holes[design, stage.name] == 1 for stage in path[1:])
