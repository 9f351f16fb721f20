"""`ablate probe NAME`: measure a network from elsewhere by the same protocol as the rows of a study."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ablation.errors import EXIT_INTERRUPTED, EXIT_JOB_FAILED, ConfigError
from ablation.options import DataOption, RunsOption, ScaleOption, SeedsOption, SetOption


def probe(
    name: Annotated[
        str, typer.Argument(help="A timm model, efficientnet_lite0 (its weights are installed), or an exported encoder's folder.")
    ],
    weights: Annotated[Path | None, typer.Option(metavar="FILE", help="A weight file, instead of timm's own download.")] = None,
    random: Annotated[bool, typer.Option("--random", help="Random weights, from the seed.")] = False,
    input_size: Annotated[
        int | None, typer.Option(min=8, metavar="PIXELS", help="Pixels a side that the network sees. [default: its own]")
    ] = None,
    scale: ScaleOption = None,
    data: DataOption = None,
    settings: SetOption = None,
    seeds: SeedsOption = "0",
    runs: RunsOption = Path("runs"),
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads. [default: all cores]")] = None,
) -> None:
    """Probe a network on the study's images and keep the result, which reports then show in the study `system`."""
    from ablation.checkpoint_probes import checkpoint_job, prepare_job
    from ablation.config import apply
    from ablation.discover import discover, load_scale
    from ablation.launch.worker import StopFlag, file_progress, run_job
    from ablation.store import Store
    from ablation.study import code_version, data_settings, has_gpu, parse_seeds, parse_settings

    if weights is not None and (random or not weights.is_file()):
        said = "and --random exclude each other" if random else "is not a file"
        raise ConfigError(f"--weights {weights} {said}", "Give a file of weights, or --random.")
    from ablation.compute import enable_fast_products, set_threads  # slow: loads torch

    set_threads(threads)
    enable_fast_products()
    root = discover(installed=False).root
    chosen = scale or ("small" if has_gpu() else "smoke")
    config = apply(load_scale(chosen, root), {**data_settings(data), **parse_settings(settings or [])})
    store, stop = Store(runs), StopFlag()
    stop.install()
    for seed in parse_seeds(seeds):
        spec = checkpoint_job(config, name, weights, random, input_size, seed, store.cache)
        prepare_job(store, spec, code_version())
        state = run_job(store, spec.id, file_progress(store, spec.id), stop)
        if state == "interrupted":
            raise typer.Exit(EXIT_INTERRUPTED)
        if state != "done":
            typer.echo(f"error: {store.state(spec.id).reason}", err=True)
            raise typer.Exit(EXIT_JOB_FAILED)
        done = store.done(spec.id)
        metrics, protocol = done["metrics"], done["protocol"]
        print(f"{spec.extra['title']}, seed {seed}: linear probe {metrics['linear_probe_top1']:.1f} %, kNN {metrics['knn_top1']:.1f} %")
        print("protocol: " + "; ".join(f"{field.replace('_', ' ')}: {value}" for field, value in protocol.items()))
    print(f"kept in {store.root}; `ablate report` shows it in the table `system` of studies of this scale and these images")
