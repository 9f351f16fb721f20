"""`ablate cache`: decode and resize all images once, into files that jobs then read instead."""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ablation.errors import EXIT_OK, ConfigError, Interrupted
from ablation.options import DataOption, RunsOption, ScaleOption, SetOption, StagesOption, ThroughOption, study_of

if TYPE_CHECKING:
    from ablation.config import Config, DataConfig
    from ablation.data.sources import Split


def cache(
    through: ThroughOption = None,
    scale: ScaleOption = None,
    data: DataOption = None,
    settings: SetOption = None,
    stages: StagesOption = None,
    runs: RunsOption = Path("runs"),
    workers: Annotated[int | None, typer.Option(min=1, help="Decoding processes. [default: one per core]")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before the disk is filled.")] = False,
) -> None:
    """Decode and resize the images of a study once, into the run folder; the same command again goes on where it stopped."""
    from ablation.data.image_cache import build_cache, plan_cache
    from ablation.data.storage import in_words
    from ablation.launch.worker import StopFlag
    from ablation.store import Store

    study = study_of(through, None, None, None, None, scale, data, settings, "0", stages, runs, None, False)
    folder = Store(runs).cache
    plans = [plan_cache(wanted, split, folder) for wanted, split in needed([cell.config for cell in study.plan.cells.values()])]
    for plan in plans:
        state = "finished" if plan.finished else in_words(plan.total_bytes)
        print(f"{plan.split}: {plan.images} images of {plan.data.image_size} px: {state} in {plan.folder}")
    unfinished = [plan for plan in plans if not plan.finished]
    if not unfinished:
        raise typer.Exit(EXIT_OK)
    total = in_words(sum(plan.total_bytes for plan in unfinished))
    place = next(parent for parent in (folder, *folder.parents) if parent.exists())
    print(f"this writes up to {total}; {in_words(shutil.disk_usage(place).free)} are free at {place}")
    if not yes and not sys.stdin.isatty():
        raise ConfigError("there is nobody to ask whether to go on", "Add --yes.")
    if not yes:
        typer.confirm("Go on?", abort=True)
    stop = StopFlag()
    stop.install()
    try:
        for plan in unfinished:
            build_cache(plan, folder, workers or len(os.sched_getaffinity(0)), Meter(plan.split), stop)
    except Interrupted as error:
        print(error, file=sys.stderr)
        raise KeyboardInterrupt from None


def needed(configs: list[Config]) -> list[tuple[DataConfig, Split]]:
    """List the data and splits that configurations read, and the larger crops that random crops are cut from; each once.

    Raises ConfigError for data that is in memory anyway.
    """
    from ablation.data.sources import SPLITS, TIMM_PREFIX

    found: dict[tuple[DataConfig, Split], None] = {}
    for config in configs:
        data = config.data
        if data.source != "folder" and not data.source.startswith(TIMM_PREFIX):
            raise ConfigError(f"data.source '{data.source}' is held in memory or cached already", "Give a folder of images with --data.")
        plain = data.model_copy(update={"crop_source_size": None, "augmentation": "centre_crop", "horizontal_flip": True})
        found |= dict.fromkeys((plain, split) for split in SPLITS)
        if data.crop_source_size not in (None, data.image_size) and (
            data.augmentation == "random_resized_crop" or config.probe.mode == "epochs"
        ):
            found[(plain.model_copy(update={"image_size": data.crop_source_size}), "train")] = None
    return list(found)


class Meter:
    """Prints how far a cache is, with its rate, at most once in five seconds."""

    def __init__(self, name: str) -> None:
        self._name, self._began, self._last, self._first = name, time.monotonic(), 0.0, -1

    def __call__(self, done: int, total: int) -> None:
        """Take note of progress."""
        now = time.monotonic()
        if self._first < 0:
            self._first = done
        if now - self._last < 5 and done < total:
            return
        self._last = now
        rate = (done - self._first) / max(1e-9, now - self._began)
        print(f"{self._name}: {done} of {total} images ({rate:.0f} images/s)", flush=True)
