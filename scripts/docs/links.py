"""Links of Markdown files, as GitHub reads them, made to work on the site as well."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PROJECT_PAGES = {
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "upgrading.md": "UPGRADING.md",
    "results.md": "results/README.md",
    "credits.md": "ablation/data/assets/CREDITS.md",
}
"""Pages of the site that lie elsewhere in the repository."""

SHOWN_AS_THEY_ARE = {".png", ".svg", ".pdf", ".html", ".csv", ".jsonl", ".json", ".ipynb"}
_LINK = re.compile(r"(?P<image>!?)\[(?P<words>[^\]]*)\]\((?P<target>[^)\s#]+)(?P<anchor>#[^)\s]*)?\)")
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)


def mend(markdown: str, page: str) -> tuple[str, dict[str, Path]]:
    """Rewrite the links of a page that leave docs/; also return the files to publish, by their place on the site.

    Where another Markdown file is a page of the site, the link leads there. Any other file is published below `source/`,
    as text where a browser would offer to save it. A folder has no page: only the words stay.
    """
    published: dict[str, Path] = {}
    own = PROJECT_PAGES.get(page, f"docs/{page}")

    def one(found: re.Match[str]) -> str:
        if _ADDRESS.match(found["target"]) or found["target"].startswith("/"):
            return found[0]
        target = posixpath.normpath(posixpath.join(posixpath.dirname(own), found["target"]))
        path = ROOT / target
        if (place := _page_of(target)) is None:
            if not path.exists() or target.startswith(".."):
                return found[0]  # mkdocs says that it is broken
            if path.is_dir():
                return found["words"]
            place = f"source/{target}{'' if path.suffix in SHOWN_AS_THEY_ARE else '.txt'}"
            published[place] = path
        here = posixpath.dirname(page) or "."
        return f"{found['image']}[{found['words']}]({posixpath.relpath(place, here)}{found['anchor'] or ''})"

    parts = re.split(r"(^```.*?^```\s*?$)", markdown, flags=re.MULTILINE | re.DOTALL)  # fenced code stays as it is
    return "".join(part if place % 2 else _LINK.sub(one, part) for place, part in enumerate(parts)), published


def _page_of(target: str) -> str | None:
    """Return a repository file's page on the site, if it has one."""
    for page, source in PROJECT_PAGES.items():
        if source == target:
            return page
    if target == "README.md":
        return "index.md"
    if target.startswith("docs/") and (ROOT / target).is_file():
        return target.removeprefix("docs/")
    return None
