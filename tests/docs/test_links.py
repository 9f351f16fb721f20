"""No link in any Markdown file of the repository is broken, as GitHub reads it; nothing is fetched."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from documents import ROOT, anchors, files, links

ADDRESS = re.compile(r"https://[^\s/]+\.[a-z]{2,}(/\S*)?\Z")


def faults(path: Path) -> list[str]:
    """Describe each broken link of a page."""
    found = []
    for link in links(path):
        target, _, anchor = link.target.partition("#")
        where = f"{path.name}:{link.line} {link.target}"
        if ":" in target.split("/")[0]:
            found += [] if ADDRESS.match(link.target) or target.startswith("mailto:") else [f"{where}: no https address"]
            continue
        goal = (path.parent / target).resolve() if target else path
        if not goal.exists():
            found.append(f"{where}: no such file")
        elif ROOT not in (goal, *goal.parents):
            found.append(f"{where}: outside the repository")
        elif anchor and goal.suffix == ".md" and anchor not in anchors(goal):
            found.append(f"{where}: no such heading; there are {', '.join(sorted(anchors(goal)))}")
    return found


@pytest.mark.parametrize("path", files(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path: Path):
    assert not faults(path)


def test_a_broken_link_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("test_links.ROOT", tmp_path)
    (tmp_path / "other.md").write_text("# A heading, with `code`\n\n## Twice\n\n## Twice\n")
    good = "[a](other.md#a-heading-with-code) [b](other.md#twice-1) [c](#here) [d](https://example.org/x)\n\n# Here\n"
    bad = "[a](other.md#no-heading) [b](none.md) ![c](none.png) [d](#there) [e](http://example.org) [f](../outside.md)\n"
    (tmp_path.parent / "outside.md").write_text("")
    (tmp_path / "good.md").write_text(good)
    (tmp_path / "bad.md").write_text(bad)
    assert not faults(tmp_path / "good.md")
    assert [fault.split(" ")[1].rstrip(":") for fault in faults(tmp_path / "bad.md")] == [
        "other.md#no-heading", "none.md", "none.png", "#there", "http://example.org", "../outside.md",
    ]  # fmt: skip
