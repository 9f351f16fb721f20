"""What a shell offers after a half-typed word: stages, scales, settings and other names. Light; never raises."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args, get_origin

import typer

Offers = list[tuple[str, str]]
"""Words and what they mean; shells that cannot show the meaning leave it out."""


def stages(ctx: typer.Context, incomplete: str) -> Offers:
    """Offer the names of stages, those of --stages files on the line included."""
    with contextlib.suppress(Exception):
        tree = _tree(ctx)
        return [(stage.name, stage.title) for stage in tree.ordered() if stage.name.startswith(incomplete)]
    return []


def targets(ctx: typer.Context, incomplete: str) -> Offers:
    """Offer stages, and files, of which the shell knows more."""
    return stages(ctx, incomplete) if "/" not in incomplete else []


def scales(incomplete: str) -> Offers:
    """Offer the built-in scales."""
    with contextlib.suppress(Exception):
        from ablation.discover import builtin_folder, read_yaml, scale_names

        folder = builtin_folder() / "scales"
        names = [name for name in scale_names() if name.startswith(incomplete)]
        return [(name, str(read_yaml(folder / f"{name}.yaml")["description"])) for name in names]
    return []


def settings(ctx: typer.Context, incomplete: str) -> Offers:
    """Offer SETTING=, and after the equals sign the values of a setting that has a few."""
    with contextlib.suppress(Exception):
        path, equals, _ = incomplete.partition("=")
        if equals:
            return _matching(incomplete, (f"{path}={value}" for value in _values(ctx, path)))
        from ablation.config import field_names

        return _matching(incomplete, (f"{name}=" for name in field_names()))
    return []


def tables(incomplete: str) -> Offers:
    """Offer the paper's tables."""
    return _matching(incomplete, ("1", "2", "3"))


def launchers(ctx: typer.Context, incomplete: str) -> Offers:
    """Offer the built-in launchers and those of plugins."""
    with contextlib.suppress(Exception):
        from ablation.parts import LAUNCHERS

        own = [label.partition(":")[2] for label in _tree(ctx).parts if label.startswith("launcher:")]
        return _matching(incomplete, (*LAUNCHERS, *own))
    return []


def _tree(ctx: typer.Context) -> Any:
    """Find the stages, with the --stages that are on the line already."""
    from ablation.discover import discover

    return discover(ctx.params.get("stages") or ())


def _values(ctx: typer.Context, path: str) -> Sequence[str]:
    """List the values of a setting: its choices, the names of parts, or true and false."""
    from ablation.config import BUILT_IN_NAMES, field_type
    from ablation.parts import KINDS

    if path in BUILT_IN_NAMES:
        kind = next(kind for kind, about in KINDS.items() if about.setting == path)
        own = [label.partition(":")[2] for label in _tree(ctx).parts if label.startswith(f"{kind}:")]
        return [*BUILT_IN_NAMES[path], *own]
    kind_of_value = field_type(path)
    if get_origin(kind_of_value) is Literal:
        return list(get_args(kind_of_value))
    return ["true", "false"] if kind_of_value is bool else []


def _matching(incomplete: str, words: Iterable[str]) -> Offers:
    """Keep the words that go on from what is typed."""
    return [(word, "") for word in words if word.startswith(incomplete)]
