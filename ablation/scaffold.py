"""Write the first version of somebody's stage: one file, or a package that can be installed. Light.

What is written passes `ablate check`: its change is chosen among settings of the parent, and is there to be replaced.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablation.config import apply
from ablation.design import make_cell
from ablation.errors import ConfigError
from ablation.parts import NAME_PATTERN
from ablation.stage import EFFECTS, StageTree

STAGE_FILE = '''"""{sentence}

Changes   {what}
Keeps     everything else of {parent}.
Why       TODO: what you want to know.
Beware    TODO: what a reader of the number should know; drop the line if there is nothing.
"""

from ablation.stage import Stage

STAGE = Stage(
    name="{name}",  # how commands call it
    after="{parent}",  # the stage it is a change of; `ablate stages` lists them
    title="{title}",  # what its row in the tables says
    table="{table}",
    # Every setting that is not the parent's. `ablate show {parent}` prints them all, `ablate schema` what each takes.
    changes={{
        "{path}": {value},  # {parent} has {before}. This is the line to edit.
    }},
    # What the changes act on, all of it: {effects_known}.
    # `ablate check` prints what it saw; remove the line to leave this unchecked.
    effects={effects},
    uses_labels={labels},  # do class labels enter training anywhere?
    # requires={{"process.target": "clean"}},  # settings that the parent must have for this to make sense
    # provides={{"tokenizer:mine": "mine.py:Mine"}},  # a part of your own; changes then says "tokenizer.kind": "mine"
    {incomparable}  # quantities that must not be compared with the parent's
)
'''

PYPROJECT = """[build-system]
requires = ["hatchling>=1.25"]
build-backend = "hatchling.build"

[project]
name = "{distribution}"
version = "0.1.0"
description = "{title}: a stage for deconstruct-ddm, after {parent}."
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["deconstruct-ddm>=0.1"]

[project.optional-dependencies]
dev = ["pytest>=8"]

# Installed, the stage is found without --stages: by this line.
[project.entry-points."ablation.stages"]
{name} = "{module}"

[tool.hatch.build.targets.wheel]
packages = ["{module}"]
"""

README = """# {distribution}

The stage `{name}`, after `{parent}`, for [deconstruct-ddm](https://arxiv.org/abs/2401.14404)'s `ablate`.

    pip install .
    ablate stages                       # now lists {name}
    ablate check {name}                 # does it do what it declares? seconds, on a CPU
    ablate run --through {name} --scale smoke

The stage itself is [`{module}/__init__.py`]({module}/__init__.py); its test is `python -m pytest`.
"""

TEST = '''"""The stage does what it declares, and nothing else."""

import ablation


def test_the_stage_bites():
    verdict = ablation.check("{name}")
    assert verdict.passed, verdict.problems
'''


@dataclass(frozen=True)
class Suggestion:
    """A change of one setting that makes sense after a stage, and what it acts on."""

    path: str
    value: Any
    before: Any
    effects: tuple[str, ...]
    what: str


def suggest(tree: StageTree, parent: str) -> Suggestion:
    """Choose a change for a stage after a parent: another loss weight where that says something, else a training setting."""
    config = tree.resolve(parent)
    process = config.process
    choices: list[tuple[str, Any, tuple[str, ...], str]] = []
    if process.schedule in ("ddpm_linear_beta", "linear_gamma_squared") and process.target == "noise":
        choices.append(("process.loss_weight", "gamma_squared", ("loss",), "the loss weight: gamma^2, which favours clean inputs."))
    if process.schedule != "constant" and process.target in ("clean", "original"):
        choices.append(("process.loss_weight", "snr", ("loss",), "the loss weight: the signal-to-noise ratio, gamma^2 / sigma^2."))
    for beta in (0.95, 0.98):
        choices.append(("train.beta2", beta, ("training",), f"AdamW's second beta: {beta}, a shorter memory of squared gradients."))
    for path, value, effects, what in choices:
        section, _, name = path.partition(".")
        before = getattr(getattr(config, section), name)
        if before == value:
            continue
        try:
            make_cell(tree, parent, 0, {path: value}, {})
        except ConfigError:
            continue
        return Suggestion(path, value, before, effects, what)
    raise ConfigError(f"found no setting to change after '{parent}'", "Write the stage by hand: docs/add-a-stage.md.")


def stage_text(tree: StageTree, name: str, parent: str) -> str:
    """Write the text of a stage file. Raises ConfigError for a bad or taken name and an unknown parent."""
    if not NAME_PATTERN.match(name):
        raise ConfigError(f"stage name {name!r} is not usable", "Use lower-case letters, digits and _, starting with a letter, at most 64.")
    if name in tree.stages:
        raise ConfigError(f"there is a stage '{name}' already, from {tree.stage(name).source}", "Choose another name.")
    found, chosen = tree.stage(parent), suggest(tree, parent)
    title = name.replace("_", " ")
    return STAGE_FILE.format(
        name=name,
        parent=parent,
        title=title,
        sentence=f"{title[0].upper()}{title[1:]}.  (TODO: one sentence)",
        what=chosen.what,
        table=found.table,
        path=chosen.path,
        value=json.dumps(chosen.value),
        before=json.dumps(chosen.before),
        effects=f'("{chosen.effects[0]}",)',
        incomparable='incomparable=("training loss",),' if "loss" in chosen.effects else '# incomparable=("training loss",),',
        effects_known=", ".join(EFFECTS),
        labels=apply(tree.resolve(parent), {chosen.path: chosen.value}).labels_used,
    )


def package_files(tree: StageTree, name: str, parent: str) -> tuple[str, dict[str, str]]:
    """Return the folder and the files, by relative path, of an installable package with one stage and its test."""
    text = stage_text(tree, name, parent)
    distribution, module = f"ablation-stage-{name.replace('_', '-')}", f"ablation_stage_{name}"
    words = {"name": name, "parent": parent, "title": name.replace("_", " "), "distribution": distribution, "module": module}
    return distribution, {
        "pyproject.toml": PYPROJECT.format(**words),
        "README.md": README.format(**words),
        f"{module}/__init__.py": text,
        f"tests/test_{name}.py": TEST.format(**words),
    }


def write_files(folder: Path, files: Mapping[str, str]) -> list[Path]:
    """Write files below a folder; refuses, before writing any, if one of them is there already."""
    paths = {folder / name: text for name, text in files.items()}
    for path in paths:
        if path.exists() or path.is_symlink():
            raise ConfigError(f"{path} exists already; nothing was written", "Remove it, or choose another name or --out.")
    try:
        for path, text in paths.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}", "Check --out and its permissions.") from None
    return list(paths)
