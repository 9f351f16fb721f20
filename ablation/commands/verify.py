"""`ablate verify`: derive every printed number again and name each that differs."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Annotated, NoReturn

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
    bundle: Annotated[Path | None, typer.Option(metavar="FILE", help="Check an archive of `ablate bundle`, without a run folder.")] = None,
    files: Annotated[
        bool, typer.Option("--files", help="Compare the stored latents and cached images with their checksums instead.")
    ] = False,
) -> None:
    """Derive every printed number again, from the jobs' files to the reports; exit 1 naming each cell that differs."""
    if files:
        _verify_files(runs)
    if bundle is not None:
        _verify_bundle(bundle)
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


def _verify_files(runs: Path) -> NoReturn:
    """Read every file that has a checksum and name each that differs."""
    from ablation.data.verify_files import check_files
    from ablation.store import Store

    found = list(check_files(Store(runs)))
    end([wrong for _, wrong in found if wrong], [what for what, _ in found if "no checksums" in what], [f"{len(found)} files"])


def _verify_bundle(path: Path) -> NoReturn:
    """Unpack an archive aside, check its manifest, and derive everything in it again."""
    from ablation.bundle import UnpackedStore, unpack
    from ablation.results_folder import RESULTS, read_source
    from ablation.verify import check_reports, check_results_folder, check_study

    with tempfile.TemporaryDirectory(prefix="ablate-") as aside:
        folder = unpack(path, Path(aside))
        store = UnpackedStore(folder / "runs")
        document = store.study()
        results = folder / "results" / RESULTS
        source = read_source(results)
        differences = [*check_study(store, document, source), *check_results_folder(results, source)]
        wrong, notes = check_reports(source, folder / "reports")
        end([*differences, *wrong], notes, [f"the manifest, {len(document['cells'])} cells and the reports of {path}"])


def end(differences: list[str], notes: list[str], checked: list[str]) -> NoReturn:
    """Print what differs, what was not compared and what was, and exit with 0 or 1."""
    for text in differences:
        print(text)
    for text in notes:
        print(f"note: {text}")
    print(f"checked {'; '.join(checked)}: {f'{len(differences)} differences' if differences else 'everything agrees'}", file=sys.stderr)
    raise typer.Exit(EXIT_JOB_FAILED if differences else EXIT_OK)
