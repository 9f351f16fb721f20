"""Means, spreads and paired differences for a handful of seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


def mean(values: Sequence[float]) -> float:
    """Return the arithmetic mean; the sequence must not be empty."""
    return math.fsum(values) / len(values)


def spread(values: Sequence[float]) -> float | None:
    """Return the sample standard deviation (n - 1), or None for a single value."""
    if len(values) < 2:
        return None
    centre = mean(values)
    return math.sqrt(math.fsum((value - centre) ** 2 for value in values) / (len(values) - 1))


def central_probability(angle: float, degrees: int) -> float:
    """Return P(|t| <= sqrt(degrees) tan(angle)) for Student's t (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    cosine, sine = math.cos(angle), math.sin(angle)
    if degrees == 1:
        return 2 * angle / math.pi
    odd = degrees % 2
    term = cosine if odd else 1.0
    total = term
    for k in range(2 + odd, degrees - 1, 2):
        term *= (k - 1) / k * cosine**2
        total += term
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def student_quantile(degrees: int, level: float = 0.95) -> float:
    """Return the half-width, in standard errors, of Student's two-sided interval at a level."""
    if degrees < 1 or not 0 < level < 1:
        raise ValueError(f"no Student quantile for {degrees} degrees of freedom at level {level}")
    low, high = 0.0, math.pi / 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if central_probability(middle, degrees) < level else (low, middle)
    return math.sqrt(degrees) * math.tan(low)


def half_width(values: Sequence[float], level: float = 0.95) -> float | None:
    """Return the half-width of Student's interval of the mean, or None for a single value."""
    deviation = spread(values)
    if deviation is None:
        return None
    return student_quantile(len(values) - 1, level) * deviation / math.sqrt(len(values))


@dataclass(frozen=True)
class Change:
    """A mean difference over common seeds; low and high are None when one seed leaves no interval."""

    mean: float
    low: float | None
    high: float | None
    seeds: tuple[int, ...]


def paired_change(before: Mapping[int, float], after: Mapping[int, float]) -> Change | None:
    """Return after minus before, paired by seed with a 95 % Student interval; None without a common seed."""
    seeds = tuple(sorted(set(before) & set(after)))
    if not seeds:
        return None
    differences = [after[seed] - before[seed] for seed in seeds]
    centre, half = mean(differences), half_width(differences)
    return Change(centre, None if half is None else centre - half, None if half is None else centre + half, seeds)
