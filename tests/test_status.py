"""What status, logs and clean read from a run folder, and what clean may delete."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import pytest

from ablation.errors import ArtifactError, ConfigError
from ablation.status import cell_states, find_cell, follow_file, log_path, removable
from ablation.store import Store
from ablation.study import Request, Study, prepare, write_specs

FINISHED = {"metrics": {"linear_probe_top1": 30.0}, "protocol": {}, "cost": {}}


@pytest.fixture
def study(runs: Path) -> Study:
    """A planned study of two stages, which share tokenizer, latents and reference."""
    study = prepare(Request(through="drop_class_conditioning", scale="smoke", runs=runs, with_controls=False))
    write_specs(study)
    study.store.write_study(study.document("ablate run"))
    return study


def finish(study: Study, cell: str, *kinds: str) -> None:
    for kind in kinds:
        study.store.mark_done(study.plan.roles[cell][kind], FINISHED)


def state(study: Study, cell: str = "baseline-s0") -> dict:
    return {entry["cell"]: entry for entry in cell_states(study.store, study.store.study())}[cell]


# --- status -----------------------------------------------------------------------------------------------------------


def test_a_cell_is_new_then_waiting_then_done(study):
    assert state(study)["state"] == "new"
    finish(study, "baseline-s0", "reference", "tokenizer")
    assert state(study)["state"] == "waiting"
    finish(study, "baseline-s0", "encode", "train", "probe", "fid")
    done = state(study)
    assert (done["state"], done["probe"], set(done["jobs"].values())) == ("done", 30.0, {"done"})
    assert state(study, "drop_class_conditioning-s0")["state"] == "waiting"


def test_time_and_log_are_those_of_what_a_cell_is_at(study):
    """Finished jobs count with what they took, a running one since it last started; the log is that of what runs or failed."""
    roles = study.plan.roles["baseline-s0"]
    assert (state(study)["elapsed"], state(study)["log"]) == (0.0, None)
    study.store.mark_done(roles["tokenizer"], {**FINISHED, "cost": {"wall_seconds": 20.5}})
    study.store.log(roles["tokenizer"], "done")
    assert state(study)["elapsed"] == 20.5
    assert state(study)["log"] == str(study.store.job_folder(roles["tokenizer"]) / "job.log")
    with study.store.lock(roles["train"]):
        study.store.log(roles["probe"], "a word")
        study.store.log(roles["train"], "started")
        (study.store.job_folder(roles["train"]) / "attempts.jsonl").write_text(
            "".join(json.dumps({"event": "started", "time": time.time() - ago}) + "\n" for ago in (500, 100))
        )
        found = state(study)
    assert found["elapsed"] == pytest.approx(120.5, abs=5)
    assert found["log"] == str(study.store.job_folder(roles["train"]) / "job.log")


@pytest.mark.parametrize("name", ["failed", "diverged"])
def test_a_failure_is_shown_with_its_reason(study, name):
    roles = study.plan.roles["baseline-s0"]
    finish(study, "baseline-s0", "reference", "tokenizer", "encode")
    study.store.mark_failed(roles["train"], name, "it broke")
    study.store.mark_failed(roles["probe"], "skipped", "parent train")
    found = state(study)
    assert (found["state"], found["reason"]) == (name, "it broke")
    assert found["jobs"]["probe"] == "skipped"
    assert state(study, "drop_class_conditioning-s0")["state"] == "waiting"


def test_a_running_job_is_running_and_a_killed_one_interrupted(study):
    train = study.plan.roles["baseline-s0"]["train"]
    with study.store.lock(train):
        study.store.record_attempt(train, {"event": "started"})
        (study.store.job_folder(train) / "curve.jsonl").write_text('{"step": 10, "loss": 0.75}\n')
        found = state(study)
        assert (found["state"], found["jobs"]["train"], found["attempts"], found["loss"]) == ("running", "running", 1, 0.75)
    (study.store.job_folder(train) / "checkpoint-000000010.safetensors").write_text("x")
    assert state(study)["state"] == "interrupted"


@pytest.mark.parametrize("text", ["", "{", '{"step": 3}', '{"loss": 0.5, "st'])
def test_a_learning_curve_cut_short_has_no_last_loss(study, text):
    (study.store.job_folder(study.plan.roles["baseline-s0"]["train"]) / "curve.jsonl").write_text(text)
    assert state(study)["loss"] is None


def test_a_stage_is_found_before_its_variants_and_a_variant_by_its_id(runs):
    study = prepare(Request(through="patch_pca", scale="smoke", runs=runs, with_controls=False, designs=("put_back",), seeds=(1, 0)))
    document = study.document("ablate run")
    document["cells"].reverse()
    study.store.write_study(document)
    assert find_cell(study.store, None, "patch_pca", 0)["id"] == "patch_pca-s0"
    variant = next(cell["id"] for cell in document["cells"] if cell["title"] == "final model, put back linear_gamma_schedule")
    assert find_cell(study.store, None, variant, None)["id"] == variant


# --- logs -------------------------------------------------------------------------------------------------------------


def test_a_log_is_found_by_stage_kind_and_seed(study):
    store, roles = study.store, study.plan.roles
    for kind in ("train", "tokenizer", "reference"):
        assert log_path(store, None, "baseline", kind, None) == store.job_folder(roles["baseline-s0"][kind]) / "job.log"
    for arguments, said in (
        (("basline", "train", None), "no stage 'basline'.*baseline"),
        (("baseline", "trian", None), "no job of kind 'trian'.*train"),
        (("baseline", "train", 5), "not run with seed 5.*Seeds: 0"),
    ):
        with pytest.raises(ConfigError, match=said):
            log_path(store, None, *arguments)


def test_following_a_log_waits_for_it_and_for_more(tmp_path):
    path = tmp_path / "job.log"
    with pytest.raises(ConfigError, match="does not exist yet"):
        list(follow_file(path, follow=False))

    def write() -> None:
        path.write_text("one\n")
        seen.wait(10)
        with path.open("a") as file:
            file.write("two\n")

    seen = threading.Event()
    threading.Timer(0.05, write).start()
    text = ""
    for part in follow_file(path, follow=True):
        text += part
        seen.set()
        if text == "one\ntwo\n":
            break
    assert list(follow_file(path, follow=False)) == ["one\ntwo\n"]


# --- clean ------------------------------------------------------------------------------------------------------------

NOTHING = {"stale": False, "orphans": False, "failed": False, "cache": False}


def names(store: Store, **chosen: bool) -> set[str]:
    return {path.name for path, _ in removable(store, **{**NOTHING, **chosen})}


def test_finished_jobs_of_a_study_are_never_removed(study):
    finish(study, "baseline-s0", *study.plan.roles["baseline-s0"])
    study.store.cache.mkdir()
    assert names(study.store, stale=True, orphans=True, failed=True, cache=True) == {"cache"}
    assert names(study.store) == set()


def test_finished_jobs_of_an_older_study_on_other_data_are_no_orphans(study):
    """The second study has cells of the same names; the first one's jobs stay referred to."""
    finish(study, "baseline-s0", *study.plan.roles["baseline-s0"])
    settings = {"data.scene_seed": 1}
    other = prepare(
        Request(
            through="drop_class_conditioning", name="other", scale="smoke", runs=study.store.root, with_controls=False, settings=settings
        )
    )
    write_specs(other)
    other.store.write_study(other.document("ablate run"))
    assert not set(study.plan.jobs) & set(other.plan.jobs)
    assert names(study.store, orphans=True) == set()
    (study.store.root / "studies" / f"{study.name}.json").unlink()
    assert names(study.store, orphans=True) == set(study.plan.jobs)


def test_an_unreadable_study_keeps_its_jobs_from_being_orphans(study):
    (study.store.root / "studies" / f"{study.name}.json").write_text("{")
    with pytest.raises(ArtifactError, match="unreadable"):
        names(study.store, orphans=True)
    assert names(study.store, failed=True) == set()


def test_failed_jobs_are_removed_when_asked_but_not_running_ones(study):
    roles = study.plan.roles["baseline-s0"]
    study.store.mark_failed(roles["train"], "diverged", "r")
    study.store.mark_failed(roles["probe"], "skipped", "r")
    study.store.mark_failed(roles["fid"], "failed", "r")
    with study.store.lock(roles["fid"]):
        assert names(study.store, failed=True) == {roles["train"], roles["probe"]}
    assert names(study.store, failed=True) == {roles["train"], roles["probe"], roles["fid"]}


def test_a_job_whose_defaults_changed_is_stale(study):
    finish(study, "baseline-s0", *study.plan.roles["baseline-s0"])
    train = study.plan.roles["baseline-s0"]["train"]
    spec = study.store.spec(train)
    spec["reads"]["train.beta2"] = 0.95  # what it ran with, when that was the default
    (study.store.job_folder(train) / "spec.json").write_text(json.dumps(spec))
    assert names(study.store, stale=True) == {train}
    (study.store.job_folder(train) / "spec.json").write_text("{")
    assert names(study.store, stale=True) == {train}


def test_clean_lists_and_deletes_only_when_told(study, ablate):
    train = study.plan.roles["baseline-s0"]["train"]
    finish(study, "baseline-s0", "tokenizer")
    study.store.mark_failed(train, "failed", "out of [memory]")
    listed = ablate("clean", "--failed", "--runs", study.store.root)
    assert (listed.code, listed.err) == (0, "")
    assert "failed: out of [memory]" in listed.out
    assert "1 found; add --yes to delete" in listed.out
    assert study.store.job_folder(train).is_dir()
    assert "1 deleted" in ablate("clean", "--failed", "--yes", "--runs", study.store.root).out
    assert not study.store.job_folder(train).exists()
    assert study.store.state(study.plan.roles["baseline-s0"]["tokenizer"]).name == "done"


def test_clean_refuses_what_lies_outside(study, ablate, tmp_path):
    """A job folder that is a link leads out of the run folder."""
    outside = tmp_path / "elsewhere"
    outside.mkdir()
    (outside / "precious").write_text("x")
    os.symlink(outside, study.store.root / "jobs" / "train-link")
    answer = ablate("clean", "--orphans", "--yes", "--runs", study.store.root)
    assert answer.code == 2
    assert "is not inside" in answer.error
    assert (outside / "precious").exists()
