"""`ablate new-stage`: write the first version of a stage of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ablation import completion
from ablation.options import StagesOption


def new_stage(
    name: Annotated[str, typer.Argument(help="The stage's name: lower-case letters, digits and _.")],
    after: Annotated[
        str, typer.Option("--after", metavar="STAGE", help="The stage that it is a change of.", autocompletion=completion.stages)
    ],
    package: Annotated[bool, typer.Option("--package", help="Write a package that can be installed, with a test.")] = False,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where to write.")] = Path("."),
    stages: StagesOption = None,
) -> None:
    """Write a commented stage file, or a package around it, that runs as it is and waits for one edit."""
    from ablation.discover import discover
    from ablation.scaffold import package_files, stage_text, write_files
    from ablation.terminal import say

    tree = discover(stages or ())
    if package:
        folder, files = package_files(tree, name, after)
        paths = write_files(out / folder, files)
        for path in paths:
            say(str(path))
        target, given = name, ""
        say(f"\nnext: edit {paths[2]}, then")
        say(f"  pip install -e {out / folder}")
    else:
        (path,) = write_files(out, {f"{name}.py": stage_text(tree, name, after)})
        target, given = str(path), f" --stages {path}"
        say(f"{path}\n\nnext: edit `changes` in it, then")
    say(f"  ablate check {target}")
    say(f"  ablate run --through {name} --scale smoke{given}")
