"""`ablate report`: the reports of a study, from its run folder or from its results file alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ablation.options import RunsOption, StudyOption
from ablation.terminal import console


def write_report(
    runs: RunsOption = Path("runs"),
    study: StudyOption = None,
    results: Annotated[Path | None, typer.Option(metavar="FILE", help="Read records from a results.jsonl instead of a run folder.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where to write. [default: RUNS/reports/STUDY]")] = None,
) -> None:
    """Write every table and figure and the page, as Markdown, CSV, LaTeX, HTML, PNG and PDF."""
    from ablation.report.build import print_and_write
    from ablation.results_folder import PROVENANCE, read_source
    from ablation.store import Store, write_json

    if results is None:
        write_study_report(Store(runs), study, out)
        return
    folder = out or Path("reports")
    source = read_source(results)
    if not (results.parent / PROVENANCE).is_file():  # so that `ablate verify` can make the same report again
        write_json(folder / PROVENANCE, dict(source.provenance))
    print_and_write(source.records, folder, source.provenance, source.images, console())


def write_study_report(store: Any, name: str | None, out: Path | None) -> None:
    """Collect a study's records and write its reports beside them."""
    from ablation.pictures import make_pictures  # loads torch
    from ablation.report.build import print_and_write
    from ablation.results_folder import gather

    document = store.study(name)
    folder = out or store.root / "reports" / document["name"]
    source = gather(store, document, folder, make_pictures(store, document))
    print_and_write(source.records, folder, source.provenance, source.images, console())
