"""A table as data: records and a definition in, a frozen `Table` out; `formats` only spells it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ablation.report.cells import LABELS_MARK, NOTHING, Cell, Footnotes, change_cell, entry_notes, measure_cell, published_cell
from ablation.report.definitions import ColumnDefinition, TableDefinition, ladder_rows
from ablation.report.measures import measure, shared_fields_differ
from ablation.report.notes import caption, comparability, footer_lines, image_notes, paper_sentence, same_scale
from ablation.report.published import Entry, Published
from ablation.report.results import Footer, Record, Row, control_rows, grid_row, ladder, setting, with_seeds

CHANGE_NOTE = "Changes are taken on common seeds only, with Student's 95 % interval from two seeds on."


NAMES = {"step_tests": "Step tests", "same_images": "Same images", "designs": "Designs"}
"""Tables that the paper has no number for."""


@dataclass(frozen=True)
class Column:
    """One column's name (for programs) and title (for readers)."""

    name: str
    title: str
    numeric: bool = True
    numbers: tuple[str, ...] = ()


@dataclass(frozen=True)
class TableRow:
    """One line of a table; labels_used lines are the paper's grey ones."""

    kind: Literal["step", "control", "paper"]
    cells: tuple[Cell, ...]
    stage: str | None = None
    labels_used: bool = False


@dataclass(frozen=True)
class Table:
    """A finished table: nothing in it depends on the format it will be written in."""

    number: str
    title: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[TableRow, ...]
    notes: tuple[tuple[str, str], ...]  # mark ("" for a general note), text
    footer: tuple[str, ...]

    @property
    def label(self) -> str:
        """What the table is called: by its number in the paper, by its own name, or as the study of a name."""
        return f"Table {self.number}" if self.number.isdecimal() else NAMES.get(self.number, f"Study {self.number}")

    @property
    def file_name(self) -> str:
        """The name of its files and of its place on the page, without an ending."""
        return f"table{self.number}" if self.number.isdecimal() else self.number

    def row(self, stage: str, kind: str = "step") -> TableRow:
        """Return the row of a stage (or of a control, by its title)."""
        return next(row for row in self.rows if row.kind == kind and row.stage == stage)

    def cell(self, stage: str, column: str, kind: str = "step") -> Cell:
        """Return one cell by its stage and its column's name."""
        names = [column.name for column in self.columns]
        return self.row(stage, kind).cells[names.index(column)]


def ladder_table(
    records: Sequence[Record], definitions: tuple[TableDefinition, ...], number: str, published: Published, footer: Footer
) -> Table:
    """Build Table 1 or 3: stages down, measures across, reference lines below."""
    definition = next(one for one in definitions if one.table == number)
    rows = ladder(records, definition, [row.stage for row in ladder_rows(definitions)])
    controls = control_rows(records, definition)
    used = [record for row in (*rows, *controls) for record in row.records]
    definition = with_evaluations(definition, used)
    notes = Footnotes()
    body = [
        TableRow(
            "step" if row.stage else "control",
            tuple(_ladder_cell(column, row, rows, definition.table, records, published, notes) for column in definition.columns),
            row.stage or row.control,
            row.labels_used,
        )
        for row in (*rows, *controls)
    ]
    columns = tuple(
        Column(column.name, _title(column, used), column.kind in ("metric", "change", "published"), _numbers_of(column.kind))
        for column in definition.columns
    )
    marked = [(mark, text) for text, mark in notes.texts.items()]
    labels = [
        (
            LABELS_MARK,
            "Labels used: class labels enter training somewhere, so the row is not self-supervised (grey in the paper).",
        )
    ]
    general = [("", text) for text in (CHANGE_NOTE, *image_notes(used), paper_sentence(used, published))]
    return Table(
        number, definition.title, caption(definition, used, records), columns, tuple(body),
        tuple((labels if any(row.labels_used for row in body) else []) + marked + general), footer_lines(used, footer, records),
    )  # fmt: skip


def with_evaluations(definition: TableDefinition, used: Sequence[Record]) -> TableDefinition:
    """Add a column for each metric of further evaluations (NAME.METRIC) that a record has, after the last measured one.

    Its title is what the evaluation calls it, else its name.
    """
    titles: dict[str, str] = {}
    for record in used:
        for metric in record["metrics"]:
            name, dot, which = metric.partition(".")
            if dot:
                titles[metric] = str(record["protocol"].get(f"{name}.title {which}", f"{name}: {which}".replace("_", " ")))
    if not titles:
        return definition
    own = tuple(ColumnDefinition(name=metric, kind="metric", metric=metric, title=titles[metric]) for metric in sorted(titles))
    place = 1 + max(index for index, column in enumerate(definition.columns) if column.kind in ("title", "metric", "change"))
    return definition.model_copy(update={"columns": (*definition.columns[:place], *own, *definition.columns[place:])})


def _numbers_of(kind: str) -> tuple[str, ...]:
    """Name the numbers that stand behind the cells of a kind of column."""
    return {
        "metric": ("mean", "sd", "n", "planned"),
        "change": ("mean", "low", "high", "n"),
        "published": ("value", "change"),
    }.get(kind, ())


def _title(column: ColumnDefinition, used: Sequence[Record]) -> str:
    """Title a column, a distance by the name its protocol gives it."""
    if column.titled_by is None:
        return column.title
    labels = _distance_labels(column, used)
    return f"{labels[0]} ↓" if len(labels) == 1 else column.title


def _distance_labels(column: ColumnDefinition, used: Sequence[Record]) -> list[str]:
    measured = (record for record in used if record["metrics"].get(str(column.metric)) is not None)
    return sorted({str(record["protocol"][column.titled_by]) for record in measured})


def _ladder_cell(
    column: ColumnDefinition,
    row: Row,
    rows: Sequence[Row],
    table: str,
    records: Sequence[Record],
    published: Published,
    notes: Footnotes,
) -> Cell:
    """Fill one cell according to its column's kind."""
    control = row.stage is None
    if column.kind == "title":
        remarks = sorted({str(what) for record in row.records for what in record["incomparable"]})
        marks = notes.marks([f"Not comparable with the row before: {', '.join(remarks)}."] if remarks else [])
        if control and (fields := shared_fields_differ(row, rows)):
            marks += notes.marks([f"Measured under another protocol than the rows above: {', '.join(fields)}."])
        if row.plugin:
            marks += notes.marks([f"Stage {row.stage} comes from a plugin."])
        return Cell(row.title, "shown", (), ((LABELS_MARK,) if row.labels_used else ()) + marks)
    if column.kind == "metric":
        cell = measure_cell(row, str(column.metric), notes)
        if column.titled_by and len(_distance_labels(column, [r for other in rows for r in other.records])) > 1 and cell.state == "shown":
            marks = notes.marks([f"Measured as {label}." for label in _distance_labels(column, row.records)])
            return Cell(cell.text, cell.state, cell.numbers, cell.marks + marks)
        return cell
    if column.kind == "change":
        return Cell(NOTHING, "none") if control else change_cell(row, rows, str(column.metric))
    if column.kind == "published":
        return Cell(NOTHING, "none") if control else published_cell(table, row, column, published, notes)
    entry = published.find(table, row.stage, str(column.metric))
    return Cell(*comparability(row, measure(row, str(column.metric)), entry, published, records))


def grid_table(records: Sequence[Record], definitions: tuple[TableDefinition, ...], published: Published, footer: Footer) -> Table:
    """Build Table 2: tokenizers down, latent dimensions across, the paper's line below each of ours."""
    definition = next(one for one in definitions if one.kind == "grid")
    stages = {row.stage for row in definition.rows}
    found = {setting(r, str(definition.setting)) for r in records if r["stage"] in stages} - {None}
    wanted = {row.stage: row for row in definition.rows}
    # A value that nobody asked the table for still shows, once a result exists.
    extra = {value for value in found if any(grid_row(records, definition, row, value).records for row in wanted.values())}
    values = sorted(set(definition.values) | extra)
    notes, body, used = Footnotes(), [], list[Record]()
    finished = [record for record in records if record["stage"] in stages and record["state"] == "done"]
    comparable = same_scale(finished, published.contexts["main"].requires, records)
    source = Cell("paper") if comparable else Cell("paper, other scale", "other scale")
    grid = with_seeds([grid_row(records, definition, row, value) for row in definition.rows for value in values])
    for place, row in enumerate(definition.rows):
        cells = dict(zip(values, grid[place * len(values) :], strict=False))
        used += [record for cell in cells.values() for record in cell.records]
        title = Cell(row.title, "shown", (), (LABELS_MARK,) if any(cell.labels_used for cell in cells.values()) else ())
        ours = tuple(_grid_cell(cells[value], row.stage, value, records, str(definition.metric), notes) for value in values)
        body.append(TableRow("step", (title, Cell("here"), *ours), row.stage, bool(title.marks)))
        theirs = tuple(_grid_paper(published.find("2", row.stage, str(value)), notes) for value in values)
        body.append(TableRow("paper", (Cell(row.title), source, *theirs), row.stage))
    numbers = ("mean", "sd", "n", "planned", "value")
    dims = (Column(f"d{value}", f"d = {value}", True, numbers) for value in values)
    columns = (Column("tokenizer", "Tokenizer", False), Column("source", "Source", False), *dims)
    labels = [(LABELS_MARK, "Labels used: class labels enter training somewhere.")] if any(row.labels_used for row in body) else []
    marked = [(mark, text) for text, mark in notes.texts.items()]
    general = [("", text) for text in (*image_notes(used), paper_sentence(used, published))]
    said, made = tuple(labels + marked + general), footer_lines(used, footer, records)
    return Table(definition.table, definition.title, caption(definition, used, records), columns, tuple(body), said, made)


def _grid_paper(entry: Entry | None, notes: Footnotes) -> Cell:
    if entry is None:
        return Cell("not in the paper", "none")
    return Cell(entry.text, "shown", (("value", entry.value),), notes.marks(entry_notes(entry)))


def _grid_cell(row: Row, stage: str, value: int, records: Sequence[Record], metric: str, notes: Footnotes) -> Cell:
    """Fill one cell of Table 2: a result, 'not run', or 'n/a' where no such tokenizer can exist."""
    if not row.records and (reason := infeasible(stage, value, records)):
        return Cell("n/a", "not possible", (), notes.marks([reason]))
    return measure_cell(row, metric, notes)


def infeasible(stage: str, latent_dim: int, records: Sequence[Record]) -> str:
    """Say why a tokenizer cannot have a latent dimension at the study's sizes, or return an empty string."""
    ours = [record for record in records if record["stage"] == stage and "tokenizer" in record["config"]]
    others = [record for record in records if record["stage"] is not None and "tokenizer" in record["config"]]
    if not (ours or others):
        return ""
    tokenizer: Mapping[str, Any] = (ours or others)[0]["config"]["tokenizer"]
    patch_size = tokenizer.get("patch_size")
    if patch_size is None:
        return ""
    if stage in ("patch_vae", "patch_ae", "patch_pca") and latent_dim > 3 * patch_size**2:
        return f"A {patch_size} x {patch_size} patch has {3 * patch_size**2} numbers, so no patch tokenizer can have d above that."
    stride = tokenizer.get("stride")
    if stage == "linear_gamma_schedule" and ours and stride and latent_dim % (patch_size // stride) ** 2:
        return f"A conv token groups {(patch_size // stride) ** 2} latent pixels, so d must be a multiple of that."
    return ""
