"""The page in a real headless Chromium: silent, offline, sortable by keyboard, accessible, never wider than the screen, printable."""

from __future__ import annotations

import base64
import importlib.util
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ablation.results_folder import read_source, report_of

CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
DRIVER = shutil.which("chromedriver")
MISSING = [name for name in ("selenium", "axe_core_python") if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason="no chromium and chromedriver on the PATH"),
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)} (the dev extra)"),
]
RESULTS = Path(__file__).resolve().parents[2] / "results" / "results.jsonl"
AXE_RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of the committed results, as a file."""
    path = tmp_path_factory.mktemp("page") / "index.html"
    path.write_bytes(report_of(read_source(RESULTS))["index.html"])
    return path.as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One headless Chromium that writes down what it loads and what its console says."""
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = str(CHROMIUM)
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--disable-extensions"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


def view(browser: Any, address: str, width: int, scheme: str = "light", script: bool = True) -> None:
    """Open the page at a width, in a colour scheme, with or without scripts."""
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    )
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": not script})
    browser.get(address)


def column(browser: Any, place: int) -> list[str]:
    """Return a column of Table 1 as it stands."""
    script = "return [...document.querySelectorAll('#table1 tbody tr')].map(row => row.cells[arguments[0]].innerText.trim())"
    texts: list[str] = browser.execute_script(script, place)
    return texts


def test_nothing_is_loaded_and_the_console_is_silent(browser: Any, address: str) -> None:
    browser.get_log("performance")
    browser.get_log("browser")
    view(browser, address, 1300)
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [message["params"]["request"]["url"] for message in messages if message["method"] == "Network.requestWillBeSent"]
    assert address in urls
    assert [url[:80] for url in urls if url != address and not url.startswith("data:")] == []
    assert browser.get_log("browser") == []
    assert browser.execute_script("return [...document.images].every(image => image.complete && image.naturalWidth > 0)")


def test_columns_sort_by_keyboard_and_say_so(browser: Any, address: str) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    view(browser, address, 1300)
    before = column(browser, 1)
    controls = 3
    button = browser.find_element(By.CSS_SELECTOR, "#table1 th:nth-child(2) .sort")
    assert button.accessible_name.startswith("Sort by Linear probe")
    browser.execute_script("arguments[0].focus()", button)
    outline = browser.execute_script("return getComputedStyle(document.activeElement).outlineStyle")
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    ascending = column(browser, 1)
    numbers = [float(text.split()[0]) for text in ascending[:-controls]]
    assert numbers == sorted(numbers)
    assert sorted(ascending) == sorted(before)
    assert ascending[-controls:] == before[-controls:], "reference lines stay below"
    assert browser.find_element(By.CSS_SELECTOR, "#table1 th:nth-child(2)").get_attribute("aria-sort") == "ascending"
    assert "ascending" in browser.find_element(By.ID, "sorted").get_attribute("textContent")
    browser.switch_to.active_element.send_keys(Keys.SPACE)
    assert column(browser, 1)[:-controls] == ascending[:-controls][::-1]
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    assert column(browser, 1) == before
    assert outline != "none" or browser.execute_script("return document.activeElement.matches(':focus-visible')")


def test_the_papers_lines_follow_theirs_when_table_2_is_sorted(browser: Any, address: str) -> None:
    view(browser, address, 1300)
    rows_of = "[...document.querySelectorAll('#table2 tbody tr')]"
    pairs = f"return {rows_of}.map(row => [row.className.includes('paper'), row.cells[0].innerText])"
    browser.execute_script("document.querySelector('#table2 th:nth-child(1) .sort').click()")
    rows = browser.execute_script(pairs)
    assert [paper for paper, _ in rows] == [False, True] * (len(rows) // 2)
    assert all(ours[1].rstrip("†") == theirs[1] for ours, theirs in zip(rows[::2], rows[1::2], strict=True))


def test_a_keyboard_reaches_the_skip_link_first_and_it_leads_to_the_tables(browser: Any, address: str) -> None:
    from selenium.webdriver.common.keys import Keys

    view(browser, address, 1300)
    browser.switch_to.active_element.send_keys(Keys.TAB)
    link = browser.switch_to.active_element
    assert link.text == "Skip to the tables"
    assert link.rect["x"] >= 0
    link.send_keys(Keys.ENTER)
    assert browser.switch_to.active_element.get_attribute("id") == "main"


@pytest.mark.parametrize(("width", "scheme"), [(1300, "light"), (1300, "dark"), (390, "light"), (390, "dark")])
def test_axe_finds_nothing(browser: Any, address: str, width: int, scheme: str) -> None:
    """WCAG 2.1 A and AA and best practices: contrast, names, roles, headings, tables, language."""
    view(browser, address, width, scheme)
    browser.execute_script("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    spec = importlib.util.find_spec("axe_core_python")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    browser.execute_script((Path(spec.submodule_search_locations[0]) / "axe.min.js").read_text(encoding="utf-8"))
    options = {"runOnly": {"type": "tag", "values": AXE_RULES}, "resultTypes": ["violations"]}
    browser.set_script_timeout(120)
    found = browser.execute_async_script("const end = arguments[1]; axe.run(document, arguments[0]).then(end)", options)
    said = [(one["id"], one["help"], [node["html"][:160] for node in one["nodes"]][:3]) for one in found["violations"]]
    assert said == []


@pytest.mark.parametrize("width", [390, 768, 1300])
def test_nothing_is_wider_than_the_screen(browser: Any, address: str, width: int) -> None:
    view(browser, address, width)
    browser.execute_script("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    wide = (
        "const inside = one => one.closest('.wide, .scroll');"
        "return [...document.querySelectorAll('main *, header *, footer *')].filter(one => !inside(one) && "
        "!one.closest('.unseen, .skip') && one.getBoundingClientRect().right > innerWidth + 1).map(one => one.outerHTML.slice(0, 120))"
    )
    assert browser.execute_script(wide) == []


def test_a_narrow_screen_sorts_by_a_list(browser: Any, address: str) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import Select

    view(browser, address, 390)
    assert not browser.find_element(By.CSS_SELECTOR, "#table1 th .sort").is_displayed()
    choice = browser.find_element(By.CSS_SELECTOR, "#table1 .sort-choice select")
    assert choice.is_displayed()
    Select(choice).select_by_value("1 descending")
    numbers = [float(text.split()[0]) for text in column(browser, 1)[:-3]]
    assert numbers == sorted(numbers, reverse=True)


def test_everything_reads_without_a_script(browser: Any, address: str) -> None:
    from selenium.webdriver.common.by import By

    view(browser, address, 1300, script=False)
    assert browser.find_elements(By.CSS_SELECTOR, ".sort, .sort-choice") == []
    assert "DiT baseline" in browser.find_element(By.ID, "table1").text
    assert "ablate run --only baseline" in browser.find_element(By.CSS_SELECTOR, ".steps").text
    view(browser, address, 1300)


def test_it_prints(browser: Any, address: str) -> None:
    view(browser, address, 1300)
    printed = browser.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True, "printBackground": False})
    pdf = base64.b64decode(printed["data"])
    assert pdf.startswith(b"%PDF")
    assert 3 <= pdf.count(b"/Type /Page\n") + pdf.count(b"/Type /Page ") <= 60
