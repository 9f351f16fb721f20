"""What is written in two places is the same in both: pins, versions, citations, and what UPGRADING says of formats."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from ablation.collect import SCHEMA
from ablation.keys import KIND_VERSIONS
from ablation.report.published import load_published

ROOT = Path(__file__).resolve().parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
NOT_TESTED_AT_THEIR_OLDEST = {"torch", "torchvision"}
"""Older builds for the CPU are not to be had from the package index; constraints-oldest.txt says so."""

SURFACES = {
    "Stages", "Command line", "Method", "Evaluation", "Data", "Reports", "Documentation", "Plugins", "Python", "SLURM", "Studies", "Speed",
    "Performance", "Internals", "Results",
}  # fmt: skip


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(name: str) -> dict[str, str]:
    """Read a constraints file as a map from names to versions; every line must be exact."""
    lines = [line.split("#")[0].strip() for line in read(name).splitlines()]
    found = {normal(left): right for left, _, right in (line.partition("==") for line in lines if line)}
    assert all(re.fullmatch(r"[\w.+!]+", version) for version in found.values()), found
    return found


def required(*groups: str) -> dict[str, str]:
    """Map each required package to its range."""
    wanted = [one for group in groups for one in (PROJECT["dependencies"] if group == "" else EXTRAS[group])]
    return {normal(re.split(r"[<>=!~\[ ]", one)[0]): re.sub(r"^[\w.\[\]-]+", "", one).strip() for one in wanted}


def test_every_dependency_has_a_tested_newest_version():
    assert set(required("", *EXTRAS)) - set(pins("constraints.txt")) <= {normal(PROJECT["name"])}


def test_every_lower_bound_is_the_version_tested_as_oldest():
    oldest = pins("constraints-oldest.txt")
    for name, wanted in required("", "dev").items():
        if wanted.startswith(">=") and name not in NOT_TESTED_AT_THEIR_OLDEST:
            assert name in oldest, f"{name}: add the version of its lower bound to constraints-oldest.txt"
            assert oldest[name].split(".") == [*wanted[2:].split("."), "0", "0"][: len(oldest[name].split("."))], name


def test_linters_have_one_version():
    """In the environment, in the constraints and in pre-commit."""
    newest = pins("constraints.txt")
    hooks = [hook for repository in yaml.safe_load(read(".pre-commit-config.yaml"))["repos"] for hook in repository["hooks"]]
    assert {hook["id"] for hook in hooks} >= {"ruff-check", "ruff-format", "mypy"}
    for hook in hooks:
        for one in hook.get("additional_dependencies", []):
            name, _, version = one.partition("==")
            assert newest[normal(name)] == version, hook["id"]
    for one in EXTRAS["dev"]:
        name, exact, version = one.partition("==")
        assert not exact or newest[normal(name)] == version


def test_continuous_integration_runs_what_contributors_run():
    steps = re.findall(r"^make (.+)$", read(".ci/run"), re.MULTILINE)
    assert {"lint", "types", "test"} <= {word for step in steps for word in step.split()}
    assert "make lint types test" in read("CONTRIBUTING.md")
    formatted = re.search(r"ruff format --check (.+)", read("Makefile"))
    hook = re.search(r"ruff-format.*?files: \^\((.*?)\)", read(".pre-commit-config.yaml"), re.DOTALL)
    assert formatted
    assert hook
    assert set(formatted[1].split()) == set(hook[1].split("|"))


def test_the_citation_is_that_of_this_version_and_of_the_study():
    citation = yaml.safe_load(read("CITATION.cff"))
    assert {"cff-version", "message", "title", "authors", "version", "license", "references"} <= citation.keys()
    assert (citation["title"], citation["version"], citation["license"]) == (PROJECT["name"], PROJECT["version"], PROJECT["license"])
    study, source = citation["references"][0], load_published().source
    assert (study["title"], study["identifiers"][0]["value"]) == (source.title, f"arXiv:{source.arxiv}")
    assert ", ".join(f"{author['given-names']} {author['family-names']}" for author in study["authors"]) == source.authors


def test_upgrading_states_today_s_formats():
    text = read("UPGRADING.md")
    stated = {name: int(version) for name, version in re.findall(r"^\| `(\w+)` \| (\d+) \|", text, re.MULTILINE)}
    assert stated == {kind: version for kind, version in KIND_VERSIONS.items() if version != 1}
    assert f"| records, `results.jsonl` | {SCHEMA} |" in text


def test_the_changelog_is_by_surface():
    text = read("CHANGELOG.md")
    assert text.startswith("# Changelog\n")
    assert re.findall(r"^## \[(.+?)\]", text, re.MULTILINE)[0] in ("Unreleased", PROJECT["version"])
    assert set(re.findall(r"^### (.+)$", text, re.MULTILINE)) <= SURFACES


@pytest.mark.parametrize("name", ["LICENSE", "CONTRIBUTING.md", "CHANGELOG.md", "UPGRADING.md", "CITATION.cff", "README.md"])
def test_what_strangers_look_for_is_there(name):
    assert len(read(name)) > 500
    assert name != "CONTRIBUTING.md" or re.findall(r"^## (.+)$", read(name), re.MULTILINE)[0] == "Add a stage"
