"""Limited-memory BFGS for smooth convex objectives, on any device and without a second pool of threads.

scipy's would do, but its linear algebra runs in threads of its own that fight with torch's for the same cores (several
times slower on a busy machine); torch.optim's first use in a process imports its compiler, which takes a second.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from torch import Tensor

HISTORY = 20  # remembered steps
ARMIJO = 1e-4  # share of the decrease that the slope promises
CURVATURE = 0.9  # a step is long enough when the slope has come down to this share (weak Wolfe conditions)
LONGEST_SEARCH = 30  # evaluations on one line
Point = tuple[Tensor, float, Tensor]


def minimise(
    objective: Callable[[Tensor], tuple[float, Tensor]], start: Tensor, tolerance: float, max_iterations: int
) -> tuple[Tensor, float]:
    """Minimise a smooth convex function, given as point -> (value, gradient), from a float64 start; return point and value.

    Stops when a step lowers the value by less than tolerance x max(1, |value|), when no step lowers it (round-off), or
    after max_iterations. Source: Nocedal & Wright, Numerical Optimization, algorithms 7.4 and 7.5.
    """
    value, gradient = objective(start)
    here: Point = (start, value, gradient)
    steps: deque[tuple[Tensor, Tensor]] = deque(maxlen=HISTORY)  # (change of the point, change of the gradient)
    for _ in range(max_iterations):
        direction = _direction(here[2], steps)
        first = 1.0 if steps else min(1.0, 1.0 / max(float(here[2].norm()), 1e-300))
        there = _line_search(objective, here, direction, first)
        if there is None:
            break
        steps.append((there[0] - here[0], there[2] - here[2]))
        lowered, here = here[1] - there[1], there
        if lowered <= tolerance * max(1.0, abs(here[1])):
            break
    return here[0], here[1]


def _direction(gradient: Tensor, steps: deque[tuple[Tensor, Tensor]]) -> Tensor:
    """Return minus the inverse Hessian's estimate times the gradient, by the two-loop recursion."""
    result = -gradient
    shares = []
    for step, change in reversed(steps):
        share = step.dot(result) / step.dot(change)
        shares.append(share)
        result = result - share * change
    if steps:
        step, change = steps[-1]
        result = result * (step.dot(change) / change.dot(change))
    for (step, change), share in zip(steps, reversed(shares), strict=True):
        result = result + step * (share - change.dot(result) / step.dot(change))
    return result


def _line_search(objective: Callable[[Tensor], tuple[float, Tensor]], here: Point, direction: Tensor, length: float) -> Point | None:
    """Find a point on the line that meets the weak Wolfe conditions, by bisection and doubling; None if nothing is lower."""
    point, value, gradient = here
    slope = float(gradient.dot(direction))
    shortest, longest = 0.0, float("inf")
    lowest: Point | None = None
    for _ in range(LONGEST_SEARCH):
        if slope >= 0:
            break
        trial = point + length * direction
        trial_value, trial_gradient = objective(trial)
        if not trial_value <= value + ARMIJO * length * slope:  # also true of NaN
            longest = length
        else:
            lowest = (trial, trial_value, trial_gradient)
            if float(trial_gradient.dot(direction)) >= CURVATURE * slope:
                break
            shortest = length
        length = (shortest + longest) / 2 if longest < float("inf") else 2 * length
    return lowest
