"""Read a table back from each format it is written in: column titles, and rows of (text, marks)."""

from __future__ import annotations

import csv
import io
import re
from html.parser import HTMLParser

from ablation.report.formats import LATEX

Cells = list[list[tuple[str, str]]]  # rows of (text, marks)


def unmark(text: str, pattern: str) -> tuple[str, str]:
    """Split 'textMARKS' by a pattern of the marks."""
    found = re.fullmatch(rf"(.*?){pattern}", text, re.DOTALL)
    return (found[1], found[2]) if found else (text, "")


def read_markdown(text: str) -> tuple[list[str], Cells]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rows = [[part.strip() for part in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    plain = [[unmark(part, r"<sup>(.*)</sup>") for part in row] for row in rows]
    back = [[(re.sub(r"\\(.)", r"\1", words), marks) for words, marks in row] for row in plain]
    return [words for words, _ in back[0]], back[2:]


def read_csv(text: str, columns: int) -> tuple[list[str], Cells]:
    rows = list(csv.reader(io.StringIO(text)))
    back = [[unmark(part, r" \(note (.*)\)") for part in row[2 : 2 + columns]] for row in rows[1:]]
    return rows[0][2 : 2 + columns], [[(words, marks.replace(", ", ",")) for words, marks in row] for row in back]


def unlatex(text: str) -> str:
    """Undo the escapes, the longest first."""
    back = {spelt: letter for letter, spelt in LATEX.items()} | {"-{}-": "--"}
    pattern = "|".join(re.escape(spelt) for spelt in sorted(back, key=len, reverse=True))
    return re.sub(pattern, lambda found: back[found[0]], text)


def read_latex(text: str) -> tuple[list[str], Cells]:
    body = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
    lines = [line.removesuffix(r" \\") for line in body.splitlines() if line.endswith(r" \\")]
    rows = [[unmark(part, r"\\textsuperscript\{(.*)\}") for part in re.split(r" (?<!\\)& ", line)] for line in lines]
    back = [[(unlatex(words), unlatex(marks)) for words, marks in row] for row in rows]
    return [words for words, _ in back[0]], back[1:]


class Reader(HTMLParser):
    """Collect the cells of a table, and the notes below it."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[list[str]]] = []
        self.notes: list[str] = []
        self.where: list[str] = []
        self.scopes: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.where.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append(["", ""])
            self.scopes.append(dict(attributes).get("scope") or "")
        if tag == "li":
            self.notes.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.where.pop() == tag, "tags are nested"

    def handle_data(self, data: str) -> None:
        if "th" in self.where or "td" in self.where:
            self.rows[-1][-1]["sup" in self.where] += data
        elif "li" in self.where:
            self.notes[-1] += data


def read_html(text: str) -> tuple[list[str], Cells]:
    reader = Reader()
    reader.feed(text)
    assert reader.where == []
    back = [[(words, marks) for words, marks in row] for row in reader.rows]
    return [words for words, _ in back[0]], back[1:]
