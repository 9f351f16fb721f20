"""Write a study's reports and show its tables in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from ablation.report import terminal_tables, write_reports
from ablation.report.results import Footer, Record


def footer_of(records: Sequence[Record], document: Mapping[str, Any]) -> Footer:
    """Say what made the numbers: the study's command and date, the commit the jobs ran, and the keys of the jobs."""
    done = [record for record in records if record["code"]]
    commits = sorted({record["code"]["commit"] for record in done if record["code"]["commit"]})
    return Footer(
        command=document["command"],
        commit=", ".join(commits),
        dirty=any(record["code"]["dirty"] for record in done),
        date=document["written"],
        keys=sorted({key for record in records for key in record["jobs"].values()}),
    )


def print_and_write(
    records: Sequence[Record], folder: Path, document: Mapping[str, Any], images: Mapping[str, bytes], console: Console
) -> None:
    """Print the tables, write every format to a folder, and say where they are."""
    footer = footer_of(records, document)
    for table in terminal_tables(records, footer):
        console.print(table)
    written = write_reports(records, folder, footer, images, document)
    console.print(f"\n{len(written)} files in {folder.resolve()}", soft_wrap=True, highlight=False)
    page = next((path for path in written if path.name == "index.html"), None)
    if page is not None:
        console.print(f"open {page.resolve()}", soft_wrap=True, highlight=False)
