"""The tables of the step tests: which steps are real, and the same steps on the same test images."""

from __future__ import annotations

import json
from collections.abc import Sequence

from ablation.errors import ConfigError
from ablation.report.cells import (
    LABELS_MARK,
    MINUS,
    NOTHING,
    Cell,
    Footnotes,
    change_numbers,
    change_text,
    duration,
    entry_notes,
    signed,
)
from ablation.report.definitions import StepsDefinition, TableDefinition
from ablation.report.design_records import has_ladder
from ablation.report.images import ImageTest
from ablation.report.intervals import Change, mean
from ablation.report.measures import measure
from ablation.report.notes import footer_lines, image_notes, paper_sentence, plain, scale_warning
from ablation.report.published import Published
from ablation.report.results import Footer, Record, Row, control_rows, setting, whole_trajectory
from ablation.report.steps import (
    CANNOT_TELL,
    NO_EFFECT,
    WITHHELD,
    PaperStep,
    PaperVerdict,
    StepTest,
    against_paper,
    ladder_tests,
    paper_step,
    step_test,
    summary,
)
from ablation.report.tables import Column, Table, TableRow

Definitions = tuple[TableDefinition, ...]
COLUMNS = (
    Column("step", "Step", False),
    Column("change", "Change [95 % interval]", True, ("mean", "low", "high", "n")),
    Column("seeds", "Common seeds", True, ("n", "planned")),
    Column("p", "p, Holm-adjusted (alone)", True, ("holm", "p")),
    Column("flip", "Sign-flip p (floor)", True, ("p", "floor")),
    Column("verdict", "Verdict", False, ("needed", "equivalence_holm")),
    Column("correlation", "Seed correlation", True, ("r",)),
    Column("images", "Same images: p (gained, lost)", True, ("middle", "exact", "gained", "lost")),
    Column("paper", "Paper: change", True, ("value", "noise")),
    Column("against", "Against the paper", False),
    Column("cost", "Time per seed", True, ("seconds",)),
)
IMAGES_NOTE = (
    "Same images: McNemar's test (mid-p) on the images that only one of two rows answers correctly; it covers the choice of test "
    "images, not training. Pooled over seeds, each image is one unit with its differences summed, since several networks' answers "
    "to one image are not independent."
)


def smallest_effect(records: Sequence[Record], definition: StepsDefinition) -> tuple[float, str]:
    """Return the smallest effect of interest, in points, and the sentence that says when it was chosen."""
    stored = {json.dumps(record.get("smallest_effect"), sort_keys=True) for record in records}
    chosen = [json.loads(text) for text in sorted(stored) if text != "null"]
    if len(chosen) > 1:
        raise ConfigError("the results mix several smallest effects of interest", "A report shows one study: choose it with --study.")
    if not chosen:
        points = definition.smallest_effect
        return points, f"Smallest effect of interest: ±{points:g} points, the report's own, fixed in its definition before any result."
    points, before = float(chosen[0]["points"]), chosen[0]["before"]
    said = f"Smallest effect of interest: ±{points:g} points, given with the study before its jobs ran."
    if before:
        earlier = ", ".join("the report's own" if value is None else f"{value:g}" for value in before)
        said = f"Smallest effect of interest: ±{points:g} points, CHANGED from {earlier} when the study was run again."
    return points, said


def p_text(value: float | None) -> str:
    """Write a p value."""
    if value is None:
        return NOTHING
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def verdict_text(test: StepTest) -> str:
    """Write what can be said of a step at its number of seeds."""
    if test.verdict == NO_EFFECT:
        return f"no effect (within ±{test.margin:g}{', though not zero' if test.differs else ''})"
    if test.verdict != CANNOT_TELL:
        return test.verdict
    count = len(test.differences)
    if count == 1:
        return "cannot tell from one seed"
    if test.student is None:
        return "cannot tell: the differences do not vary"
    takes = "takes more than 999 seeds" if test.needed is None else f"takes about {test.needed} seeds"
    return f"cannot tell at n = {count} (±{test.margin:g} {takes})"


def seeds_cell(test: StepTest, metric: str) -> Cell:
    """Count the seeds that both rows share of those that either planned, and name what became of the others."""
    holes: dict[int, str] = {}
    for row in (test.before, test.after):
        holes |= {seed: word for seed, word, _ in measure(row, metric).holes}
    recorded = {record["seed"] for row in (test.before, test.after) for record in row.records}
    planned = sorted(recorded | set(test.before.seeds) | set(test.after.seeds))
    shared = set(test.change.seeds) if isinstance(test.change, Change) else set()
    words: dict[str, int] = {}
    for seed in planned:
        if seed not in shared:
            word = holes.get(seed, "not used")
            words[word] = words.get(word, 0) + 1
    said = "".join(f"; {count} {word}" for word, count in sorted(words.items()))
    return Cell(f"{len(shared)}/{len(planned)}{said}", "shown", (("n", len(shared)), ("planned", len(planned))))


def image_cell(found: ImageTest | str) -> Cell:
    """Fill a cell with the pooled test on the same images, or why there is none."""
    if isinstance(found, str):
        return Cell(found if found.startswith(WITHHELD) else f"withheld: {found}", WITHHELD)
    gained, lost = (sum(getattr(one, name) for one in found.by_seed.values()) for name in ("gained", "lost"))
    numbers = (("middle", found.middle), ("exact", found.exact), ("gained", gained), ("lost", lost))
    return Cell(f"{p_text(found.middle)} (+{gained}, {MINUS}{lost})", "shown", numbers)


def change_cells(test: StepTest, metric: str, adjusted: bool) -> tuple[Cell, ...]:
    """Fill the cells that every comparison has: change, seeds, p values, verdict, correlation, images."""
    if isinstance(test.change, str):
        withheld = Cell(f"withheld: {test.change}", WITHHELD)
        blank = Cell(NOTHING, "none")
        return withheld, seeds_cell(test, metric), blank, blank, Cell(WITHHELD, WITHHELD), blank, image_cell(test.images)
    p_cell = Cell(NOTHING, "none")
    if test.student is not None:
        both = f"{p_text(test.student_holm)} ({p_text(test.student)})" if adjusted else f"({p_text(test.student)})"
        p_cell = Cell(both, "shown", (("holm", test.student_holm if adjusted else None), ("p", test.student)))
    flip = "too many seeds" if test.flip is None else f"{p_text(test.flip)} (floor {p_text(test.floor)})"
    shared = "" if test.correlation is None else f"{test.correlation:.2f}".replace("-", MINUS)
    verdict = (("needed", test.needed), ("equivalence_holm", test.equivalence_holm if adjusted else None))
    return (
        Cell(change_text(test.change), "shown", change_numbers(test.change)),
        seeds_cell(test, metric),
        p_cell,
        Cell(flip, "shown", (("p", test.flip), ("floor", test.floor))),
        Cell(verdict_text(test), "shown" if test.verdict != CANNOT_TELL else CANNOT_TELL, verdict),
        Cell(shared, "shown", (("r", test.correlation),)) if shared else Cell(NOTHING, "none"),
        image_cell(test.images),
    )


def cost_cell(row: Row) -> Cell:
    """Fill a cell with the mean wall time of a row's finished records."""
    costs = [record["cost"].get("wall_seconds") for record in row.records if record["state"] == "done"]
    seconds = [float(cost) for cost in costs if cost is not None]
    return Cell(duration(mean(seconds)), "shown", (("seconds", mean(seconds)),)) if seconds else Cell("not recorded", "none")


def paper_cells(paper: PaperStep | None, verdict: PaperVerdict, notes: Footnotes) -> tuple[Cell, Cell]:
    """Fill the paper's own step, its contradictions as footnotes, and whether ours agrees."""
    state = "other scale" if verdict.other_scale else "same scale"
    if paper is None:
        return Cell("not in the paper", "none"), Cell(verdict.text, state)
    numbers = (("value", paper.change), ("noise", paper.noise))
    return Cell(signed(paper.change, paper.entry.decimals), "shown", numbers, notes.marks(entry_notes(paper.entry))), Cell(
        verdict.text, state
    )


def step_tables(
    records: Sequence[Record], definitions: Definitions, steps: StepsDefinition, published: Published, footer: Footer
) -> tuple[Table, ...]:
    """Build the step tests and, where answers are stored, the same steps image by image; nothing without two rows of a ladder."""
    rows = whole_trajectory(records, definitions)
    if sum(bool(row.records) for row in rows) < 2 or not has_ladder(records):
        return ()
    margin, chosen = smallest_effect(records, steps)
    tests = ladder_tests(rows, margin, steps.metric)
    papers = [paper_step(published, test.before.stage, test.after.stage) for test in tests]
    verdicts = [against_paper(test, paper, records, published) for test, paper in zip(tests, papers, strict=True)]
    notes, body = Footnotes(), []
    by_name = {test.name: place for place, test in enumerate(tests)}
    for row in rows:
        marks: tuple[str, ...] = (LABELS_MARK,) if row.labels_used else ()
        if row.plugin:
            marks += notes.marks([f"Stage {row.stage} comes from a plugin."])
        title = Cell(row.title, "shown", (), marks)
        if (place := by_name.get(str(row.stage))) is None:
            cells: tuple[Cell, ...] = (Cell(NOTHING, "none"),) * 9
        else:
            paper = paper_cells(papers[place], verdicts[place], notes)
            cells = (*change_cells(tests[place], steps.metric, True), *paper)
        body.append(TableRow("step", (title, *cells, cost_cell(row)), row.stage, row.labels_used))
    controls = control_tests(rows, control_rows(records, definitions[0]), margin, steps.metric)
    for test in controls:
        title = Cell(f"{test.after.title.removeprefix('+ ')} over {test.before.title}")
        cells = change_cells(test, steps.metric, False)
        body.append(TableRow("control", (title, *cells, Cell(NOTHING, "none"), Cell(NOTHING, "none"), cost_cell(test.before)), test.name))
    used = [record for row in rows for record in row.records] + [record for test in controls for record in test.before.records]
    labels = [(LABELS_MARK, "Labels used: class labels enter training somewhere.")] if any(row.labels_used for row in rows) else []
    marked = [(mark, text) for text, mark in notes.texts.items()]
    said = [*_reading(tests, chosen), *recipe_notes(rows), *summary(tests, verdicts, papers), *image_notes(used)]
    general = [("", text) for text in (*said, paper_sentence(used, published))]
    about = f"Each step against the row before it, paired by seed. {scale_warning(used, records)}"
    made = footer_lines(used, footer, records)
    table = Table("step_tests", steps.step_title, about, COLUMNS, tuple(body), tuple(labels + marked + general), made)
    return table, *image_table([*tests, *controls], steps, used, records, made)


def control_tests(rows: Sequence[Row], controls: Sequence[Row], margin: float, metric: str) -> list[StepTest]:
    """Test the last finished row of a ladder against each control that was measured; each by itself, outside the family."""
    finished = [row for row in rows if measure(row, metric).mean is not None]
    measured = [row for row in controls if row.records]
    return [step_test(str(control.control), control, finished[-1], metric, margin) for control in measured] if finished else []


def _reading(tests: Sequence[StepTest], chosen: str) -> list[str]:
    """Say how the columns are to be read."""
    tested = sum(test.student is not None for test in tests)
    family = f"the steps with two common seeds or more ({tested} here)"
    return [
        chosen,
        f"Verdicts at 5 %, by Student's paired test, Holm-adjusted over {family}. Effect: zero is excluded. No effect: two one-sided "
        "tests, adjusted over the same steps, exclude everything beyond the smallest effect of interest. Comparisons with controls "
        "stand outside the family.",
        "Seeds it takes: so that a true difference of the smallest effect of interest is found, and a true zero called no effect, "
        f"with power 0.8 at 5 % / {max(1, tested)}; from the observed spread of few differences, so roughly.",
        "The exact sign-flip test needs no normal differences, but cannot get below its floor of 2 / 2^n.",
        IMAGES_NOTE,
    ]


def recipe_notes(rows: Sequence[Row]) -> tuple[str, ...]:
    """Say whether the training recipe was the same in every row: inherited, not tuned."""
    done = [record for row in rows for record in row.records if record["state"] == "done" and "train" in record["config"]]
    if not done:
        return ()
    names = sorted({name for record in done for name in record["config"]["train"]})
    values = {name: dict.fromkeys(plain(setting(record, f"train.{name}")) for record in done) for name in names}
    varied = [f"train.{name} ({' | '.join(options)})" for name, options in values.items() if len(options) > 1]
    inherited = "Hyper-parameters are inherited along the path, not tuned per row"
    if not varied:
        return (f"{inherited}: every row has the same training settings (train.*).",)
    return (f"{inherited}; training settings that differ between rows: {', '.join(varied)}.",)


def image_table(
    tests: Sequence[StepTest], steps: StepsDefinition, used: Sequence[Record], records: Sequence[Record], made: tuple[str, ...]
) -> tuple[Table, ...]:
    """Build the table of McNemar's tests by seed and pooled; none where no step has answers on both sides."""
    found = [test for test in tests if isinstance(test.images, ImageTest)]
    if not found:
        return ()
    seeds = sorted({seed for test in found if isinstance(test.images, ImageTest) for seed in test.images.by_seed})
    numbers = ("middle", "exact", "gained", "lost")
    columns = [Column("step", "Step", False), *(Column(f"seed_{seed}", f"Seed {seed}", True, numbers) for seed in seeds)]
    body = []
    for test in tests:
        over = f"{test.after.title.removeprefix('+ ')} over {test.before.title.removeprefix('+ ')}"
        cells = [Cell(over)]
        for seed in seeds:
            one = test.images.by_seed.get(seed) if isinstance(test.images, ImageTest) else None
            if one is None:
                cells.append(Cell(NOTHING, "none"))
                continue
            behind = (("middle", one.middle), ("exact", one.exact), ("gained", one.gained), ("lost", one.lost))
            cells.append(Cell(f"{p_text(one.middle)} (+{one.gained}, {MINUS}{one.lost})", "shown", behind))
        body.append(TableRow("control" if test.before.control else "step", (*cells, image_cell(test.images)), test.name))
    images = sorted({test.images.images for test in found if isinstance(test.images, ImageTest)})
    about = (
        f"Test images ({', '.join(map(str, images))}) that only the later row answers correctly (+) and only the earlier "
        f"({MINUS}), with McNemar's mid-p. {scale_warning(used, records)}"
    )
    all_columns = (*columns, Column("pooled", "Pooled", True, numbers))
    return (Table("same_images", steps.image_title, about, all_columns, tuple(body), (("", IMAGES_NOTE),), made),)
