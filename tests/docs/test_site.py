"""The documentation builds strictly, says what the code says, and asks nothing of the network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib import util
from pathlib import Path

import pytest

from ablation.cli import app
from ablation.config import field_names
from ablation.stage import StageTree

ROOT = Path(__file__).resolve().parents[2]
LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "audio": "src", "link": "href", "use": "href"}
"""What a browser fetches by itself; plain links it does not."""

pytestmark = pytest.mark.skipif(util.find_spec("mkdocs") is None, reason="the docs extra is not installed: make install-docs")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, as `make docs` builds it."""
    folder = tmp_path_factory.mktemp("site")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


class Requests(HTMLParser):
    """Collect what a page makes a browser fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag == "link" and found.get("rel") == "canonical":
            return
        if address := found.get(LOADED.get(tag, "")):
            self.addresses.append(address)


def pages(site: Path) -> Iterator[tuple[str, str]]:
    return ((path.name, path.read_text(encoding="utf-8")) for path in sorted(site.glob("*.html")))


def is_elsewhere(address: str) -> bool:
    return re.match(r"([a-z][a-z0-9+.-]*:)?//|https?:", address, re.IGNORECASE) is not None


def test_opening_a_page_asks_nothing_of_the_network(site):
    for name, text in pages(site):
        requests = Requests()
        requests.feed(text)
        assert requests.addresses, name
        assert not [address for address in requests.addresses if is_elsewhere(address)], name
        assert 'class="mermaid"' not in text, f"{name}: diagrams of that kind are drawn by a script from elsewhere"
    for path in site.rglob("*.css"):
        addresses = re.findall(r"(?:url\(|@import\s+)['\"]?([^'\")\s]+)", path.read_text(encoding="utf-8"))
        assert not [address for address in addresses if is_elsewhere(address)], path


def test_every_setting_stage_and_command_has_its_place(site, tree: StageTree):
    text = dict(pages(site))
    for setting in field_names():
        assert f'id="{setting}"' in text["settings.html"]
    for stage in tree.ordered():
        assert f'id="{stage.name}"' in text["stages.html"]
        for setting in stage.changes:
            assert setting in text["stages.html"]
    for command in app.registered_commands:
        name = command.name or command.callback.__name__
        assert command.hidden or f'id="ablate-{name}"' in text["commands.html"]


def test_equations_are_drawn_without_a_script(site):
    text = dict(pages(site))["stages.html"]
    assert text.count("<math") >= 14
    for name, page in pages(site):
        assert "arithmatex" not in page, f"{name}: an equation was left as it is written"


def test_no_page_is_empty_or_unfinished(site):
    for name, text in pages(site):
        article = re.sub(r"<[^>]+>", " ", text.partition("<article")[2].partition("</article>")[0])
        assert name == "404.html" or len(article.split()) > 60, name
        assert not re.search(r"\b(TODO|FIXME|TBD)\b|<!-- insert", article), name


@pytest.mark.skipif("CI" not in os.environ, reason="only continuous integration must have everything")
def test_continuous_integration_builds_the_documentation():
    assert util.find_spec("mkdocs")
