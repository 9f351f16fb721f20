"""Jobs one after the other in this process: order, failures and what follows from them, stops, and waiting for others."""

from __future__ import annotations

import threading

import pytest
from commands import Recorder, attempts, descendants, never, starts

from ablation.launch.inline import InlineLauncher
from ablation.store import Store

pytestmark = pytest.mark.usefixtures("one_thread")


def run(study, watcher=None, should_stop=never, **options):
    return InlineLauncher(1, **options).run(study.plan, study.store, watcher or Recorder(), should_stop)


def test_parents_run_before_children_and_a_second_run_does_nothing(make_study, runs):
    study, watcher = make_study(runs, only=("patch_pca",)), Recorder()
    outcome = run(study, watcher)
    assert set(outcome.states.values()) == {"done"}
    assert not outcome.interrupted
    assert watcher.of("done") == list(study.plan.jobs)
    for job, spec in study.plan.jobs.items():
        for parent in spec.inputs.values():
            assert attempts(study.store, parent)[-1]["time"] <= attempts(study.store, job)[0]["time"]
    assert run(study).states == outcome.states
    assert all(starts(study.store, job) == 1 for job in study.plan.jobs)


def test_a_failing_job_fails_its_descendants_only_and_a_mended_one_goes_on(make_study, plugin, runs):
    stage = plugin("raise RuntimeError('it [/broke]')")
    study = make_study(runs, only=("own", "patch_pca"), stages=(str(stage),), seeds=(0, 1))
    broken = [study.plan.roles[f"own-s{seed}"]["tokenizer"] for seed in (0, 1)]
    watcher = Recorder()
    outcome = run(study, watcher)
    for job in broken:
        state = study.store.state(job)
        assert (state.name, state.reason.splitlines()) == ("failed", [state.reason])
        assert state.reason.startswith("RuntimeError: it [/broke]. The traceback is in ")
        assert "Traceback" in (study.store.job_folder(job) / "job.log").read_text()
        for below in descendants(study.plan, job):
            assert study.store.state(below).name == "skipped"
            assert study.store.state(below).reason == f"parent tokenizer failed ({job})"
    others = set(study.plan.jobs) - {*outcome.failed}
    assert len(others) == 6
    assert all(outcome.states[job] == "done" for job in others)
    (stage.parent / "_own.py").write_text((stage.parent / "_own.py").read_text().replace("raise RuntimeError('it [/broke]')", "pass"))
    mended = make_study(runs, only=("own", "patch_pca"), stages=(str(stage),), seeds=(0, 1))
    assert not {*mended.plan.jobs} & {*broken}  # the part's bytes are in the key
    assert set(run(mended).states.values()) == {"done"}
    assert all(starts(study.store, job) == 1 for job in others)


def test_a_finished_child_of_a_lost_parent_stays_finished(make_study, plugin, runs):
    stage = plugin("pass")
    study = make_study(runs, only=("own",), stages=(str(stage),))
    run(study)
    roles = study.plan.roles["own-s0"]
    (study.store.job_folder(roles["tokenizer"]) / "DONE.json").write_text("{")
    (stage.parent / "_own.py").write_text("this is no Python")
    outcome = run(study)
    assert outcome.failed == [roles["tokenizer"]]
    assert {study.store.state(roles[role]).name for role in ("encode", "train", "probe")} == {"done"}
    assert not (study.store.job_folder(roles["probe"]) / "FAILED.json").exists()


def test_a_stop_before_the_start_runs_nothing(make_study, runs):
    study = make_study(runs)
    outcome = run(study, should_stop=lambda: True)
    assert (outcome.interrupted, outcome.states, outcome.failed) == (True, {}, [])
    assert {study.store.state(job).name for job in study.plan.jobs} == {"new"}


def test_a_stop_in_a_training_keeps_a_checkpoint(make_study, runs):
    study = make_study(runs, {"train.steps": 9}, only=("patch_pca",))
    train = study.plan.roles["patch_pca-s0"]["train"]
    outcome = run(study, should_stop=lambda: study.store.has_checkpoint(train), checkpoint_seconds=0)
    assert outcome.interrupted
    assert outcome.failed == []
    assert study.store.state(train).name == "interrupted"
    assert attempts(study.store, train)[-1]["reason"] == "stopped at step 2 of 9; a checkpoint is saved"
    assert set(run(study).states.values()) == {"done"}


def test_a_job_that_somebody_else_runs_is_waited_for(make_study, runs, monkeypatch):
    monkeypatch.setattr("ablation.launch.inline.POLL_SECONDS", 0.01)
    study = make_study(runs, only=("patch_pca",))
    job = next(iter(study.plan.jobs))
    seen: list[str] = []

    class Watcher(Recorder):
        def progressed(self, job_id: str, done: int, total: int, note: str) -> None:
            if note.startswith("waiting for process"):
                seen.append(job_id)
                release.set()

    release, held = threading.Event(), threading.Event()

    def hold() -> None:
        with Store(runs).lock(job):
            held.set()
            release.wait(20)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(20)
    outcome = run(study, Watcher())
    thread.join()
    assert seen[0] == job
    assert set(outcome.states.values()) == {"done"}


def test_while_waiting_a_stop_is_heeded(make_study, runs, monkeypatch):
    monkeypatch.setattr("ablation.launch.inline.POLL_SECONDS", 0.01)
    study = make_study(runs, only=("patch_pca",))
    answers = iter([False, True])
    with study.store.lock(next(iter(study.plan.jobs))):
        outcome = run(study, should_stop=lambda: next(answers))
    assert outcome.interrupted
