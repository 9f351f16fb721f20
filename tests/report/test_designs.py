"""The table of the designs, from records of real studies whose accuracies follow a known rule."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from readers import read_csv, read_html, read_latex, read_markdown

from ablation.report import all_tables
from ablation.report.design_records import attribution
from ablation.report.formats import to_csv, to_html, to_latex, to_markdown
from ablation.report.results import check_records
from ablation.report.significance import holm, student_p
from ablation.report.tables import Table
from ablation.study import Request, prepare

METRIC = "linear_probe_top1"
Rule = Callable[[dict[str, Any]], float]
AMONG = ("predict_clean", "drop_input_scaling", "inverse_pca_input", "inverse_pca_output", "predict_original")


def additive(config: dict[str, Any]) -> float:
    """A world in which every setting adds its own, whatever the others are."""
    process, tokenizer = config["process"], config["tokenizer"]
    return (
        30.0
        - 2.0 * config["denoiser"]["class_conditional"]
        + {"noise": 0.0, "clean": -3.0, "original": -2.0}[process["target"]]
        + {"ddpm_linear_beta": 0.0, "linear_gamma_squared": 4.0, "linear_sigma": 5.0}[process["schedule"]]
        + {"uniform": 0.0}.get(process["loss_weight"], 0.0)
        + 0.5 * (process["input_space"] == "image")
        + 1.5 * (process["output_space"] == "image")
        + 2.0 * (tokenizer["kind"] != "conv")
    )


def interacting(config: dict[str, Any]) -> float:
    """The paper's footnote as a world: a clean target costs 3 points, but nothing once there are images at the input."""
    harm = config["process"]["target"] != "noise" and config["process"]["input_space"] == "latent"
    return 40.0 - 3.0 * harm


def simulate(runs: Path, rule: Rule, seeds: int = 3, noise: float = 0.05, start: int = 0, **request: Any) -> list[dict[str, Any]]:
    """Make the records of a study as if its cells had been measured: the rule's value plus noise of each cell and seed."""
    study = prepare(Request(**{"through": "predict_original", "scale": "smoke", "runs": runs, "with_controls": False,
                               "seeds": tuple(range(seeds)), **request}))  # fmt: skip
    draw = random.Random(start)
    records = []
    for cell in study.document("ablate run")["cells"]:
        value = rule(cell["config"]) + draw.gauss(0, noise)
        records.append({
            **cell, "cell": cell["id"], "schema": 1, "scale": "smoke", "state": "done", "reason": "", "undefined": {}, "holes": {},
            "metrics": {METRIC: value}, "protocol": {"dataset": "d", "test_images": 2000},
            "cost": {"wall_seconds": 1.0, "peak_memory_gib": 1.0}, "code": {"commit": "c", "dirty": False}, "versions": {},
        })  # fmt: skip
    return records


def designs(records: list[dict[str, Any]], footer: Any) -> Table:
    return next(table for table in all_tables(records, footer) if table.number == "designs")


FOUR = ("ladder", "leave_one_out", "add_one", "put_back")


@pytest.fixture
def four(runs: Path) -> list[dict[str, Any]]:
    """Records of all four designs in the interacting world."""
    return simulate(runs, interacting, designs=FOUR)


def test_putting_the_noise_target_back_shows_that_its_loss_was_the_orders(four, footer):
    table = designs(four, footer)
    assert table.cell("predict_clean", "ladder").number("mean") == pytest.approx(-3, abs=0.15)
    assert table.cell("predict_clean", "put_back").number("mean") == pytest.approx(0, abs=0.15)
    assert table.cell("predict_clean", "add_one").number("mean") == pytest.approx(-3, abs=0.15)
    gap = table.cell("predict_clean", "gap")
    assert gap.number("mean") == pytest.approx(-3, abs=0.2)
    assert gap.number("high") < 0
    assert table.cell("predict_clean", "order").text.startswith("order-sensitive (p ")
    assert table.cell("inverse_pca_input", "ladder").number("mean") == pytest.approx(3, abs=0.15)
    assert table.cell("inverse_pca_input", "put_back").number("mean") == pytest.approx(3, abs=0.15)
    assert table.cell("drop_class_conditioning", "order").text.startswith("not shown (p = ")
    marks = table.cell("predict_clean", "put_back").marks
    assert "also undoes process.loss_weight" in dict(table.notes)[marks[0]].lower()


def test_what_has_no_cell_says_why_in_every_format(four, footer):
    table = designs(four, footer)
    assert table.cell("patch_vae", "put_back").text == "impossible"
    assert "requires tokenizer.kind = patch_pca or pixels" in dict(table.notes)[table.cell("patch_vae", "put_back").marks[0]]
    assert table.cell("patch_vae", "leave_one_out").text == "no change"
    assert dict(table.notes)[table.cell("patch_vae", "leave_one_out").marks[0]] == "Overridden by 'patch_ae'."
    assert table.cell("predict_original", "gap").text == "same cells"
    assert table.cell("predict_clean", "shapley").text == "not asked for"
    titles = [column.title for column in table.columns]
    expected = [[(cell.text, ",".join(cell.marks)) for cell in row.cells] for row in table.rows]
    for found in (
        read_markdown(to_markdown(table)), read_csv(to_csv(table), len(titles)), read_latex(to_latex(table)), read_html(to_html(table)),
    ):  # fmt: skip
        assert found == (titles, expected)


def test_the_designs_leave_the_papers_tables_alone(four, runs, footer):
    ladder = [record for record in four if any(role["design"] == "ladder" for role in record["designs"])]
    alone = {table.number: table for table in all_tables(ladder, footer)}
    for table in all_tables(four, footer):
        if table.number in ("1", "3"):
            assert table.rows == alone[table.number].rows


def test_a_lost_cell_withholds_its_change_and_a_lost_seed_shrinks_it(four, footer):
    back = [r for r in four if any(role["design"] == "put_back" and role["stage"] == "predict_clean" for role in r["designs"])]
    back[0].update(state="failed", reason="lost", metrics={})
    table = designs(four, footer)
    assert table.cell("predict_clean", "put_back").number("n") == table.cell("predict_clean", "gap").number("n") == 2
    for record in back[1:]:
        record.update(state="stale", reason="code changed")
    table = designs(four, footer)
    assert table.cell("predict_clean", "put_back").text == "withheld: put_back of predict_clean 1 failed, 2 stale"
    assert table.cell("predict_clean", "gap").text == "withheld: put_back of predict_clean 1 failed, 2 stale"
    assert table.cell("predict_clean", "ladder").number("n") == 3


def test_another_protocol_is_refused_and_named(four, footer):
    for record in four:
        if any(role["design"] == "add_one" and role["stage"] == "patch_ae" for role in record["designs"]):
            record["protocol"] = {**record["protocol"], "dataset": "other"}
    assert designs(four, footer).cell("patch_ae", "add_one").text == "withheld: dataset differs"


def test_a_design_alone_has_a_table_of_its_own(runs, footer):
    table = designs(simulate(runs, additive, designs=("add_one",)), footer)
    assert table.cell("drop_class_conditioning", "add_one").number("mean") == pytest.approx(2, abs=0.2)
    assert table.cell("linear_gamma_schedule", "ladder").text == "not asked for"
    assert table.cell("patch_vae", "add_one").text == "impossible"
    assert "step_tests" not in [one.number for one in all_tables(simulate(runs, additive, designs=("put_back",)), footer)]


def test_a_ladder_alone_has_no_such_table(runs, footer):
    assert "designs" not in [table.number for table in all_tables(simulate(runs, additive, designs=("ladder",)), footer)]


# --- Shapley values -----------------------------------------------------------------------------------------------------


def test_exact_shapley_values_of_an_additive_world_are_the_effects_and_add_up(runs, footer):
    records = simulate(runs, additive, noise=0.0, designs=("shapley",), among=("linear_gamma_schedule", "drop_class_conditioning"),
                       through="linear_gamma_schedule")  # fmt: skip
    table = designs(records, footer)
    assert table.cell("drop_class_conditioning", "shapley").number("mean") == pytest.approx(2)
    assert table.cell("linear_gamma_schedule", "shapley").number("mean") == pytest.approx(4)
    assert any("exact, over all 2 feasible orders, seeds 0, 1, 2; they add up to +6.0." in text for _, text in table.notes)


def test_exact_shapley_values_split_an_interaction(runs, footer):
    records = simulate(runs, interacting, noise=0.0, designs=("ladder", "shapley"), among=AMONG)
    found = attribution(records, METRIC)
    assert found is not None
    assert sum(change.mean for change in found.exact.values()) == pytest.approx(0.0)
    assert found.exact["drop_input_scaling"].mean == pytest.approx(0.0), "a stage that changes nothing gets nothing"
    assert found.exact["predict_clean"].mean == pytest.approx(-found.exact["inverse_pca_input"].mean) != 0
    table = designs(records, footer)
    assert table.cell("patch_pca", "shapley").text == "stays throughout"
    assert table.cell("predict_clean", "shapley").number("n") == 3


def test_missing_cells_leave_an_estimate_and_then_a_refusal(runs, footer):
    records = simulate(runs, additive, noise=0.0, designs=("shapley",), among=AMONG)
    one = next(r for r in records if [tuple(role["steps"]) for role in r["designs"]] == [("drop_input_scaling",)])
    for record in records:
        if record["id"].rpartition("-s")[0] == one["id"].rpartition("-s")[0]:
            record.update(state="failed", reason="lost", metrics={})
    exact = attribution(simulate(runs, additive, noise=0.0, designs=("shapley",), among=AMONG), METRIC)
    found = attribution(records, METRIC)
    assert found is not None
    assert exact is not None
    assert 1 < found.used < found.total == exact.total
    assert not found.exact
    for stage, change in exact.exact.items():
        assert found.sampled[stage].share == pytest.approx(change.mean), "in an additive world every order says the same"
    table = designs(records, footer)
    assert f"({found.used} of {found.total} orders)" in table.cell("predict_clean", "shapley").text
    for record in records:
        if [step for role in record["designs"] for step in role["steps"]][-1:] != ["predict_original"]:
            record.update(state="missing", metrics={})
    table = designs(records, footer)
    cell = table.cell("predict_clean", "shapley")
    assert cell.text == "refused"
    assert "no order is complete; missing: drop_input_scaling" in dict(table.notes)[cell.marks[0]]


def test_sampled_orders_give_an_estimate(runs, footer):
    records = simulate(runs, additive, noise=0.0, designs=("shapley",), orders=3)
    found = attribution(records, METRIC)
    assert found is not None
    assert (found.used, len(found.sampled)) == (3, 12)
    assert sum(one.share for one in found.sampled.values()) == pytest.approx(
        additive(next(r for r in records if r["id"] == "predict_original-s0")["config"])
        - additive(next(r for r in records if r["id"] == "baseline-s0")["config"])
    )
    text = designs(records, footer).cell("predict_clean", "shapley").text
    assert text.endswith(f"(3 of {found.total} orders)")


def test_shapley_values_across_protocols_are_refused(runs, footer):
    records = simulate(runs, additive, designs=("shapley",), among=AMONG)
    records[0]["protocol"] = {**records[0]["protocol"], "test_images": 7}
    table = designs(records, footer)
    cell = table.cell("predict_clean", "shapley")
    assert dict(table.notes)[cell.marks[0]] == "Shapley values: test_images differs."


def test_old_records_know_of_no_design(study):
    assert attribution(check_records(study), METRIC) is None


@pytest.mark.slow
def test_an_additive_world_raises_no_flag_in_95_percent_of_studies():
    """Six stages with ladder and put-back; each cell has its own noise, so gaps share the final model and neighbouring rows."""
    noise, studies, flagged = np.random.default_rng(3), 2000, 0
    for _ in range(studies):
        rungs, backs = noise.normal(size=(7, 4)), noise.normal(size=(6, 4))
        gaps = {str(k): (rungs[k + 1] - rungs[k]) - (rungs[6] - backs[k]) for k in range(6)}
        flagged += min(holm({name: student_p(list(gap)) or 0.0 for name, gap in gaps.items()}).values()) < 0.05
    print(f"{100 * flagged / studies:.1f} % of studies flagged")
    assert flagged / studies <= 0.06
