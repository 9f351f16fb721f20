"""Ready studies as tables: records that name their place in a study, its definition in, a `Table` out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ablation.report.cells import LABELS_MARK, NOTHING, Cell, Footnotes, entry_notes, measure_cell, signed
from ablation.report.intervals import mean, paired_change
from ablation.report.measures import differing_fields, measure
from ablation.report.notes import comparability, footer_lines, image_notes, paper_sentence, scale_of
from ablation.report.published import Published
from ablation.report.results import Footer, Record, Row, control_lines, pick_seeds
from ablation.report.sweep_definitions import SweepColumn, SweepDefinition, SweepRow, Variant, load_sweep, sweep_names
from ablation.report.tables import CHANGE_NOTE, Column, Table, TableRow

COUNTED = "mean ± standard deviation over seeds (finished/planned seeds)"
NUMBERS = {"metric": ("mean", "sd", "n", "planned"), "reference": ("mean", "sd", "n", "planned"), "published": ("value",)}
NONE = Cell(NOTHING, "none")


@dataclass(frozen=True)
class Spot:
    """One row and variant of a study with what was measured there; reason says why it cannot exist at this scale."""

    row: SweepRow
    variant: Variant
    title: str
    paper: str
    x: float | None
    measured: Row
    reason: str

    @property
    def name(self) -> str:
        """The spot's name for programs."""
        return f"{self.row.name}/{self.variant.name}"


@dataclass(frozen=True)
class Sweep:
    """A study's definition with its spots filled from records."""

    definition: SweepDefinition
    spots: tuple[Spot, ...]
    records: tuple[Record, ...]  # all of the report's, for what they share

    @property
    def used(self) -> list[Record]:
        """The records of the study's own spots."""
        return [record for spot in self.spots for record in spot.measured.records]

    def of_row(self, row: SweepRow) -> list[Spot]:
        """Return a row's spots in the order of the variants."""
        return [spot for spot in self.spots if spot.row.name == row.name]

    def reference(self, spot: Spot) -> Spot | None:
        """Return the spot that a spot's change is taken from: the reference variant of its row, or else of any row."""
        candidates = [other for other in self.spots if other.variant.name == self.definition.reference]
        return next((other for other in candidates if other.row.name == spot.row.name), candidates[0] if candidates else None)


def sweeps_of(records: Sequence[Record]) -> tuple[Sweep, ...]:
    """Fill every ready study that a record has a place in, and those that probed checkpoints belong to."""
    named = {place["table"] for record in records for place in record.get("places", [])}
    checkpoints = any(record["control"] == "checkpoint" for record in records)
    definitions = (load_sweep(name) for name in sweep_names() if checkpoints or name in named)
    return tuple(fill(one, records) for one in definitions if one.table in named or one.checkpoints)


def fill(definition: SweepDefinition, records: Sequence[Record]) -> Sweep:
    """Sort records into a study's spots; a spot without any is 'not run'."""
    found: dict[tuple[str, str], list[Record]] = {}
    places: dict[tuple[str, str], Mapping[str, object]] = {}
    for record in records:
        for place in record.get("places", []):
            if place["table"] == definition.table:
                key = (place["row"], place["column"])
                found.setdefault(key, []).append(record)
                places.setdefault(key, place)
    seeds = tuple(sorted({record["seed"] for group in found.values() for record in group}))
    spots = []
    for row, variant in definition.pairs():
        group, place = found.get((row.name, variant.name), []), places.get((row.name, variant.name), {})
        possible = [record for record in group if record["state"] != "impossible"]
        reason = "" if possible or not group else str(group[0]["reason"])
        picked, complaint = pick_seeds(possible)
        labels = any(record["labels_used"] for record in picked) if picked else row.labels_used
        measured = Row(row.title, row.stage, None, None, picked, labels, False, complaint, seeds)
        title = str(place.get("title", variant.otherwise or variant.name if "{" in variant.title else variant.title))
        x = place.get("x", variant.x)
        position = float(x) if isinstance(x, int | float) else None
        spots.append(Spot(row, variant, title, str(place.get("paper", variant.paper or variant.name)), position, measured, reason))
    return Sweep(definition, tuple(spots), tuple(record for record in records if record["state"] != "impossible"))


def sweep_table(sweep: Sweep, published: Published, footer: Footer) -> Table:
    """Build a study's table in the layout its definition asks for."""
    notes = Footnotes()
    if sweep.definition.layout == "best":
        columns, rows = _best(sweep, notes)
    else:
        columns, rows = (_grid if sweep.definition.layout == "grid" else _list)(sweep, published, notes)
    controls = [*control_lines(sweep.records, sweep.definition.control_lines), *_checkpoint_rows(sweep)]
    used = [*sweep.used, *(record for row in controls for record in row.records)]
    rows += _cited(sweep, published, notes) + [_control_line(row, sweep, notes) for row in controls]
    columns = [replace(column, title=_titled(sweep, column, used)) for column in columns]
    marked = [(mark, text) for text, mark in notes.texts.items()]
    labels = [(LABELS_MARK, "Labels used: class labels enter training somewhere.")] if any(row.labels_used for row in rows) else []
    changes = [CHANGE_NOTE] if any(column.kind == "change" for column in sweep.definition.columns) else []
    general = [
        ("", text)
        for text in (
            *sweep.definition.notes,
            *changes,
            *image_notes(used),
            paper_sentence(sweep.used, published, _context(sweep, published)),
        )
    ]
    return Table(
        sweep.definition.table, sweep.definition.title, _caption(sweep), tuple(columns), tuple(rows), tuple(labels + marked + general),
        footer_lines(used, footer, sweep.records),
    )  # fmt: skip


def _context(sweep: Sweep, published: Published) -> str:
    """Name the conditions under which the paper has the numbers of this study; the main table's where it has none."""
    return next((entry.context for entry in reversed(published.entries) if entry.table == sweep.definition.paper_table), "main")


def _caption(sweep: Sweep) -> str:
    """Say what the table shows, at which scale, and how to fill what is not run."""
    scale = scale_of(sweep.used or sweep.records)
    warning = f"Results at {scale} scale; numbers at this scale are not comparable with the paper's."
    if scale == "paper":
        warning = "Results at paper scale; the last column, or the note below, says whether the protocol is the paper's."
    return f"{sweep.definition.about}; {COUNTED}. {warning} Fill what is not run with: {sweep.definition.command}"


def _titled(sweep: Sweep, column: Column, used: Sequence[Record]) -> str:
    """Title a distance by the name its protocol gives it, where there is one."""
    found = next((one for one in sweep.definition.columns if one.name == column.name), None)
    if found is None or found.titled_by is None:
        return column.title
    measured = [record for record in used if record["metrics"].get(str(found.metric)) is not None]
    labels = sorted({str(record["protocol"][found.titled_by]) for record in measured})
    return f"{labels[0]} ↓" if len(labels) == 1 else column.title


def _columns(sweep: Sweep) -> list[Column]:
    """Turn the definition's columns into the table's."""
    words = ("title", "variant", "comparability")
    return [
        Column(
            one.name, one.title, one.kind not in words, ("mean", "low", "high", "n") if one.kind == "change" else NUMBERS.get(one.kind, ())
        )
        for one in sweep.definition.columns
    ]


def _list(sweep: Sweep, published: Published, notes: Footnotes) -> tuple[list[Column], list[TableRow]]:
    """Write one line per row and variant."""
    rows = [
        TableRow("step", tuple(_cell(column, spot, sweep, published, notes) for column in sweep.definition.columns), spot.name,
                 spot.measured.labels_used)
        for spot in sweep.spots
    ]  # fmt: skip
    return _columns(sweep), rows


def _cell(column: SweepColumn, spot: Spot, sweep: Sweep, published: Published, notes: Footnotes) -> Cell:
    """Fill one cell of a line."""
    if column.kind == "title":
        return Cell(spot.row.title, "shown", (), (LABELS_MARK,) if spot.measured.labels_used else ())
    if column.kind == "variant":
        return Cell(spot.title)
    if column.kind == "published":
        return _paper_cell(sweep, spot.row.name, spot.paper, published, notes)
    if spot.reason and column.kind != "metric":
        return NONE
    if spot.reason:
        return Cell("n/a", "not possible", (), notes.marks([f"Not possible at this scale: {spot.reason}."]))
    if column.kind == "metric":
        return measure_cell(spot.measured, str(column.metric), notes)
    if column.kind == "change":
        return _change(spot, sweep, str(column.metric))
    entry = published.find(sweep.definition.paper_table, spot.row.name, spot.paper)
    return Cell(*comparability(spot.measured, measure(spot.measured, str(column.metric)), entry, published, sweep.records))


def _change(spot: Spot, sweep: Sweep, metric: str, reference: Spot | None = None) -> Cell:
    """Fill the change from the reference variant on common seeds; fields that the study moves on purpose may differ."""
    reference = reference or sweep.reference(spot)
    if reference is None or reference is spot:
        return NONE
    before, after = measure(reference.measured, metric), measure(spot.measured, metric)
    for found, what in ((after, ""), (before, f"{reference.title} ")):
        if found.withheld or not found.values:
            return Cell(f"withheld: {found.withheld or what + found.state}", "withheld")
    change = paired_change(before.values, after.values)
    if change is None:
        return Cell("withheld: no common seed", "withheld")
    records = [record for one in (reference, spot) for record in one.measured.records if record["seed"] in change.seeds]
    fields = [field for field in differing_fields(records, metric) if field not in sweep.definition.varies]
    if fields:
        return Cell(f"withheld: {', '.join(fields)} differ{'s' if len(fields) == 1 else ''}", "withheld")
    numbers = (("mean", change.mean), ("low", change.low), ("high", change.high), ("n", len(change.seeds)))
    interval = "" if change.low is None or change.high is None else f" [{signed(change.low)}, {signed(change.high)}]"
    return Cell(f"{signed(change.mean)}{interval} (n = {len(change.seeds)})", "shown", numbers)


def _paper_cell(sweep: Sweep, row: str, column: str, published: Published, notes: Footnotes) -> Cell:
    """Fill the paper's own number."""
    entry = published.find(sweep.definition.paper_table, row, column)
    if entry is None:
        return Cell("not in the paper", "none")
    return Cell(entry.text, "shown", (("value", entry.value),), notes.marks(entry_notes(entry)))


def _grid(sweep: Sweep, published: Published, notes: Footnotes) -> tuple[list[Column], list[TableRow]]:
    """Write rows down and variants across, the paper's line below each of ours where it has one."""
    definition = sweep.definition
    numbers = ("mean", "sd", "n", "planned", "value")
    titles = {spot.variant.name: spot.title for spot in reversed(sweep.spots)}
    across = [Column(f"v{variant.name}", titles[variant.name], True, numbers) for variant in definition.variants]
    metric = SweepColumn(name="metric", kind="metric", title="", metric=definition.metric)
    rows = []
    for row in definition.rows:
        spots = {spot.variant.name: spot for spot in sweep.of_row(row)}
        marks = (LABELS_MARK,) if any(spot.measured.labels_used for spot in spots.values()) else ()
        ours = [_cell(metric, spots[one.name], sweep, published, notes) if one.name in spots else NONE for one in definition.variants]
        rows.append(TableRow("step", (Cell(row.title, "shown", (), marks), Cell("here"), *ours), row.name, bool(marks)))
        theirs = [_paper_cell(sweep, row.name, spots[one.name].paper, published, notes) for one in definition.variants if one.name in spots]
        if any(cell.state == "shown" for cell in theirs):
            source = Cell("paper") if _at_paper_scale(sweep) else Cell("paper, other scale", "other scale")
            rows.append(TableRow("paper", (Cell(row.title), source, *theirs), row.name))
    return [Column("row", "Input" if definition.table == "timestep" else "Row", False), Column("source", "Source", False), *across], rows


def _at_paper_scale(sweep: Sweep) -> bool:
    """Say whether the study's numbers were made at the paper's scale; the note below the table says in what they differ."""
    return scale_of(sweep.used or sweep.records) == "paper"


def _best(sweep: Sweep, notes: Footnotes) -> tuple[list[Column], list[TableRow]]:
    """Write one line per row, at the variant with the best mean of the metric that may choose."""
    rows = []
    for row in sweep.definition.rows:
        spots = [spot for spot in sweep.of_row(row) if not spot.reason]
        reference = next((spot for spot in spots if spot.variant.name == sweep.definition.reference), None)
        chosen = choose(spots, str(sweep.definition.choose_by), reference)
        cells = tuple(_best_cell(column, row, chosen, reference, spots, sweep, notes) for column in sweep.definition.columns)
        rows.append(TableRow("step", cells, row.name, any(spot.measured.labels_used for spot in spots)))
    return _columns(sweep), rows


def choose(spots: Sequence[Spot], metric: str, reference: Spot | None) -> Spot | None:
    """Return the spot with the highest mean of a metric; a tie goes to the reference, then to the earlier one; None without any."""
    scored = [
        (mean(list(found.values.values())), spot is reference, spot) for spot in spots if (found := measure(spot.measured, metric)).values
    ]
    return max(scored, key=lambda scored: scored[:2])[2] if scored else None


def _best_cell(
    column: SweepColumn, row: SweepRow, chosen: Spot | None, reference: Spot | None, spots: Sequence[Spot], sweep: Sweep, notes: Footnotes
) -> Cell:
    """Fill one cell of a line that shows a chosen variant."""
    if column.kind == "title":
        return Cell(row.title, "shown", (), (LABELS_MARK,) if any(spot.measured.labels_used for spot in spots) else ())
    if column.kind == "reference":
        return measure_cell(reference.measured, str(column.metric), notes) if reference else NONE
    if column.kind == "metric":
        shown = chosen or reference
        return measure_cell(shown.measured, str(column.metric), notes) if shown else NONE
    if chosen is None:
        return Cell("nothing to choose from", "not run")
    if column.kind == "variant":
        with_value = [spot for spot in spots if measure(spot.measured, str(sweep.definition.choose_by)).values]
        remarks = []
        if len(spots) < len(sweep.of_row(row)):
            remarks = [f"No other value is possible: {sorted({spot.reason for spot in sweep.of_row(row) if spot.reason})[0]}."]
        elif len(with_value) < len(spots):
            remarks = [f"Chosen among {len(with_value)} of {len(spots)} values; the others are not measured."]
        return Cell(chosen.title, "shown", (), notes.marks(remarks))
    return _change(chosen, sweep, str(column.metric), reference)


def _cited(sweep: Sweep, published: Published, notes: Footnotes) -> list[TableRow]:
    """Write the lines of other methods, whose numbers are the paper's."""
    rows = []
    for line in sweep.definition.cited:
        texts = {"title": Cell(line.title), "variant": Cell(line.size)}
        texts["published"] = _paper_cell(sweep, line.row, line.column, published, notes)
        rows.append(TableRow("control", tuple(texts.get(one.kind, NONE) for one in sweep.definition.columns), f"{line.row}/{line.column}"))
    return rows


def _checkpoint_rows(sweep: Sweep) -> list[Row]:
    """Collect the checkpoints that were probed by the same protocol, one row per checkpoint."""
    found: dict[str, list[Record]] = {}
    for record in sweep.records if sweep.definition.checkpoints else ():
        if record["control"] == "checkpoint":
            found.setdefault(str(record["title"]), []).append(record)
    rows = []
    for title, group in sorted(found.items()):
        picked, complaint = pick_seeds(group)
        rows.append(Row(title, None, "checkpoint", None, picked, False, False, complaint))
    return rows


def _control_line(row: Row, sweep: Sweep, notes: Footnotes) -> TableRow:
    """Write a reference line: a control of the study, or a probed checkpoint."""
    first = next(iter(row.records), None)
    size = str(first["protocol"].get("network", "")) if first and row.control == "checkpoint" else ""
    cells: list[Cell] = []
    named = any(column.kind == "title" for column in sweep.definition.columns)
    for column in sweep.definition.columns:
        if column.kind == "title" or (column.kind == "variant" and not named):
            cells.append(Cell(row.title))
        elif column.kind == "variant" and size:
            features = str(first["protocol"].get("features", "")) if first else ""
            cells.append(Cell(size, "shown", (), notes.marks([f"{row.title}: {features}."] if features else [])))
        elif column.kind == "metric" and row.records:
            cells.append(measure_cell(row, str(column.metric), notes))
        else:
            cells.append(NONE)
    return TableRow("control", tuple(cells), row.title if row.control == "checkpoint" else row.control)
