"""Compare what was seen of two configurations: which facts differ, and by how much."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ablation.stage import EFFECTS

Facts = Mapping[str, Mapping[str, Any]]
"""For each of EFFECTS, named facts: tensors, numbers, texts, or None where there is no such thing."""

TOLERANCE = 1e-5
"""Tensors whose difference is below this share of their size are the same; rounding is far below, every real change above."""


class _Absent:
    """Stands for a fact that one of two configurations does not have."""

    def __repr__(self) -> str:
        return "nothing"


ABSENT = _Absent()


@dataclass(frozen=True)
class Difference:
    """One fact in which two configurations differ, in words; amount is the relative change of a tensor of one shape."""

    name: str
    before: str
    after: str
    amount: float | None = None

    def __str__(self) -> str:
        if self.amount is not None:
            return f"{self.name} {self.before} differs by {100 * self.amount:.3g} % of its size"
        return f"{self.name}: {self.before} -> {self.after}"


def compare(before: Facts, after: Facts) -> dict[str, tuple[Difference, ...]]:
    """Return the differences by effect, in the order of EFFECTS, without effects in which nothing differs."""
    found: dict[str, tuple[Difference, ...]] = {}
    for effect in EFFECTS:
        old, new = before[effect], after[effect]
        pairs = ((name, old.get(name, ABSENT), new.get(name, ABSENT)) for name in {**old, **new})
        if differences := tuple(one for pair in pairs if (one := _difference(*pair)) is not None):
            found[effect] = differences
    return found


def _difference(name: str, before: Any, after: Any) -> Difference | None:
    """Return the difference of one fact, or None."""
    if isinstance(before, Tensor) and isinstance(after, Tensor) and before.shape == after.shape:
        amount = relative_change(before, after)
        return Difference(name, words(before), words(after), amount) if amount > TOLERANCE else None
    if isinstance(before, Tensor) or isinstance(after, Tensor) or before != after:
        return Difference(name, words(before), words(after))
    return None


def relative_change(before: Tensor, after: Tensor) -> float:
    """Return |after - before| / max(|before|, |after|) in the Euclidean norm; infinite where one of them is not finite."""
    before, after = before.double(), after.double()
    size = max(float(before.norm()), float(after.norm()))
    change = float((after - before).norm())
    if not torch.isfinite(before).all() or not torch.isfinite(after).all():
        return float("inf")
    return change / size if size > 0 else 0.0


def words(value: Any) -> str:
    """Say a fact in a few words: a short tensor by its numbers, a long one by its shape."""
    if isinstance(value, Tensor):
        return f"({', '.join(map(str, value.shape))})"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "none" if value is None else str(value)
