"""The Python interface: what the command line does, as functions. Light when imported; see docs/python-api.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ablation.effects.verdict import Verdict


def check(stage: str, *, stages: Sequence[str | Path] = (), scale: str = "smoke") -> Verdict:
    """Build a stage and its parent at the smallest size and hold the stage to what it declares; takes seconds.

    stages: stage files or folders of one's own. The verdict has passed, problems, changes and seen (the effects).
    Raises ConfigError for an unknown stage.
    """
    from ablation.discover import discover, load_scale
    from ablation.effects.verdict import check_stages

    tree = discover(stages)
    (verdict,) = check_stages(tree.with_root(load_scale(scale, tree.root)), [stage])
    return verdict
