"""The files of a report: complete, atomic, identical for identical results, and a page that loads nothing."""

from __future__ import annotations

import csv
import io
import os
import random
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from PIL import Image

from ablation.report import all_tables, report_files, write_reports
from ablation.report.definitions import load_definitions
from ablation.report.figures import Omission, render
from ablation.report.page import duration, page
from ablation.report.published import load_published
from ablation.report.results import check_records, whole_trajectory
from ablation.report.trajectory import trajectory_figure, trajectory_steps

TABLE_FILES = {f"table{number}.{kind}" for number in (1, 2, 3) for kind in ("md", "csv", "tex", "html")}
STEP_FILES = {f"step_tests.{kind}" for kind in ("md", "csv", "tex", "html")}


@pytest.fixture(scope="module")
def files(make_holed: Any, make_footer: Any) -> dict[str, bytes]:
    """Give every file of the study with holes, made once: pictures take a second each."""
    return report_files(make_holed(), make_footer())


def test_two_runs_write_the_same_bytes_whatever_the_order_and_the_users_settings(files: Any, holed: Any, footer: Any) -> None:
    first = files
    shuffled = random.Random(1).sample(holed, len(holed))
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red"}):
        second = report_files(shuffled, footer)
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


def test_write_reports_writes_every_file_and_leaves_nothing_behind(study: Any, footer: Any, tmp_path: Path) -> None:
    out = tmp_path / "new" / "reports"
    paths = write_reports(study, out, footer)
    pictures = {f"{name}.{kind}" for name in ("trajectory", "latent_dim", "plane") for kind in ("png", "pdf", "csv")}
    assert {path.name for path in paths} == TABLE_FILES | STEP_FILES | pictures | {"index.html", "versions.json"}
    assert sorted(out.iterdir()) == sorted(paths)
    assert (out / "trajectory.pdf").read_bytes().startswith(b"%PDF")
    with Image.open(out / "trajectory.png") as image:
        assert image.info["dpi"][0] == pytest.approx(200, abs=0.1)


def test_no_results_still_make_a_report(footer: Any, tmp_path: Path) -> None:
    names = {path.name for path in write_reports([], tmp_path, footer)}
    assert names == TABLE_FILES | {"trajectory.png", "trajectory.pdf", "trajectory.csv", "index.html", "versions.json"}


def test_a_failing_write_leaves_the_old_file(study: Any, footer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "index.html"
    old.write_bytes(b"old")

    def full_disk(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_reports(study, tmp_path, footer)
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]
    assert old.read_bytes() == b"old"


def test_pictures_carry_no_date_or_version(files: Any) -> None:
    for name in ("trajectory", "latent_dim", "plane"):
        assert b"CreationDate" not in files[f"{name}.pdf"]
        assert b"matplotlib" not in files[f"{name}.pdf"].lower()
        assert b"Software" not in files[f"{name}.png"]


def test_trajectory_data_is_the_pictures(files: Any, holed: Any) -> None:
    rows = list(csv.DictReader(io.StringIO(files["trajectory.csv"].decode())))
    by_stage = {row["stage"]: row for row in rows}
    assert [row["stage"] for row in rows][-3:] == ["random_init", "pca_features", "chance"]
    assert len(rows) == 14 + 1 + 3
    assert by_stage["predict_original"]["state"] == "not run"
    assert by_stage["predict_original"]["withheld"] == "not run"
    assert by_stage["my_plugin"]["paper"] == ""
    assert by_stage["single_noise_level"]["paper"] == "61.5"
    assert "62.1" in by_stage["drop_class_conditioning"]["paper_note"]
    seeds = [one["metrics"]["linear_probe_top1"] for one in holed if one["stage"] == "patch_pca" and not one["overrides"]]
    assert float(by_stage["patch_pca"]["mean"]) == pytest.approx(sum(seeds) / 3, rel=1e-5)


def test_no_two_labels_of_the_trajectory_overlap(holed: Any) -> None:
    """Draw 15 rows with holes and a long title; no two texts may share pixels, and none may leave the picture."""
    records = check_records(holed)
    figure = trajectory_figure(records, load_definitions(), load_published())
    render(figure)
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    texts = list(figure.texts)
    for axes in figure.axes:
        ticks = [*axes.get_xticklabels(), *(axes.get_yticklabels() if axes is figure.axes[0] else [])]
        low, high = axes.get_xlim()
        texts += [text for text in ticks if not text.get_text().lstrip("-").isdigit() or low <= float(text.get_text()) <= high]
        texts += axes.texts
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in texts if text.get_text()]
    assert len(boxes) > 50
    for place, (words, box) in enumerate(boxes):
        assert box.x0 >= 0, words
        assert box.x1 <= figure.bbox.x1, words
        for others, other in boxes[place + 1 :]:
            apart = box.x1 <= other.x0 + 1 or other.x1 <= box.x0 + 1 or box.y1 <= other.y0 + 2 or other.y1 <= box.y0 + 2
            assert apart, f"{words!r} overlaps {others!r}"


def test_label_rows_differ_without_colour(study: Any) -> None:
    """A grey row is hatched and its marker hollow, so it can be told apart in black and white."""
    figure = trajectory_figure(check_records(study), load_definitions(), load_published())
    hatched = [patch for patch in figure.axes[0].patches if patch.get_hatch()]
    assert len(hatched) == 2
    hollow = [line for line in figure.axes[0].lines if line.get_marker() == "o" and line.get_markerfacecolor() == "white"]
    assert len(hollow) == 2
    dashes = {str(line.get_linestyle()) + str(line._dash_pattern) for line in figure.axes[0].lines if len(set(line.get_xdata())) == 1}
    assert len(dashes) >= 2


def test_picture_follows_the_numbers(study: Any) -> None:
    """A changed result moves its marker by just that much, and no other marker."""

    def markers() -> list[float]:
        figure = trajectory_figure(check_records(study), load_definitions(), load_published())
        return [float(line.get_xdata()[0]) for line in figure.axes[0].lines if line.get_marker() == "o"]

    before = markers()
    study[0]["metrics"]["linear_probe_top1"] += 3.0
    after = markers()
    assert len(before) == 14
    assert [b - a for a, b in zip(before, after, strict=True)] == pytest.approx([1.0] + [0.0] * 13)


def test_trajectory_of_a_plugin_joins_its_own_parent(holed: Any) -> None:
    steps = trajectory_steps(check_records(holed), load_definitions(), load_published())
    stages = [step.row.stage for step in steps]
    places = {stage: step.parent_place for stage, step in zip(stages, steps, strict=True)}
    assert stages[places["my_plugin"]] == "predict_clean"
    assert stages[places["drop_input_scaling"]] == "predict_clean"


class Page(HTMLParser):
    """Collect what a browser would load, the ids, the links, the alternatives and the headings."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.alts: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attributes}
        self.tags.append(tag)
        self.loads += [values[name] for name in ("src", "srcset", "poster", "data") if name in values]
        self.loads += [values["href"]] if tag == "link" else []
        self.links += [values["href"]] if tag == "a" else []
        self.ids += [values["id"]] if "id" in values else []
        self.alts += [values.get("alt", "")] if tag == "img" else []


def test_page_loads_nothing_and_its_links_lead_somewhere(files: Any) -> None:
    html = files["index.html"].decode()
    found = Page()
    found.feed(html)
    assert len(found.loads) == 3
    assert all(value.startswith("data:image/png;base64,") for value in found.loads)
    assert not re.search(r"url\(|@import|<script[^>]|<link|https?://|fetch\(|XMLHttp|import\(", html)
    assert all(link.startswith("#") and link[1:] in found.ids for link in found.links)
    assert len(set(found.ids)) == len(found.ids)
    assert all(len(alt) > 60 for alt in found.alts)
    assert found.tags.count("h1") == 1
    assert found.tags.count("table") == found.tags.count("caption")


def page_of(records: Any, footer: Any) -> str:
    """Write the page without its pictures."""
    checked, definitions = check_records(records), load_definitions()
    rows = whole_trajectory(checked, definitions)
    nothing = Omission("Samples", "not made here")
    return page(checked, all_tables(checked, footer), rows, [], nothing, load_published(), footer, {})


def test_page_lists_changes_costs_keys_and_every_record(study: Any, footer: Any) -> None:
    pca = [one for one in study if one["stage"] == "patch_pca" and not one["overrides"]]
    for one in pca:
        one["changes"] = {"tokenizer.kind": ["patch_ae", "patch_pca"], "tokenizer.latent_dim": [16, 32]}
    text = page_of(study, footer)
    assert "<code>tokenizer.latent_dim</code>: <del>16</del>" in text
    assert "Changes 2 settings at once." in text
    assert "<li>67.0 s per seed, 3.4 min in all</li><li>peak memory 1.3 GiB</li>" in text
    assert f"{len(study)} of {len(study)} results finished, at smoke scale" in text
    assert "Not the paper's scale." in text
    for one in study:
        assert f'<th scope="row">{one["cell"]}</th>' in text
        assert all(key in text for key in one["jobs"].values())
    assert "<code>k1</code>" in text


def test_page_lists_every_hole_with_its_reason(holed: Any, footer: Any) -> None:
    text = page_of(holed, footer)
    missing = text[text.index('id="holes"') : text.index('id="defaults"')]
    for words in (
        "the loss became non-finite at step 412",
        "out of memory",
        "the parent failed",
        "a single noise level has no reverse process",
    ):
        assert words in missing
    assert missing.count("not run") == 2  # the last but one step, and the plugin's other seeds
    assert "Figures left out:" not in missing or "Samples" in missing


def test_page_gives_the_command_and_the_counted_operations_of_a_row(study: Any, footer: Any) -> None:
    for one in study:
        one["cost"] |= {"step_flops": 3.06e9, "train_flops": 6.12e11, "tokenizer_flops": 1.5e8}
    text = page_of(study, footer)
    assert "<li>denoiser: 3.06 GFLOP a step, 612 GFLOP a training</li><li>tokenizer: 150 MFLOP</li>" in text
    assert "ablate run --only patch_pca --scale smoke --seeds 0,1,2 --no-controls" in text


def test_page_lists_settings_that_differ_from_the_defaults(study: Any, footer: Any) -> None:
    checked, definitions = check_records(study), load_definitions()
    rows, nothing = whole_trajectory(checked, definitions), Omission("Samples", "not made here")
    changed = {"changed": {"train.steps": [None, 200]}}
    text = page(checked, all_tables(checked, footer), rows, [], nothing, load_published(), footer, changed)
    assert '<th scope="row">train.steps</th><td class="prose">none</td><td class="prose">200</td>' in text
    assert "Not recorded with these results" in page_of(study, footer)


def test_page_escapes_titles_and_reasons(holed: Any, footer: Any) -> None:
    holed[0]["state"], holed[0]["reason"] = "failed", "<script>alert(1)</script>"
    text = page_of(holed, footer)
    assert text.count("<script") == 1  # the page's own
    assert "&lt;script&gt;alert" in text
    assert "<i>" not in text


def test_durations() -> None:
    assert [duration(seconds) for seconds in (3, 89.96, 600, 7200)] == ["3.0 s", "90.0 s", "10.0 min", "2.0 h"]


def test_report_imports_nothing_that_trains() -> None:
    """In a fresh interpreter: the report never loads torch, and importing it alone does not load matplotlib."""
    code = (
        "import sys, ablation.report; light = set(sys.modules)\n"
        "import ablation.report.page, ablation.report.trajectory, ablation.report.curves\n"
        "heavy = {'torch', 'torchvision', 'timm', 'diffusers', 'scipy', 'sklearn', 'submitit'}\n"
        "print(sorted(heavy & set(sys.modules)), sorted({'matplotlib', 'jinja2', 'torch', 'numpy'} & light))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[] []"
