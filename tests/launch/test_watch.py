"""What a run prints as it goes."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from ablation.keys import KIND_VERSIONS
from ablation.launch.watch import FIRST_GUESS, RunWatcher


def watch(plan, terminal: bool, reused: frozenset[str] = frozenset()) -> tuple[RunWatcher, io.StringIO]:
    stream = io.StringIO()
    return RunWatcher(plan, Console(file=stream, force_terminal=terminal, width=160), set(reused)), stream


def test_one_line_a_job_and_one_for_all_that_is_skipped(make_study, runs):
    plan = make_study(runs, seeds=(0, 1)).plan
    tokenizer = plan.roles["patch_ae-s0"]["tokenizer"]
    watcher, stream = watch(plan, terminal=False)
    with watcher:
        watcher.started(tokenizer)
        watcher.ended(tokenizer, "failed", "[/broken] tokenizer", 1.0)
        for role in ("encode", "train", "probe"):
            watcher.ended(plan.roles["patch_ae-s0"][role], "skipped", f"parent tokenizer failed ({tokenizer})", 0.0)
        done = plan.roles["patch_ae-s1"]["tokenizer"]
        watcher.started(done)
        watcher.ended(done, "done", "", 2.5)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3
    assert "tokenizer patch_ae-s0  failed in 1.0 s" in lines[0]
    assert lines[0].endswith("[/broken] tokenizer")
    assert "tokenizer patch_ae-s1  done in 2.5 s  about " in lines[1]
    assert lines[2] == f"3 jobs skipped: parent tokenizer failed ({tokenizer})"


def test_reused_jobs_are_not_mentioned(make_study, runs):
    plan = make_study(runs).plan
    watcher, stream = watch(plan, terminal=False, reused=frozenset(plan.jobs))
    with watcher:
        for job in plan.jobs:
            watcher.started(job)
            watcher.ended(job, "done", "", 0.0)
    assert stream.getvalue() == ""


def test_a_terminal_shows_bars_that_come_and_go(make_study, runs):
    plan = make_study(runs).plan
    job = next(iter(plan.jobs))
    watcher, stream = watch(plan, terminal=True)
    with watcher:
        watcher.started(job)
        watcher.progressed(job, 3, 10, "loss 0.5")
        watcher.started(job)  # another command held it in between
        assert len(watcher.bar.tasks) == 2
        watcher.progressed("train-unknown", 1, 2, "")
        watcher.ended(job, "done", "", 1.0)
        assert len(watcher.bar.tasks) == 1
    assert "done" in stream.getvalue()


def test_the_estimate_follows_what_jobs_of_a_kind_have_taken(make_study, runs):
    plan = make_study(runs, seeds=(0, 1)).plan
    probes = [job for job, spec in plan.jobs.items() if spec.kind == "probe"]
    watcher, _ = watch(plan, terminal=False, reused=frozenset(set(plan.jobs) - set(probes)))
    watcher.ended(probes[0], "done", "", 10.0)
    assert watcher._estimate() == pytest.approx(10.0 * (len(probes) - 1))
    watcher.started(probes[1])
    watcher.progressed(probes[1], 1, 2, "")
    assert watcher._estimate() == pytest.approx(10.0 * (len(probes) - 1.5))


def test_every_kind_of_job_has_a_first_guess():
    """An estimate that does not know a kind would end the run."""
    assert set(FIRST_GUESS) == set(KIND_VERSIONS)
