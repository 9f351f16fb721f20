import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ablation.config import apply, diff, get_value
from ablation.discover import load_scale
from ablation.errors import ConfigError
from ablation.stage import Stage, StageTree

ORDER = [
    "baseline",
    "drop_class_conditioning",
    "drop_perceptual_loss",
    "drop_adversarial_loss",
    "linear_gamma_schedule",
    "patch_vae",
    "patch_ae",
    "patch_pca",
    "predict_clean",
    "drop_input_scaling",
    "inverse_pca_input",
    "inverse_pca_output",
    "predict_original",
    "single_noise_level",
]


def test_the_built_in_path_is_the_studys(tree):
    assert [stage.name for stage in tree.path("single_noise_level")] == ORDER
    assert not tree.broken


@pytest.mark.parametrize("scale", ["smoke", "laptop", "small", "paper"])
@pytest.mark.parametrize("name", ORDER[1:])
def test_declared_diff_is_the_actual_diff(tree, name, scale):
    scaled = tree.with_root(load_scale(scale, tree.root))
    stage = scaled.stage(name)
    actual = diff(scaled.resolve(stage.after), scaled.resolve(name))
    assert {path: new for path, (_, new) in actual.items()} == dict(stage.changes)


@pytest.mark.parametrize("name", ORDER)
def test_declared_label_use_is_the_actual_one(tree, name):
    assert tree.stage(name).uses_labels == tree.resolve(name).labels_used


def test_grey_rows_are_the_papers(tree):
    assert [stage.name for stage in tree.ordered() if stage.uses_labels] == ["baseline", "drop_class_conditioning"]


@pytest.mark.parametrize("name", ORDER[1:])
def test_every_stage_says_what_it_does(tree, name):
    stage = tree.stage(name)
    for word in ("Changes", "Keeps", "Why", "Beware"):
        assert word in stage.doc, f"{name} lacks {word}"
    assert stage.table in ("table1", "table2", "table3")


@pytest.mark.parametrize("scale", ["smoke", "laptop", "small", "paper"])
def test_a_scale_sets_sizes_and_never_the_method(tree, scale):
    scaled = load_scale(scale, tree.root)
    method = {path for stage in tree.ordered() for path in stage.changes}
    for path in method:
        assert get_value(scaled, path) == get_value(tree.root, path), path


def test_paper_scale_has_256_tokens_in_every_variant(tree):
    scaled = tree.with_root(load_scale("paper", tree.root))
    assert {scaled.resolve(name).tokens for name in ORDER} == {256}


def test_a_change_that_changes_nothing_is_refused(tree):
    idle = Stage(name="idle", after="baseline", title="idle", changes={"process.target": "noise"})
    with pytest.raises(ConfigError, match=r"'idle' changes nothing: process\.target already is 'noise'"):
        idle.apply(tree.root)


def test_requirements_hold_on_the_parent(tree):
    with pytest.raises(ConfigError, match=r"'inverse_pca_input' requires tokenizer\.kind = patch_pca or pixels, but it is conv"):
        tree.stage("inverse_pca_input").apply(tree.root)


def test_unknown_stage_names_the_nearest(tree):
    with pytest.raises(ConfigError, match="unknown stage 'predict_orignal'.*predict_original"):
        tree.path("predict_orignal")


@pytest.mark.parametrize("name", ["", "Upper", "../evil", "with space", "a" * 65, "1st", "dash-ed"])
def test_names_that_could_not_be_folders_are_refused(name):
    with pytest.raises(ConfigError, match="not usable"):
        Stage(name=name, after="baseline", title="x", changes={})


def test_duplicate_names_show_both_sources(tree):
    twin = Stage(name="patch_ae", after="baseline", title="twin", changes={"train.beta2": 0.95})
    with pytest.raises(ConfigError, match=r"two stages are named 'patch_ae'.*patch_ae\.py"):
        StageTree.build([*tree.stages.values(), twin], tree.root)


def test_missing_parents_and_their_children_are_broken_and_the_rest_works(tree):
    orphan = Stage(name="orphan", after="nowhere", title="x", changes={"train.beta2": 0.95})
    child = Stage(name="child", after="orphan", title="x", changes={"train.beta2": 0.9})
    grown = StageTree.build([*tree.stages.values(), orphan, child], tree.root)
    assert len(grown.broken) == 2
    assert "parent 'nowhere' does not exist" in grown.broken[0].problem
    assert grown.resolve("predict_original") == tree.resolve("predict_original")


def test_cycles_are_named_and_the_rest_works(tree):
    loop = [Stage(name=a, after=b, title="x", changes={"train.beta2": 0.95}) for a, b in (("one", "two"), ("two", "one"))]
    grown = StageTree.build([*tree.stages.values(), *loop], tree.root)
    assert set(grown.stages) == set(tree.stages)
    with pytest.raises(ConfigError, match=r"'one' cannot be used: stages form a cycle: one -> two -> one"):
        grown.stage("one")


def test_a_name_that_no_part_has_is_named(tree):
    lost = Stage(name="lost", after="patch_pca", title="x", changes={"process.schedule": "linear_sigm"})
    with pytest.raises(ConfigError, match=r"'lost' cannot be used: .*unknown process\.schedule 'linear_sigm'\. Did you mean linear_sigma"):
        StageTree.build([*tree.stages.values(), lost], tree.root).stage("lost")


def test_resolving_is_applying_in_order(tree):
    config = tree.root
    for name in ORDER[1:]:
        config = tree.stage(name).apply(config)
    assert config == tree.resolve(ORDER[-1])


@settings(deadline=None)  # a busy machine is no fault of the tree
@given(st.permutations(ORDER[1:]))
def test_the_order_in_which_stages_are_found_does_not_matter(tree, names):
    shuffled = StageTree.build([tree.stage("baseline"), *(tree.stage(name) for name in names)], tree.root)
    assert [stage.name for stage in shuffled.path("single_noise_level")] == ORDER
    assert shuffled.resolve("predict_original") == tree.resolve("predict_original")


def test_a_stage_in_the_middle_leaves_the_rest_of_the_path_alone(tree):
    extra = Stage(name="longer_beta", after="patch_pca", title="x", changes={"train.beta2": 0.95})
    grown = StageTree.build([*tree.stages.values(), extra], tree.root)
    assert grown.resolve("predict_original") == tree.resolve("predict_original")
    assert grown.resolve("longer_beta") == apply(tree.resolve("patch_pca"), {"train.beta2": 0.95})
