"""`ablate calibrate`: measure this machine, so that `ablate plan --cost` can price a study for it."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Annotated

import typer

from ablation.options import DataOption, RunsOption, ScaleOption, SetOption, StagesOption, ThroughOption, study_of


def calibrate(
    through: ThroughOption = None,
    scale: ScaleOption = None,
    data: DataOption = None,
    settings: SetOption = None,
    stages: StagesOption = None,
    runs: RunsOption = Path("runs"),
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads, as the jobs will have. [default: all cores]")] = None,
    name: Annotated[str | None, typer.Option("--name", help="What to call this machine. [default: its host name]")] = None,
) -> None:
    """Measure this machine at a study's sizes, in about a minute, and keep the rates in the run folder for `ablate plan --cost`."""
    from ablation.calibration import calibrate as measure
    from ablation.compute import enable_fast_products, set_threads
    from ablation.pricing import count_images
    from ablation.rates import write_calibration
    from ablation.study import machine_name
    from ablation.terminal import say

    study = study_of(through, None, None, None, None, scale, data, settings, "0", stages, runs, None, False)
    config = next(iter(study.plan.cells.values())).config
    set_threads(threads)
    say(enable_fast_products())
    classes = count_images(config, study.store.cache).classes
    rates = measure(config, name or platform.node(), machine_name(), classes, study.store.cache, say)
    say(f"{write_calibration(study.store.root, rates)}: {rates.basis}")
