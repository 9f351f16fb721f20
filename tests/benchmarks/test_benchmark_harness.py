"""The benchmarks' harness: turns, ratios, result files, and the page made from them."""

from __future__ import annotations

import json
import time

import pytest

from benchmarks import readme
from benchmarks.harness import Comparison, Measure, Share, alternate, compare, main, quartiles


def test_candidates_take_turns_in_turning_order():
    order: list[str] = []
    times = alternate({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=3, warmup=1)
    assert order == ["a", "b", "a", "b", "b", "a", "a", "b"]
    assert {name: len(found) for name, found in times.items()} == {"a": 3, "b": 3}


def test_the_faster_of_two_has_a_ratio_above_one():
    times = alternate({"ours": lambda: time.sleep(0.002), "theirs": lambda: time.sleep(0.02)}, rounds=3)
    found = compare("sleep", "ours", "theirs", times, wanted=2.0, checks={"difference": 0.0})
    assert found.ratio > 2
    assert found.low <= found.ratio <= found.high


def test_a_ratio_is_paired_by_round():
    assert compare("x", "a", "b", {"a": [1.0, 10.0, 1.0], "b": [2.0, 20.0, 2.0]}).ratio == 2.0
    assert quartiles([3.0]) == (3.0, 3.0)


def test_results_become_a_page(tmp_path, monkeypatch):
    rows = [
        Comparison("c", "ours", "theirs", 0.5, 0.6, 1.2, 1.1, 1.3, 5, wanted=1.8, checks={"error": 1e-9}),
        Measure("start", 0.2, "s", at_most=0.3),
        Share("step", "products", 0.1, 0.7, "one product"),
    ]
    main(lambda _: rows, "startup", ["--out", str(tmp_path)])
    head, *lines = (json.loads(line) for line in (tmp_path / "startup.jsonl").read_text().splitlines())
    assert head["machine"]["name"]
    assert len(lines) == 3
    tables = "\n".join(readme._tables(lines))
    assert "**1.20x** [1.10, 1.30]" in tables  # missed its bar
    assert "| start | 0.2 s | at most 0.3 |" in tables
    assert "| step | products | 70.0 % | 100 ms | one product |" in tables


@pytest.mark.parametrize("name", readme.names())
def test_every_benchmark_has_a_title_and_says_what_it_is(name):
    import importlib

    module = importlib.import_module(f"benchmarks.{name}")
    assert name == module.NAME
    assert module.TITLE
    assert module.ABOUT
    assert callable(module.run)


def test_the_page_agrees_with_the_results():
    assert readme.README.read_text(encoding="utf-8") == readme.generate()
