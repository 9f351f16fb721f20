"""Tables, pictures and one HTML page, as a pure function of result records: nothing here trains, loads or downloads.

`write_reports(records, out, footer)` writes every file; `terminal_tables(records, footer)` returns what a terminal shows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

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


def report_files(
    records: Iterable[Record], footer: Footer, images: Mapping[str, bytes] | None = None, provenance: Mapping[str, Any] | None = None
) -> dict[str, bytes]:
    """Make every file of the report in memory, by name; equal arguments give equal bytes.

    images: the small pictures kept beside the results, by file name. provenance: what made the results, beyond the footer.
    """
    # Imported here, so that `ablate --help` does not wait for matplotlib.
    from ablation.report.definitions import load_definitions
    from ablation.report.figures import Picture, versions
    from ablation.report.formats import to_csv, to_html, to_latex, to_markdown
    from ablation.report.gallery import gallery
    from ablation.report.page import page
    from ablation.report.photos import sample_strips
    from ablation.report.published import load_published
    from ablation.report.results import check_records, whole_trajectory

    checked, definitions, published = check_records(records), load_definitions(), load_published()
    tables = _tables(checked, definitions, published, footer)
    files: dict[str, bytes] = {"versions.json": versions().encode()}
    for table in tables:
        for kind, write in (("md", to_markdown), ("csv", to_csv), ("tex", to_latex), ("html", to_html)):
            files[f"{table.file_name}.{kind}"] = write(table).encode()
    rows = whole_trajectory(tuple(record for record in checked if record["state"] != "impossible"), definitions)
    figures = gallery(checked, rows, tables, definitions, published, images or {})
    for picture in figures:
        if isinstance(picture, Picture):
            files.update({f"{picture.name}.{kind}": content for kind, content in picture.files.items()})
    strips = sample_strips(rows, images or {})
    files["index.html"] = page(checked, tables, rows, figures, strips, published, footer, provenance or {}).encode()
    return files


def write_reports(
    records: Iterable[Record],
    out: Path,
    footer: Footer,
    images: Mapping[str, bytes] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Write every table (md, csv, tex, html), every figure that there is (png, pdf and its data), and index.html.

    Every file is written beside its place and renamed into it, so that a reader never sees half of one.
    """
    files = report_files(records, footer, images, provenance)
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
