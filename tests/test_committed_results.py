"""The committed tables and README are what the committed results give."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from commands import environment

from ablation.collect import read_records

ROOT = Path(__file__).resolve().parent.parent


def test_readme_and_reports_follow_from_the_results() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "update_readme.py"), "--check"]
    answer = subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)
    drawn = re.compile(r"reports/(\w+\.(png|pdf)|index\.html|versions\.json) ")  # differ between versions of the drawing library
    stale = [line for line in answer.stderr.splitlines() if not drawn.match(line)]
    assert stale == [], stale


def test_the_committed_ladder_is_whole_and_says_what_it_is() -> None:
    records = read_records(ROOT / "results" / "results.jsonl")
    assert len([record for record in records if record["stage"]]) == 14
    assert {record["state"] for record in records} == {"done"}
    assert {record["scale"] for record in records} == {"smoke"}
    assert all(record["protocol"]["composite"] for record in records)
    assert not any(record["code"]["dirty"] for record in records)


def test_the_trained_encoder_beats_the_untrained_one_and_chance() -> None:
    """If it did not, the smoke scale would show nothing; the margin is several standard errors of 2,000 test images."""
    records = read_records(ROOT / "results" / "results.jsonl")
    accuracy = {record["stage"] or record["control"]: record["metrics"]["linear_probe_top1"] for record in records}
    for stage in ("predict_original", "single_noise_level"):
        assert accuracy[stage] > accuracy["random_init"] + 3
        assert accuracy[stage] > 2 * accuracy["chance"]
