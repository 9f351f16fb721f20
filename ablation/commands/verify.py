"""`ablate verify`: derive every printed number again and name each that differs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ablation.errors import EXIT_JOB_FAILED, EXIT_OK, ConfigError
from ablation.options import RunsOption, StudyOption


def verify(
    runs: RunsOption = Path("runs"),
    study: StudyOption = None,
    results: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Check reports against this results.jsonl, without a run folder.")
    ] = None,
    reports: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The folder of reports. [default: RUNS/reports/STUDY, or FILE's folder]")
    ] = None,
) -> None:
    """Derive every printed number again, from the jobs' files to the reports; exit 1 naming each cell that differs."""
    from ablation.results_folder import RESULTS, read_source
    from ablation.store import Store
    from ablation.verify import check_reports, check_results_folder, check_study

    checked = []
    if results is None:
        store = Store(runs)
        document = store.study(study)
        folder = reports or store.root / "reports" / document["name"]
        results = folder / RESULTS
        if not results.is_file():
            raise ConfigError(f"{results} does not exist", "Write the reports first: ablate report.")
        source = read_source(results)
        differences = check_study(store, document, source)
        checked.append(f"{len(document['cells'])} cells against their jobs in {store.root}")
    else:
        folder = reports or results.parent
        source = read_source(results, folder)
        differences = []
    differences += check_results_folder(results, source)
    wrong, notes = check_reports(source, folder)
    differences += wrong
    checked.append(f"{len(source.records)} records against the reports in {folder}")
    end(differences, notes, checked)


def end(differences: list[str], notes: list[str], checked: list[str]) -> None:
    """Print what differs, what was not compared and what was, and exit with 0 or 1."""
    for text in differences:
        print(text)
    for text in notes:
        print(f"note: {text}")
    print(f"checked {'; '.join(checked)}: {f'{len(differences)} differences' if differences else 'everything agrees'}", file=sys.stderr)
    raise typer.Exit(EXIT_JOB_FAILED if differences else EXIT_OK)
