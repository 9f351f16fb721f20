"""The noise schedules in closed form (the paper's Fig. 3): the clean signal kept at each time step, and the noise added."""

# ruff: noqa: RUF001 (Greek letters in words that people read)

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ablation.report.figures import FAINT, OURS, PAPER, SOFT, Omission, Picture, heading, number, render, start, styled
from ablation.report.results import Record

POINTS = 100
Curves = dict[str, list[float]]


def schedule_curves(process: Mapping[str, Any]) -> Curves:
    """Return t, gamma^2 of the original and of the linear schedule, and sigma of the linear one, for t = 0 to T.

    original: the product of 1 - beta, beta rising linearly, scaled by 1000 / T; linear: gamma^2 = 1 - t / T (section 4.1);
    sigma = sigma_max t / T once inputs are not scaled (section 4.3).
    """
    steps = int(process["num_timesteps"])
    first, last = (process[name] * 1000 / steps for name in ("beta_start", "beta_end"))
    original, kept = [1.0], 1.0
    for step in range(steps):
        kept *= 1 - (first + (last - first) * step / max(1, steps - 1))
        original.append(kept)
    times = [float(t) for t in range(steps + 1)]
    return {
        "t": times,
        "gamma_squared_original": original,
        "gamma_squared_linear": [1 - t / steps for t in times],
        "sigma_linear": [process["sigma_max"] * t / steps for t in times],
    }


def schedules_picture(records: Sequence[Record]) -> Picture | Omission:
    """Draw the schedules of a study's settings."""
    process = next((record["config"]["process"] for record in records if "process" in record["config"]), None)
    if process is None:
        return Omission("Noise schedules", "the records do not hold the settings of a noise process")
    curves = schedule_curves(process)
    steps, single = int(curves["t"][-1]), float(process["sigma_constant"])
    with styled():
        figure = start(9.6, 3.9)
        left, right = figure.add_axes((0.07, 0.15, 0.4, 0.66)), figure.add_axes((0.57, 0.15, 0.4, 0.66))
        figure.text(0.012, 0.95, "Noise schedules", fontsize=14, fontweight="bold", va="center")
        heading(left, "Clean signal kept, γ²")
        heading(right, "Noise added to the unscaled latent, σ")
        every = max(1, steps // 8)
        left.plot(curves["t"], curves["gamma_squared_original"], color=PAPER, ls="--", lw=1.8, marker="s", ms=5, markevery=every)
        left.plot(curves["t"], curves["gamma_squared_linear"], color=OURS, lw=1.8, marker="o", ms=5, markevery=every)
        left.annotate("original: ∏(1 − β)", (0.33 * steps, curves["gamma_squared_original"][int(0.33 * steps)]), (-8, -26),
                      textcoords="offset points", ha="right", color=PAPER, fontsize=9)  # fmt: skip
        left.annotate("linear in γ²", (0.62 * steps, 0.38), (8, 6), textcoords="offset points", color=OURS, fontsize=9)
        right.plot(curves["t"], curves["sigma_linear"], color=OURS, lw=1.8, marker="o", ms=5, markevery=every)
        right.axhline(single, color=SOFT, ls=":", lw=1.6)
        right.annotate("linear σ", (0.7 * steps, 0.7 * process["sigma_max"]), (-8, 6), textcoords="offset points", ha="right", color=OURS)
        right.annotate(f"single level, σ = {single:.3g}", (steps, single), (0, -12), textcoords="offset points", ha="right", color=SOFT)
        for axes in (left, right):
            axes.set_xlim(0, steps * 1.02)
            axes.set_ylim(0)
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(color=FAINT, lw=0.6)
            axes.set_xlabel("time step t")
    crossing = next(t for t, value in zip(curves["t"], curves["gamma_squared_original"], strict=True) if value < 0.5)
    alt = (
        f"Two panels against the time step from 0 to {steps}. Left, the squared signal coefficient: the original schedule falls below "
        f"one half at step {crossing:.0f} and is near zero long before the end, the linear one falls evenly from 1 to 0. Right, the "
        f"noise of the unscaled latent rises evenly from 0 to {process['sigma_max']:.3g}; the single level stays at {single:.3g}."
    )
    caption = "The schedules that the stages choose between, at this study's settings (the paper's Fig. 3, and the noise of its Sec. 4.3)."
    data = _data(curves)
    return Picture("schedules", "Noise schedules", alt, caption, {**render(figure), "csv": data.encode()}, data)


def _data(curves: Curves) -> str:
    """Write about POINTS time steps as CSV, the last one included."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(curves)
    steps = len(curves["t"]) - 1
    for t in sorted({*range(0, steps, math.ceil(steps / POINTS)), steps}):
        writer.writerow([number(values[t]) for values in curves.values()])
    return out.getvalue()
