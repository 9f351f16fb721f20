"""One `Table`, spelled as Markdown, CSV, LaTeX, HTML or a terminal table: the same words in each."""

# ruff: noqa: RUF001 (the map below is about just those look-alike characters)

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from ablation.report.cells import Cell
from ablation.report.tables import Table, TableRow

PLAIN_STATES = ("shown", "none", "other scale", "same scale")
PARTS = re.compile(r" (?=[(\[])")
MARKDOWN_SPECIAL = re.compile(r"([\\`*_\[\]<>|~$#])")
# Unicode that plain pdflatex lacks, and the characters that TeX reads as commands (square brackets and stars could be
# taken for an argument of the preceding line break).
LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    "[": "{[}", "]": "{]}", "*": "{*}", '"': "''", "±": r"$\pm$", "−": r"$-$", "×": r"$\times$", "→": r"$\rightarrow$",
    "↑": r"$\uparrow$", "↓": r"$\downarrow$", "†": r"$\dagger$", "γ": r"$\gamma$", "σ": r"$\sigma$",
    "²": r"\ensuremath{^2}", "é": r"\'{e}",
    "–": "--", "√": r"$\surd$",
}  # fmt: skip


def markdown_text(text: str) -> str:
    """Escape text for Markdown, dollar signs included (GitHub reads them as mathematics)."""
    return MARKDOWN_SPECIAL.sub(r"\\\1", text)


def latex_text(text: str) -> str:
    """Escape text for LaTeX and spell the symbols used here as commands; two hyphens stay two (an option, not a dash)."""
    parts = ("{}-" if letter == "-" == before else LATEX.get(letter, letter) for before, letter in zip(" " + text, text, strict=False))
    return "".join(parts)


def to_markdown(table: Table) -> str:
    """Write a Markdown table with its caption above and its notes and footer below."""

    def cell(one: Cell) -> str:
        marks = f"<sup>{','.join(one.marks)}</sup>" if one.marks else ""
        return markdown_text(one.text) + marks

    lines = [f"**{markdown_text(table.label)}. {markdown_text(table.title)}.** {markdown_text(table.caption)}", ""]
    lines.append("| " + " | ".join(markdown_text(column.title) for column in table.columns) + " |")
    lines.append("|" + "|".join("--:" if column.numeric else ":--" for column in table.columns) + "|")
    lines += ["| " + " | ".join(cell(one) for one in row.cells) + " |" for row in table.rows]
    lines.append("")
    lines += [f"- {f'<sup>{mark}</sup> ' if mark else ''}{markdown_text(text)}" for mark, text in table.notes]
    lines += ["", *(f"{markdown_text(text)}  " for text in table.footer)]
    return "\n".join(lines) + "\n"


def to_csv(table: Table) -> str:
    """Write one line per row: what a reader sees, the numbers behind it, the row's notes and the provenance."""
    texts = dict(table.notes)
    numbers = [(place, column.name, name) for place, column in enumerate(table.columns) for name in column.numbers]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    header = ["stage", "kind", *(column.title for column in table.columns), *(f"{column}.{name}" for _, column, name in numbers)]
    writer.writerow([*header, "notes", "table", "provenance"])
    general = [text for mark, text in table.notes if not mark]
    for row in table.rows:
        seen = [one.text + (f" (note {', '.join(one.marks)})" if one.marks else "") for one in row.cells]
        behind = ["" if (value := row.cells[place].number(name)) is None else f"{value:.6g}" for place, _, name in numbers]
        marks = dict.fromkeys(mark for one in row.cells for mark in one.marks)
        said = " ".join(f"{mark}: {texts[mark]}" for mark in marks)
        about = f"{table.label}. {table.title}. {table.caption}"
        writer.writerow([row.stage or "", row.kind, *seen, *behind, said, about, " ".join([*general, *table.footer])])
    return out.getvalue()


def to_latex(table: Table) -> str:
    """Write a booktabs table; it needs the package booktabs and nothing else."""

    def raised(marks: str) -> str:
        return r"\textsuperscript{" + latex_text(marks) + "}" if marks else ""

    columns = "".join("r" if column.numeric else "l" for column in table.columns)
    lines = [
        r"% needs \usepackage{booktabs}",
        r"\begin{table*}[t]",
        r"\centering\footnotesize",
        rf"\caption{{{latex_text(table.title)}. {latex_text(table.caption)}}}",
        rf"\label{{tab:deconstruction-{table.number.replace('_', '-')}}}",
        r"\setlength{\tabcolsep}{4pt}",
        rf"\begin{{tabular}}{{@{{}}{columns}@{{}}}}",
        r"\toprule",
        " & ".join(latex_text(column.title) for column in table.columns) + r" \\",
        r"\midrule",
    ]
    for row, rule in _with_rules(table):
        lines += [r"\midrule"] * rule
        lines.append(" & ".join(latex_text(one.text) + raised(",".join(one.marks)) for one in row.cells) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}", "", r"\medskip", r"\begin{minipage}{\textwidth}\scriptsize\raggedright"]
    lines += [raised(mark) + (" " if mark else "") + latex_text(text) + r"\par" for mark, text in table.notes]
    lines += [rf"{latex_text(text)}\par" for text in table.footer]
    return "\n".join([*lines, r"\end{minipage}", r"\end{table*}"]) + "\n"


def _with_rules(table: Table) -> Iterator[tuple[TableRow, bool]]:
    """Pair each row with whether a rule goes above it: before the controls, and before each new row of a grid."""
    grid = any(row.kind == "paper" for row in table.rows)
    for place, row in enumerate(table.rows):
        new_block = place > 0 and row.kind != table.rows[place - 1].kind and row.kind != "paper"
        yield row, new_block if not grid else place > 0 and row.kind == "step"


def to_html(table: Table) -> str:
    """Write an HTML fragment: one captioned table with scoped headings, its notes and its footer, no style of its own."""

    def cell(one: Cell, title: str, first: bool, numeric: bool) -> str:
        marks = f"<sup>{html.escape(','.join(one.marks))}</sup>" if one.marks else ""
        # A narrow screen may break a cell between its value, its interval and its counts, never inside one of them.
        parts = PARTS.split(one.text) if numeric and one.state == "shown" else [one.text]
        words = " ".join(f'<span class="kept">{html.escape(part)}</span>' for part in parts) if len(parts) > 1 else html.escape(one.text)
        inside = f"<span>{words}{marks}</span>"
        if first:
            return f'<th scope="row" role="rowheader">{inside}</th>'
        state = "none" if one.state == "none" else "hole" if one.state not in PLAIN_STATES else ""
        kind = f' data-state="{state}"' if state else ""
        return f'<td role="cell" class="{"number" if numeric else "words"}" data-title="{html.escape(title)}"{kind}>{inside}</td>'

    name = table.file_name
    lines = [
        f'<div class="report-table" id="{name}">',
        f'<div class="scroll" tabindex="0" role="region" aria-label="{table.label}"><table role="table">',
        f"<caption><strong>{table.label}. {html.escape(table.title)}.</strong> {html.escape(table.caption)}</caption>",
        '<thead role="rowgroup"><tr role="row">'
        + "".join(
            f'<th scope="col" role="columnheader" class="{"number" if c.numeric else "words"}">{html.escape(c.title)}</th>'
            for c in table.columns
        )
        + "</tr></thead>",
        '<tbody role="rowgroup">',
    ]
    for row, rule in _with_rules(table):
        classes = " ".join([row.kind, *(["labels-used"] if row.labels_used else []), *(["ruled"] if rule else [])])
        cells = "".join(
            cell(one, column.title, place == 0, column.numeric)
            for place, (one, column) in enumerate(zip(row.cells, table.columns, strict=True))
        )
        lines.append(f'<tr role="row" class="{classes}">{cells}</tr>')
    lines += ["</tbody>", "</table></div>", '<ul class="notes">']
    lines += [f"<li>{f'<sup>{html.escape(mark)}</sup> ' if mark else ''}{html.escape(text)}</li>" for mark, text in table.notes]
    lines += ["</ul>", '<ul class="provenance">', *(f"<li>{html.escape(text)}</li>" for text in table.footer), "</ul>", "</div>"]
    return "\n".join(lines) + "\n"


def to_terminal(table: Table, elsewhere: frozenset[str] = frozenset()) -> RenderableType:
    """Build a rich table with its title above and its notes below, but for those that are said elsewhere and the run keys."""
    drawn = RichTable(title=Text(f"{table.label}. {table.title}", style="bold"), title_justify="left", pad_edge=False)
    for column in table.columns:
        drawn.add_column(Text(column.title), justify="right" if column.numeric else "left", overflow="fold")
    for row, rule in _with_rules(table):
        if rule:
            drawn.add_section()
        words = [Text(_unbroken(one.text) + (f" {','.join(one.marks)}" if one.marks else ""), style=_style(one)) for one in row.cells]
        drawn.add_row(*words, style="dim" if row.labels_used or row.kind != "step" else "")
    notes = [Text(f"{mark}  {text}" if mark else text, style="dim") for mark, text in table.notes if text not in elsewhere]
    footer = [Text(text, style="dim") for text in table.footer if text not in elsewhere and not text.startswith("Run keys")]
    return Group(drawn, Text(table.caption), *notes, *footer, Text(""))


def _unbroken(text: str) -> str:
    """Keep 'n = 3' on one line of a narrow terminal."""
    return text.replace("(n = ", "(n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}")


def _style(cell: Cell) -> str:
    """Colour what is not a number; the words alone already say it."""
    return "" if cell.state in PLAIN_STATES else "yellow"
