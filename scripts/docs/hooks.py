"""What the site's build adds to Markdown: generated parts, links out of docs/, and equations as MathML.

Run by mkdocs (see mkdocs.yml). Every fault is a warning, so a strict build stops at it.
"""

from __future__ import annotations

import html
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import generated
import links
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

log = logging.getLogger("mkdocs.hooks.ablation")

INSERT = re.compile(r"^<!-- insert: (?P<what>\w+)(?: (?P<argument>\S+))? -->$", re.MULTILINE)
INLINE = re.compile(r'<span class="arithmatex">\\\((?P<tex>.*?)\\\)</span>', re.DOTALL)
BLOCK = re.compile(r'<div class="arithmatex">\\\[(?P<tex>.*?)\\\]</div>', re.DOTALL)


def on_config(config: MkDocsConfig) -> None:
    """Put pages that the navigation does not name at the end of its section Use, so that a new page is never hidden."""
    nav: list[Any] = config.nav or []
    named = set(re.findall(r"[\w/-]+\.md", str(nav)))
    (use,) = (section["Use"] for section in nav if isinstance(section, dict) and "Use" in section)
    use += sorted(path.name for path in Path(config.docs_dir).glob("*.md") if path.name not in named)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie outside docs/."""
    for page, source in links.PROJECT_PAGES.items():
        files.append(File.generated(config, page, content=(links.ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put generated parts where a page asks for them, and mend links that leave docs/."""
    filled = INSERT.sub(lambda found: _insert(found, page), markdown)
    text, published = links.mend(filled, page.file.src_uri)
    for target, source in published.items():
        if files.get_file_from_path(target) is None:
            files.append(File.generated(config, target, abs_src_path=str(source)))
    return text


def _insert(found: re.Match[str], page: Page) -> str:
    """Return the generated text that a comment names."""
    what, argument = found["what"], found["argument"]
    maker: Callable[..., str] | None = generated.PARTS.get(what)
    try:
        if maker is None:
            raise LookupError(f"there is no part of that name; there are {', '.join(generated.PARTS)}")
        return maker(argument) if argument else maker()
    except Exception as error:  # noqa: BLE001 - whatever it is, a strict build stops at the warning
        log.warning("%s: cannot insert '%s %s': %s", page.file.src_uri, what, argument or "", error)
        return ""


def on_page_content(content: str, page: Page, **_: object) -> str:
    """Write equations as MathML, which browsers draw without a script."""

    def write(display: str) -> Callable[[re.Match[str]], str]:
        def one(found: re.Match[str]) -> str:
            try:
                mathml = convert(html.unescape(found["tex"]).strip(), display=display)
            except Exception as error:  # noqa: BLE001 - as above
                log.warning("%s: the equation %r cannot be written: %s", page.file.src_uri, found["tex"], error)
                return ""
            return f'<div class="equation">{mathml}</div>' if display == "block" else mathml

        return one

    return INLINE.sub(write("inline"), BLOCK.sub(write("block"), content))
