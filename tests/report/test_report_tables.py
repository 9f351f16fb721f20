"""What the tables say: common seeds only, holes named, protocols compared, the paper kept at its own scale."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats

from ablation.errors import ConfigError
from ablation.report import all_tables
from ablation.report.cells import MINUS, NOTHING, signed
from ablation.report.definitions import load_definitions
from ablation.report.intervals import half_width, paired_change, student_quantile
from ablation.report.published import load_published
from ablation.report.results import check_records, study_settings
from ablation.report.tables import grid_table, ladder_table

DEFINITIONS, PUBLISHED = load_definitions(), load_published()


def build(records: list[dict[str, Any]], footer: Any, number: str = "1") -> Any:
    checked = check_records(records)
    if number == "2":
        return grid_table(checked, DEFINITIONS, PUBLISHED, footer)
    return ladder_table(checked, DEFINITIONS, number, PUBLISHED, footer)


def test_student_quantile_agrees_with_scipy() -> None:
    for degrees in range(1, 31):
        for level in (0.5, 0.95, 0.99):
            # scipy 1.11 itself is no more exact than this
            assert student_quantile(degrees, level) == pytest.approx(stats.t.ppf(0.5 + level / 2, degrees), rel=1e-8)
    with pytest.raises(ValueError, match="0 degrees"):
        student_quantile(0)


def test_interval_is_scipys_paired_interval() -> None:
    before, after = {0: 50.0, 1: 53.5, 2: 51.0, 9: 99.0}, {0: 51.0, 1: 54.0, 2: 53.0, 7: 1.0}
    change = paired_change(before, after)
    assert change is not None
    assert change.low is not None
    expected = stats.ttest_rel([51.0, 54.0, 53.0], [50.0, 53.5, 51.0]).confidence_interval(0.95)
    assert (change.low, change.high) == pytest.approx((expected.low, expected.high))
    assert change.seeds == (0, 1, 2)
    assert half_width([1.0]) is None


def test_a_lost_seed_does_not_bend_the_change(record: Any, footer: Any) -> None:
    """Seeds 60 and 50, then 61 with the second seed lost: the change is +1, not 61 - 55."""
    records = [record("baseline", 0, 60.0), record("baseline", 1, 50.0), record("drop_class_conditioning", 0, 61.0)]
    table = build([*records, record("drop_class_conditioning", 1, None, state="failed", reason="node lost", metrics={})], footer)
    change = table.cell("drop_class_conditioning", "change")
    assert change.number("mean") == 1.0
    assert change.text == "+1.0 (n = 1)"
    assert table.cell("baseline", "linear_probe_top1").text.startswith("55.0 ± 7.1 (2/2)")
    assert table.cell("drop_class_conditioning", "linear_probe_top1").text == "61.0 (1/2; 1 failed)"
    assert any("seed 1 failed: node lost" in text for _, text in table.notes)


def test_a_seed_without_any_record_counts_as_planned(record: Any, footer: Any) -> None:
    records = [record("baseline", 0, 60.0), record("baseline", 1, 50.0), record("drop_class_conditioning", 0, 61.0)]
    assert build(records, footer).cell("drop_class_conditioning", "linear_probe_top1").text == "61.0 (1/2; 1 not run)"


def test_one_seed_has_neither_spread_nor_interval(record: Any, footer: Any) -> None:
    table = build([record("baseline", 3, 20.0), record("drop_class_conditioning", 3, 25.04)], footer)
    cell = table.cell("drop_class_conditioning", "change")
    assert cell.text == "+5.0 (n = 1)"
    assert (cell.number("low"), cell.number("high")) == (None, None)
    assert "±" not in table.cell("baseline", "linear_probe_top1").text


def test_change_is_withheld_without_a_common_seed(record: Any, footer: Any) -> None:
    table = build([record("baseline", 0, 20.0), record("drop_class_conditioning", 1, 25.0)], footer)
    assert table.cell("drop_class_conditioning", "change").text == "withheld: no common seed"


@pytest.mark.parametrize("field", ["dataset", "image_size", "train_images", "probe"])
def test_change_is_withheld_and_names_the_differing_field(record: Any, footer: Any, field: str) -> None:
    other = record("drop_class_conditioning", 0, 25.0)
    other["protocol"][field] = "something else"
    cell = build([record("baseline", 0, 20.0), other], footer).cell("drop_class_conditioning", "change")
    assert cell.text == f"withheld: {field} differs"
    assert cell.number("mean") is None


def test_a_distance_field_does_not_stop_a_probe_change(record: Any, footer: Any) -> None:
    other = record("drop_class_conditioning", 0, 25.0)
    other["protocol"]["distance_samples"] = 7
    assert build([record("baseline", 0, 20.0), other], footer).cell("drop_class_conditioning", "change").number("mean") == 5.0


def test_seeds_of_one_row_must_share_a_protocol(record: Any, footer: Any) -> None:
    other = record("baseline", 1, 50.0)
    other["protocol"]["probe"] = "another recipe"
    cell = build([record("baseline", 0, 60.0), other], footer).cell("baseline", "linear_probe_top1")
    assert cell.text == "withheld: seeds differ in probe"
    assert cell.number("mean") is None


def test_two_results_for_one_seed_are_not_averaged(record: Any, footer: Any) -> None:
    twice = [record("baseline", 0, 60.0, cell="a"), record("baseline", 0, 50.0, cell="b")]
    assert build(twice[:1] * 2, footer).cell("baseline", "linear_probe_top1").text == "60.0 (1/1)", "one result, collected twice"
    twice[1]["jobs"] = {"train": "another"}
    cell = build(twice, footer).cell("baseline", "linear_probe_top1")
    assert cell.text == "withheld: two results for seed 0 (a, b)"


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_shown_change_is_the_common_seed_change(study: Any, footer: Any, data: st.DataObject) -> None:
    steps = [one for one in study if one["stage"] and not one["overrides"]]
    lost = data.draw(st.sets(st.integers(0, len(steps) - 1), max_size=len(steps) - 1))
    words = data.draw(st.lists(st.sampled_from(["gone", "failed", "missing"]), min_size=len(steps), max_size=len(steps)))
    kept = []
    for place, one in enumerate(steps):
        if place not in lost:
            kept.append(one)
        elif words[place] != "gone":
            kept.append(one | {"state": words[place], "metrics": {}, "reason": "lost"})
    values: dict[str, dict[int, float]] = {}
    for place, one in enumerate(steps):
        if place not in lost:
            values.setdefault(one["stage"], {})[one["seed"]] = one["metrics"]["linear_probe_top1"]
    for number in ("1", "3"):
        table = build(kept, footer, number)
        for before, after in itertools.pairwise(row for row in table.rows if row.kind == "step"):
            common = set(values.get(before.stage, {})) & set(values.get(after.stage, {}))
            cell = table.cell(after.stage, "change")
            if common:
                expected = math.fsum(values[after.stage][seed] - values[before.stage][seed] for seed in common) / len(common)
                assert cell.number("mean") == pytest.approx(expected)
                assert cell.number("n") == len(common)
                assert (cell.number("low") is None) == (len(common) == 1)
            else:
                assert cell.text.startswith("withheld: ")
                assert cell.number("mean") is None


def test_every_state_is_a_word(holed: Any, footer: Any) -> None:
    one, three = build(holed, footer, "1"), build(holed, footer, "3")
    assert "1 diverged" in one.cell("drop_adversarial_loss", "linear_probe_top1").text
    assert "1/3; 1 failed; 1 skipped" in one.cell("linear_gamma_schedule", "linear_probe_top1").text
    assert "1 stale" in three.cell("drop_input_scaling", "linear_probe_top1").text
    assert "1 missing" in three.cell("inverse_pca_input", "linear_probe_top1").text
    assert three.cell("predict_original", "linear_probe_top1").text == "not run"
    assert three.cell("single_noise_level", "change").text == "withheld: predict_original not run"
    assert one.cell("pca_features", "linear_probe_top1", "control").text == "not run"


def test_stale_and_failed_values_are_not_averaged(record: Any, footer: Any) -> None:
    records = [record("baseline", 0, 20.0), record("baseline", 1, 90.0, state="stale"), record("baseline", 2, 90.0, state="failed")]
    assert build(records, footer).cell("baseline", "linear_probe_top1").number("mean") == 20.0


def test_a_number_that_is_not_finite_is_a_hole(record: Any, footer: Any) -> None:
    cell = build([record("baseline", 0, math.nan)], footer).cell("baseline", "linear_probe_top1")
    assert cell.text == "not finite (0/1)"


def test_undefined_metric_carries_its_reason(study: Any, footer: Any) -> None:
    table = build(study, footer, "3")
    cell = table.cell("single_noise_level", "fid")
    assert cell.text == "not defined (0/3)"
    assert dict(table.notes)[cell.marks[0]] == "not defined: a single noise level has no reverse process"


def test_incomparable_is_footnoted(holed: Any, footer: Any) -> None:
    table = build(holed, footer, "3")
    mark = table.row("predict_clean").cells[0].marks[0]
    assert dict(table.notes)[mark] == "Not comparable with the row before: training loss."


def test_incomparable_linear_probe_withholds_the_change(record: Any, footer: Any) -> None:
    after = record("drop_class_conditioning", 0, 25.0, incomparable=["linear probe"])
    assert build([record("baseline", 0, 20.0), after], footer).cell("drop_class_conditioning", "change").state == "withheld"


def test_distance_is_called_what_the_protocol_calls_it(study: Any, footer: Any) -> None:
    titles = [column.title for column in build(study, footer).columns]
    assert "FD (EfficientNet-Lite0, 112-d) ↓" in titles
    assert [title for title in titles if "FID" in title] == ["Paper: FID"]
    for one in study:
        one["protocol"]["distance"] = "FID-50K"
    assert "FID-50K ↓" in [column.title for column in build(study, footer).columns]


def test_two_kinds_of_distance_are_told_apart(study: Any, footer: Any) -> None:
    for one in study:
        if one["stage"] == "baseline":
            one["protocol"]["distance"] = "FID"
    table = build(study, footer)
    assert "Fréchet distance ↓" in [column.title for column in table.columns]
    notes = dict(table.notes)
    assert notes[table.cell("baseline", "fid").marks[-1]] == "Measured as FID."
    assert notes[table.cell("drop_perceptual_loss", "fid").marks[-1]] == "Measured as FD (EfficientNet-Lite0, 112-d)."


def test_smoke_scale_is_never_held_against_the_paper(study: Any, footer: Any) -> None:
    for one in study:
        as_paper(one)
        one["scale"] = "smoke"
    for number in ("1", "3"):
        table = build(study, footer, number)
        verdicts = {row.cells[-1].text for row in table.rows if row.kind == "step"}
        assert verdicts == {"other scale"}
        assert "not comparable with the paper" in table.caption
    sources = [row.cells[1].text for row in build(study, footer, "2").rows]
    assert set(sources) == {"here", "paper, other scale"}


def as_paper(one: dict[str, Any]) -> None:
    """Give a record the paper's own conditions."""
    one["scale"] = "paper"
    one["protocol"] |= {"dataset": "folder", "image_size": 256, "train_images": 1281167, "test_images": 50000}
    one["config"] |= {"denoiser": {"size": "L"}, "train": {"epochs": 400.0, "steps": None}}
    one["config"]["probe"] = {"mode": "epochs", "timestep": 10, "noisy_input": False}


def test_paper_scale_gets_a_verdict_not_a_gap(record: Any, footer: Any) -> None:
    records = [record("baseline", seed, 57.0 + 0.4 * seed) for seed in range(3)]
    records += [record("drop_class_conditioning", seed, 70.0 + 0.1 * seed) for seed in range(3)]
    records += [record("drop_perceptual_loss", 0, 58.4)]
    for one in records:
        as_paper(one)
    table = build(records, footer)
    assert table.cell("baseline", "comparability").text == "same scale: paper inside our 95 % interval"
    assert table.cell("drop_class_conditioning", "comparability").text == "same scale: paper outside our 95 % interval"
    assert table.cell("drop_perceptual_loss", "comparability").text == "same scale: too few seeds to judge"


@pytest.mark.parametrize(("section", "name", "value"), [("denoiser", "size", "B"), ("train", "epochs", 800.0), ("probe", "timestep", 40)])
def test_one_other_setting_is_another_scale(record: Any, footer: Any, section: str, name: str, value: Any) -> None:
    one = record("baseline", 0, 57.5)
    as_paper(one)
    one["config"][section] = one["config"][section] | {name: value}
    table = build([one], footer)
    assert table.cell("baseline", "comparability").text == "other scale"
    shown = f"{section}.{name} {value:g}" if isinstance(value, float) else f"{section}.{name} {value}"
    assert any(shown in text for _, text in table.notes)


def test_a_setting_changed_throughout_is_said_and_is_another_scale(record: Any, footer: Any) -> None:
    records = [record(stage, 0, 57.5, overrides={"train.clip_grad": 1.0}) for stage in ("baseline", "drop_class_conditioning")]
    for one in records:
        as_paper(one)
    table = build(records, footer)
    assert table.cell("drop_class_conditioning", "change").number("mean") == 0.0
    assert table.cell("baseline", "comparability").text == "other scale"
    assert "Set throughout: train.clip_grad = 1." in table.footer
    assert study_settings(records) == {"train.clip_grad": 1.0}


def test_contradiction_of_the_paper_is_kept(study: Any, footer: Any) -> None:
    table = build(study, footer)
    for column, printed, other in (("paper_linear_probe_top1", "62.5 (+5.0)", "62.1"), ("paper_fid", "30.9", "34.2")):
        cell = table.cell("drop_class_conditioning", column)
        assert cell.text == printed
        assert any(f"gives {other}" in dict(table.notes)[mark] for mark in cell.marks)


def test_labels_are_marked_from_the_records_and_without_them(study: Any, footer: Any) -> None:
    for records in (study, []):
        table = build(records, footer)
        assert [row.stage for row in table.rows if row.labels_used] == ["baseline", "drop_class_conditioning"]
        assert all("†" in row.cells[0].marks for row in table.rows if row.labels_used)
        assert table.notes[0][0] == "†"
    assert not any(mark == "†" for mark, _ in build(study, footer, "3").notes)


def test_plugin_row_stands_after_its_parent(holed: Any, record: Any, footer: Any) -> None:
    path = next(one["path"] for one in holed if one["stage"] == "my_plugin")
    grandchild = record("grandchild", 0, 35.0, path=[*path, "grandchild"])
    table = build([*holed, grandchild], footer, "3")
    stages = [row.stage for row in table.rows if row.kind == "step"]
    assert stages[:5] == ["patch_pca", "predict_clean", "my_plugin", "grandchild", "drop_input_scaling"]
    assert table.cell("grandchild", "change").text == "+4.0 (n = 1)"
    assert table.cell("my_plugin", "paper_linear_probe_top1").text == "not in the paper"
    # The built-in row below keeps its own parent, and says so.
    assert "from predict_clean" in table.cell("drop_input_scaling", "change").text
    assert "my_plugin" not in [row.stage for row in build(holed, footer, "1").rows]


def test_another_design_does_not_stand_in_for_the_ladder(study: Any, record: Any, footer: Any) -> None:
    without = [one for one in study if one["stage"] != "patch_pca"]
    alone = record("patch_pca", 0, 99.0, path=["baseline", "patch_pca"])
    assert build([*without, alone], footer, "3").cell("patch_pca", "linear_probe_top1").text == "not run"
    shorter = record("predict_original", 0, 99.0, path=["baseline", "predict_original"])
    assert build([*study, shorter], footer, "3").cell("predict_original", "linear_probe_top1").number("n") == 3


def test_grid_shows_results_holes_and_the_impossible(study: Any, footer: Any) -> None:
    table = build(study, footer, "2")
    assert [column.title for column in table.columns[2:]] == ["d = 8", "d = 16", "d = 32", "d = 64", "d = 128"]
    assert table.cell("linear_gamma_schedule", "d16").number("n") == 3
    assert table.cell("linear_gamma_schedule", "d64").text == "not run"
    assert "ablate run --table 2" in table.caption
    cell = table.cell("patch_ae", "d64")
    assert cell.text == "n/a"
    assert "48 numbers" in dict(table.notes)[cell.marks[0]]
    blank = table.cell("patch_vae", "d128", "paper")
    assert blank.text == "blank"
    assert "inferred" in dict(table.notes)[blank.marks[0]]


def test_grid_cells_stay_out_of_the_ladder(study: Any, footer: Any) -> None:
    plain = [one for one in study if one["stage"] == "linear_gamma_schedule" and not one["overrides"]]
    expected = sum(one["metrics"]["linear_probe_top1"] for one in plain) / 3
    assert build(study, footer).cell("linear_gamma_schedule", "linear_probe_top1").number("mean") == pytest.approx(expected)


def test_grid_takes_in_a_value_nobody_listed(study: Any, record: Any, footer: Any) -> None:
    extra = record("patch_pca", 0, 40.0, overrides={"tokenizer.latent_dim": 48})
    table = build([*study, extra], footer, "2")
    assert table.cell("patch_pca", "d48").text == "40.0 (1/3; 2 not run)"
    assert table.cell("patch_pca", "d48", "paper").text == "not in the paper"


def test_control_of_another_protocol_says_so(study: Any, footer: Any) -> None:
    for one in study:
        if one["control"] == "chance":
            one["protocol"]["image_size"] = 64
    table = build(study, footer)
    assert any("image_size" in dict(table.notes)[mark] for mark in table.row("chance", "control").cells[0].marks)
    assert table.row("random_init", "control").cells[0].marks == ()


def test_footer_names_protocol_seeds_code_command_and_keys(study: Any, footer: Any) -> None:
    table = build(study, footer)
    text = "\n".join(table.footer)
    for expected in (
        "dataset: scenes (composite: emoji art on photos)", "Seeds: 0, 1, 2.", "Scale: smoke", "computed at commit 0123abc.",
        "commit 0123abc with uncommitted changes, 2026-01-02, by: ablate report --scale smoke", "probe000abcd",
    ):  # fmt: skip
        assert expected in text
    assert ("", "The images are generated composites, not a natural-image data set.") in table.notes


def test_composite_images_are_called_so(record: Any, footer: Any) -> None:
    one = record("baseline")
    one["protocol"]["dataset"] = "scenes"
    assert "generated composites" not in str(build([one], footer).notes)
    one["protocol"]["composite"] = True
    assert "generated composites" in str(build([one], footer).notes)


def test_an_unknown_commit_is_said(record: Any, footer: Any) -> None:
    one = record("baseline", code={"commit": "", "dirty": False})
    table = build([one], footer | {"commit": "", "dirty": False})
    assert "Results computed at an unknown commit." in table.footer
    assert any(line.startswith("Report written at an unknown commit, 2026-01-02") for line in table.footer)


def test_no_records_give_tables_of_not_run(footer: Any) -> None:
    for table in all_tables([], footer):
        ours = [row for row in table.rows if row.kind == "step"]
        assert {cell.text for row in ours for cell, column in zip(row.cells, table.columns, strict=True) if "mean" in column.numbers} <= {
            "not run", "withheld: not run", NOTHING,
        }  # fmt: skip
        assert "No results yet" in table.caption


def test_bad_records_are_refused(record: Any, footer: Any) -> None:
    with pytest.raises(ConfigError, match="mix the scales small, smoke"):
        check_records([record("baseline"), record("baseline", 1, scale="small")])
    with pytest.raises(ConfigError, match="schema 2"):
        check_records([record("baseline", schema=2)])
    with pytest.raises(ConfigError, match=r"unknown state 'dnoe'.*done"):
        check_records([record("baseline", state="dnoe")])
    with pytest.raises(ConfigError, match="either a stage or a control"):
        check_records([record("baseline", control="chance")])


def test_signs() -> None:
    assert [signed(value) for value in (0.04, -0.04, 1.25, -1.25, 0.0)] == ["0.0", "0.0", "+1.3", f"{MINUS}1.3", "0.0"]
