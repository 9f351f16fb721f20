"""The options that several commands of the command line share. Light."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ablation import completion

if TYPE_CHECKING:
    from ablation.study import Study

StagesOption = Annotated[list[str] | None, typer.Option("--stages", metavar="FILE_OR_FOLDER", help="Stage files of your own; repeatable.")]
RunsOption = Annotated[Path, typer.Option("--runs", metavar="DIR", help="The run folder.")]
ScaleOption = Annotated[
    str | None,
    typer.Option(
        "--scale",
        metavar="NAME",
        help="smoke, laptop, small, paper, or a YAML file. [default: smoke, or small with a GPU]",
        autocompletion=completion.scales,
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SETTING=VALUE", help="Fix a setting in every row; repeatable.", autocompletion=completion.settings),
]
DataOption = Annotated[str | None, typer.Option("--data", metavar="DATA", help="A folder of images, a source, SOURCE:PATH, or timm:NAME.")]
SeedsOption = Annotated[str, typer.Option("--seeds", metavar="LIST", help="Seeds, as 0,1,2 or 0-4.")]
ThroughOption = Annotated[
    str | None,
    typer.Option(
        "--through",
        metavar="STAGE",
        help="Run the path from the baseline to this stage. [default: predict_original]",
        autocompletion=completion.stages,
    ),
]
TableOption = Annotated[
    str | None,
    typer.Option(
        "--table",
        metavar="NAME",
        help="Run what Table 1, 2 or 3, or a ready study (docs/studies.md), needs.",
        autocompletion=completion.tables,
    ),
]
DesignOption = Annotated[
    list[str] | None,
    typer.Option(
        "--design",
        metavar="NAME",
        help="Laid over the path: ladder, add_one, leave_one_out, put_back, shapley; repeatable, or with commas. [default: ladder]",
    ),
]
AmongOption = Annotated[
    list[str] | None,
    typer.Option(
        "--among", metavar="STAGE", help="shapley: the stages that come and go; repeatable, or with commas. [default: the path's]"
    ),
]
OrdersOption = Annotated[
    int | None, typer.Option("--orders", metavar="M", min=2, help="shapley: sample so many feasible orders. [default: every selection]")
]
SesoiOption = Annotated[
    float | None,
    typer.Option(
        "--sesoi",
        metavar="POINTS",
        min=0.001,
        help="Smallest effect of interest: below it, a step does nothing. [default: the report's, 1]",
    ),
]
OnlyOption = Annotated[
    list[str] | None,
    typer.Option("--only", metavar="STAGE", help="Run this stage, not the path to it; repeatable.", autocompletion=completion.stages),
]
GridOption = Annotated[
    list[str] | None,
    typer.Option(
        "--grid", metavar="SETTING=V,V", help="Cross the stages with these values; repeatable.", autocompletion=completion.settings
    ),
]
NameOption = Annotated[str | None, typer.Option("--name", help="The study's name. [default: made from what it is]")]
StageArgument = Annotated[str, typer.Argument(autocompletion=completion.stages)]
StudyOption = Annotated[str | None, typer.Option("--study", metavar="NAME", help="Which study. [default: the last one]")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ControlsOption = Annotated[bool, typer.Option("--controls/--no-controls", help="Also probe an untrained network and patch-PCA features.")]
CostOption = Annotated[bool, typer.Option("--cost", help="Print parameters, operations, hours and disk of every job.")]
AcceleratorOption = Annotated[
    str | None,
    typer.Option("--accelerator", metavar="NAME", help="Price for this accelerator: a calibration's name, or a datasheet's, such as h100."),
]
PartitionOption = Annotated[str | None, typer.Option("--partition", metavar="NAME", help="slurm: the partition of every job.")]
ResourcesOption = Annotated[
    Path | None, typer.Option("--resources", metavar="FILE", help="slurm: what each kind of job asks for, as YAML.")
]
ResourceOption = Annotated[
    list[str] | None, typer.Option("--resource", metavar="FIELD=VALUE", help="slurm: one such field, or KIND.FIELD; repeatable.")
]
LauncherOption = Annotated[
    str,
    typer.Option(
        help="inline (this process, one job after the other), local (worker processes), slurm (submit and return), or a plugin's.",
        autocompletion=completion.launchers,
    ),
]
ParallelOption = Annotated[int | None, typer.Option(min=1, help="local: jobs at once. [default: one per GPU, else 2 to 4 by cores]")]
ProcessesOption = Annotated[
    int, typer.Option(min=1, help="local: processes that share one training, each on a GPU of its own where there are GPUs.")
]


def study_of(
    through: str | None,
    design: list[str] | None,
    table: str | None,
    only: list[str] | None,
    grid: list[str] | None,
    scale: str | None,
    data: str | None,
    settings: list[str] | None,
    seeds: str,
    stages: list[str] | None,
    runs: Path,
    name: str | None,
    controls: bool,
    sesoi: float | None = None,
    among: list[str] | None = None,
    orders: int | None = None,
) -> Study:
    """Turn the options that say what to study into a resolved study."""
    from ablation.study import Request, parse_designs, parse_grid, parse_seeds, parse_settings, prepare

    request = Request(
        through=through,
        designs=parse_designs(design or []),
        table=table,
        only=tuple(only or ()),
        grid=parse_grid(grid or []),
        scale=scale,
        data=data,
        settings=parse_settings(settings or []),
        seeds=parse_seeds(seeds),
        stages=tuple(stages or ()),
        runs=runs,
        name=name,
        with_controls=controls,
        smallest_effect=sesoi,
        among=tuple(name.strip() for text in among or () for name in text.split(",")),
        orders=orders,
    )
    return prepare(request)
