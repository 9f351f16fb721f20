"""The step tests: what may be said of a step, held against the paper, in every format, whatever is missing."""

from __future__ import annotations

import base64
import csv
import io
import itertools
import math
import random
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from readers import read_csv, read_html, read_latex, read_markdown

from ablation.errors import ConfigError
from ablation.report import all_tables
from ablation.report.cells import MINUS, signed
from ablation.report.definitions import load_steps_definition
from ablation.report.formats import to_csv, to_html, to_latex, to_markdown
from ablation.report.intervals import Change
from ablation.report.published import load_published
from ablation.report.results import Row, check_records
from ablation.report.steps import PaperVerdict, StepTest, against_paper, as_family, ladder_tests, paper_step, step_test, summary
from ablation.report.tables import Table

PUBLISHED, METRIC = load_published(), "linear_probe_top1"
BEFORE = [30.0, 31.5, 29.4, 30.8, 30.2, 29.9]


def row(record: Any, stage: str, values: list[float], parent: str | None = None, **changes: Any) -> Row:
    records = tuple(record(stage, seed, value, **changes) for seed, value in enumerate(values))
    return Row(stage, stage, None, parent, records, False, seeds=tuple(range(len(values))))


def make_test(
    record: Any, differences: list[float], margin: float = 1.0, stages: tuple[str, str] = ("baseline", "drop_class_conditioning")
) -> StepTest:
    """Test one step with the given paired differences, as a family of its own."""
    after = [value + difference for value, difference in zip(BEFORE, differences, strict=False)]
    before = BEFORE[: len(differences)]
    return as_family([step_test(stages[1], row(record, stages[0], before), row(record, stages[1], after), METRIC, margin)])[0]


def table(records: Any, footer: Any, number: str = "step_tests") -> Table:
    return next(one for one in all_tables(records, footer) if one.number == number)


# --- one step ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([5.0, 5.2, 4.9], "effect"),
        ([-5.0, -5.2, -4.9], "effect"),
        ([0.1, -0.1, 0.05, 0.0, -0.08], "no effect"),
        ([0.5, 0.55, 0.45, 0.52, 0.49], "no effect"),  # not zero, but well inside one point
        ([3.0, -2.0, 1.0], "cannot tell"),
        ([5.0], "cannot tell"),
        ([2.0, 2.0], "cannot tell"),  # two differences that round to the same are no certainty
    ],
)
def test_verdicts(record, differences, verdict):
    assert make_test(record, differences).verdict == verdict


def test_a_step_within_the_margin_that_is_not_zero_is_no_effect_and_says_so(record, footer):
    test = make_test(record, [0.5, 0.55, 0.45, 0.52, 0.49])
    assert test.differs
    records = [*test.before.records, *test.after.records]
    assert table(records, footer).cell("drop_class_conditioning", "verdict").text == "no effect (within ±1, though not zero)"
    assert make_test(record, [0.5, 0.55, 0.45, 0.52, 0.49], margin=0.2).verdict == "effect"


def test_the_seeds_it_takes_follow_from_the_spread(record):
    wide, narrow = make_test(record, [3.0, -2.0, 1.0]), make_test(record, [1.3, 0.5, 0.9])
    assert wide.needed is not None
    assert narrow.needed is not None
    assert wide.needed > 3 * narrow.needed > 0
    assert make_test(record, [900.0, -700.0, 20.0]).needed is None


def test_adjusting_is_over_the_family(record):
    alone = make_test(record, [2.0, 2.4, 1.7])
    assert alone.student_holm == alone.student
    many = as_family([StepTest(str(name), alone.before, alone.after, alone.change, alone.differences, alone.student) for name in range(5)])
    assert {test.student_holm for test in many} == {min(1.0, 5 * (alone.student or 0))}
    assert {test.family for test in many} == {5}


def test_a_withheld_step_is_outside_the_family(record):
    good = row(record, "drop_class_conditioning", [31.0, 32.0, 30.0], "baseline")
    lost = Row("x", "drop_perceptual_loss", None, "drop_class_conditioning", (), False, seeds=(0, 1, 2))
    tests = ladder_tests([row(record, "baseline", BEFORE[:3]), good, lost], 1.0)
    assert [test.family for test in tests] == [1, 1]
    assert (tests[1].verdict, tests[1].change) == ("withheld", "not run")


# --- the paper --------------------------------------------------------------------------------------------------------


def as_paper(one: dict[str, Any]) -> dict[str, Any]:
    one["scale"] = "paper"
    one["protocol"] = one["protocol"] | {"image_size": 256, "train_images": 1281167, "test_images": 50000}
    one["config"] = one["config"] | {"denoiser": {"size": "L"}, "train": {"epochs": 400.0, "steps": None}}
    one["config"]["probe"] = {"mode": "epochs", "timestep": 10, "noisy_input": False}
    return one


def judge(record: Any, stages: tuple[str, str], differences: list[float], paper_scale: bool = False) -> PaperVerdict:
    test = make_test(record, differences, stages=stages)
    records = [*test.before.records, *test.after.records]
    if paper_scale:
        for one in records:
            as_paper(one)
    return against_paper(test, paper_step(PUBLISHED, *stages), records, PUBLISHED)


UP, DOWN, FLAT, WILD = [5.0, 5.2, 4.9], [-5.0, -5.2, -4.9], [0.1, -0.1, 0.05, 0.0, -0.08], [3.0, -2.0, 1.0]
CLASS, TARGET, INPUT = ("baseline", "drop_class_conditioning"), ("patch_pca", "predict_clean"), ("drop_input_scaling", "inverse_pca_input")


@pytest.mark.parametrize(
    ("stages", "differences", "text"),
    [
        (CLASS, UP, "other scale; agrees in sign"),
        (CLASS, DOWN, "other scale; disagrees in sign"),
        (CLASS, WILD, "other scale; cannot tell"),
        (CLASS, [5.0], "other scale; cannot tell"),
        (CLASS, FLAT, "other scale; cannot tell: no effect here, +5.0 in the paper"),
        (TARGET, DOWN, "other scale; agrees in sign"),
        (TARGET, UP, "other scale; disagrees in sign"),
        (INPUT, UP, "other scale; cannot tell: the paper's 0.0 is within its own noise of 0.6"),
        (INPUT, FLAT, "other scale; agrees in sign: no effect in either, the paper's 0.0 is within its own noise of 0.6"),
        (("baseline", "my_plugin"), UP, "other scale; not in the paper"),
    ],
)
def test_only_a_step_that_can_be_told_agrees_or_disagrees(record, stages, differences, text):
    assert judge(record, stages, differences).text == text
    assert judge(record, stages, differences, paper_scale=True).text == text.removeprefix("other scale; ")


def test_the_papers_own_noise_is_that_of_two_samples_of_its_test_images():
    step = paper_step(PUBLISHED, "baseline", "drop_class_conditioning")
    assert step is not None
    assert step.noise == pytest.approx(196 * math.sqrt((0.575 * 0.425 + 0.625 * 0.375) / 50000))
    small = {"drop_adversarial_loss", "patch_ae", "patch_pca", "inverse_pca_input", "inverse_pca_output", "predict_original"}
    path = ["baseline", "drop_class_conditioning", "drop_perceptual_loss", "drop_adversarial_loss", "linear_gamma_schedule", "patch_vae",
            "patch_ae", "patch_pca", "predict_clean", "drop_input_scaling", "inverse_pca_input", "inverse_pca_output", "predict_original",
            "single_noise_level"]  # fmt: skip
    steps = {after: paper_step(PUBLISHED, before, after) for before, after in itertools.pairwise(path)}
    assert {stage for stage, step in steps.items() if step is not None and not step.has_sign} == small


def test_the_summary_names_every_step_of_the_paper_once(study, footer):
    said = [text for _, text in table(study, footer).notes if text.startswith("Of the paper's 13 steps")]
    assert len(said) == 3
    counts = [int(re.search(r"steps, (\d+) ", text)[1]) for text in said]  # type: ignore[index]
    assert sum(counts) == 13
    for stage in {one["stage"] for one in study if one["stage"]} - {"baseline"}:
        assert sum(f" {stage} (" in text for text in said) == 1
    assert "agree in sign (at another scale): drop_class_conditioning (+" in said[0]
    kept = [one for one in study if one["stage"] != "patch_ae"]
    said = [text for _, text in table(kept, footer).notes if text.startswith("Of the paper's 13 steps")]
    assert said[3] == (
        "Of the paper's 13 steps, 2 have no change here: patch_ae (not run; " + signed(-0.2) + " in the paper), "
        "patch_pca (patch_ae not run; +0.4 in the paper)"
    )
    assert summary([], [], []) == tuple(
        f"Of the paper's 0 steps, 0 {words}." for words in ("agree in sign", "disagree in sign", "cannot be told")
    )


def test_the_contradicted_row_stays_a_footnote(study, footer):
    built = table(study, footer)
    cell = built.cell("drop_class_conditioning", "paper")
    assert cell.text == "+5.0"
    assert any("gives 62.1" in dict(built.notes)[mark] for mark in cell.marks)


# --- the table --------------------------------------------------------------------------------------------------------


def test_a_lost_seed_does_not_bend_the_step(record, footer):
    """Seeds 60 and 50, then 61 with the second seed lost: +1 from one seed, not 61 - 55."""
    records = [record("baseline", 0, 60.0), record("baseline", 1, 50.0), record("drop_class_conditioning", 0, 61.0)]
    built = table([*records, record("drop_class_conditioning", 1, None, state="failed", reason="lost", metrics={})], footer)
    assert built.cell("drop_class_conditioning", "change").text == "+1.0 (n = 1)"
    assert built.cell("drop_class_conditioning", "seeds").text == "1/2; 1 failed"
    assert built.cell("drop_class_conditioning", "verdict").text == "cannot tell from one seed"
    assert built.cell("drop_class_conditioning", "flip").text == "1.000 (floor 1.000)"


def test_holes_are_named_in_the_step_table(holed, footer):
    built = table(holed, footer)
    assert built.cell("drop_adversarial_loss", "seeds").text == "2/3; 1 diverged"
    assert built.cell("drop_input_scaling", "seeds").text == "2/3; 1 stale"
    assert built.cell("inverse_pca_input", "seeds").text == "1/3; 1 missing; 1 stale"
    assert built.cell("predict_original", "change").text == "withheld: not run"
    assert built.cell("predict_original", "cost").text == "not recorded"


@pytest.mark.parametrize("field", ["dataset", "image_size", "probe"])
def test_steps_across_protocols_are_refused_and_the_field_named(record, footer, field):
    other = record("drop_class_conditioning", 0, 25.0)
    other["protocol"][field] = "something else"
    built = table([record("baseline", 0, 20.0), other], footer)
    assert built.cell("drop_class_conditioning", "change").text == f"withheld: {field} differs"
    assert built.cell("drop_class_conditioning", "images").text == f"withheld: {field} differs"


def changes_read_back(built: Table) -> list[dict[str, str]]:
    """Return what each format says of every step's change, by row title."""
    columns = [column.title for column in built.columns]
    place = [column.name for column in built.columns].index("change")
    found = []
    for titles, rows in (
        read_csv(to_csv(built), len(columns)), read_markdown(to_markdown(built)), read_latex(to_latex(built)), read_html(to_html(built)),
    ):  # fmt: skip
        assert titles == columns
        found.append({line[0][0]: line[place][0] for line in rows})
    return found


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_is_deleted_every_format_shows_the_common_seed_change_or_none(study, footer, data):
    ladder = [one for one in study if one["stage"] and not one["overrides"]]
    fates = data.draw(
        st.lists(st.sampled_from(["kept", "kept", "gone", "failed", "stale", "diverged"]), min_size=len(ladder), max_size=len(ladder))
    )
    kept = [
        one if fate == "kept" else one | {"state": fate, "reason": "lost"}
        for one, fate in zip(ladder, fates, strict=True)
        if fate != "gone"
    ]
    values: dict[str, dict[int, float]] = {}
    for one in kept:
        if one["state"] == "done":
            values.setdefault(one["stage"], {})[one["seed"]] = one["metrics"][METRIC]
    shown = [one for one in all_tables(kept, footer) if one.number == "step_tests"]
    assert len(shown) == (len({one["stage"] for one in kept}) >= 2)
    for built in shown:
        read_back = changes_read_back(built)
        steps = [one for one in built.rows if one.kind == "step"]
        for before, after in itertools.pairwise(steps):
            common = sorted(set(values.get(str(before.stage), {})) & set(values.get(str(after.stage), {})))
            differences = [values[str(after.stage)][seed] - values[str(before.stage)][seed] for seed in common]
            for said in read_back:
                text = said[after.cells[0].text]
                if common:
                    assert text.startswith(signed(math.fsum(differences) / len(common)) + " ")
                    assert text.endswith(f"(n = {len(common)})")
                else:
                    assert text.startswith("withheld: ")
            planned = {one["seed"] for one in kept}
            assert built.cell(str(after.stage), "seeds").text.split(";")[0] == f"{len(common)}/{len(planned)}"


def test_csv_holds_p_values_and_floors(study, footer):
    rows = {line["stage"]: line for line in csv.DictReader(io.StringIO(to_csv(table(study, footer))))}
    line = rows["patch_vae"]
    assert (line["flip.floor"], line["change.n"], line["seeds.planned"]) == ("0.25", "3", "3")
    assert float(line["p.holm"]) >= float(line["p.p"])
    assert float(line["cost.seconds"]) == 65.0


def test_the_smallest_effect_says_when_it_was_chosen(study, footer):
    def said(records: Any) -> str:
        return next(text for _, text in table(records, footer).notes if text.startswith("Smallest effect"))

    assert load_steps_definition().smallest_effect == 1.0
    assert said(study) == "Smallest effect of interest: ±1 points, the report's own, fixed in its definition before any result."
    given_before = [one | {"smallest_effect": {"points": 0.5, "before": []}} for one in study]
    assert said(given_before) == "Smallest effect of interest: ±0.5 points, given with the study before its jobs ran."
    assert "±0.5" in table(given_before, footer).cell("patch_vae", "verdict").text
    changed = [one | {"smallest_effect": {"points": 3.0, "before": [None, 0.5]}} for one in study]
    assert said(changed).endswith("±3 points, CHANGED from the report's own, 0.5 when the study was run again.")
    with pytest.raises(ConfigError, match="several smallest effects"):
        table([*given_before[:3], *changed[3:]], footer)


def test_the_recipe_is_said_to_be_inherited_or_what_differs(study, footer):
    def said(records: Any) -> str:
        return next(text for _, text in table(records, footer).notes if text.startswith("Hyper-parameters"))

    assert said(study).endswith("every row has the same training settings (train.*).")
    study[0]["config"]["train"] = study[0]["config"]["train"] | {"steps": 500}
    assert said(study).endswith("training settings that differ between rows: train.steps (500 | 300).")


# --- the same images ----------------------------------------------------------------------------------------------------


def answered(records: Any, images: int = 400) -> list[dict[str, Any]]:
    """Give every record answers that make its accuracy."""
    noise = random.Random(1)
    order = noise.sample(range(images), images)
    found = []
    for one in records:
        if one["control"] == "chance":
            found.append(one | {"correct": {"reason": "a constant answer, which is not kept by image"}})
            continue
        count = round(one["metrics"][METRIC] * images / 100)
        right = np.zeros(images, bool)
        right[[order[(place + noise.randint(0, 40)) % images] for place in range(count)]] = True
        packed = base64.b64encode(np.packbits(right).tobytes()).decode()
        metrics = one["metrics"] | {METRIC: 100 * float(right.mean())}
        found.append(one | {"metrics": metrics, "correct": {METRIC: packed, "images": images, "test_set": "t"}})
    return found


def test_gained_less_lost_is_the_change(study, footer):
    records = answered([one for one in study if not one["overrides"]])
    built = table(records, footer)
    for line in built.rows[1:14]:
        change, images = built.cell(str(line.stage), "change"), built.cell(str(line.stage), "images")
        assert change.number("mean") == pytest.approx((images.number("gained") - images.number("lost")) / 3 / 400 * 100)


def test_the_table_of_images_shows_every_seed_and_controls(study, footer):
    records = answered([one for one in study if not one["overrides"]])
    built = table(records, footer, "same_images")
    assert [column.title for column in built.columns] == ["Step", "Seed 0", "Seed 1", "Seed 2", "Pooled"]
    cell = built.cell("drop_class_conditioning", "seed_1")
    assert re.fullmatch(rf"(< 0\.001|\d\.\d{{3}}) \(\+\d+, {MINUS}\d+\)", cell.text)
    assert built.cell("random_init", "seed_2", "control").number("gained") > 0
    assert built.cell("chance", "pooled", "control").text == "withheld: a constant answer, which is not kept by image"
    assert "single noise level over untrained network" in built.row("random_init", "control").cells[0].text


def test_old_records_without_answers_withhold_only_the_images(study, footer):
    assert table(study, footer).cell("patch_vae", "images").text == "withheld: answers not stored"
    assert isinstance(ladder_tests([], 1.0), tuple)
    assert "same_images" not in [one.number for one in all_tables(check_records(study), footer)]
    assert table(study, footer).cell("patch_vae", "change").state == "shown"


def test_the_change_of_a_test_is_the_tables(record):
    test = make_test(record, [1.0, 2.0])
    assert isinstance(test.change, Change)
    assert test.change.mean == 1.5
    assert test.correlation is None, "two seeds always correlate perfectly"
