"""A set of plugins in every state: the core keeps working and says exactly what is wrong, and where."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from commands import environment, set_options
from plugin_site import install, write_metadata

from ablation.discover import discover
from ablation.errors import ConfigError

BUILT_IN = 14


def stage(name: str, after: str = "patch_pca", more: str = "") -> str:
    return f"""from ablation.stage import Stage
STAGE = Stage(name={name!r}, after={after!r}, title="x", changes={{"train.beta2": 0.95}}{more})
"""


def distribution(site: Path, name: str, text: str) -> None:
    module = name.replace("-", "_")
    install(site, name, {f"{module}.py": text}, {"ablation.stages": {module: module}})


@pytest.fixture
def site(tmp_path, monkeypatch):
    """An empty folder of installed distributions."""
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("def broken(:", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("import sys; sys.exit('no GPU here')", "SystemExit: no GPU here"),
        ("class Odd(BaseException): pass\nraise Odd('x')", "Odd: x"),
        ("x = 1", "defines no STAGE"),
        ("STAGE = 'patch_pca'", "defines no STAGE"),
        ("STAGE = type('Stage', (), {'name': 'fake', 'after': 'patch_pca'})()", "defines no STAGE"),
        ("PARTS = ['evaluation:x']", "defines no STAGE"),
        (stage("../../evil"), "stage name '../../evil' is not usable"),
        (stage("/etc/passwd"), "stage name '/etc/passwd' is not usable"),
        (stage("a;rm -rf"), "is not usable"),
        (stage("$(id)"), "is not usable"),
        (stage("lost", after="no_such_parent"), "its parent 'no_such_parent' does not exist"),
        (stage("self", after="self"), "names itself as its parent"),
        (stage("patch_ae"), "two stages are named 'patch_ae'"),
        (stage("odd", more=", provides={'schedule:constant': 'm:f'}"), "would hide the built-in schedule 'constant'"),
        (stage("odd", more=", provides={'schedule:../up': 'm:f'}"), "is not usable"),
        (stage("odd", more=", provides={'schedule:up': '../../evil.py:f'}"), "which is no place"),
        (stage("odd", more=", effects=('everything',)"), "unknown effect 'everything'"),
        (stage("odd").replace("0.95", "'much'"), None),
        (stage("odd").replace("train.beta2", "train.beta3"), "unknown setting 'train.beta3'"),
        (
            stage("odd").replace("train.beta2", "process.schedule").replace("0.95", "'linear_sig'"),
            "unknown process.schedule 'linear_sig'",
        ),
    ],
)
def test_a_bad_plugin_is_named_and_the_core_works(site, text, said):
    distribution(site, "bad-plugin", text)
    distribution(site, "good-plugin", stage("good"))
    tree = discover()
    assert "good" in tree.stages
    assert tree.resolve("single_noise_level")
    assert str(tree.stage("patch_ae").source.file).endswith("stages/patch_ae.py")
    if said is None:  # a bad value is found when the stage is resolved
        with pytest.raises(ConfigError, match=r"stage 'odd': setting 'train\.beta2' cannot be 'much'"):
            tree.resolve("odd")
        return
    (broken,) = tree.broken
    assert said in broken.problem
    assert "bad-plugin 1.0" in str(broken.source) or "bad_plugin" in str(broken.source)


def test_two_installed_plugins_with_one_name_are_both_out(site):
    distribution(site, "plugin-a", stage("same"))
    distribution(site, "plugin-b", stage("same"))
    tree = discover()
    assert len(tree.broken) == 2
    with pytest.raises(ConfigError, match=r"stage 'same' cannot be used: two stages are named 'same': .*plugin-a 1\.0.*plugin-b 1\.0"):
        tree.stage("same")


def test_a_file_that_was_asked_for_may_not_take_an_installed_name(site, tmp_path):
    distribution(site, "plugin-a", stage("same"))
    (tmp_path / "mine.py").write_text(stage("same"))
    with pytest.raises(ConfigError, match="two stages are named 'same'"):
        discover([tmp_path / "mine.py"])


def test_a_cycle_between_plugins_is_named_and_its_children_fall_with_it(site):
    distribution(site, "plugin-a", stage("one", after="two"))
    distribution(site, "plugin-b", stage("two", after="one"))
    distribution(site, "plugin-c", stage("three", after="two"))
    tree = discover()
    assert not {"one", "two", "three"} & set(tree.stages)
    for name in ("one", "two", "three"):
        with pytest.raises(ConfigError, match="stages form a cycle"):
            tree.stage(name)


def test_metadata_in_any_state_is_no_obstacle(site):
    distribution(site, "good-plugin", stage("good"))
    nameless = write_metadata(site, "nameless", {"ablation.stages": {"x": "nowhere"}})
    (nameless / "METADATA").unlink()
    bytes_ = write_metadata(site, "bytes", {"ablation.stages": {"x": "nowhere"}})
    (bytes_ / "entry_points.txt").write_bytes(b"[ablation.stages]\nx = \xff\xfe\n")
    lines = write_metadata(site, "lines", {"ablation.stages": {"x": "nowhere"}})
    (lines / "entry_points.txt").write_text("[ablation.stages]\nno equals sign\n")
    write_metadata(site, "missing", {"ablation.stages": {"x": "no_such_module"}})
    write_metadata(site, "attribute", {"ablation.stages": {"x": "json:no_such_name"}})
    write_metadata(site, "part", {"ablation.schedules": {"../up": "json:loads"}, "ablation.launchers": {"slurm": "json:loads"}})
    write_metadata(site, "stranger", {"console_scripts": {"x": "json:loads"}})
    tree = discover()
    assert "good" in tree.stages
    problems = " | ".join(f"{one.source}: {one.problem}" for one in tree.broken)
    assert len(tree.broken) == 7, problems
    for said in (
        "nameless",
        "its metadata cannot be read",
        "no_such_module",
        "no_such_name",
        "part name '../up'",
        "hide the built-in launcher",
    ):
        assert said in problems
    assert "stranger" not in problems


def test_parts_of_every_kind_are_found_by_entry_point_without_importing_them(site):
    names = ("tokenizer", "schedule", "target", "weight", "denoiser", "evaluation", "launcher")
    write_metadata(site, "parts", {f"ablation.{kind}s": {"mine": "no_such_module:Thing"} for kind in names})
    tree = discover()
    assert {f"{kind}:mine" for kind in names} <= set(tree.parts)
    assert not tree.broken
    with pytest.raises(ConfigError, match=r"part 'schedule:mine' of .*parts 1\.0.*there is no module 'no_such_module'"):
        tree.parts["schedule:mine"].entry()


def test_what_a_plugin_prints_is_not_taken_for_an_answer(site):
    distribution(site, "loud-plugin", "print('I am here')\n" + stage("loud"))
    distribution(site, "rude-plugin", "print('bye')\nraise SystemExit(0)")
    paths = environment()
    paths["PYTHONPATH"] = f"{paths['PYTHONPATH']}:{site}"
    run = subprocess.run([sys.executable, "-m", "ablation", "stages", "--json"], env=paths, capture_output=True, text=True, check=True)
    document = json.loads(run.stdout)
    assert len(document["stages"]) == BUILT_IN + 1
    assert "SystemExit: 0" in document["broken"][0]["problem"]
    assert "I am here" in run.stderr


def test_a_run_that_needs_a_broken_plugin_stops_before_anything_and_others_do_not(ablate, site, tmp_path):
    distribution(site, "bad-plugin", stage("lost", after="no_such_parent"))
    answer = ablate("plan", "--through", "lost", "--scale", "smoke", "--runs", tmp_path / "runs")
    assert answer.code == 2
    assert "stage 'lost' cannot be used: stage 'lost': its parent 'no_such_parent' does not exist" in answer.error
    assert ablate("plan", "--only", "patch_pca", "--scale", "smoke", "--runs", tmp_path / "runs").code == 0


LAUNCHER = """
class Counting:
    def __init__(self, options):
        self.options = options
    def run(self, plan, store, watcher, should_stop):
        from ablation.launch.inline import InlineLauncher
        print("launched", len(plan.jobs), "with", self.options.threads)
        return InlineLauncher(self.options.threads, self.options.checkpoint_seconds).run(plan, store, watcher, should_stop)
def lazy(options):
    return 3
"""


def test_a_launcher_of_ones_own_runs_a_study_and_is_in_no_key(ablate, site, tmp_path, tiny_settings):
    entries = {"counting": "own_launcher:Counting", "lazy": "own_launcher:lazy"}
    install(site, "own-launcher", {"own_launcher.py": LAUNCHER}, {"ablation.launchers": entries})
    settings = set_options({**tiny_settings, "process.schedule": "constant"})
    request = ["--only", "patch_pca", "--scale", "smoke", "--no-controls", "--no-report", "--runs", tmp_path / "runs", *settings]
    answer = ablate("run", *request, "--launcher", "counting", "--threads", 1)
    assert answer.code == 0, answer.err
    assert "launched 4 with 1" in answer.out
    again = json.loads(ablate("plan", *request[:5], *request[6:], "--json").out)
    assert {job["action"] for job in again["jobs"]} == {"reuse"}
    assert "launcher 'lazy' of" in ablate("run", *request, "--launcher", "lazy").error
    assert "Did you mean counting" in ablate("run", *request, "--launcher", "countin").error
