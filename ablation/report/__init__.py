"""Tables, pictures and one HTML page, as a pure function of result records: nothing here trains, loads or downloads.

`write_reports(records, out, footer)` writes every file; `terminal_tables(records, footer)` returns what a terminal shows.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ablation.report.results import Footer, Record, study_settings

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ablation.report.definitions import TableDefinition
    from ablation.report.published import Published
    from ablation.report.tables import Table

__all__ = ["Footer", "Record", "all_tables", "report_files", "terminal_tables", "write_reports"]


def all_tables(records: Iterable[Record], footer: Footer) -> tuple[Table, ...]:
    """Build Tables 1 to 3, the tests of the steps and the ready studies; raises ConfigError on several scales or an unknown schema."""
    from ablation.report.definitions import load_definitions
    from ablation.report.published import load_published
    from ablation.report.results import check_records

    return _tables(check_records(records), load_definitions(), load_published(), footer)


def _tables(
    checked: tuple[Record, ...], definitions: tuple[TableDefinition, ...], published: Published, footer: Footer
) -> tuple[Table, ...]:
    """Build the tables of checked records: the paper's three, the tests of their steps, and every ready study a record belongs to."""
    from ablation.report.definitions import load_steps_definition
    from ablation.report.design_tables import design_tables
    from ablation.report.step_tables import step_tables
    from ablation.report.sweeps import sweep_table, sweeps_of
    from ablation.report.tables import grid_table, ladder_table

    possible = tuple(record for record in checked if record["state"] != "impossible")
    sweeps = sweeps_of(checked)
    numbered = [
        grid_table(possible, definitions, published, footer)
        if one.kind == "grid"
        else ladder_table(possible, definitions, one.table, published, footer)
        for one in definitions
        if not sweeps or _has_rows(possible, one)
    ]
    ladder = any(table.number in ("1", "3") for table in numbered)
    steps = load_steps_definition()
    tests = step_tables(possible, definitions, steps, published, footer) if ladder else ()
    return (
        *numbered,
        *tests,
        *design_tables(possible, definitions, steps, footer),
        *(sweep_table(sweep, published, footer) for sweep in sweeps),
    )


def _has_rows(records: tuple[Record, ...], definition: TableDefinition) -> bool:
    """Say whether a study that was asked for another table fills more than one cell of this one."""
    stages = {row.stage for row in definition.rows}
    setting = {definition.setting} if definition.setting else set()
    shared = set(study_settings(records))
    found = {(record["stage"], str(record["overrides"])) for record in records
             if record["stage"] in stages and set(record["overrides"]) <= setting | shared}  # fmt: skip
    return len(found) > 1


def terminal_tables(records: Iterable[Record], footer: Footer) -> list[RenderableType]:
    """Return the tables for `rich` to print, then once what they all say below them."""
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
    from ablation.report.curves import curves_csv, curves_figure, sweep_csv, sweep_figure
    from ablation.report.definitions import load_definitions
    from ablation.report.figures import render, versions
    from ablation.report.formats import to_csv, to_html, to_latex, to_markdown
    from ablation.report.page import Picture, page
    from ablation.report.published import load_published
    from ablation.report.results import check_records, control_rows, whole_trajectory
    from ablation.report.sweeps import sweeps_of
    from ablation.report.trajectory import trajectory_csv, trajectory_figure, trajectory_steps, trajectory_words

    checked, definitions, published = check_records(records), load_definitions(), load_published()
    tables = _tables(checked, definitions, published, footer)
    files: dict[str, bytes] = {}
    for table in tables:
        for kind, write in (("md", to_markdown), ("csv", to_csv), ("tex", to_latex), ("html", to_html)):
            files[f"{table.file_name}.{kind}"] = write(table).encode()

    def picture(name: str, drawn: dict[str, bytes], data: str) -> bytes:
        files.update({f"{name}.{kind}": content for kind, content in drawn.items()})
        files[f"{name}.csv"] = data.encode()
        return drawn["png"]

    sweeps, possible = sweeps_of(checked), tuple(record for record in checked if record["state"] != "impossible")
    steps = trajectory_steps(possible, definitions, published)
    shown: list[Picture] = []
    if not sweeps or any(table.number in ("1", "3") for table in tables):
        data = trajectory_csv(steps, control_rows(possible, definitions[0]))
        drawn = render(trajectory_figure(possible, definitions, published))
        shown = [Picture("trajectory", *trajectory_words(steps), picture("trajectory", drawn, data), data)]
    grid = next((table for table in tables if table.number == "2"), None)
    if grid is not None and (figure := curves_figure(grid, possible, published)) is not None:
        words = (
            "Latent dimension",
            "Linear-probe accuracy against latent dimension, one curve per tokenizer, this study left and the paper right; "
            "the same numbers stand in Table 2.",
            "Bars are one standard deviation over seeds; curves are moved sideways a little so that bars do not hide each other.",
        )
        data = curves_csv(grid)
        shown.append(Picture("latent_dim", *words, picture("latent_dim", render(figure), data), data))
    files["versions.json"] = versions().encode()
    for sweep in sweeps:
        if (figure := sweep_figure(sweep, published)) is not None:
            name, data = f"{sweep.definition.table}_curve", sweep_csv(sweep, published)
            words = (
                sweep.definition.title,
                f"Curves of the study {sweep.definition.table}: {sweep.definition.about}. The same numbers stand in its table.",
                "Bars are one standard deviation over seeds.",
            )
            shown.append(Picture(name, *words, picture(name, render(figure), data), data))
    whole = whole_trajectory(possible, definitions)
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
