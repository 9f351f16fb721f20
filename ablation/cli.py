"""The command line: `ablate`. Thin; everything heavy is imported inside the command that needs it.

Exit codes: 0 done, 1 a job failed, 2 usage (an unknown name, a bad value, unusable data), 130 interrupted.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from ablation.commands.bundle import bundle
from ablation.commands.cache import cache
from ablation.commands.calibrate import calibrate
from ablation.commands.check import check
from ablation.commands.new_stage import new_stage
from ablation.commands.probe import probe
from ablation.commands.report import write_report, write_study_report
from ablation.commands.schema import schema
from ablation.commands.slurm import cancel, retry
from ablation.commands.verify import verify
from ablation.errors import EXIT_INTERRUPTED, EXIT_JOB_FAILED, EXIT_OK, EXIT_USAGE, AblationError
from ablation.options import (
    AcceleratorOption,
    AmongOption,
    ControlsOption,
    CostOption,
    DataOption,
    DesignOption,
    GridOption,
    JsonOption,
    LauncherOption,
    NameOption,
    OnlyOption,
    OrdersOption,
    ParallelOption,
    PartitionOption,
    ProcessesOption,
    ResourceOption,
    ResourcesOption,
    RunsOption,
    ScaleOption,
    SeedsOption,
    SesoiOption,
    SetOption,
    StageArgument,
    StagesOption,
    StudyOption,
    TableOption,
    ThroughOption,
    study_of,
)
from ablation.terminal import (
    command_line,
    console,
    plain,
    print_checks,
    print_diff,
    print_notes,
    print_plan,
    print_stage,
    print_stages,
    print_status,
    say,
    show_cells,
)

if TYPE_CHECKING:
    from ablation.stage import StageTree

EPILOG = "Exit codes: 0 done, 1 a job failed, 2 usage, 130 interrupted."
app = typer.Typer(
    help="Deconstruct a diffusion model step by step and measure what each part is worth.",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def load_tree(stages: list[str] | None, scale: str | None) -> StageTree:
    """Find all stages; with a scale, over the scaled baseline."""
    from ablation.discover import discover, load_scale

    tree = discover(stages or ())
    return tree.with_root(load_scale(scale, tree.root)) if scale else tree


@app.command("stages")
def list_stages(stages: StagesOption = None, as_json: JsonOption = False) -> None:
    """List all stages in order, with their row titles and what they change."""
    tree = load_tree(stages, None)
    print_stages(tree, as_json)


@app.command()
def show(stage: StageArgument, stages: StagesOption = None, scale: ScaleOption = None, as_json: JsonOption = False) -> None:
    """Show a stage: its text, its diff, and the configuration its path resolves to."""
    tree = load_tree(stages, scale)
    print_stage(tree, stage, as_json)


@app.command("diff")
def show_diff(
    before: StageArgument, after: StageArgument, stages: StagesOption = None, scale: ScaleOption = None, as_json: JsonOption = False
) -> None:
    """Show every setting in which the configurations of two stages differ."""
    from ablation.config import diff

    tree = load_tree(stages, scale)
    print_diff(before, after, diff(tree.resolve(before), tree.resolve(after)), as_json)


@app.command()
def plan(
    through: ThroughOption = None,
    design: DesignOption = None,
    table: TableOption = None,
    only: OnlyOption = None,
    grid: GridOption = None,
    scale: ScaleOption = None,
    data: DataOption = None,
    settings: SetOption = None,
    seeds: SeedsOption = "0",
    stages: StagesOption = None,
    runs: RunsOption = Path("runs"),
    name: NameOption = None,
    controls: ControlsOption = True,
    sesoi: SesoiOption = None,
    cost: CostOption = False,
    accelerator: AcceleratorOption = None,
    among: AmongOption = None,
    orders: OrdersOption = None,
    as_json: JsonOption = False,
) -> None:
    """List every job with what would happen to it and why, or with --cost what it takes; nothing runs."""
    from ablation.plan import decide

    study = study_of(through, design, table, only, grid, scale, data, settings, seeds, stages, runs, name, controls, sesoi, among, orders)
    decisions = decide(study.plan, study.store)
    if cost or accelerator:
        from ablation.commands.plan_cost import print_cost

        print_cost(study, decisions, accelerator, as_json)
        return
    print_plan(study, decisions, as_json)


@app.command()
def run(
    through: ThroughOption = None,
    design: DesignOption = None,
    table: TableOption = None,
    only: OnlyOption = None,
    grid: GridOption = None,
    scale: ScaleOption = None,
    data: DataOption = None,
    settings: SetOption = None,
    seeds: SeedsOption = "0",
    stages: StagesOption = None,
    runs: RunsOption = Path("runs"),
    name: NameOption = None,
    controls: ControlsOption = True,
    sesoi: SesoiOption = None,
    among: AmongOption = None,
    orders: OrdersOption = None,
    launcher: LauncherOption = "local",
    parallel: ParallelOption = None,
    processes: ProcessesOption = 1,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of each process. [default: all cores, shared]")] = None,
    checkpoint_seconds: Annotated[float | None, typer.Option(min=0, help="Time between checkpoints of a training. [default: 60]")] = None,
    report: Annotated[bool, typer.Option("--report/--no-report", help="Write the reports at the end.")] = True,
    partition: PartitionOption = None,
    resources: ResourcesOption = None,
    resource: ResourceOption = None,
    wait: Annotated[bool, typer.Option("--wait", help="slurm: follow the jobs to their end.")] = False,
) -> None:
    """Run a study; the same command again reuses what is finished and resumes what was interrupted."""
    study = study_of(through, design, table, only, grid, scale, data, settings, seeds, stages, runs, name, controls, sesoi, among, orders)
    print_notes(study)
    if launcher == "slurm":
        from ablation.launch.slurm_commands import follow, submit_study

        document = submit_study(study, resources, resource or [], partition, command_line(), say)
        raise typer.Exit(follow(study.store, document, show_cells(study.name, study.store.root)) if wait else EXIT_OK)
    from ablation.execute import execute

    code = execute(study, launcher, parallel, threads, checkpoint_seconds, command_line(), console(), processes)
    if report and code != EXIT_INTERRUPTED:
        write_study_report(study.store, study.name, None)
    raise typer.Exit(code)


@app.command()
def status(
    runs: RunsOption = Path("runs"),
    study: StudyOption = None,
    as_json: JsonOption = False,
    watch: Annotated[bool, typer.Option("--watch", help="Follow until every job has ended.")] = False,
) -> None:
    """Show how far every cell of a study is."""
    from ablation.launch.slurm_commands import follow, slurm_cells
    from ablation.store import Store

    store = Store(runs)
    document = store.study(study)
    if watch:
        raise typer.Exit(follow(store, document, show_cells(document["name"], store.root)))
    cells, problem = slurm_cells(store, document)
    print_status(document["name"], store.root, cells, as_json)
    if problem:
        print(f"SLURM cannot be asked: {problem}. Shown is what our own files say.", file=sys.stderr)


@app.command()
def logs(
    stage: str,
    runs: RunsOption = Path("runs"),
    study: StudyOption = None,
    kind: Annotated[str, typer.Option(help="Which job of the stage: tokenizer, encode, train, probe, fid or reference.")] = "train",
    seed: Annotated[int | None, typer.Option(help="Which seed. [default: the first]")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep printing as the job writes.")] = False,
) -> None:
    """Print the log of a stage's job."""
    from ablation.status import follow_file, log_path
    from ablation.store import Store

    path = log_path(Store(runs), study, stage, kind, seed)
    print(f"# {path}", file=sys.stderr)
    for text in follow_file(path, follow):
        sys.stdout.write(text)
        sys.stdout.flush()


@app.command("export")
def export_network(
    stage: str,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder to write.")],
    target: Annotated[str, typer.Option("--format", help="vit (the encoder, for timm) or diffusers (the whole network).")] = "vit",
    runs: RunsOption = Path("runs"),
    study: StudyOption = None,
    seed: Annotated[int | None, typer.Option(help="Which seed. [default: the first]")] = None,
) -> None:
    """Write a stage's trained network for use elsewhere."""
    from ablation.export import export
    from ablation.status import find_cell
    from ablation.store import Store

    store = Store(runs)
    print(f"{out}: {export(store, find_cell(store, study, stage, seed), target, out)}")


@app.command()
def doctor(runs: RunsOption = Path("runs"), as_json: JsonOption = False) -> None:
    """Check this installation and machine, and say what would get in the way of a run."""
    from ablation.doctor import examine

    checks = examine(runs)
    print_checks(checks, as_json)
    raise typer.Exit(EXIT_JOB_FAILED if any(check["state"] == "bad" for check in checks) else EXIT_OK)


@app.command()
def clean(
    runs: RunsOption = Path("runs"),
    stale: Annotated[bool, typer.Option("--stale", help="Jobs whose defaults have changed since they ran.")] = False,
    orphans: Annotated[bool, typer.Option("--orphans", help="Jobs that no study refers to.")] = False,
    failed: Annotated[bool, typer.Option("--failed", help="Failed, diverged and skipped jobs, checkpoints included.")] = False,
    cache: Annotated[bool, typer.Option("--cache", help="Decoded images and other things that are made again.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Delete; without it, only list.")] = False,
) -> None:
    """List, or with --yes delete, what a run folder no longer needs; finished results of a study are never touched."""
    from ablation.status import removable
    from ablation.store import Store

    store = Store(runs)
    found = removable(store, stale=stale, orphans=orphans, failed=failed, cache=cache)
    for path, why in found:
        console().print(f"{plain(path)}  [dim]{plain(why)}[/]", soft_wrap=True)
        if yes:
            store.delete(path)
    print(f"{len(found)} {'deleted' if yes else 'found; add --yes to delete'}")


app.command("check")(check)
app.command("new-stage")(new_stage)
app.command("schema")(schema)
app.command("report")(write_report)
app.command("probe")(probe)
app.command("verify")(verify)
app.command("bundle")(bundle)
app.command("cancel")(cancel)
app.command("retry")(retry)
app.command("cache")(cache)
app.command("calibrate")(calibrate)


def main() -> NoReturn:
    """Run the command line and end with the documented exit code; expected errors are one line, without a traceback."""
    try:
        code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except AblationError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        sys.exit(EXIT_OK)
    except Exception as error:
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # a usage error of the parser
            print(f"error: {error.format_message()}", file=sys.stderr)
            sys.exit(EXIT_USAGE)
        raise
    sys.exit(code if isinstance(code, int) else EXIT_OK)  # `raise typer.Exit(code)` arrives as the returned value


if __name__ == "__main__":
    main()
