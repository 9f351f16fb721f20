"""The table of the designs: what a stage does in the ladder, alone, and in the final model, and whether its place matters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ablation.report.cells import LABELS_MARK, NOTHING, Cell, Footnotes, change_numbers, change_text, rounded, signed
from ablation.report.definitions import StepsDefinition, TableDefinition, ladder_rows
from ablation.report.design_records import (
    BESIDE,
    Attribution,
    attribution,
    design_row,
    has_designs,
    has_ladder,
    left_out,
    remarks,
    roles_of,
)
from ablation.report.intervals import Change, paired_change, spread
from ablation.report.measures import change_between, measure
from ablation.report.notes import footer_lines, image_notes, scale_warning
from ablation.report.results import Footer, Record, Row, whole_trajectory
from ablation.report.significance import LEVEL, holm, student_p
from ablation.report.step_tables import p_text
from ablation.report.tables import Column, Table, TableRow

NUMBERS = ("mean", "low", "high", "n")
COLUMNS = (
    Column("step", "Stage", False),
    Column("ladder", "In the ladder", True, NUMBERS),
    Column("add_one", "Alone, on the baseline", True, NUMBERS),
    Column("leave_one_out", "In the final model: left out", True, NUMBERS),
    Column("put_back", "In the final model: put back", True, NUMBERS),
    Column("gap", "Ladder less put back", True, (*NUMBERS, "holm")),
    Column("order", "Order", False),
    Column("shapley", "Shapley value", True, (*NUMBERS, "error")),
)
READING = (
    "Each column says by how much having the stage changes the accuracy: over the row before it in the ladder; alone over the baseline; "
    "and in the final model over the path without it (left out) and over the final model with what it changed set back (put back). "
    "Common seeds only, Student's 95 % interval from two seeds on."
)
ORDER_NOTE = (
    "Order-sensitive: the paired difference of a stage's change in the ladder and in the final model excludes zero at 5 %, "
    "Holm-adjusted over the stages that have both."
)


@dataclass(frozen=True)
class Effects:
    """What one stage does in each design, each a change or the reason why there is none, and the gap between ladder and put-back."""

    stage: str
    changes: Mapping[str, Change | str]
    gap: Change | str
    gap_p: float | None


def stage_effects(stage: str, rows: Sequence[Row], records: Sequence[Record], metric: str) -> Effects:
    """Take a stage's change in every design; rows: the ladder's."""
    by_stage = {row.stage: row for row in rows}
    changes: dict[str, Change | str] = {}
    pairs: dict[str, tuple[Row, Row]] = {}
    after = by_stage.get(stage)
    if after is not None and after.parent is not None and (after.records or has_ladder(records)):
        pairs["ladder"] = by_stage[after.parent], after
    for design in BESIDE:
        one, reference = design_row(records, design, stage), design_row(records, design, None)
        if one.records:
            pairs[design] = (reference, one) if design == "add_one" else (one, reference)
    for design, (before, later) in pairs.items():
        changes[design] = change_between(before, later, metric)
    gap, p = _gap(pairs.get("ladder"), pairs.get("put_back"), changes, metric)
    return Effects(stage, changes, gap, p)


def _gap(
    ladder: tuple[Row, Row] | None, back: tuple[Row, Row] | None, changes: Mapping[str, Change | str], metric: str
) -> tuple[Change | str, float | None]:
    """Return the change in the ladder less the one in the final model, paired by seed, and its p."""
    if ladder is None or back is None:
        return "", None
    for design in ("ladder", "put_back"):
        if isinstance(reason := changes[design], str):
            return reason, None
    if all(_same_jobs(one, other) for one, other in zip(ladder, back, strict=True)):
        return "same cells", None
    sides = []
    for before, after in (ladder, back):
        first, second = measure(before, metric).values, measure(after, metric).values
        sides.append({seed: second[seed] - first[seed] for seed in set(first) & set(second)})
    change = paired_change(sides[1], sides[0])
    if change is None:
        return "no common seed", None
    differences = [sides[0][seed] - sides[1][seed] for seed in change.seeds]
    return change, student_p(differences) if spread(differences) else None


def _same_jobs(one: Row, other: Row) -> bool:
    """Say whether two rows are the same cells."""
    return [record["jobs"] for record in one.records] == [record["jobs"] for record in other.records]


def design_tables(
    records: Sequence[Record], definitions: tuple[TableDefinition, ...], steps: StepsDefinition, footer: Footer
) -> tuple[Table, ...]:
    """Build the table of the designs; none where the records know of the ladder alone."""
    if not has_designs(records):
        return ()
    rows = whole_trajectory(records, definitions)
    holes, said = left_out(records), remarks(records)
    titles = {row.stage: row.title for row in ladder_rows(definitions)} | {row.stage: row.title for row in rows if row.stage}
    effects = [stage_effects(stage, rows, records, steps.metric) for stage in _stages(rows, records)]
    adjusted = holm({effect.stage: effect.gap_p for effect in effects if effect.gap_p is not None})
    shares = attribution(records, steps.metric)
    notes, body = Footnotes(), []
    labelled = {row.stage for row in rows if row.labels_used}
    for effect in effects:
        title = Cell(titles.get(effect.stage, f"+ {effect.stage}"), "shown", (), (LABELS_MARK,) if effect.stage in labelled else ())
        cells = [_effect_cell(effect, design, holes, said, notes) for design in ("ladder", *BESIDE)]
        gap = _gap_cells(effect, adjusted.get(effect.stage))
        body.append(TableRow("step", (title, *cells, *gap, _share_cell(effect.stage, shares, notes)), effect.stage, bool(title.marks)))
    used = [record for record in records if record["stage"] is not None and roles_of(record)]
    labels = [(LABELS_MARK, "Labels used: class labels enter training somewhere.")] if any(row.labels_used for row in body) else []
    marked = [(mark, text) for text, mark in notes.texts.items()]
    general = [("", text) for text in (READING, ORDER_NOTE, *_share_notes(shares), *image_notes(used))]
    final = _final(records)
    asked = ", ".join(dict.fromkeys(str(role["design"]) for record in records for role in roles_of(record)))
    about = f"Stages on the path to {final}; designs: {asked}. {scale_warning(used, records)}"
    table = Table(
        "designs", steps.design_title, about, COLUMNS, tuple(body), tuple(labels + marked + general), footer_lines(used, footer, records)
    )
    return (table,)


def _final(records: Sequence[Record]) -> str:
    """Name the last stage of the path that the designs lie over."""
    return next(str(role["through"]) for record in records for role in roles_of(record) if role["design"] != "ladder")


def _stages(rows: Sequence[Row], records: Sequence[Record]) -> list[str]:
    """List the stages that any design is about, in the ladder's order."""
    known = {role["stage"] for record in records for role in roles_of(record) if role["stage"]}
    known |= {step for record in records for role in roles_of(record) for step in role.get("steps") or []}
    known |= {stage for _, stage in left_out(records)}
    roots = {record["path"][0] for record in records if record["path"]}
    order = [str(row.stage) for row in rows]
    return [stage for stage in order if stage in known - roots] + sorted(known - set(order) - roots)


def _effect_cell(
    effect: Effects, design: str, holes: Mapping[tuple[str, str], tuple[str, str]], said: Mapping[tuple[str, str], str], notes: Footnotes
) -> Cell:
    """Fill a stage's cell in one design: a change, why it is withheld, or why there can be none."""
    if (found := effect.changes.get(design)) is None:
        if hole := holes.get((design, effect.stage)):
            return Cell(hole[0], "not possible" if hole[0] == "impossible" else "none", (), notes.marks([f"{_sentence(hole[1])}."]))
        return Cell("not asked for", "none")
    if isinstance(found, str):
        return Cell(f"withheld: {found}", "withheld")
    remark = said.get((design, effect.stage))
    return Cell(change_text(found), "shown", change_numbers(found), notes.marks([f"{_sentence(remark)}."]) if remark else ())


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _gap_cells(effect: Effects, adjusted: float | None) -> tuple[Cell, Cell]:
    """Fill the gap between ladder and put-back, and whether the order matters."""
    if isinstance(effect.gap, str):
        if effect.gap == "same cells":
            return Cell("same cells", "none"), Cell("last in both", "none")
        return (Cell(f"withheld: {effect.gap}", "withheld") if effect.gap else Cell(NOTHING, "none")), Cell(NOTHING, "none")
    cell = Cell(change_text(effect.gap), "shown", (*change_numbers(effect.gap), ("holm", adjusted)))
    if adjusted is None:
        return cell, Cell("cannot tell", "cannot tell")
    sensitive = adjusted < LEVEL
    words = "order-sensitive" if sensitive else "not shown"
    return cell, Cell(f"{words} (p = {p_text(adjusted)})".replace("= <", "<"), "shown")


def _share_cell(stage: str, shares: Attribution | None, notes: Footnotes) -> Cell:
    """Fill a stage's Shapley value, exact or estimated, or say that it is refused."""
    if shares is None:
        return Cell("not asked for", "none")
    if shares.refusal:
        return Cell("refused", "withheld", (), notes.marks([f"Shapley values: {shares.refusal}."]))
    if (exact := shares.exact.get(stage)) is not None:
        return Cell(change_text(exact), "shown", change_numbers(exact))
    if (sampled := shares.sampled.get(stage)) is not None:
        error = "" if sampled.error is None else f" ± {rounded(sampled.error)}"
        orders = f"({shares.used} of {shares.total} orders)"
        return Cell(f"{signed(sampled.share)}{error} {orders}", "shown", (("mean", sampled.share), ("error", sampled.error)))
    return Cell("stays throughout", "none")


def _share_notes(shares: Attribution | None) -> tuple[str, ...]:
    """Say over what the Shapley values were taken."""
    if shares is None or shares.refusal:
        return ()
    seeds = f"seeds {', '.join(map(str, shares.seeds))}"
    if shares.exact:
        total = sum(change.mean for change in shares.exact.values())
        return (f"Shapley values: exact, over all {shares.total} feasible orders, {seeds}; they add up to {signed(total)}.",)
    total = sum(one.share for one in shares.sampled.values())
    error = "the standard error is over orders, not seeds" if shares.used > 1 else "one order has no standard error"
    return (
        f"Shapley values: estimated from the {shares.used} complete orders of {shares.total} feasible ones, {seeds}; {error}; they add "
        f"up to {signed(total)}.",
    )
