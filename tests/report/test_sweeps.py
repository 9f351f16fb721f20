"""Ready studies as tables and curves: every place filled, holes named, the best chosen without the test images."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from ablation.report import all_tables, report_files
from ablation.report.curves import sweep_csv, sweep_figure
from ablation.report.formats import LATEX
from ablation.report.published import load_published
from ablation.report.sweep_definitions import SweepDefinition, load_sweep, sweep_names, sweeps_folder
from ablation.report.sweeps import choose, sweep_table, sweeps_of

PAPER = load_published()


def place(table: str, row: str, column: str, **changes: Any) -> dict[str, Any]:
    """Make the place of a record in a study."""
    return {"table": table, "row": row, "column": column, "title": column, "paper": column, "x": None, **changes}


@pytest.fixture
def placed(record: Any) -> Any:
    """Give the maker of a record with a place in a study."""

    def make(table: str, row: str, column: str, seed: int = 0, value: float = 30.0, stage: str = "predict_original", **changes: Any) -> Any:
        at = {name: changes.pop(name) for name in ("title", "paper", "x") if name in changes}
        overrides = changes.pop("overrides", {"probe.timestep": column})
        cell = f"{stage}-{table}-{row}-{column}-{seed}"
        return record(stage, seed, value, cell=cell, overrides=overrides, places=[place(table, row, column, **at)], **changes)

    return make


def one_table(records: Any, footer: Any, name: str) -> Any:
    return next(table for table in all_tables(records, footer) if table.number == name)


def test_every_definition_says_what_the_paper_has() -> None:
    """Each number of the paper that belongs to a study has a line there, and every study its command."""
    found = set()
    for name in sweep_names():
        definition = load_sweep(name)
        assert definition.command == f"ablate run --table {name}"
        rows = {row.name for row in definition.rows} | {line.row for line in definition.cited}
        for entry in PAPER.entries:
            if entry.table == definition.paper_table:
                assert entry.row in rows, (name, entry.row)
                found.add(entry.table)
    assert found == {
        "4", "figure_5", "augmentation", "training_length", "model_size", "timestep", "encoder_depth", "target_by_tokenizer", "sigma",
        "residual_weight", "fid", "finetune",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"reference": "none"}, "no variant"),
        ({"variants": [{"name": "a", "title": "A"}, {"name": "a", "title": "B"}]}, "twice"),
        ({"variants": [{"name": "a", "title": "A", "rows": ["elsewhere"]}], "reference": None, "columns": []}, "unknown row elsewhere"),
        ({"layout": "best"}, "choose_by"),
        ({"columns": []}, "needs columns"),
        ({"rows": [{"name": "a", "stage": "a", "title": "A", "set": {"x.y": {"twice": 2}}}]}, "is not one of"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_broken_definition_is_refused(change: dict[str, Any], complaint: str) -> None:
    content = yaml.safe_load((sweeps_folder() / "augmentation.yaml").read_text(encoding="utf-8")) | change
    with pytest.raises(ValidationError, match=complaint):
        SweepDefinition.model_validate(content)


def test_a_study_shows_once_a_record_belongs_to_it(placed: Any, study: Any, footer: Any) -> None:
    assert [table.number for table in all_tables(study, footer)] == ["1", "2", "3", "step_tests"]
    records = [placed("augmentation", "predict_original", "centre_crop", overrides={})]
    assert [table.number for table in all_tables(records, footer)] == ["augmentation"]
    assert [table.number for table in all_tables([*study, *records], footer)] == ["1", "2", "3", "step_tests", "augmentation"]


def test_a_list_shows_values_changes_and_the_paper(placed: Any, footer: Any) -> None:
    crop = {"data.augmentation": "random_resized_crop"}
    records = [placed("augmentation", "predict_original", "centre_crop", seed, 30.0 + seed, overrides={}) for seed in (0, 1)]
    records += [placed("augmentation", "predict_original", "random_resized_crop", seed, 31.0 + 2 * seed, overrides=crop) for seed in (0, 1)]
    table = one_table(records, footer, "augmentation")
    line = "predict_original/random_resized_crop"
    assert table.cell(line, "linear_probe_top1").text == "32.0 ± 1.4 (2/2)"
    assert table.cell(line, "change").number("mean") == pytest.approx(1.5)
    assert table.cell("predict_original/centre_crop", "change").state == "none"
    assert [table.cell(f"predict_original/{name}", "paper").text for name in ("centre_crop", "random_resized_crop")] == ["64.5", "65.0"]
    assert table.cell(line, "comparability").text == "other scale"


def test_what_was_not_run_or_cannot_be_says_so(placed: Any, footer: Any) -> None:
    impossible = placed("encoder_depth", "predict_original", "plus3", value=None, state="impossible", reason="there is no block 5",
                        metrics={}, protocol={}, jobs={}, code={})  # fmt: skip
    records = [placed("encoder_depth", "predict_original", "middle", overrides={}, title="2 of 4", paper="2"), impossible]
    table = one_table(records, footer, "encoder_depth")
    assert table.cell("predict_original/plus3", "linear_probe_top1").text == "n/a"
    assert any("there is no block 5" in text for _, text in table.notes)
    assert table.cell("predict_original/plus1", "linear_probe_top1").text == "not run"
    assert table.cell("predict_original/middle", "variant").text == "2 of 4"
    assert table.cell("predict_original/plus1", "variant").text == "1 block after the middle"


def test_a_change_across_protocols_is_withheld_unless_the_study_moves_it(placed: Any, footer: Any) -> None:
    records = [placed("model_size", "predict_original", "own", overrides={}), placed("model_size", "predict_original", "double")]
    records[1]["protocol"]["network"] = "DiT-double"
    assert one_table(records, footer, "model_size").cell("predict_original/double", "change").text.startswith("0.0")
    records[1]["protocol"]["test_images"] = 7
    assert one_table(records, footer, "model_size").cell("predict_original/double", "change").text == "withheld: test_images differs"


def test_a_grid_has_the_papers_line_below_ours(placed: Any, footer: Any) -> None:
    records = [placed("timestep", row, t, x=float(t)) for row in ("clean", "noisy") for t in ("0", "10")]
    table = one_table(records, footer, "timestep")
    assert [(row.kind, row.stage) for row in table.rows] == [("step", "clean"), ("paper", "clean"), ("step", "noisy"), ("paper", "noisy")]
    assert table.cell("noisy", "v20", "paper").text == "65.0"
    assert table.cell("clean", "v20").text == "not run"


def best_records(placed: Any) -> list[Any]:
    """Make a row whose test accuracy is best at t = 40 and whose held-out accuracy is best at t = 20."""
    values = {"10": (30.0, 28.0), "20": (31.0, 35.0), "40": (39.0, 29.0)}
    records = []
    for t, (top1, held_out) in values.items():
        for seed in (0, 1):
            record = placed("best_timestep", "predict_original", t, seed, top1 + seed, title=f"t = {t}")
            record["metrics"]["probe_held_out_top1"] = held_out
            record["protocol"]["probe_timestep"] = int(t)
            records.append(record)
    return records


def test_the_best_is_chosen_on_held_out_images_alone(placed: Any, footer: Any) -> None:
    table = one_table(best_records(placed), footer, "best_timestep")
    assert table.cell("predict_original", "chosen").text == "t = 20"
    assert table.cell("predict_original", "linear_probe_top1").text == "31.5 ± 0.7 (2/2)"
    assert table.cell("predict_original", "at_reference").text == "30.5 ± 0.7 (2/2)"
    assert table.cell("predict_original", "change").number("mean") == 1.0
    assert table.cell("baseline", "chosen").text == "nothing to choose from"
    assert any("Chosen among 3 of 7 values" in text for _, text in table.notes)


def test_test_accuracies_do_not_move_the_choice(placed: Any) -> None:
    records = best_records(placed)
    (sweep,) = sweeps_of(records)
    before = choose(sweep.spots, "probe_held_out_top1", None)
    for record in records:
        record["metrics"]["linear_probe_top1"] = 100 - record["metrics"]["linear_probe_top1"]
    (sweep,) = sweeps_of(records)
    after = choose(sweep.spots, "probe_held_out_top1", None)
    assert before is not None
    assert after is not None
    assert before.name == after.name == "predict_original/20"


def test_a_tie_goes_to_the_reference(placed: Any, footer: Any) -> None:
    records = best_records(placed)
    for record in records:
        record["metrics"]["probe_held_out_top1"] = 30.0
    table = one_table(records, footer, "best_timestep")
    assert table.cell("predict_original", "chosen").text == "t = 10"
    assert table.cell("predict_original", "change").state == "none"


def test_cited_methods_and_checkpoints_stand_in_the_system_table(placed: Any, control: Any, footer: Any) -> None:
    checkpoint = control("checkpoint", 55.0) | {"title": "some_net"}
    checkpoint["protocol"] = {**checkpoint["protocol"], "network": "some_net, 4.7M", "features": "the model's pooled features"}
    (table,) = all_tables([checkpoint], footer)
    assert table.cell("moco_v3/vit_b", "paper", "control").text == "76.7"
    assert table.cell("some_net", "linear_probe_top1", "control").text == "55.0 (1/1)"
    assert table.cell("some_net", "size", "control").text == "some_net, 4.7M"
    assert any("the model's pooled features" in text for _, text in table.notes)
    assert table.cell("l_dae/vit_l", "linear_probe_top1").text == "not run"


def test_curves_hold_the_tables_numbers(placed: Any) -> None:
    records = [placed("timestep", row, t, value=20.0 + int(t), x=float(t)) for row in ("clean", "noisy") for t in ("0", "10", "20")]
    (sweep,) = sweeps_of(records)
    figure = sweep_figure(sweep, PAPER)
    assert figure is not None
    assert len(figure.axes) == 2
    assert "4 not run" in "".join(text.get_text() for text in figure.texts)
    lines = list(csv.DictReader(io.StringIO(sweep_csv(sweep, PAPER))))
    assert [(line["row"], line["x"], line["mean"], line["paper"]) for line in lines[:2]] == [
        ("clean input", "0", "20", "64.1"), ("clean input", "10", "30", "64.5"),
    ]  # fmt: skip
    assert sweep_figure(sweeps_of(records[:1])[0], PAPER) is None


def test_what_has_no_place_on_the_axis_is_a_line_across(placed: Any) -> None:
    """A process of all noise levels has no single sigma."""
    one = "single_noise_level"
    records = [placed("sigma", "multi_level", "all", value=31.5, overrides={})]
    records += [placed("sigma", one, column, stage=one, x=x) for column, x in (("0.1", 0.1), ("1", 1.0))]
    (sweep,) = sweeps_of(records)
    figure = sweep_figure(sweep, PAPER)
    assert figure is not None
    axes = figure.axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0.1", "1"]
    assert any(line.get_ydata()[0] == 31.5 for line in axes.lines)
    assert "all levels" in [text.get_text() for text in axes.texts]


def test_the_papers_curve_is_whole_where_our_scale_has_fewer_points(placed: Any) -> None:
    records = [placed("fig5", "pixels", column, value=20.0, paper=str(int(x)), x=x) for column, x in (("half", 12.0), ("full", 48.0))]
    figure = sweep_figure(sweeps_of(records)[0], PAPER)
    assert figure is not None
    assert [tick.get_text() for tick in figure.axes[1].get_xticklabels()] == ["8", "12", "16", "32", "48", "64", "128", "192", "256", "768"]


def test_latex_can_spell_every_definition() -> None:
    letters = {letter for name in sweep_names() for letter in (sweeps_folder() / f"{name}.yaml").read_text(encoding="utf-8")}
    assert {letter for letter in letters if not letter.isascii()} <= set(LATEX)


def test_every_format_has_the_study(placed: Any, footer: Any) -> None:
    one = "single_noise_level"
    records = [placed("sigma", "multi_level", "all", overrides={})]
    records += [placed("sigma", one, column, stage=one, x=x) for column, x in (("paper", 0.577), ("1", 1.0))]
    files = report_files(records, footer)
    assert {f"sigma.{kind}" for kind in ("md", "csv", "tex", "html")} | {"sigma_curve.png", "sigma_curve.pdf", "sigma_curve.csv"} <= set(
        files
    )
    page = files["index.html"].decode()
    assert 'id="sigma"' in page
    assert "Study sigma" in page
    assert "trajectory.png" not in files
    assert sweep_table(sweeps_of(records)[0], PAPER, footer).label == "Study sigma"
