"""The command line: `ablate`. Thin; everything heavy is imported inside the command that needs it.

Exit codes: 0 done, 1 a job failed, 2 usage (an unknown name, a bad value, unusable data), 130 interrupted.
"""

from __future__ import annotations

import json
import sys
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from ablation.errors import EXIT_INTERRUPTED, EXIT_JOB_FAILED, EXIT_OK, EXIT_USAGE, AblationError

if TYPE_CHECKING:
    from rich.console import Console

    from ablation.stage import StageTree
    from ablation.study import Study

EPILOG = "Exit codes: 0 done, 1 a job failed, 2 usage, 130 interrupted."
app = typer.Typer(
    help="Deconstruct a diffusion model step by step and measure what each part is worth.",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

StagesOption = Annotated[list[str] | None, typer.Option("--stages", metavar="FILE_OR_FOLDER", help="Stage files of your own; repeatable.")]
RunsOption = Annotated[Path, typer.Option("--runs", metavar="DIR", help="The run folder.")]
ScaleOption = Annotated[
    str | None, typer.Option("--scale", metavar="NAME", help="smoke, small, paper, or a YAML file. [default: smoke, or small with a GPU]")
]
SetOption = Annotated[list[str] | None, typer.Option("--set", metavar="SETTING=VALUE", help="Fix a setting in every row; repeatable.")]
DataOption = Annotated[str | None, typer.Option("--data", metavar="DATA", help="A folder of images, a source, SOURCE:PATH, or timm:NAME.")]
SeedsOption = Annotated[str, typer.Option("--seeds", metavar="LIST", help="Seeds, as 0,1,2 or 0-4.")]
ThroughOption = Annotated[
    str | None, typer.Option("--through", metavar="STAGE", help="Run the path from the baseline to this stage. [default: predict_original]")
]
TableOption = Annotated[int | None, typer.Option("--table", metavar="N", help="Run what Table 1, 2 or 3 needs, instead of a path.")]
NameOption = Annotated[str | None, typer.Option("--name", help="The study's name. [default: made from what it is]")]
StudyOption = Annotated[str | None, typer.Option("--study", metavar="NAME", help="Which study. [default: the last one]")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ControlsOption = Annotated[bool, typer.Option("--controls/--no-controls", help="Also probe an untrained network and patch-PCA features.")]


def console(stderr: bool = False) -> Console:
    """Return a terminal to print to; a stream that is no terminal gets long lines instead of wrapped ones."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else 160)


def emit_json(value: Any) -> None:
    """Print a value as JSON."""
    print(json.dumps(value, indent=1, default=str))


def load_tree(stages: list[str] | None, scale: str | None) -> StageTree:
    """Find all stages; with a scale, over the scaled baseline."""
    from ablation.discover import discover, load_scale

    tree = discover(stages or ())
    return tree.with_root(load_scale(scale, tree.root)) if scale else tree


@app.command("stages")
def list_stages(stages: StagesOption = None, as_json: JsonOption = False) -> None:
    """List all stages in order, with their row titles and what they change."""
    tree = load_tree(stages, None)
    if as_json:
        entries = [
            {
                "name": s.name,
                "after": s.after,
                "title": s.title,
                "table": s.table,
                "changes": dict(s.changes),
                "uses_labels": s.uses_labels,
                "source": str(s.source),
            }
            for s in tree.ordered()
        ]
        emit_json({"stages": entries, "broken": [{"source": str(b.source), "problem": b.problem} for b in tree.broken]})
        return
    from rich.table import Table

    table = Table("stage", "after", "row", "labels", "changes", box=None, pad_edge=False, header_style="bold")
    for stage in tree.ordered():
        changes = ", ".join(f"{path}={value}" for path, value in stage.changes.items())
        own = "" if stage.source.origin == "built-in" else f" [cyan]({stage.source.origin})[/]"
        table.add_row(stage.name + own, stage.after or "", stage.title, "yes" if stage.uses_labels else "", changes)
    console().print(table)
    for broken in tree.broken:
        console().print(f"[red]broken:[/] {broken.source}: {broken.problem}", soft_wrap=True)


@app.command()
def show(stage: str, stages: StagesOption = None, scale: ScaleOption = None, as_json: JsonOption = False) -> None:
    """Show a stage: its text, its diff, and the configuration its path resolves to."""
    tree = load_tree(stages, scale)
    found, config = tree.stage(stage), tree.resolve(stage)
    if as_json:
        emit_json(
            {
                "name": found.name,
                "path": [s.name for s in tree.path(stage)],
                "changes": dict(found.changes),
                "config": config.model_dump(mode="json"),
            }
        )
        return
    import yaml
    from rich.text import Text

    out = console()
    out.print(Text(f"{found.name}: {found.title}", style="bold"))
    out.print(Text(found.doc + "\n"))
    out.print(Text("path: " + " > ".join(s.name for s in tree.path(stage)), style="dim"))
    out.print(Text(f"file: {found.source}\n", style="dim"), soft_wrap=True)
    out.print(Text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)))


@app.command("diff")
def show_diff(before: str, after: str, stages: StagesOption = None, scale: ScaleOption = None, as_json: JsonOption = False) -> None:
    """Show every setting in which the configurations of two stages differ."""
    from ablation.config import diff

    tree = load_tree(stages, scale)
    changed = diff(tree.resolve(before), tree.resolve(after))
    if as_json:
        emit_json({path: list(pair) for path, pair in changed.items()})
        return
    from rich.table import Table

    table = Table("setting", before, after, box=None, pad_edge=False, header_style="bold")
    for path, (old, new) in changed.items():
        table.add_row(path, str(old), str(new))
    console().print(table if changed else "no difference")


def _study(
    through: str | None,
    table: int | None,
    scale: str | None,
    data: str | None,
    settings: list[str] | None,
    seeds: str,
    stages: list[str] | None,
    runs: Path,
    name: str | None,
    controls: bool,
) -> Study:
    """Turn the common options into a resolved study."""
    from ablation.study import Request, parse_seeds, parse_settings, prepare

    request = Request(
        through=through,
        table=table,
        scale=scale,
        data=data,
        settings=parse_settings(settings or []),
        seeds=parse_seeds(seeds),
        stages=tuple(stages or ()),
        runs=runs,
        name=name,
        with_controls=controls,
    )
    return prepare(request)


@app.command()
def plan(
    through: ThroughOption = None,
    table: TableOption = None,
    scale: ScaleOption = None,
    data: DataOption = None,
    settings: SetOption = None,
    seeds: SeedsOption = "0",
    stages: StagesOption = None,
    runs: RunsOption = Path("runs"),
    name: NameOption = None,
    controls: ControlsOption = True,
    as_json: JsonOption = False,
) -> None:
    """List every job with what would happen to it and why; nothing runs."""
    from ablation.plan import decide

    study = _study(through, table, scale, data, settings, seeds, stages, runs, name, controls)
    decisions = decide(study.plan, study.store)
    if as_json:
        jobs = [
            {
                "id": job,
                "kind": spec.kind,
                "action": decisions[job].action,
                "reason": decisions[job].reason,
                "inputs": dict(spec.inputs),
                "cells": [cell.id for cell in study.plan.cells_of(job)],
            }
            for job, spec in study.plan.jobs.items()
        ]
        emit_json({"study": study.name, "scale": study.scale, "jobs": jobs, "unshared": study.plan.unshared, "notes": list(study.notes)})
        return
    from rich.table import Table

    out = console()
    styles = {"reuse": "cyan", "resume": "yellow", "stale": "magenta", "new": "green"}
    listing = Table("job", "action", "serves", "reason", box=None, pad_edge=False, header_style="bold")
    for job in study.plan.jobs:
        cells = study.plan.cells_of(job)
        serves = cells[0].id + (f" and {len(cells) - 1} more" if len(cells) > 1 else "")
        action = decisions[job].action
        listing.add_row(job, f"[{styles[action]}]{action}[/]", serves, decisions[job].reason)
    out.print(listing)
    _print_notes(study)
    counts = {action: sum(d.action == action for d in decisions.values()) for action in styles}
    summary = ", ".join(f"{count} {action}" for action, count in counts.items() if count)
    out.print(f"\n{len(study.plan.cells)} cells, [bold]{len(study.plan.jobs)} jobs[/] instead of {study.plan.unshared} ({summary})")


def _print_notes(study: Study) -> None:
    """Print what the user should know about the study before it runs."""
    for note in study.notes:
        console().print(f"[yellow]note:[/] {note}", soft_wrap=True)
    for broken in study.tree.broken:
        console().print(f"[red]broken stage source:[/] {broken.source}: {broken.problem}", soft_wrap=True)


@app.command()
def run(
    through: ThroughOption = None,
    table: TableOption = None,
    scale: ScaleOption = None,
    data: DataOption = None,
    settings: SetOption = None,
    seeds: SeedsOption = "0",
    stages: StagesOption = None,
    runs: RunsOption = Path("runs"),
    name: NameOption = None,
    controls: ControlsOption = True,
    launcher: Annotated[str, typer.Option(help="inline (this process, one job after the other) or local (worker processes).")] = "inline",
    parallel: Annotated[int, typer.Option(min=1, help="local: worker processes.")] = 2,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of each process. [default: all cores, shared]")] = None,
    report: Annotated[bool, typer.Option("--report/--no-report", help="Write the reports at the end.")] = True,
) -> None:
    """Run a study; the same command again reuses what is finished and resumes what was interrupted."""
    study = _study(through, table, scale, data, settings, seeds, stages, runs, name, controls)
    _print_notes(study)
    code = _launch(study, launcher, parallel, threads)
    if report and code != EXIT_INTERRUPTED:
        _report(study.store, study.name, None)
    raise typer.Exit(code)


def _launch(study: Study, launcher: str, parallel: int, threads: int | None) -> int:
    """Bring a study's jobs to their end and return the exit code."""
    from ablation.errors import ConfigError, nearest
    from ablation.launch.inline import InlineLauncher
    from ablation.launch.local import LocalLauncher
    from ablation.launch.watch import RunWatcher
    from ablation.launch.worker import StopFlag
    from ablation.plan import decide
    from ablation.study import write_specs

    if launcher not in ("inline", "local"):
        raise ConfigError(f"unknown launcher '{launcher}'", nearest(launcher, ("inline", "local")))
    decisions = decide(study.plan, study.store)
    drifted = [job for job, decision in decisions.items() if decision.action == "stale" and study.store.state(job).name == "done"]
    if drifted:
        raise ConfigError(f"{drifted[0]} was run under other defaults: {decisions[drifted[0]].reason}", "Nothing was started.")
    write_specs(study)
    study.store.write_study(study.document(_command()))
    reused = {job for job, decision in decisions.items() if decision.action == "reuse"}
    out, stop = console(), StopFlag()
    out.print(
        f"study [bold]{study.name}[/]: {len(study.plan.jobs)} jobs ({study.plan.unshared} without sharing), {len(reused)} already done"
    )
    stop.install()
    chosen = InlineLauncher(threads) if launcher == "inline" else LocalLauncher(parallel, threads, visible_gpus())
    with RunWatcher(study.plan, out, reused) as watcher:
        outcome = chosen.run(study.plan, study.store, watcher, stop)
    if outcome.interrupted:
        out.print("[yellow]interrupted[/]: finished jobs are kept; the same command goes on from here")
        return EXIT_INTERRUPTED
    for job in outcome.failed:
        state = study.store.state(job)
        if state.name != "skipped":
            console(stderr=True).print(f"[red]{state.name}[/] {job}: {state.reason}", soft_wrap=True)
    return EXIT_JOB_FAILED if outcome.failed else EXIT_OK


def visible_gpus() -> tuple[str, ...]:
    """List the GPUs this process may use, by the names CUDA_VISIBLE_DEVICES takes."""
    import os

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return tuple(part for part in named.split(",") if part.strip())
    return tuple(str(number) for number in range(len(list(Path("/proc/driver/nvidia/gpus").glob("*")))))


def _command() -> str:
    """Return the command line as a user would type it."""
    import shlex

    return shlex.join(["ablate", *sys.argv[1:]])


@app.command()
def status(runs: RunsOption = Path("runs"), study: StudyOption = None, as_json: JsonOption = False) -> None:
    """Show how far every cell of a study is."""
    from ablation.status import cell_states
    from ablation.store import Store

    store = Store(runs)
    document = store.study(study)
    states = cell_states(store, document)
    if as_json:
        emit_json({"study": document["name"], "cells": states})
        return
    from rich.table import Table

    styles = {"done": "green", "running": "cyan", "failed": "red", "diverged": "red", "skipped": "yellow", "interrupted": "yellow"}
    table = Table(
        "cell",
        "state",
        "tokenizer",
        "encode",
        "train",
        "probe",
        "fid",
        "attempts",
        "loss",
        "probe %",
        "why",
        box=None,
        pad_edge=False,
        header_style="bold",
    )
    for cell in states:
        jobs = [
            f"[{styles.get(cell['jobs'].get(role, ''), 'dim')}]{cell['jobs'].get(role, '-')}[/]"
            for role in ("tokenizer", "encode", "train", "probe", "fid")
        ]
        table.add_row(
            cell["cell"],
            f"[{styles.get(cell['state'], 'dim')}]{cell['state']}[/]",
            *jobs,
            str(cell["attempts"]),
            _number(cell["loss"], 4),
            _number(cell["probe"], 1),
            cell["reason"],
        )
    console().print(f"study [bold]{document['name']}[/] in {store.root}", soft_wrap=True)
    console().print(table)


def _number(value: float | None, digits: int) -> str:
    """Format a number, or nothing."""
    return "" if value is None else f"{value:.{digits}f}"


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


@app.command("report")
def write_report(
    runs: RunsOption = Path("runs"),
    study: StudyOption = None,
    results: Annotated[Path | None, typer.Option(metavar="FILE", help="Read records from a results.jsonl instead of a run folder.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where to write. [default: RUNS/reports/STUDY]")] = None,
) -> None:
    """Write Tables 1 to 3 and the trajectory plot, as Markdown, CSV, LaTeX, HTML, PNG and PDF."""
    from ablation.store import Store

    if results is not None:
        from ablation.collect import read_records
        from ablation.report.build import print_and_write

        records = read_records(results)
        print_and_write(
            records,
            out or Path("reports"),
            {"command": f"ablate report --results {results}", "written": date.today().isoformat()},
            console(),
        )
        return
    _report(Store(runs), study, out)


def _report(store: Any, name: str | None, out: Path | None) -> None:
    """Collect a study's records and write its reports."""
    from ablation.collect import collect, write_records
    from ablation.report.build import print_and_write

    document = store.study(name)
    folder = out or store.root / "reports" / document["name"]
    records = collect(store, document)
    write_records(records, folder / "results.jsonl")
    print_and_write(records, folder, document, console())


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
    if as_json:
        emit_json(checks)
    else:
        marks = {"ok": "[green]ok  [/]", "note": "[yellow]note[/]", "bad": "[red]bad [/]"}
        for check in checks:
            console().print(f"{marks[check['state']]} {check['what']}: {check['found']}", soft_wrap=True, highlight=False)
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
        console().print(f"{path}  [dim]{why}[/]", soft_wrap=True)
        if yes:
            store.delete(path)
    print(f"{len(found)} {'deleted' if yes else 'found; add --yes to delete'}")


def main() -> NoReturn:
    """Run the command line and end with the documented exit code; expected errors are one line, without a traceback."""
    try:
        code = app(standalone_mode=False)
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
