"""Where a file of a report differs from what the results give: the cell of a table by its row and column, else the line."""

from __future__ import annotations

import csv
import html
import re
from collections.abc import Mapping
from itertools import zip_longest

MOST_PER_FILE = 20
EXCERPT = 60
PICTURE = "data:image/png;base64,"
PICTURES = ("png", "pdf")


def compare_files(found: Mapping[str, bytes], wanted: Mapping[str, bytes]) -> list[str]:
    """Name every difference between the files that are there and those that the results give, file by file."""
    said: list[str] = []
    for name in sorted(wanted):
        if name not in found:
            said.append(f"{name}: the file is missing")
        elif found[name] != wanted[name]:
            differences = _differences(name.rpartition(".")[2], found[name], wanted[name])
            said += [f"{name}: {text}" for text in differences[:MOST_PER_FILE]]
            if len(differences) > MOST_PER_FILE:
                said.append(f"{name}: and {len(differences) - MOST_PER_FILE} more differences")
    return said


def _differences(kind: str, found: bytes, wanted: bytes) -> list[str]:
    """Name the differences of two unequal files of one kind."""
    if kind in (*PICTURES, "npz"):
        return ["differs from the picture that the results give"]
    ours, theirs = (content.decode("utf-8", "replace").split("\n") for content in (wanted, found))
    header: list[str] = []
    said: list[str] = []
    for number, (line, other) in enumerate(zip_longest(ours, theirs, fillvalue=""), 1):
        cells = _cells(kind, line)
        if cells and (not header or _is_header(kind, ours, number - 1)):
            header = cells
        if line != other:
            said += _cell_differences(header, cells, _cells(kind, other)) or [_line_difference(number, line, other)]
    return said or ["differs in line ends"]


def _cells(kind: str, line: str) -> list[str]:
    """Split a line of a table into what its cells say; an empty list where it is no line of a table."""
    if kind == "csv":
        return next(iter(csv.reader([line])), [])
    if kind == "md" and line.startswith("|"):
        return [part.strip() for part in re.split(r"(?<!\\)\|", line)[1:-1]]
    if kind == "tex" and line.endswith(r" \\"):
        return line.removesuffix(r" \\").split(" & ")
    if kind == "html" and "<t" in line:
        return [html.unescape(re.sub(r"<[^>]*>", "", part)) for part in re.findall(r"<t[hd]\b[^>]*>(.*?)</t[hd]>", line)]
    return []


def _is_header(kind: str, lines: list[str], place: int) -> bool:
    """Say whether a line of cells begins a new table."""
    before = lines[place - 1] if place else ""
    return {"csv": place == 0, "md": not before.startswith("|"), "tex": before == r"\toprule", "html": 'scope="col"' in lines[place]}[kind]


def _cell_differences(header: list[str], wanted: list[str], found: list[str]) -> list[str]:
    """Name the cells in which two lines of a table differ; nothing where they cannot be paired."""
    if not wanted or len(wanted) != len(found):
        return []
    said = []
    for place, (ours, theirs) in enumerate(zip(wanted, found, strict=True)):
        if ours != theirs:
            column = header[place] if place < len(header) else f"number {place + 1}"
            pair = _excerpts(ours, theirs)
            said.append(f"row '{_plain(wanted[0])}', column '{column}': '{pair[1]}' in the file, '{pair[0]}' from the results")
    return said


def _plain(text: str) -> str:
    """Take the marks of footnotes off a row's title."""
    return re.sub(r"<sup>.*</sup>|\\textsuperscript\{.*\}", "", text)


def _line_difference(number: int, wanted: str, found: str) -> str:
    """Name a line that differs, with the place where it does."""
    if all(PICTURE in text for text in (wanted, found)):
        return f"line {number}: an embedded picture, or its words, differ"
    ours, theirs = _excerpts(wanted, found)
    return f"line {number}: '{theirs}' in the file, '{ours}' from the results"


def _excerpts(first: str, second: str) -> tuple[str, str]:
    """Cut two texts to the neighbourhood of their first difference."""
    if max(len(first), len(second)) <= EXCERPT:
        return first, second
    place = next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second)))
    start = max(0, place - EXCERPT // 2)
    dots = "… " if start else ""
    return dots + first[start : start + EXCERPT], dots + second[start : start + EXCERPT]
