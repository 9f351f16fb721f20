"""Tables, pictures and one HTML page, as a pure function of result records: nothing here trains, loads or downloads.

`write_reports(records, out, footer)` writes every file; `terminal_tables(records, footer)` returns what a terminal shows.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ablation.report.results import Footer, Record

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ablation.report.definitions import TableDefinition
    from ablation.report.published import Published
    from ablation.report.tables import Table

__all__ = ["Footer", "Record", "all_tables", "report_files", "terminal_tables", "write_reports"]


def all_tables(records: Iterable[Record], footer: Footer) -> tuple[Table, ...]:
    """Build Tables 1 to 3; raises ConfigError on records of several scales or of an unknown schema."""
    from ablation.report.definitions import load_definitions
    from ablation.report.published import load_published
    from ablation.report.results import check_records

    return _tables(check_records(records), load_definitions(), load_published(), footer)


def _tables(
    checked: tuple[Record, ...], definitions: tuple[TableDefinition, ...], published: Published, footer: Footer
) -> tuple[Table, ...]:
    """Build the tables of checked records."""
    from ablation.report.tables import grid_table, ladder_table

    return tuple(
        grid_table(checked, definitions, published, footer)
        if one.kind == "grid"
        else ladder_table(checked, definitions, one.table, published, footer)
        for one in definitions
    )


def terminal_tables(records: Iterable[Record], footer: Footer) -> list[RenderableType]:
    """Return the three tables for `rich` to print, then once what they all say below them."""
    from rich.text import Text

    from ablation.report.formats import to_terminal

    tables = all_tables(records, footer)
    below = [
        [text for mark, text in table.notes if not mark] + [t for t in table.footer if not t.startswith("Run keys")] for table in tables
    ]
    shared = [text for text in below[0] if all(text in lines for lines in below)]
    return [*(to_terminal(table, frozenset(shared)) for table in tables), *(Text(text, style="dim") for text in shared)]


def report_files(records: Iterable[Record], footer: Footer) -> dict[str, bytes]:
    """Make every file of the report in memory, by name; equal records and footer give equal bytes."""
    # Imported here, so that `ablate --help` does not wait for matplotlib.
    from ablation.report.curves import curves_csv, curves_figure
    from ablation.report.definitions import load_definitions
    from ablation.report.figures import render, versions
    from ablation.report.formats import to_csv, to_html, to_latex, to_markdown
    from ablation.report.page import Picture, page
    from ablation.report.published import load_published
    from ablation.report.results import check_records, control_rows, whole_trajectory
    from ablation.report.trajectory import trajectory_csv, trajectory_figure, trajectory_steps, trajectory_words

    checked, definitions, published = check_records(records), load_definitions(), load_published()
    tables = _tables(checked, definitions, published, footer)
    files: dict[str, bytes] = {}
    for table in tables:
        for kind, write in (("md", to_markdown), ("csv", to_csv), ("tex", to_latex), ("html", to_html)):
            files[f"table{table.number}.{kind}"] = write(table).encode()

    def picture(name: str, drawn: dict[str, bytes], data: str) -> bytes:
        files.update({f"{name}.{kind}": content for kind, content in drawn.items()})
        files[f"{name}.csv"] = data.encode()
        return drawn["png"]

    steps = trajectory_steps(checked, definitions, published)
    data = trajectory_csv(steps, control_rows(checked, definitions[0]))
    drawn = render(trajectory_figure(checked, definitions, published))
    shown = [Picture("trajectory", *trajectory_words(steps), picture("trajectory", drawn, data), data)]
    grid = next(table for table, one in zip(tables, definitions, strict=True) if one.kind == "grid")
    if (figure := curves_figure(grid, checked, published)) is not None:
        words = (
            "Latent dimension",
            "Linear-probe accuracy against latent dimension, one curve per tokenizer, this study left and the paper right; "
            "the same numbers stand in Table 2.",
            "Bars are one standard deviation over seeds; curves are moved sideways a little so that bars do not hide each other.",
        )
        data = curves_csv(grid)
        shown.append(Picture("latent_dim", *words, picture("latent_dim", render(figure), data), data))
    files["versions.json"] = versions().encode()
    whole = whole_trajectory(checked, definitions)
    files["index.html"] = page(checked, tables, whole, shown, published, footer).encode()
    return files


def write_reports(records: Iterable[Record], out: Path, footer: Footer) -> list[Path]:
    """Write table1..3 (md, csv, tex, html), trajectory (png, pdf, csv), index.html and, with two cells of a row, latent_dim.

    Every file is written beside its place and renamed into it, so that a reader never sees half of one.
    """
    files = report_files(records, footer)
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, content in sorted(files.items()):
        _write(out / name, content)
        paths.append(out / name)
    return paths


def _write(path: Path, content: bytes) -> None:
    """Replace a file atomically: temporary file in the same folder, flush to disk, rename."""
    import os
    import tempfile

    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
