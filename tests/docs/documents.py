"""Read the repository's Markdown: its code blocks, the commands in them, its headings and its links."""

from __future__ import annotations

import re
import shlex
import unicodedata
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parents[2]
PLACES = (".", "docs", "results", "reports", "examples", "studies", "benchmarks", "ablation", "stages", "scripts", "tests", ".github")
SHELL = ("console", "bash", "sh", "shell")
PROGRAMS = ("ablate", "make", "pip", "python", "python3", "pytest", "pre-commit", "mkdocs", "git")
"""First words by which a line of an unmarked code block is known to be a command."""


class Command(NamedTuple):
    """A command as a page shows it."""

    path: Path
    line: int
    text: str

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text)

    @property
    def where(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}"


class Link(NamedTuple):
    """A link as a page writes it."""

    path: Path
    line: int
    target: str


@cache
def files() -> tuple[Path, ...]:
    """List every Markdown file of the repository, what tools and runs leave behind excepted."""
    found = set(ROOT.glob("*.md"))
    for place in PLACES[1:]:
        found |= {path for path in (ROOT / place).rglob("*.md") if not any(part in ("runs", "site", "build") for part in path.parts)}
    return tuple(sorted(found))


@cache
def tokens(path: Path) -> tuple[Token, ...]:
    return tuple(MarkdownIt("commonmark").enable("table").parse(path.read_text(encoding="utf-8")))


def code(path: Path) -> Iterator[tuple[str, str, int]]:
    """Yield every code block as its language ("" if none is named), its text and the line it begins at."""
    for token in tokens(path):
        if token.type in ("fence", "code_block") and token.map:
            words = token.info.split()
            yield words[0] if words else "", token.content, token.map[0] + (2 if token.type == "fence" else 1)


def commands(path: Path) -> Iterator[Command]:
    """Yield the commands of a page's code blocks, without prompts, continuations and the words beside them."""
    for language, text, line in code(path):
        if language not in ("", *SHELL):
            continue
        prompted = any(one.startswith("$ ") for one in text.splitlines())
        for place, written in _joined(text):
            if prompted and not written.startswith("$ "):
                continue  # what the command printed
            stripped = bare(written.removeprefix("$ "))
            if stripped and (language in SHELL or stripped.split()[0] in PROGRAMS):
                yield from (Command(path, line + place, one) for one in alternatives(stripped))


def _joined(text: str) -> Iterator[tuple[int, str]]:
    """Yield lines with the lines that continue them."""
    start, gathered = 0, ""
    for place, line in enumerate(text.splitlines()):
        start = start if gathered else place
        gathered = f"{gathered} {line.strip()}" if gathered else line.strip()
        if gathered.endswith("\\"):
            gathered = gathered[:-1].rstrip()
            continue
        yield start, gathered
        gathered = ""


def bare(line: str) -> str:
    """Cut off a comment, or the explanation that two spaces set apart."""
    if line.startswith("#"):
        return ""
    quoted = re.split(r"('[^']*'|\"[^\"]*\")", line)
    kept = ""
    for part in quoted:
        if part[:1] not in "'\"" and (cut := re.search(r"\s{2,}|\s#", part)):
            return (kept + part[: cut.start()]).strip()
        kept += part
    return kept.strip()


def alternatives(text: str) -> list[str]:
    """Spell out a synopsis: `ablate status | logs STAGE` stands for two commands, and a closing `...` for nothing."""
    text = re.sub(r"\s*\.\.\.$", "", text)
    first, *others = [part.strip() for part in re.split(r" \| ", text)]
    program = first.split()[0]
    return [first, *(other if other.split()[0] in PROGRAMS else f"{program} {other}" for other in others)]


def inline_commands(path: Path) -> Iterator[Command]:
    """Yield commands that the text itself names in code type."""
    for token in tokens(path):
        for child in token.children or []:
            if child.type == "code_inline" and re.match(r"ablate [a-z]", child.content):
                yield Command(path, (token.map or [0])[0] + 1, child.content)


def links(path: Path) -> Iterator[Link]:
    """Yield every link and picture."""
    for token in tokens(path):
        for child in token.children or []:
            target = child.attrGet("href") if child.type == "link_open" else child.attrGet("src") if child.type == "image" else None
            if target:
                yield Link(path, (token.map or [0])[0] + 1, str(target))


@cache
def anchors(path: Path) -> frozenset[str]:
    """Return the anchors that GitHub gives a page's headings, and those written out."""
    found: list[str] = []
    for before, token in zip(tokens(path), tokens(path)[1:], strict=False):
        if before.type == "heading_open":
            words = "".join(child.content for child in token.children or [] if child.type in ("text", "code_inline"))
            slug = re.sub(r"[^\w\- ]", "", unicodedata.normalize("NFC", words).strip().lower()).replace(" ", "-")
            repeated = sum(one == slug or re.fullmatch(rf"{re.escape(slug)}-\d+", one) is not None for one in found)
            found.append(f"{slug}-{repeated}" if repeated else slug)
    found += re.findall(r"""\b(?:id|name)=["']([^"']+)["']""", path.read_text(encoding="utf-8"))
    return frozenset(found)
