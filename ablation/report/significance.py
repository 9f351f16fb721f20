"""Tests for a handful of paired differences: is there an effect, is there none, or can it not be told. Pure, torch-free.

Every test takes the differences of one step, one per seed that both of its cells share. Student's test and interval hold from
two seeds on if the differences are roughly normal; the exact sign-flip test assumes only that they are symmetric about zero
when nothing changed, and pays for it with a floor that few seeds cannot get below. A percentile bootstrap is not offered: with
few seeds its intervals are far too short.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from ablation.report.intervals import central_probability, mean, spread, student_quantile

LEVEL = 0.05
POWER = 0.8
MOST_FLIPPED = 18
"""Seeds up to which all 2^n sign patterns are enumerated; beyond, Student's test needs no such company."""
MOST_SEEDS = 999


def student_p(differences: Sequence[float]) -> float | None:
    """Return the two-sided p of a zero mean; None for one seed, 0 or 1 where the differences do not vary."""
    deviation = spread(differences)
    if deviation is None:
        return None
    centre = mean(differences)
    if deviation == 0:
        return 0.0 if centre else 1.0
    return 1 - _central(centre / deviation * math.sqrt(len(differences)), len(differences) - 1)


def _central(t: float, degrees: int) -> float:
    """Return P(|T| <= |t|) for Student's t."""
    return central_probability(math.atan(abs(t) / math.sqrt(degrees)), degrees)


def _above(t: float, degrees: int) -> float:
    """Return P(T >= t) for Student's t."""
    tail = (1 - _central(t, degrees)) / 2
    return tail if t >= 0 else 1 - tail


def sign_flip_p(differences: Sequence[float]) -> float | None:
    """Return the exact two-sided p when each difference could as well have had the other sign; None above MOST_FLIPPED seeds."""
    if not differences or len(differences) > MOST_FLIPPED:
        return None
    sums = [0.0]
    for difference in differences:
        sums = [total + signed for total in sums for signed in (difference, -difference)]
    observed = abs(math.fsum(differences))
    slack = 1e-9 * math.fsum(abs(difference) for difference in differences)  # equal sums differ in their last bits
    return sum(abs(total) >= observed - slack for total in sums) / len(sums)


def sign_flip_floor(seeds: int) -> float:
    """Return the smallest p that the sign-flip test can reach with this many seeds."""
    return min(1.0, 2 / 2**seeds)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return Holm's adjusted p values of one family: each holds at its level for all members together."""
    adjusted: dict[str, float] = {}
    worst = 0.0
    for place, (name, value) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        worst = max(worst, min(1.0, value * (len(p_values) - place)))
        adjusted[name] = worst
    return {name: adjusted[name] for name in p_values}


def equivalence_p(differences: Sequence[float], margin: float) -> float | None:
    """Return the p of "the mean lies outside (-margin, margin)", the larger of two one-sided tests; None for one seed."""
    deviation = spread(differences)
    if deviation is None:
        return None
    centre = mean(differences)
    if deviation == 0:
        return 0.0 if abs(centre) < margin else 1.0
    error = deviation / math.sqrt(len(differences))
    return _above((margin - abs(centre)) / error, len(differences) - 1)


def correlation(before: Sequence[float], after: Sequence[float]) -> float | None:
    """Return Pearson's correlation over seeds: what pairing removes; None below three seeds or without variation."""
    if len(before) < 3 or not spread(before) or not spread(after):
        return None
    first, second = mean(before), mean(after)
    shared = math.fsum((x - first) * (y - second) for x, y in zip(before, after, strict=True)) / (len(before) - 1)
    return shared / (spread(before) or 1) / (spread(after) or 1)


def detection_power(seeds: int, effect: float, deviation: float, level: float = LEVEL) -> float:
    """Return the power of the two-sided paired Student test: P(|T| > t) for the noncentral t of these seeds."""
    centre, critical = effect / deviation * math.sqrt(seeds), student_quantile(seeds - 1, 1 - level)
    return _over_scale(seeds - 1, lambda scale: _normal(centre - critical * scale) + _normal(-centre - critical * scale))


def equivalence_power(seeds: int, margin: float, deviation: float, level: float = LEVEL) -> float:
    """Return the power of the two one-sided tests when the truth is no difference at all."""
    reach, critical = margin / deviation * math.sqrt(seeds), student_quantile(seeds - 1, 1 - 2 * level)
    return _over_scale(seeds - 1, lambda scale: max(0.0, 2 * _normal(reach - critical * scale) - 1))


def _normal(value: float) -> float:
    """Return the standard normal distribution function."""
    return 0.5 * math.erfc(-value / math.sqrt(2))


def _over_scale(degrees: int, function: Callable[[float], float], points: int = 400) -> float:
    """Average a function of the estimated over the true deviation, which is distributed as sqrt(chi^2 / degrees); Simpson's rule."""
    # In steps of the cube root, because one degree of freedom leaves much weight near zero, where the functions are steep.
    step = (1 + 9 / math.sqrt(2 * degrees)) ** (1 / 3) / points
    log_constant = math.log(2) + degrees / 2 * math.log(degrees / 2) - math.lgamma(degrees / 2)
    total = 0.0
    for place in range(1, points + 1):
        root = place * step
        scale = root**3
        density = math.exp(log_constant + (degrees - 1) * math.log(scale) - degrees * scale * scale / 2) * 3 * root * root
        total += (1 if place == points else 4 if place % 2 else 2) * density * function(scale)
    return total * step / 3


def seeds_needed(effect: float, deviation: float, level: float = LEVEL, power: float = POWER) -> int | None:
    """Return the seeds with which a true effect of this size is found, and a true zero called none, each with this power.

    Both at `level`; deviation is that of the paired differences. None above MOST_SEEDS.
    """
    if deviation == 0:
        return 2

    def enough(seeds: int) -> bool:
        return detection_power(seeds, effect, deviation, level) >= power and equivalence_power(seeds, effect, deviation, level) >= power

    low, high = 1, 2
    while not enough(high):
        low, high = high, high * 2
        if low > MOST_SEEDS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high if high <= MOST_SEEDS else None
