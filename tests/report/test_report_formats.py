"""Markdown, CSV, LaTeX and HTML hold the same words: each is read back and compared with the table."""

from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from readers import Cells, Reader, read_csv, read_html, read_latex, read_markdown, unlatex
from rich.console import Console

from ablation.report import all_tables, terminal_tables
from ablation.report.cells import MINUS
from ablation.report.formats import latex_text, markdown_text, to_csv, to_html, to_latex, to_markdown


def expected(table: Any) -> Cells:
    return [[(cell.text, ",".join(cell.marks)) for cell in row.cells] for row in table.rows]


@pytest.mark.parametrize("which", ["whole", "holed", "empty"])
def test_the_same_content_in_all_four_formats(study: Any, footer: Any, which: str, request: pytest.FixtureRequest) -> None:
    records = {"whole": study, "empty": []}.get(which) if which != "holed" else request.getfixturevalue("holed")
    for table in all_tables(records, footer):
        titles = [column.title for column in table.columns]
        for found in (
            read_markdown(to_markdown(table)), read_csv(to_csv(table), len(titles)), read_latex(to_latex(table)), read_html(to_html(table)),
        ):  # fmt: skip
            assert found[0] == titles
            assert found[1] == expected(table)


def test_holes_footnotes_and_footer_stand_in_every_format(holed: Any, footer: Any) -> None:
    tables = all_tables(holed, footer)
    seen: set[str] = set()
    for table in tables:
        notes, lines = [text for _, text in table.notes], list(table.footer)
        texts = {
            "md": re.sub(r"\\(.)", r"\1", to_markdown(table)),
            "csv": "\n".join(part for row in csv.reader(io.StringIO(to_csv(table))) for part in row),
            "tex": unlatex(to_latex(table)),
            "html": "\n".join(line for reader in [Reader()] if reader.feed(to_html(table)) is None for line in reader.notes),
        }
        for kind, text in texts.items():
            for line in [*notes, *lines]:
                assert line in text, f"{kind} lacks: {line}"
        for word in ("failed", "diverged", "skipped", "missing", "stale", "not run", "not defined", "n/a", "other scale", "withheld"):
            kinds = [word in text for text in (to_markdown(table), to_csv(table), to_latex(table), to_html(table))]
            assert len(set(kinds)) == 1
            seen |= {word} if kinds[0] else set()
    assert len(seen) == 10


def test_caption_of_a_smoke_run_warns_in_every_format(study: Any, footer: Any) -> None:
    for table in all_tables(study, footer):
        for text in (to_markdown(table), to_csv(table), to_latex(table), to_html(table)):
            assert "numbers at this scale are not comparable with the paper" in text


def test_latex_escapes() -> None:
    assert latex_text(r"50% & a_b #1 $x$ {y} ~z ^2 \w <v> [u] *t* |s|") == (
        r"50\% \& a\_b \#1 \$x\$ \{y\} \textasciitilde{}z \textasciicircum{}2 \textbackslash{}w \textless{}v\textgreater{} "
        r"{[}u{]} {*}t{*} \textbar{}s\textbar{}"
    )
    assert latex_text(f"γ² ± {MINUS}1") == r"$\gamma$\ensuremath{^2} $\pm$ $-$1"
    assert latex_text("ablate run --table 1, t - 1") == "ablate run -{}-table 1, t - 1"


def test_markdown_escapes_cannot_make_links_pipes_or_mathematics() -> None:
    assert markdown_text("a|b [c](d) $e$ `f` <g>") == r"a\|b \[c\](d) \$e\$ \`f\` \<g\>"


def test_latex_is_balanced_and_ascii(holed: Any, footer: Any) -> None:
    """Every letter has a spelling that plain pdflatex knows, braces and environments close, no cell is lost."""
    for table in all_tables(holed, footer):
        text = to_latex(table)
        assert text.isascii()
        bare = re.sub(r"\\[{}]", "", text)
        assert bare.count("{") == bare.count("}")
        assert re.findall(r"\\begin\{(.*?)\}", text) == ["table*", "tabular", "minipage"]
        assert sorted(re.findall(r"\\end\{(.*?)\}", text)) == ["minipage", "table*", "tabular"]
        rows = [line for line in text.splitlines() if line.endswith(r" \\")]
        assert {len(re.findall(r"(?<!\\)&", line)) for line in rows} == {len(table.columns) - 1}
        assert not any(line.startswith(("[", "*")) for line in rows), "TeX would read it as an argument of the line break"
        spec = re.search(r"\\begin\{tabular\}\{@\{\}([lr]+)@\{\}\}", text)
        assert spec is not None
        assert len(spec[1]) == len(table.columns)


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_compiles(holed: Any, footer: Any, tmp_path: Path) -> None:
    body = "\n".join(to_latex(table) for table in all_tables(holed, footer))
    document = "\\documentclass[twocolumn]{article}\n\\usepackage{booktabs}\n\\begin{document}\n" + body + "\\end{document}\n"
    (tmp_path / "report.tex").write_text(document)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "report.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout[-2000:]


def test_html_has_scopes_and_a_caption(study: Any, footer: Any) -> None:
    for table in all_tables(study, footer):
        text = to_html(table)
        reader = Reader()
        reader.feed(text)
        assert reader.scopes.count("col") == len(table.columns)
        assert reader.scopes.count("row") == len(table.rows)
        assert text.count("<caption>") == 1
        assert "<script" not in text


def test_html_escapes(holed: Any, footer: Any) -> None:
    text = to_html(all_tables(holed, footer)[2])
    assert "<i>" not in text
    assert "&lt;i&gt;" in text


def test_csv_holds_the_numbers_behind_the_words(holed: Any, footer: Any) -> None:
    table = all_tables(holed, footer)[0]
    rows = {row["stage"]: row for row in csv.DictReader(io.StringIO(to_csv(table)))}
    row = rows["drop_adversarial_loss"]
    cell = table.cell("drop_adversarial_loss", "linear_probe_top1")
    assert float(row["linear_probe_top1.mean"]) == pytest.approx(cell.number("mean"), rel=1e-5)
    assert (row["linear_probe_top1.n"], row["linear_probe_top1.planned"], row["change.n"]) == ("2", "3", "2")
    assert float(row["change.low"]) < float(row["change.mean"]) < float(row["change.high"])
    assert float(rows["drop_class_conditioning"]["paper_linear_probe_top1.change"]) == 5.0
    assert "seed 2 diverged: the loss became non-finite at step 412" in row["notes"]
    assert rows["linear_gamma_schedule"]["linear_probe_top1.sd"] == ""


def test_terminal_shows_the_same_words(holed: Any, footer: Any) -> None:
    console = Console(width=400, file=io.StringIO(), record=True)
    for drawn in terminal_tables(holed, footer):
        console.print(drawn)
    text = console.export_text().replace("\N{NO-BREAK SPACE}", " ")
    for table in all_tables(holed, footer):
        for row in table.rows:
            for cell in row.cells:
                assert cell.text in text
        assert table.caption in text
