"""`ablate bundle`: one archive of a study that another machine checks with `ablate verify --bundle`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ablation.errors import EXIT_JOB_FAILED, ConfigError
from ablation.options import RunsOption, StudyOption


def bundle(
    out: Annotated[Path, typer.Option("--out", metavar="FILE.tar.gz", help="The archive to write.")],
    runs: RunsOption = Path("runs"),
    study: StudyOption = None,
    weights: Annotated[bool, typer.Option("--weights", help="Also pack the trained networks and tokenizers.")] = False,
) -> None:
    """Pack a study's results, reports, evidence, configurations, commands, versions and code reference, with checksums."""
    from ablation.bundle import bundle_content, write_bundle
    from ablation.results_folder import RESULTS, read_source, report_of
    from ablation.store import Store
    from ablation.verify import check_results_folder, check_study

    if not out.name.endswith((".tar.gz", ".tgz")):
        raise ConfigError(f"--out {out} is no archive", "Give a name that ends in .tar.gz.")
    store = Store(runs)
    document = store.study(study)
    results = store.root / "reports" / document["name"] / RESULTS
    if not results.is_file():
        raise ConfigError(f"{results} does not exist", "Write the reports first: ablate report.")
    source = read_source(results)
    if differences := [*check_study(store, document, source), *check_results_folder(results, source)]:
        for text in differences:
            print(text)
        print(f"not packed: {len(differences)} differences between results and jobs; `ablate report` writes them again", file=sys.stderr)
        raise typer.Exit(EXIT_JOB_FAILED)
    files = bundle_content(store, document, source, report_of(source), weights)
    size = write_bundle(files, document["name"], out)
    print(f"{out}: {len(files)} files, {size / 2**20:.1f} MiB; check it anywhere with: ablate verify --bundle {out.name}")
