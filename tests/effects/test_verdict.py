"""Every built-in stage passes, and no mutation of it does."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from ablation.diffusion.process import Process
from ablation.discover import builtin_folder, discover, load_file
from ablation.effects import verdict as verdicts
from ablation.effects.observe import Workshop
from ablation.effects.verdict import check_stage, check_stages
from ablation.errors import ConfigError
from ablation.stage import EFFECTS, Stage, StageTree

NAMES = [stage.name for stage in discover(installed=False).ordered() if stage.after is not None]
PAIRS = list(pairwise(NAMES))


class Neutered(Stage):
    """A stage whose apply does nothing."""

    def apply(self, parent):
        return parent


class Impostor(Stage):
    """A stage whose apply is another stage's."""

    def apply(self, parent):
        return self.other.apply(parent)


def remade(kind, stage, **attributes):
    """Turn a stage into one of another class."""
    fields = {name: getattr(stage, name) for name in Stage.__dataclass_fields__}
    made = kind(**fields)
    for name, value in attributes.items():
        object.__setattr__(made, name, value)
    return made


def with_stages(tree, *stages):
    """Return the tree with some of its stages exchanged."""
    changed = {stage.name: stage for stage in stages}
    return StageTree.build([changed.get(name, stage) for name, stage in tree.stages.items()], tree.root)


def declared_only(monkeypatch):
    """Leave out building: what is tested shows in the configuration."""
    monkeypatch.setattr(verdicts, "_build_and_compare", lambda *_: [])


@pytest.mark.parametrize("name", NAMES)
def test_every_built_in_stage_does_what_it_declares(judge, name):
    verdict = judge(name)
    assert verdict.passed, verdict.problems
    assert tuple(verdict.seen) == verdict.declared
    assert len(verdict.losses[name]) == 4
    assert verdict.jobs["train"] == "new"


@pytest.mark.parametrize("name", NAMES)
def test_a_neutered_stage_fails_by_name(workshop, name):
    tree = with_stages(workshop.tree, remade(Neutered, workshop.tree.stage(name)))
    verdict = check_stage(Workshop(tree, workshop.store), tree.stage(name))
    assert not verdict.passed
    assert verdict.problems[0].startswith(f"stage '{name}' changes nothing")


@pytest.mark.parametrize("name", NAMES)
def test_a_renamed_key_fails_by_name(name, tmp_path):
    text = (builtin_folder() / f"{name}.py").read_text()
    section = next(iter(discover(installed=False).stage(name).changes)).partition(".")[0]
    path = tmp_path / f"{name}.py"
    path.write_text(text.replace(f'changes={{"{section}.', f'changes={{"{section}.renamed_'))
    with pytest.raises(ConfigError, match=f"stage '{name}': unknown setting '{section}.renamed_"):
        load_file(path, "test")


@pytest.mark.parametrize(("one", "two"), PAIRS)
def test_stages_that_do_each_others_work_fail_by_name(workshop, monkeypatch, one, two):
    declared_only(monkeypatch)
    first, second = workshop.tree.stage(one), workshop.tree.stage(two)
    tree = with_stages(workshop.tree, remade(Impostor, first, other=second), remade(Impostor, second, other=first))
    for name in (one, two):
        verdict = check_stage(Workshop(tree, workshop.store), tree.stage(name))
        assert not verdict.passed
        assert f"stage '{name}'" in verdict.problems[0]


@pytest.mark.parametrize("name", NAMES)
def test_declaring_too_much_or_too_little_fails_by_name(judge, name):
    effects = judge(name).declared
    extra = next(effect for effect in EFFECTS if effect not in effects)
    assert judge(name, effects=(*effects, extra)).problems == [f"stage '{name}' declares the effect '{extra}', but nothing of it was seen"]
    (problem,) = judge(name, effects=effects[1:]).problems
    assert problem.startswith(f"stage '{name}' has the effect '{effects[0]}' without declaring it")


@pytest.mark.parametrize("name", NAMES)
def test_changes_that_do_not_match_the_declaration_fail_by_name(workshop, monkeypatch, name):
    declared_only(monkeypatch)
    stage = workshop.tree.stage(name)
    silent = replace(stage, changes=dict(list(stage.changes.items())[1:]))
    assert f"stage '{name}' changes {next(iter(stage.changes))} from" in check_stage(workshop, silent).problems[0]
    boastful = replace(stage, changes={**stage.changes, "train.beta1": 0.5})
    assert check_stage(workshop, boastful).problems == [f"stage '{name}' declares train.beta1 = 0.5, but does not set it"]


@pytest.mark.parametrize("name", NAMES)
def test_labels_are_held_to_the_declaration(judge, workshop, name):
    assert "declares uses_labels=" in judge(name, uses_labels=not workshop.tree.stage(name).uses_labels).problems[0]


def test_a_setting_that_nothing_reads_is_named(workshop, tmp_path):
    idle = Stage(name="idle", after="patch_pca", title="idle", changes={"tokenizer.kl_weight": 0.5})
    tree = StageTree.build([*workshop.tree.stages.values(), idle], workshop.tree.root)
    problems = check_stage(Workshop(tree, workshop.store), idle).problems
    assert "stage 'idle' changes tokenizer.kl_weight, which nothing reads in this configuration" in problems
    assert any("no effect that can be seen" in problem for problem in problems)


def test_code_that_ignores_a_setting_is_found(smoke_tree, tmp_path, monkeypatch):
    monkeypatch.setattr(Process, "weight", lambda _, t: torch.ones_like(t, dtype=torch.float32))
    (verdict,) = check_stages(smoke_tree, ["predict_clean"])
    assert verdict.problems == ["stage 'predict_clean' declares the effect 'loss', but nothing of it was seen"]


def test_a_change_of_length_is_seen_though_the_check_is_short(workshop):
    longer = Stage(
        name="longer",
        after="patch_pca",
        title="longer",
        changes={"train.steps": 10**9, "fid.samples": 10**6},
        effects=("training", "evaluation"),
    )
    tree = StageTree.build([*workshop.tree.stages.values(), longer], workshop.tree.root)
    assert check_stage(Workshop(tree, workshop.store), longer).problems == []


def test_a_training_that_diverges_is_named(workshop):
    wild = Stage(name="wild", after="patch_pca", title="wild", changes={"train.base_lr": 1e30}, effects=("training",))
    tree = StageTree.build([*workshop.tree.stages.values(), wild], workshop.tree.root)
    problems = check_stage(Workshop(tree, workshop.store), wild).problems
    assert any(problem.startswith("stage 'wild' its training") for problem in problems), problems


def test_what_cannot_be_built_says_why(workshop):
    wide = Stage(name="wide", after="patch_pca", title="wide", changes={"tokenizer.latent_dim": 64})
    tree = StageTree.build([*workshop.tree.stages.values(), wide], workshop.tree.root)
    (problem,) = check_stage(Workshop(tree, workshop.store), wide).problems
    assert problem.startswith("stage 'wide' cannot be built at the smallest size")
    assert "48 numbers of a patch" in problem


def test_the_root_has_nothing_to_check(smoke_tree):
    with pytest.raises(ConfigError, match="'baseline' is the root"):
        list(check_stages(smoke_tree, ["baseline"]))


@pytest.mark.slow
def test_places_exchanged_on_the_path_fail_unless_the_two_commute(workshop):
    """Two neighbours exchanged are found by requires, labels or effects; what is not found is another way to the same place.

    The exception are two tokenizers: each stage does replace one by another, in either order.
    """
    unseen = {pair: exchanged_places(workshop.tree, *pair) for pair in PAIRS}
    unseen = {pair: tree for pair, tree in unseen.items() if not found_out(workshop, tree, pair)}
    elsewhere = {pair for pair, tree in unseen.items() if tree.resolve(pair[0]) != workshop.tree.resolve(pair[1])}
    assert elsewhere == {("patch_vae", "patch_ae"), ("patch_ae", "patch_pca")}


@pytest.mark.slow
def test_contents_exchanged_between_files_fail_unless_the_two_are_alike(workshop):
    unseen = set()
    for one, two in PAIRS:
        first, second = workshop.tree.stage(one), workshop.tree.stage(two)
        tree = with_stages(workshop.tree, replace(first, changes=second.changes), replace(second, changes=first.changes))
        if not found_out(workshop, tree, (one, two)):
            unseen.add((one, two))
    assert unseen == ALIKE


ALIKE = {("patch_vae", "patch_ae")}


def exchanged_places(tree, one, two):
    """Exchange two neighbours, and hang the second's child below the first."""
    first, second = tree.stage(one), tree.stage(two)
    moved = [replace(second, after=first.after), replace(first, after=two)]
    return with_stages(tree, *moved, *(replace(child, after=one) for child in tree.children(two)))


def found_out(workshop, tree, names):
    """Say whether checking any of the named stages fails, each by its own name."""
    verdicts = [check_stage(Workshop(tree, workshop.store), tree.stage(name)) for name in names]
    failed = [verdict for verdict in verdicts if not verdict.passed]
    assert all(f"stage '{verdict.stage}'" in problem for verdict in failed for problem in verdict.problems)
    return bool(failed)
