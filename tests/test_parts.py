"""Where parts are found, which bytes define them, and what they must be."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ablation.config import apply
from ablation.design import make_cell
from ablation.discover import discover
from ablation.errors import ArtifactError, ConfigError
from ablation.jobs.evaluation import checked_answer
from ablation.parts import KINDS, Part, Source, check_names, checked, load_part, used
from ablation.plan import build_plan
from ablation.stage import Stage, StageTree

PART = "def flow(cfg):\n    return 'first'\ndef evaluate(context):\n    return {'top1': 1.0}, {}\n"
SETTINGS = {
    "tokenizer.kind": "own",
    "process.schedule": "own",
    "process.target": "own",
    "process.loss_weight": "own",
    "denoiser.kind": "own",
}


def loose(folder: Path, label: str = "schedule:flow", attribute: str = "flow", text: str = PART) -> Part:
    (folder / "part.py").write_text(text)
    return Part.parse(label, f"part.py:{attribute}", Source(str(folder / "stage.py"), origin="--stages"))


def package(folder: Path, monkeypatch: pytest.MonkeyPatch, **files: str) -> Part:
    (folder / "own_parts").mkdir()
    for name, text in {"__init__": "", **files}.items():
        (folder / "own_parts" / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(folder)
    for name in [name for name in sys.modules if name.startswith("own_parts")]:
        monkeypatch.delitem(sys.modules, name)
    return Part.parse("schedule:flow", "own_parts.main:flow", Source(str(folder / "own_parts/__init__.py"), origin="own-parts 1.0"))


def test_a_loose_file_is_loaded_by_its_bytes(tmp_path):
    entry = loose(tmp_path).entry()
    assert load_part(entry)(None) == "first"
    (tmp_path / "part.py").write_text(PART.replace("first", "second"))
    with pytest.raises(ArtifactError, match=r"part 'schedule:flow' of .*changed since the job was planned"):
        load_part(entry)
    pinned = tmp_path / "pinned"
    pinned.mkdir()
    (pinned / f"{entry['sha256']}.py").write_text(PART)
    assert load_part(entry, pinned)(None) == "first"


def test_a_package_is_defined_by_what_the_part_imports_of_it(tmp_path, monkeypatch):
    files = {"main": "from .inner import value\ndef flow(cfg):\n    return value\n", "inner": "value = 1\n", "other": "x = 1\n"}
    part = package(tmp_path, monkeypatch, **files)
    entry = part.entry()
    assert load_part(entry)(None) == 1
    (tmp_path / "own_parts/other.py").write_text("x = 2\n")
    assert part.entry()["digest"] == entry["digest"]
    (tmp_path / "own_parts/inner.py").write_text("value = 2\n")
    assert part.entry()["digest"] != entry["digest"]
    with pytest.raises(ArtifactError, match="changed since"):
        load_part(entry)


@pytest.mark.parametrize(
    ("text", "attribute", "said"),
    [
        ("import no_such_module", "flow", "cannot be imported: ModuleNotFoundError"),
        ("x = 1", "flow", "defines no 'flow'"),
        ("flow = 3", "flow", "is a int, which cannot be called"),
        ("def flow():\n    pass", "flow", "cannot be called as a schedule: too many positional arguments"),
        ("def flow(a, b):\n    pass", "flow", r"cannot be called as a schedule: missing a required argument.*called with \(cfg\)"),
    ],
)
def test_what_is_wrong_with_a_part_is_said_with_its_place(tmp_path, text, attribute, said):
    with pytest.raises(ConfigError, match=said) as error:
        load_part(loose(tmp_path, attribute=attribute, text=text).entry())
    assert "part 'schedule:flow'" in str(error.value)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_refuses_a_wrong_call(kind):
    with pytest.raises(ConfigError, match=f"cannot be called as a {kind}"):
        checked(kind, lambda: None, "part 'x'")
    assert checked(kind, lambda *anything: anything, "part 'x'")


@pytest.mark.parametrize(
    ("label", "value", "said"),
    [
        ("schedule:constant", "m:f", "would hide the built-in schedule 'constant'"),
        ("tokenizer:patch_pca", "m:f", "would hide the built-in tokenizer"),
        ("launcher:slurm", "m:f", "would hide the built-in launcher"),
        ("schedules:flow", "m:f", "is no part"),
        ("flow", "m:f", "is no part"),
        ("schedule:../flow", "m:f", "is not usable"),
        ("schedule:$(rm)", "m:f", "is not usable"),
        ("schedule:flow", "../../etc/evil.py:f", "which is no place"),
        ("schedule:flow", "/etc/evil.py:f", "which is no place"),
        ("schedule:flow", "m", "which is no place"),
        ("schedule:flow", "m:f; import os", "which is no place"),
        ("schedule:flow", 3, "which is no place"),
    ],
)
def test_bad_labels_and_places_are_refused(label, value, said):
    with pytest.raises(ConfigError, match=said.replace("(", r"\(").replace(")", r"\)")):
        Part.parse(label, value, Source("stage.py"))


def test_names_are_looked_up_among_built_in_ones_then_parts(tmp_path):
    part = loose(tmp_path)
    check_names({"process.schedule": "constant"}, {})
    check_names({"process.schedule": "flow"}, {part.label: part})
    with pytest.raises(ConfigError, match=r"unknown process\.schedule 'flo'\. Did you mean flow"):
        check_names({"process.schedule": "flo"}, {part.label: part})
    with pytest.raises(ConfigError, match=r"unknown probe\.evaluations 'x'\. No evaluation is provided"):
        check_names({"probe.evaluations": ("x",)}, {})


def test_used_parts_are_those_without_a_built_in_name(tree):
    assert used(tree.root) == []
    assert used(apply(tree.root, {**SETTINGS, "probe.evaluations": ("a", "b")})) == [
        *(f"{kind}:own" for kind in ("tokenizer", "schedule", "target", "weight", "denoiser")),
        "evaluation:a",
        "evaluation:b",
    ]


@pytest.fixture
def grown(smoke_tree, tmp_path):
    """The built-in tree with one stage that provides a part of each kind, all in one file."""
    (tmp_path / "part.py").write_text("# version 1\n")
    provides = {f"{kind}:own": f"part_{kind}.py:part" for kind in KINDS}
    for kind in KINDS:
        (tmp_path / f"part_{kind}.py").write_text("# version 1\n")
    own = Stage(
        name="own",
        after="patch_ae",
        title="own",
        changes=SETTINGS,
        provides=provides,
        source=Source(str(tmp_path / "s.py"), "", "--stages"),
    )
    return StageTree.build([*smoke_tree.stages.values(), own], smoke_tree.root), tmp_path


def keys_of(tree, evaluations=("own",)):
    cell = make_cell(tree, "own", 0, {}, {"probe.evaluations": evaluations, "fid.sampler_steps": 2})
    return dict(build_plan(tree, [cell]).roles[cell.id])


@pytest.mark.parametrize(
    ("kind", "moved"),
    [
        ("tokenizer", {"tokenizer", "encode", "train", "probe", "fid", "evaluation:own"}),
        ("schedule", {"train", "probe", "fid", "evaluation:own"}),
        ("target", {"train", "probe", "fid", "evaluation:own"}),
        ("weight", {"train", "probe", "fid", "evaluation:own"}),
        ("denoiser", {"train", "probe", "fid", "evaluation:own"}),
        ("evaluation", {"evaluation:own"}),
        ("launcher", set()),
    ],
)
def test_the_bytes_of_a_part_are_in_the_keys_of_the_jobs_that_use_it(grown, kind, moved):
    tree, folder = grown
    before = keys_of(tree)
    (folder / f"part_{kind}.py").write_text("# version 2\n")
    after = keys_of(tree)
    assert {role for role in after if after[role] != before[role]} == moved


def test_an_evaluation_is_a_job_of_its_own_and_leaves_the_others_alone(grown):
    tree, _ = grown
    with_it, without = keys_of(tree), keys_of(tree, ())
    assert set(with_it) - set(without) == {"evaluation:own"}
    assert all(with_it[role] == without[role] for role in without)


def test_two_stages_may_share_a_part_and_different_parts_may_not_share_a_name(smoke_tree, tmp_path):
    def stage(name, place, file="s.py"):
        source = Source(str(tmp_path / file), "", "--stages")
        return Stage(
            name=name, after="patch_pca", title=name, changes={"train.beta2": 0.95}, provides={"schedule:flow": place}, source=source
        )

    StageTree.build([*smoke_tree.stages.values(), stage("one", "part.py:flow"), stage("two", "part.py:flow")], smoke_tree.root)
    with pytest.raises(ConfigError, match="two parts are named 'schedule:flow'"):
        StageTree.build([*smoke_tree.stages.values(), stage("one", "part.py:flow"), stage("two", "part.py:other")], smoke_tree.root)


def test_a_class_in_the_stage_file_stands_for_its_place(tmp_path):
    path = tmp_path / "my-stage.py"
    path.write_text(
        "from ablation.stage import Stage\n"
        "def straight(cfg):\n    return 'here'\n"
        "STAGE = Stage(name='own', after='patch_pca', title='t', changes={'process.schedule': 'flow'},"
        " provides={'schedule:flow': straight})\n"
    )
    part = discover([path], installed=False).parts["schedule:flow"]
    assert part.place == "my-stage.py:straight"
    assert load_part(part.entry())(None) == "here"


def test_a_file_may_hold_parts_alone(tmp_path):
    (tmp_path / "part.py").write_text(PART)
    (tmp_path / "mine.py").write_text("PARTS = {'evaluation:mine': 'part.py:evaluate'}\n")
    tree = discover([tmp_path / "mine.py"], installed=False)
    assert not tree.broken
    assert load_part(tree.parts["evaluation:mine"].entry())(None) == ({"top1": 1.0}, {})


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"top1": 1.0}, "returns dict"),
        (({}, {}), "returns no metric"),
        (({"Top 1": 1.0}, {}), "metric name 'Top 1' is not usable"),
        (({"a.b": 1.0}, {}), "is not usable"),
        (({"top1": float("nan")}, {}), "top1 is nan"),
    ],
)
def test_what_an_evaluation_returns_is_checked(answer, said):
    with pytest.raises(ConfigError, match=f"evaluation 'mine'.*{said}"):
        checked_answer("mine", answer)
