"""The paper's numbers and the tables' definitions: complete, checked when read, contradictions kept."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from ablation.errors import ConfigError
from ablation.report import definitions
from ablation.report.definitions import definitions_folder, ladder_rows, load_definition, load_definitions
from ablation.report.published import PUBLISHED, load_published

PAPER = load_published()


def values(table: str, rows: list[str], column: str = "linear_probe_top1") -> list[float | None]:
    return [entry.value for row in rows if (entry := PAPER.find(table, row, column)) is not None]


def test_tables_of_the_paper_are_complete() -> None:
    one, two, three = load_definitions()
    assert values("1", [row.stage for row in one.rows]) == [57.5, 62.5, 58.4, 59.0, 63.4]
    assert values("1", [row.stage for row in one.rows], "fid") == [11.6, 30.9, 54.3, 75.6, 93.2]
    assert values("3", [row.stage for row in three.rows]) == [65.1, 62.4, 63.6, 63.6, 63.9, 64.5, 61.5]
    grid = {row.stage: [PAPER.find("2", row.stage, str(value)) for value in two.values] for row in two.rows}
    assert {stage: [entry.value for entry in entries] for stage, entries in grid.items()} == {
        "linear_gamma_schedule": [54.5, 63.4, 62.8, 57.0, 48.1],
        "patch_vae": [58.3, 64.9, 64.8, 56.8, None],
        "patch_ae": [59.9, 64.7, 64.6, 59.9, None],
        "patch_pca": [56.0, 63.4, 65.1, 60.0, 53.9],
    }
    assert all("inferred" in str(entry.note) for stage in ("patch_vae", "patch_ae") for entry in grid[stage])


def test_figures_of_the_paper_are_complete_and_agree_with_its_tables() -> None:
    published = PAPER
    ladder = [row.stage for row in ladder_rows(load_definitions())]
    whole = [57.5, 62.5, 58.4, 59.0, 63.4, 64.9, 64.7, 65.1, 62.4, 63.6, 63.6, 63.9, 64.5]
    assert values("figure_6", ladder[:-1]) == whole
    assert published.find("figure_6", "single_noise_level", "linear_probe_top1") is None
    assert [published.find("figure_5", "pixels", d).value for d in ("12", "48", "192", "768")] == [43.7, 58.5, 53.0, 23.6]
    for entry in published.entries:
        if entry.table == "figure_5" and entry.row == "patch_pca" and entry.column != "256":
            assert published.find("2", "patch_pca", entry.column).value == entry.value


def test_contradictions_are_kept() -> None:
    published = PAPER
    found = {(e.table, e.column): (e.value, e.contradicted_by.value) for e in published.entries if e.contradicted_by is not None}
    assert found == {
        ("1", "linear_probe_top1"): (62.5, 62.1), ("1", "fid"): (30.9, 34.2), ("figure_6", "linear_probe_top1"): (62.5, 62.1),
        ("fid", "fid"): (30.9, 34.2),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"value": 57.51}, "more than 1 decimals"),
        ({"value": "57.5"}, "entries.0.value"),
        ({"value": -1.0}, "negative"),
        ({"status": "guessed"}, "entries.0.status"),
        ({"table": "5"}, "entries.0.table"),
        ({"metric": "loss"}, "entries.0.metric"),
        ({"context": "elsewhere"}, "unknown context elsewhere"),
        ({"colour": "red"}, "entries.0.colour"),
        ({"row": "drop_class_conditioning"}, "two entries"),
        ({"contradicted_by": {"value": 1.0}}, "contradicted_by.where"),
    ],
)
def test_a_broken_entry_is_refused_by_name(tmp_path: Path, change: dict[str, Any], complaint: str) -> None:
    data = yaml.safe_load(PUBLISHED.read_text())
    data["entries"][0] |= change
    path = tmp_path / "published.yaml"
    path.write_text(yaml.safe_dump(data))
    with pytest.raises(ConfigError, match=complaint):
        load_published(path)


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_published(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="not YAML"):
        load_published(tmp_path / "bad.yaml")
    with pytest.raises(ConfigError, match=r"table 9 has no readable definition.*1, 2, 3"):
        load_definition("9")


@pytest.mark.parametrize(
    ("table", "change", "complaint"),
    [
        ("1", {"rows": []}, "rows"),
        ("1", {"columns": []}, "a ladder needs columns"),
        ("1", {"rows": [{"stage": "a", "title": "A"}, {"stage": "a", "title": "B"}]}, "twice"),
        ("1", {"columns": [{"name": "s", "kind": "title", "title": "S"}, {"name": "p", "kind": "metric", "title": "P"}]}, "needs a metric"),
        ("2", {"values": []}, "a grid needs"),
        ("3", {"nonsense": 1}, "nonsense"),
    ],
)
def test_a_broken_definition_is_refused_by_name(tmp_path: Path, table: str, change: dict[str, Any], complaint: str) -> None:
    name = f"table{table}.yaml"
    data = yaml.safe_load((definitions_folder() / name).read_text()) | change
    (tmp_path / name).write_text(yaml.safe_dump(data))
    with pytest.raises(ConfigError, match=complaint):
        load_definition(table, tmp_path)


def test_a_wheel_finds_its_definitions_inside_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder inside the package wins over the checkout's; without either the error says what is missing."""
    package = tmp_path / "site" / "ablation"
    (package / "report").mkdir(parents=True)
    monkeypatch.setattr(definitions, "__file__", str(package / "report" / "definitions.py"))
    with pytest.raises(ConfigError, match=r"table1\.yaml"):
        definitions_folder()
    source = Path(__file__).resolve().parents[2] / "reports"
    shutil.copytree(source, tmp_path / "site" / "reports")
    assert definitions_folder() == (tmp_path / "site" / "reports").resolve()
    shutil.copytree(source, package / "_reports")
    assert definitions_folder() == (package / "_reports").resolve()


def test_rows_are_the_ladder_of_fourteen_stages() -> None:
    rows = ladder_rows(load_definitions())
    assert len(rows) == 14
    assert (rows[0].stage, rows[-1].stage) == ("baseline", "single_noise_level")
    assert [row.stage for row in rows if row.labels_used] == ["baseline", "drop_class_conditioning"]
