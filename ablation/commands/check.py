"""`ablate check`: prove that a stage does what it says, in seconds, before it costs GPU hours."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ablation import completion
from ablation.errors import EXIT_JOB_FAILED, EXIT_OK, ConfigError
from ablation.options import JsonOption, StagesOption

if TYPE_CHECKING:
    from ablation.effects.verdict import Verdict
    from ablation.stage import Broken, StageTree

MOST_SHOWN = 4
"""Differences of one effect that are printed; --json has them all."""


def check(
    targets: Annotated[
        list[str] | None,
        typer.Argument(metavar="FILE_OR_STAGE...", help="Stage files, folders of them, or names.", autocompletion=completion.targets),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Check every stage there is.")] = False,
    stages: StagesOption = None,
    scale: Annotated[
        str, typer.Option("--scale", metavar="NAME", help="The scale whose sizes are made small.", autocompletion=completion.scales)
    ] = "smoke",
    as_json: JsonOption = False,
) -> None:
    """Build a stage and its parent at the smallest size, compare what they do, and hold the stage to what it declares."""
    from ablation.discover import load_scale
    from ablation.terminal import emit_json, say

    tree, names, broken = find_targets(targets or [], every, stages or [])
    tree = tree.with_root(load_scale(scale, tree.root))
    from ablation.effects.verdict import check_stages  # loads torch

    passed, documents = not broken, []
    for one in broken:
        documents.append({"stage": ", ".join(one.names) or None, "source": str(one.source), "passed": False, "problems": [one.problem]})
        if not as_json:
            say(f"FAILED {one.source}: {one.problem}")
    for verdict in check_stages(tree, names):
        passed &= verdict.passed
        documents.append(verdict.document())
        if not as_json:
            print_verdict(verdict)
    if as_json:
        emit_json({"passed": passed, "stages": documents})
    raise typer.Exit(EXIT_OK if passed else EXIT_JOB_FAILED)


def find_targets(targets: list[str], every: bool, stages: list[str]) -> tuple[StageTree, list[str], list[Broken]]:
    """Return the tree, the names of the stages to check, and those of the sources asked for that could not be loaded.

    Raises ConfigError for a name that no stage has, and for nothing to check.
    """
    from ablation.discover import discover

    if not targets and not every:
        raise ConfigError("nothing to check", "Give a stage file, the name of a stage, or --all.")
    files = [target for target in targets if target.endswith(".py") or "/" in target or Path(target).is_dir()]
    tree = discover([*stages, *files])
    if every:
        return tree, [stage.name for stage in tree.ordered() if stage.after is not None], list(tree.broken)
    asked = [Path(file).resolve() for file in files]

    def wanted(file: str) -> bool:
        return any(Path(file) == path or path in Path(file).parents for path in asked)

    names = [stage.name for stage in tree.ordered() if wanted(stage.source.file)]
    names += [tree.stage(target).name for target in targets if target not in files]
    broken = [one for one in tree.broken if wanted(one.source.file)]
    if not names and not broken:
        raise ConfigError(f"there is no stage in {', '.join(files)}", "End the file with `STAGE = Stage(...)`.")
    return tree, list(dict.fromkeys(names)), broken


def print_verdict(verdict: Verdict) -> None:
    """Print what a stage changes and does, and what is wrong with it."""
    from ablation.terminal import console, plain, say

    out = console()
    out.print(f"[bold]{verdict.stage}[/] after {verdict.parent}  [dim]{plain(verdict.source)}[/]", soft_wrap=True, highlight=False)
    for path, (before, after) in verdict.changes.items():
        say(f"  {path}: {before} -> {after}")
    for effect, differences in verdict.seen.items():
        mark = "" if effect in verdict.declared else "  (not declared)" if verdict.declared else ""
        shown = "; ".join(str(one) for one in differences[:MOST_SHOWN])
        more = f"; and {len(differences) - MOST_SHOWN} more" if len(differences) > MOST_SHOWN else ""
        say(f"  {effect}{mark}: {shown}{more}")
    if verdict.losses:
        old, new = verdict.parameters
        say(f"  denoiser: {old:,} numbers -> {new:,} ({new - old:+,}) at the smallest size")
        say("  jobs: " + ", ".join(f"{kind} {word}" for kind, word in verdict.jobs.items()))
        for name, losses in verdict.losses.items():
            say(f"  first losses of {name}: {', '.join(f'{loss:.4f}' for loss in losses)}")
    if not verdict.declared and verdict.seen:
        names = ", ".join(f'"{effect}"' for effect in verdict.seen)
        say(f"  declares no effects; to hold it to them: effects=({names}{',' if len(verdict.seen) == 1 else ''})")
    for problem in verdict.problems:
        out.print(f"  [red]FAILED[/] {plain(problem)}", soft_wrap=True, highlight=False)
    if verdict.passed:
        out.print("  [green]passed[/]")
