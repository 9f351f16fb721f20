"""Every command that a page shows is one that works.

Commands are collected from the code blocks of all Markdown files. One that only looks is run on a study that the tests train once;
one that trains is planned, which resolves every name and setting in it, and really run in the slow tests. Runs are made tiny in one
way, `tiny`: the smoke scale, the first seed, this process as launcher, and the settings of conftest's TINY before the command's own. What
cannot run here is listed in PARSED_ONLY with the reason, and must still be understood by the command line's own parser.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer
from commands import SINGLE_LEVEL, TINY, Answer, set_options
from documents import ROOT, Command, code, commands, files, inline_commands
from plugin_site import install_example

from ablation.cli import app

PARSED_ONLY = {
    r"--launcher slurm|^ablate (cancel|retry)\b": "needs a SLURM cluster; tests/slurm runs it on one",
    r"^ablate logs .*(-f|--follow)\b": "follows the log until it is interrupted",
    r"^ablate cache\b": "needs a folder of images; tests/data/test_image_cache.py runs it on one",
    r"--(install|show)-completion": "changes the shell of the user; test_wheel.py does it in a home of its own",
}
"""Commands that are parsed and not run, by a pattern, and why."""

LOOKS = "stages show diff plan status logs report export doctor clean schema".split()
"""Commands that are quick on a finished study; any other is planned or parsed in the default run, and run in the slow one.

`new-stage` is run before them all, since others use the files that it writes.
"""

LEFT_OUT_OF_PLANS = {"--launcher": 1, "--parallel": 1, "--threads": 1, "--checkpoint-seconds": 1, "--partition": 1, "--resources": 1,
                     "--resource": 1, "--wait": 0, "--report": 0, "--no-report": 0}  # fmt: skip
"""Options of `run` that say how and not what, with the number of their values."""

STAND_INS = {"STAGE": "patch_pca", "A": "patch_pca", "B": "predict_original", "DIR": "out"}
"""What the words in capitals of a synopsis stand for here."""

SHOWN_FILE = r'^STAGE = Stage\(\n\s+name="(\w+)"|^PARTS = \{"\w+:(\w+)": \2\}'
"""A block of Python that is a whole stage file or file of parts, and its name."""

STUDY = "run --only patch_pca --no-controls --scale smoke --launcher inline --no-report".split()


def shown() -> Iterator[Command]:
    """Yield each different command once, at its first place."""
    seen = set()
    for path in files():
        for command in commands(path):
            if command.text not in seen:
                seen.add(command.text)
                yield command


SHOWN = list(shown())
ABLATE = [command for command in SHOWN if command.text.startswith(("ablate ", "python -m ablation"))]
OTHERS = [command for command in SHOWN if command not in ABLATE]
TOLD = {command.text: command for path in files() if path.name != "CHANGELOG.md" for command in inline_commands(path)}


def named(command: Command) -> str:
    return f"{command.where} {command.text}"


def arguments(command: Command) -> list[str]:
    """Return the words behind `ablate`, with stand-ins for words in capitals."""
    words = command.words
    return [STAND_INS.get(word, word) for word in (words[3:] if words[0].startswith("python") else words[1:])]


def reason_not_to_run(command: Command) -> str | None:
    return next((reason for pattern, reason in PARSED_ONLY.items() if re.search(pattern, command.text)), None)


def parser() -> Any:
    """Return the command line's own parser."""
    return typer.main.get_command(app)


def options(verb: str) -> set[str]:
    return {name for parameter in parser().commands[verb].params for name in (*parameter.opts, *parameter.secondary_opts)}


def parse(words: list[str]) -> None:
    """Parse without running; an unknown command, an unknown option or a missing argument raises."""
    group, words = parser(), list(words)  # the parser eats what it is given
    if words[0].startswith("-"):
        context = group.make_context("ablate", [], resilient_parsing=True)
        known = {name for parameter in group.get_params(context) for name in parameter.opts}
        assert words[0] in known, f"no such option: {words[0]}"
        return
    assert words[0] in group.commands, f"no such command: {words[0]}"
    group.commands[words[0]].make_context(words[0], words[1:])


def without(words: list[str], left_out: dict[str, int]) -> list[str]:
    """Leave options out, each with its number of values."""
    kept: list[str] = []
    skip = 0
    for word in words:
        name, equals, _ = word.partition("=")
        if skip:
            skip -= 1
        elif name in left_out:
            skip = 0 if equals else left_out[name]
        else:
            kept.append(word)
    return kept


def placed(words: list[str], runs: Path) -> list[str]:
    """Point a command at a run folder, and what it reads from outside at pictures that are here."""
    verb, *rest = words
    rest = ["pictures" if before == "--data" and word.startswith("/") else word for before, word in pairwise([verb, *rest])]
    reads_runs = "--runs" in options(verb) and not {"--results", "--bundle"} & set(rest)
    return [verb, *without(rest, {"--runs": 1}), *(["--runs", str(runs)] if reads_runs else [])]


def tiny(words: list[str], runs: Path) -> list[str]:
    """Make a command that trains a matter of seconds."""
    verb, *rest = placed(words, runs)
    known = options(verb)
    seeds = next((word.split(",")[0].split("-")[0] for before, word in pairwise(rest) if before == "--seeds"), None)
    rest = without(rest, {"--seeds": 1, "--scale": 1, "--launcher": 1, "--parallel": 1})
    added = [("--scale", "smoke"), ("--launcher", "inline"), ("--seeds", seeds)]
    rest += [word for name, value in added if name in known and value for word in (name, value)]
    return [verb, *(set_options(TINY) if "--set" in known else []), *rest]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like the one a reader works in: the repository's own files, the stage files that pages show, and pictures."""
    folder = tmp_path_factory.mktemp("reader")
    for name in ("results", "examples", "stages", "ablation", "studies"):
        if (ROOT / name).exists():
            (folder / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "reports", folder / "reports")  # which commands write to
    for path in files():
        for language, text, _ in code(path):
            if language == "python" and (found := re.search(SHOWN_FILE, text, re.MULTILINE)):
                (folder / f"{found[1] or found[2]}.py").write_text(text, encoding="utf-8")
    own = (folder / "snr_weight.py").read_text(encoding="utf-8")
    (folder / "my_stage.py").write_text(own.replace('"snr_weight"', '"my_stage"'), encoding="utf-8")
    for command in ABLATE:
        if arguments(command)[0] == "new-stage":
            run_there(folder, *arguments(command))
    return folder


def run_there(folder: Path, *words: str) -> None:
    """Run a command in a process of its own, in a folder; it must succeed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "ablation", *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, f"ablate {' '.join(words)}: {done.stderr}"


@pytest.fixture
def installed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a package's README shows a command, the package is installed."""
    parts = request.node.callspec.params["command"].path.relative_to(ROOT).parts
    if parts[0] == "examples" and len(parts) > 2:
        site = tmp_path_factory.mktemp("installed")
        install_example(parts[1], site)
        monkeypatch.syspath_prepend(str(site))


@pytest.fixture(scope="module")
def study(workplace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study of one stage, trained once for all commands that look at one."""
    runs = tmp_path_factory.mktemp("study") / "runs"
    run_there(workplace, *STUDY, "--runs", str(runs), *set_options({**TINY, **SINGLE_LEVEL}))
    return runs


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder that all training commands share, so that they share jobs too."""
    return tmp_path_factory.mktemp("trained") / "runs"


@pytest.fixture(scope="module")
def pictures(workplace: Path) -> Path:
    """A folder of images in two splits and two classes."""
    from PIL import Image

    folder = workplace / "pictures"
    for split, number in (("train", 60), ("val", 40)):
        for place, name in enumerate(("plain", "striped")):
            (folder / split / name).mkdir(parents=True)
            for index in range(number):
                picture = Image.new("RGB", (40, 40), (index * 4, 120, 90))
                if place:
                    picture.paste((250, index * 3, 0), (0, 10, 40, 20))
                picture.save(folder / split / name / f"{index}.png")
    return folder


def test_there_are_commands_to_test():
    assert len(ABLATE) > 30
    assert {"README.md", "CONTRIBUTING.md", "docs/getting-started.md", "docs/slurm.md"} <= {
        command.path.relative_to(ROOT).as_posix() for command in ABLATE
    }


@pytest.mark.parametrize("pattern", PARSED_ONLY)
def test_no_exception_is_out_of_date(pattern):
    assert any(re.search(pattern, command.text) for command in ABLATE)


@pytest.mark.parametrize("command", ABLATE, ids=named)
def test_the_command_line_understands(command: Command):
    parse(arguments(command))


@pytest.mark.parametrize("command", TOLD.values(), ids=named)
def test_commands_within_sentences_exist(command: Command):
    """Such a command may be a fragment, so its arguments need not be complete; its name and options must exist."""
    verb, *rest = arguments(command)
    assert verb in parser().commands
    assert {word.split("=")[0] for word in rest if word.startswith("-")} <= options(verb)


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        (["fly"], "no such command"),
        (["run", "--thru", "baseline"], "--thru"),
        (["diff", "baseline"], "after"),
        (["--instal-completion"], "--instal-completion"),
        (["run", "--parallel", "many"], "valid integer"),
    ],
    ids=" ".join,
)
def test_a_wrong_command_does_not_pass(words, wrong):
    with pytest.raises(Exception, match=wrong):
        parse(words)


@pytest.mark.parametrize("command", [one for one in ABLATE if arguments(one)[0] in LOOKS and not reason_not_to_run(one)], ids=named)
def test_what_looks_is_run(command: Command, ablate: Callable[..., Answer], workplace, study, pictures, installed, monkeypatch):
    monkeypatch.chdir(workplace)
    answer = ablate(*placed(arguments(command), study))
    assert answer.code == 0, answer.err
    assert answer.out or "--out" in command.words


@pytest.mark.parametrize("command", [one for one in ABLATE if arguments(one)[0] == "run"], ids=named)
def test_what_trains_is_planned(command: Command, ablate: Callable[..., Answer], workplace, pictures, installed, tmp_path, monkeypatch):
    """The plan of the very same study: stages, settings, values, seeds and data are all looked up."""
    monkeypatch.chdir(workplace)
    words = without(arguments(command)[1:], LEFT_OUT_OF_PLANS)
    answer = ablate(*placed(["plan", *words], tmp_path / "runs"), "--json")
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)["jobs"]


def trains(command: Command) -> bool:
    return arguments(command)[0] not in (*LOOKS, "new-stage") and not reason_not_to_run(command)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("command", [one for one in ABLATE if trains(one)], ids=named)
def test_what_trains_is_run(command: Command, ablate: Callable[..., Answer], workplace, trained, pictures, installed, monkeypatch):
    monkeypatch.chdir(workplace)
    answer = ablate(*tiny(arguments(command), trained))
    assert answer.code == 0, answer.err


def test_a_tiny_run_keeps_the_command_s_own_settings(tmp_path):
    words = tiny("run --only patch_pca --seeds 1-3 --scale paper --launcher local --parallel 4 --set train.steps=7".split(), tmp_path)
    assert words[-10:] == f"--set train.steps=7 --runs {tmp_path} --scale smoke --launcher inline --seeds 1".split()
    assert words.index("train.steps=7") > words.index(f"train.steps={TINY['train.steps']}")


def make_targets() -> set[str]:
    return set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


@pytest.mark.parametrize("command", OTHERS, ids=named)
def test_other_programs_are_called_rightly(command: Command):
    """make: its own dry run; pip: extras that exist; python and pytest: files that exist. Any other program needs a rule here."""
    program, *words = command.words
    if program == "make":
        targets = [word for word in words if "=" not in word]
        assert set(targets) <= make_targets()
        tried = subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
        assert tried.returncode == 0, tried.stderr
    elif program == "pip":
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        wanted = [word for word in words[1:] if not word.startswith("-")]
        assert words[0] == "install"
        for one in wanted:
            name, _, extras = one.rstrip("]").partition("[")
            assert name in (".", project["name"]) or (ROOT / name).exists(), one
            assert set(filter(None, extras.split(","))) <= project["optional-dependencies"].keys(), one
    elif program in ("python", "python3", "pytest"):
        if words[0] == "-m" and words[1].split(".")[0] == "benchmarks":
            assert importlib.util.find_spec(words[1]), words[1]
            return
        named_files = [word for word in words if not word.startswith("-") and ("/" in word or word.endswith(".py"))]
        assert named_files, command.text
        assert all((ROOT / word.split("::")[0]).exists() for word in named_files)
    elif program == "pre-commit":
        assert words in (["install"], ["run", "--all-files"])
    else:
        raise AssertionError(f"{command.where}: no test knows the program {program}")
