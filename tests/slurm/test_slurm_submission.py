"""Submitting to a real SLURM: never half, never twice, within its limits, and whatever of it is down. Nothing here computes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import ROOT, run, start, starts
from slurm_cluster import LARGEST_ARRAY, ONE_CPU, Cluster, cell_command, fake_jobs, status, submit_cell

from ablation.launch import slurm_commands
from ablation.launch.resources import load_resources
from ablation.launch.slurm import Submission
from ablation.store import Store

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]

SMALL = ["gpus=0", "cpus=1", "memory=100M", "time=10"]
HELD = [*SMALL, "sbatch={hold: true}"]
FREE_REPORT = "report.sbatch={hold: false}"


def submit(store: Store, jobs: dict[str, tuple[str, tuple[str, ...]]], settings: list[str]) -> Submission:
    """Submit jobs that never compute."""
    return slurm_commands.submit(store, "fake", jobs, load_resources(None, settings), print)


def chains(count: int, *kinds: str) -> list[dict[str, str]]:
    return [{kind: f"{kind}-{place:04d}" for kind in kinds} for place in range(count)]


def finish(store: Store, jobs: dict[str, tuple[str, tuple[str, ...]]]) -> None:
    """Mark jobs done before they start, so that their SLURM jobs have nothing to do."""
    for job in jobs:
        store.mark_done(job, {"metrics": {}, "protocol": {}, "cost": {"wall_seconds": 0, "peak_memory_gib": 0}, "code": {}, "versions": {}})


def release(cluster: Cluster) -> None:
    held = {task.partition("_")[0] for task in cluster.tasks("PENDING")}
    cluster.ask("scontrol", "release", *held)


def names(cluster: Cluster) -> list[str]:
    """Return the live tasks' job names, one for each task."""
    return sorted(name for _, name in cluster.live().values())


def test_submits_300_cells_as_arrays_within_the_limits(
    cluster: Cluster, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    store = Store(tmp_path / "runs")
    jobs = fake_jobs(store, chains(300, "tokenizer", "encode", "train"))
    began = time.monotonic()
    result = submit(store, jobs, HELD)
    seconds = time.monotonic() - began
    record_property("seconds", seconds)
    assert result.submitted == 900
    assert result.calls == 3 * -(-300 // LARGEST_ARRAY) + 1
    assert seconds < 30
    indices = [int(task.partition("_")[2]) for task in cluster.live() if "_" in task]
    assert len(indices) == 900
    assert max(indices) < LARGEST_ARRAY


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_300_cells_run_to_their_end(cluster: Cluster, tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    """Followed by `status --watch` all the while; what the controller was asked is in its own statistics."""
    store = Store(tmp_path / "runs")
    jobs = fake_jobs(store, chains(300, "tokenizer", "probe"))
    cluster.ask("sdiag", "--reset")
    result = submit(store, jobs, HELD)
    submission = cluster.queries()
    finish(store, jobs)
    cluster.ask("sdiag", "--reset")
    watching = start(["ablation", "status", "--runs", str(store.root), "--watch"])
    began = time.monotonic()
    release(cluster)
    while cluster.ask("squeue", "-h", "--states=PENDING,RUNNING,COMPLETING", "--format=%i").strip():
        time.sleep(10)
    watching.communicate(timeout=600)
    minutes = (time.monotonic() - began) / 60
    asked = cluster.queries()
    own = -(-(time.monotonic() - began) // 10)  # of this test, each 10 s
    per_minute = (asked["REQUEST_JOB_INFO"] - own) / minutes
    figures = {
        "submission seconds": result.seconds,
        "submission calls": result.calls,
        "submission queries": submission,
        "minutes": minutes,
        "queries while 600 jobs ran": asked,
        "squeue per minute": per_minute,
    }
    for name, value in figures.items():
        record_property(name, value)
    print(json.dumps(figures))
    assert watching.returncode == 0
    assert per_minute < 35
    assert submission["REQUEST_SUBMIT_BATCH_JOB"] == result.calls
    ended = [state for state, name in cluster.tasks().values() if name.startswith(("ablate-tokenizer", "ablate-probe"))]
    assert set(ended) == {"COMPLETED"}


def test_each_task_waits_for_its_own_parent_only(cluster: Cluster, tmp_path: Path) -> None:
    store = Store(tmp_path / "runs")
    jobs = fake_jobs(store, chains(3, "tokenizer", "encode", "train"))
    submit(store, jobs, [*SMALL, "tokenizer.sbatch={hold: true}", "report.sbatch={hold: true}"])
    finish(store, {job: jobs[job] for job in jobs if job.endswith("0001")})
    store.mark_failed("tokenizer-0000", "failed", "on purpose")
    tokenizer = next(json.loads((store.job_folder(job) / "slurm.json").read_text())["task"] for job in jobs if job == "tokenizer-0001")
    cluster.ask("scontrol", "release", tokenizer)
    encode, train = (json.loads((store.job_folder(f"{kind}-0001") / "slurm.json").read_text())["task"] for kind in ("encode", "train"))
    cluster.until("one chain to end", lambda: not {tokenizer, encode, train} & cluster.live().keys(), 60)
    assert cluster.tasks()[train][0] == "COMPLETED"
    states = {task: state for task, (state, _) in cluster.live().items()}
    assert set(states.values()) == {"PENDING"}
    assert len(states) == 7  # the other two chains and the report


def test_command_killed_between_sbatch_and_its_record_is_made_good(cluster: Cluster, tmp_path: Path) -> None:
    """Killed before the SLURM id is written; then, having adopted that call, after the id of the next but before its jobs know."""
    store = Store(tmp_path / "runs")
    jobs = fake_jobs(store, chains(4, "tokenizer", "encode"))
    script = (
        "import os, sys, json\n"
        "from pathlib import Path\n"
        "from ablation.launch import slurm\n"
        "from ablation.launch.resources import load_resources\n"
        "from ablation.store import Store\n"
        "calls, real = [], getattr(slurm, sys.argv[2])\n"
        "def counted(*rest):\n"
        "    calls.append(rest)\n"
        "    if len(calls) == int(sys.argv[3]): os._exit(9)\n"
        "    real(*rest)\n"
        "setattr(slurm, sys.argv[2], counted)\n"
        "jobs = {job: slurm.Node(kind, tuple(inputs)) for job, (kind, inputs) in json.loads(sys.argv[4]).items()}\n"
        f"slurm.SlurmLauncher(Store(Path(sys.argv[1])), 'fake', load_resources(None, {HELD!r})).submit(jobs)\n"
    )
    for kill, (function, call) in enumerate((("record_submission", 1), ("record_handed_over", 2)), 1):
        arguments = [str(store.root), function, str(call), json.dumps(jobs)]
        killed = subprocess.run([sys.executable, "-c", script, *arguments], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
        assert killed.returncode == 9
        assert len(cluster.live()) == 4 * kill
    result = submit(store, jobs, HELD)
    assert (result.submitted, result.adopted) == (0, 8)
    assert len(cluster.live()) == 9  # eight jobs and the report, none of them twice
    finish(store, jobs)
    release(cluster)
    cluster.idle(60)
    tasks = [json.loads((store.job_folder(job) / "slurm.json").read_text())["task"] for job in jobs]
    assert {cluster.tasks()[task][0] for task in tasks} == {"COMPLETED"}  # the adopted tasks found what to run


def test_two_shells_at_once_submit_once(cluster: Cluster, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    command = [sys.executable, "-m", *cell_command(runs), "--launcher", "slurm", *ONE_CPU, "--resource", "sbatch={hold: true}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    both = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(2)]
    outs = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted("4 jobs submitted" in out for out in outs) == [False, True]
    assert len(cluster.live()) == 5
    assert run(["ablation", "cancel", "--runs", str(runs), "--yes"]).code == 0
    cluster.idle(30)
    assert [cell["state"] for cell in status(runs)] == ["cancelled"]


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("partition=nowhere", "invalid partition specified: nowhere"),
        ("train.gpus=9", "Requested node configuration is not available"),
        ("constraint=quantum", "Invalid feature specification"),
        ("fid.memory=900T", "Requested node configuration is not available"),
        ("train.nodes=8", "Requested node configuration is not available"),
    ],
)
def test_impossible_request_is_one_line_in_slurms_own_words(cluster: Cluster, tmp_path: Path, setting: str, words: str) -> None:
    if setting.startswith("fid"):
        setting = setting.replace("fid", "probe")
    answer = submit_cell(tmp_path / "runs", "--resource", setting)
    assert answer.code == 2
    assert words in answer.error
    assert not cluster.live()


def test_time_over_the_partitions_limit_is_refused_instead_of_pending_for_ever(cluster: Cluster, tmp_path: Path) -> None:
    answer = submit_cell(tmp_path / "runs", "--partition", "short")
    assert answer.code == 2
    assert "PartitionTimeLimit" in answer.error
    assert not cluster.live()


def test_submission_from_inside_a_job_does_not_inherit_it(cluster: Cluster, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    quoted = [f"'{word}'" for word in (*cell_command(runs), "--launcher", "slurm", *ONE_CPU, "--resource", "sbatch={hold: true}")]
    inner = " ".join([sys.executable, "-m", *quoted])
    cluster.ask("sbatch", "--array=3", f"--output={tmp_path}/inner.out", f"--export=ALL,RANK=0,PYTHONPATH={ROOT}", f"--wrap={inner}")
    cluster.until("the inner submission", lambda: sum(name.startswith("ablate-") for name in names(cluster)) == 5, 60)
    (folder,) = [path.parent for path in (runs / "slurm").glob("*/*/group.json") if json.loads(path.read_text())["kind"] == "tokenizer"]
    (script,) = folder.glob("*_submission.sh")
    text = script.read_text()
    assert "--job-name=ablate-tokenizer" in text
    pickle = json.loads((folder / "submitted.json").read_text())["slurm_id"] + "_submitted.pkl"
    assert (folder / pickle).is_file()


def test_status_tells_the_truth_without_accounting_and_without_the_controller(cluster: Cluster, tmp_path: Path) -> None:
    store = Store(tmp_path / "runs")
    jobs = fake_jobs(store, chains(2, "tokenizer", "probe"))
    submit(store, jobs, HELD)
    assert [cell["jobs"] for cell in status(store.root)] == [{"tokenizer": "queued", "probe": "queued"}] * 2
    cluster.stop("slurmdbd")
    assert [cell["state"] for cell in status(store.root)] == ["queued"] * 2
    finish(store, {job: jobs[job] for job in jobs if job.endswith("0000")})
    cluster.stop("slurmctld")
    began = time.monotonic()
    answer = run(["ablation", "status", "--runs", str(store.root), "--json"])
    assert answer.code == 0
    assert "SLURM cannot be asked" in answer.err
    assert [cell["state"] for cell in json.loads(answer.out)["cells"]] == ["done", "new"]
    assert time.monotonic() - began < 40
    cluster.up()
    finish(store, jobs)
    release(cluster)
    cluster.idle(60)
    assert [cell["state"] for cell in status(store.root)] == ["done", "done"]
    assert all(starts(store, job) == 0 for job in jobs)


def test_cancel_of_one_stage_leaves_the_others(cluster: Cluster, tmp_path: Path) -> None:
    store = Store(tmp_path / "runs")
    shared = [{"tokenizer": "tokenizer-0000", "probe": f"probe-{place:04d}"} for place in range(2)]
    jobs = fake_jobs(store, shared)
    submit(store, jobs, HELD)
    assert run(["ablation", "cancel", "stage1", "--runs", str(store.root), "--yes"]).code == 0
    states = [cell["jobs"] for cell in status(store.root)]
    assert states == [{"tokenizer": "queued", "probe": "queued"}, {"tokenizer": "queued", "probe": "cancelled"}]
    result = run(["ablation", "retry", "--runs", str(store.root)])
    assert "1 jobs submitted" in result.out
    assert len(cluster.live()) == 5  # tokenizer, two probes, and two reports: the first still waits for the first graph


def test_lost_job_is_called_lost_and_submitted_again(cluster: Cluster, tmp_path: Path) -> None:
    store = Store(tmp_path / "runs")
    jobs = fake_jobs(store, chains(1, "probe"))
    submit(store, jobs, HELD)
    record = store.job_folder("probe-0000") / "slurm.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "task": "999999", "submitted": time.time() - 3600}))
    assert [cell["state"] for cell in status(store.root)] == ["lost"]
    assert submit(store, jobs, HELD).submitted == 1
