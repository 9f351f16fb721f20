"""Parts of the documentation that are made from the code: settings, commands, and what each stage changes.

A page asks for a part with a comment on a line of its own, `<!-- insert: settings -->` or `<!-- insert: stage NAME -->`.
Nothing here is written into the repository: the site's build calls it, so it cannot be out of date.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from ablation.cli import app
from ablation.config import Config, diff, get_value
from ablation.diffusion.schedules import coefficients
from ablation.discover import builtin_folder, discover, load_scale, read_yaml, scale_names
from ablation.report.published import Entry, load_published
from ablation.report.sweep_definitions import load_sweep, sweep_names
from ablation.stage import Stage, StageTree
from ablation.study import Request, prepare

MINUS = "\N{MINUS SIGN}"
KINDS = {"str": "text", "int": "n", "float": "number", "path": "path"}
BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
ROOT = Path(__file__).resolve().parent.parent.parent
EXAMPLE_ROW = "drop the perceptual loss"
TABLES_OF_THE_PATH = ("1", "3", "figure_6")
"""Where a stage's number along the path is printed, in the order in which they are asked."""


@cache
def tree() -> StageTree:
    """Return the built-in stages."""
    return discover(installed=False)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Write a Markdown table; the columns numbered in `right` hold numbers."""
    rule = ["--:" if place in right else ":--" for place in range(len(columns))]
    lines = [columns, rule, *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def as_typed(value: Any) -> str:
    """Write a value as `--set` takes it."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, tuple):
        return "[" + ", ".join(as_typed(item) for item in value) + "]"
    return value if isinstance(value, str) else json.dumps(value)


# ---- settings ------------------------------------------------------------------------------------------------------------


def settings() -> str:
    """Write every section of the configuration as a table of its settings."""
    default = Config()
    parts = []
    for name in Config.model_fields:
        section = type(getattr(default, name))
        rows = [_setting(name, field, info) for field, info in section.model_fields.items()]
        parts.append(f"## {name}\n\n{section.__doc__}\n\n" + table(("Setting", "Meaning", "Takes", "Default", "Set by"), rows))
    return "\n".join(parts)


def _setting(section: str, field: str, info: FieldInfo) -> tuple[str, ...]:
    """Write one setting's row, with an anchor by its dotted path."""
    path = f"{section}.{field}"
    default = get_value(Config(), path)
    baseline = get_value(tree().root, path)
    elsewhere = [f"baseline `{as_typed(baseline)}`"] if baseline != default else []
    elsewhere += [f"{scale} `{as_typed(value)}`" for scale, value in _scaled(path).items()]
    steps = [f"[`{stage.name}`](stages.md#{stage.name})" for stage in tree().ordered() if path in stage.changes]
    meaning = (info.description or "") + (f". Changed by {', '.join(steps)}" if steps else "")
    shown = f'<span id="{path}"></span>`{path}`'
    return shown, meaning, takes(info.annotation, info.metadata), f"`{as_typed(default)}`", "<br>".join(elsewhere)


@cache
def _scaled(path: str) -> Mapping[str, Any]:
    """Map each scale that sets a setting to the value it sets."""
    section, _, name = path.partition(".")
    found = {}
    for scale in sorted(scale_names(), key=_size):
        if name in (read_yaml(builtin_folder() / "scales" / f"{scale}.yaml").get(section) or {}):
            found[scale] = get_value(load_scale(scale, tree().root), path)
    return found


def _size(scale: str) -> int:
    """Order scales by the pixels and training images they use; a folder counts as a large set."""
    data = load_scale(scale, tree().root).data
    return data.image_size**2 * (data.train_images or 10**6)


def takes(kind: Any, bounds: Sequence[Any] = ()) -> str:
    """Say which values a setting takes, from its annotated type and bounds."""
    choices = [choice for choice in get_args(kind) if choice is not type(None)]
    if get_origin(kind) is Literal:
        return ", ".join(f"`{choice}`" for choice in choices)
    if type(None) in get_args(kind):
        return f"{takes(choices[0], bounds)}, or `null`"
    if get_origin(kind) is tuple:
        return f"list of {_plural(choices[0])}"
    limits = [f"{BOUNDS[name]} {getattr(bound, name):g}" for bound in bounds for name in BOUNDS if hasattr(bound, name)]
    words = {int: "whole number", float: "number", str: "text", bool: "`true`, `false`"}[kind]
    return " ".join([words, ", ".join(limits)]).strip()


def _plural(kind: Any) -> str:
    return {int: "whole numbers", float: "numbers", str: "texts"}[kind]


# ---- commands ------------------------------------------------------------------------------------------------------------


def commands() -> str:
    """Write every command with its arguments and options, as the command line itself declares them."""
    group: Any = typer.main.get_command(app)
    found = [(name, command) for name, command in group.commands.items() if not command.hidden]
    rows = [(f"[`ablate {name}`](#ablate-{name})", _first_line(command.help)) for name, command in found]
    return table(("Command", "What it does"), rows) + "\n" + "\n".join(_command(name, command) for name, command in found)


def _first_line(text: str | None) -> str:
    return " ".join((text or "").strip().split("\n\n")[0].split())


def _command(name: str, command: Any) -> str:
    """Write one command: its usage, its help and a table of its parameters, in the parser's own words."""
    context = command.make_context(name, [], resilient_parsing=True)
    parameters = [one for one in command.get_params(context) if one.name != "help"]
    arguments = [one for one in parameters if one.param_type_name == "argument"]
    words = [one.name.upper() if one.required else f"[{one.name.upper()}]" for one in arguments]
    usage = " ".join(["ablate", name, *words, *(["[OPTIONS]"] if len(parameters) > len(arguments) else [])])
    rows = [_parameter(one, context) for one in [*arguments, *(one for one in parameters if one not in arguments)]]
    text = f"## ablate {name}\n\n`{usage}`\n\n{(command.help or '').strip()}\n"
    return text + ("\n" + table(("Argument or option", "Meaning"), rows) if rows else "")


def _parameter(parameter: Any, context: Any) -> tuple[str, str]:
    """Write a parameter as `--help` does: its spelling, and its help with the default and the limits."""
    spelling, said = parameter.get_help_record(context) or (parameter.name, "")
    if parameter.param_type_name == "argument":
        spelling, said = parameter.name.upper(), said.replace("[required]", "").strip() or "Required."
    spelling = re.sub(r"<(\w+)(?: range)?>", lambda kind: KINDS.get(kind[1], kind[1]).upper(), spelling)
    said = re.sub(r"\s*\[required\]", "", said)
    said = re.sub(r"\s*\[default: ([^\]]*)\]", lambda found: f" Default: {found[1]}.", " ".join(said.split()))
    return f"`{spelling}`", re.sub(
        r"\s*\[x(\W+)(\S+)\]", lambda found: f" At least {found[2]}." if found[1] == ">=" else found[0], said
    ).strip()


# ---- stages --------------------------------------------------------------------------------------------------------------


def overview() -> str:
    """Write the path as one table: every stage, what it changes, whether labels are used, and the paper's number."""
    rows = []
    for stage in tree().ordered():
        changes = "<br>".join(f"`{path}` → `{as_typed(value)}`" for path, value in stage.changes.items())
        rows.append((f"[`{stage.name}`](#{stage.name})", changes or "the root", "yes" if stage.uses_labels else "no", _accuracy(stage)))
    return table(("Stage", "Changes", "Labels used", "Paper: linear probe (change)"), rows, right=(3,))


def stage(name: str) -> str:
    """Write a stage's facts: its exact diff, what it requires, and the paper's numbers for it."""
    one = tree().stage(name)
    parts = [_facts(one)]
    if one.after:
        changed = diff(tree().resolve(one.after), tree().resolve(name))
        rows = [(f"[`{path}`](settings.md#{path})", f"`{as_typed(old)}`", f"`{as_typed(new)}`") for path, (old, new) in changed.items()]
        parts.append(table(("Setting", "Before", "After"), rows))
    parts.append(_published(one))
    return "\n".join(parts)


def _facts(stage: Stage) -> str:
    """Write what the stage file itself says beside its diff."""
    facts = [f"after `{stage.after}`" if stage.after else "the root of every path", f"row “{stage.title}”"]
    facts += [f"labels {'enter' if stage.uses_labels else 'do not enter'} training"]
    facts += [f"requires `{path}` = {' or '.join(f'`{as_typed(v)}`' for v in _options(wanted))}" for path, wanted in stage.requires.items()]
    facts += [f"not comparable with its parent: {', '.join(stage.incomparable)}"] if stage.incomparable else []
    return f"*{'; '.join(facts)}.*\n"


def _options(wanted: Any) -> tuple[Any, ...]:
    return wanted if isinstance(wanted, tuple) else (wanted,)


def _entry(stage: str, column: str = "linear_probe_top1") -> Entry | None:
    """Return the paper's number for a stage along the path."""
    published = load_published()
    return next((entry for where in TABLES_OF_THE_PATH if (entry := published.find(where, stage, column))), None)


def _accuracy(stage: Stage) -> str:
    """Write the paper's accuracy of a stage, with its change from the stage before."""
    entry, before = _entry(stage.name), _entry(stage.after) if stage.after else None
    if entry is None or entry.value is None:
        return "not given"
    return entry.text + (f" ({_signed(entry.value - before.value)})" if before and before.value is not None else "")


def _signed(value: float) -> str:
    """Write a change with a true minus."""
    text = f"{value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", MINUS)


def _published(stage: Stage) -> str:
    """Write everything the paper prints for a stage, with the remarks that go with it."""
    entries = [entry for entry in load_published().entries if entry.row == stage.name and entry.value is not None]
    path = [entry for entry in entries if entry.table in TABLES_OF_THE_PATH]
    sweep = [f"d = {entry.column}: {entry.text}" for entry in entries if entry.table == "2"]
    fid = _entry(stage.name, "fid")
    said = [f"linear probe {_accuracy(stage)} %"] if path else []
    said += [f"FID {fid.text}"] if fid else []
    said += [f"Table 2: {', '.join(sweep)}"] if sweep else []
    if not said:
        return ""
    remarks = [f"The paper also gives {e.contradicted_by.value} ({e.contradicted_by.where})" for e in path if e.contradicted_by]
    remarks += [entry.note[0].upper() + entry.note[1:] for entry in entries if entry.note and entry.table != "figure_5"]
    return "\n".join([f"**The paper's numbers** {'; '.join(said)}.{''.join(f' {text}.' for text in dict.fromkeys(remarks))}", ""])


def example() -> str:
    """Write one row of the committed Table 1 under its titles."""
    lines = (ROOT / "reports" / "table1.md").read_text(encoding="utf-8").splitlines()
    head = next(place for place, line in enumerate(lines) if line.startswith("| Step |"))
    row = next(line for line in lines if line.startswith(f"| + {EXAMPLE_ROW}"))
    return "\n".join([lines[head], lines[head + 1], re.sub(r"<sup>.*?</sup>", "", row)]) + "\n"


def probed_levels() -> str:
    """Write each schedule's noise-to-signal ratio at the probed time step, and the rows that have it."""
    rows: dict[str, list[str]] = {}
    for stage in tree().ordered():
        rows.setdefault(tree().resolve(stage.name).process.schedule, []).append(stage.name)
    lines = []
    for schedule, stages in rows.items():
        config = tree().resolve(stages[0])
        gamma, sigma = coefficients(config.process)
        ratio = float((sigma[config.probe.timestep] / gamma[config.probe.timestep]) ** 2)
        named = f"`{stages[0]}`" + (f" to `{stages[-1]}`" if len(stages) > 1 else "")
        lines.append((f"`{schedule}`", named, f"{ratio:.2g}"))
    return table(("Schedule", "Rows", "Noise over signal, in variance"), lines, right=(2,))


def layers() -> str:
    """Write the order of imports as the test of it declares them."""
    module = ast.parse((ROOT / "tests" / "test_architecture.py").read_text(encoding="utf-8"))
    named = {
        node.targets[0].id: node.value for node in module.body if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    return f"> {' → '.join(f'`{name}`' for name in ast.literal_eval(named['LAYERS']))}\n"


# ---- ready studies -------------------------------------------------------------------------------------------------------


def studies() -> str:
    """List the ready studies with what `ablate plan` counts for each at the smoke scale, controls included."""
    rows = []
    for name in sorted(sweep_names(), key=lambda name: (ORDER.index(load_sweep(name).source), name)):
        definition = load_sweep(name)
        study = prepare(Request(table=name, scale="smoke", runs=Path("no-such-folder")))
        counted = [str(len(study.plan.cells)), f"{len(study.plan.jobs)} ({study.plan.unshared})"]
        trained = sum(spec.kind == "train" for spec in study.plan.jobs.values())
        rows.append((f"`{name}`", definition.source, definition.title, f"`{definition.command}`", *counted, str(trained)))
    return table(("name", "in the paper", "what", "command", "cells", "jobs (unshared)", "trainings"), rows, right=(4, 5, 6))


ORDER = ("Fig. 5", "Section 5", "Appendix A", "Table 4", "Appendix B", "asked by reviewers", "left open by the paper")

PARTS: Mapping[str, Callable[..., str]] = {
    part.__name__: part for part in (settings, commands, overview, stage, example, probed_levels, layers, studies)
}
"""What pages can ask for, by name."""
