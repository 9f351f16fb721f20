"""Several processes for one job, and several jobs in one task, on a real SLURM: over nodes, through faults, and apart from each other."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
from commands import assert_equal_jobs, attempts, run, starts
from slurm_cluster import (
    BREAKS,
    EVERY_STEP,
    ONE_CPU,
    Cluster,
    cell_command,
    fake_jobs,
    job_of,
    process_of,
    status,
    submit_cell,
    task_of,
    wait_for_training,
)

from ablation.launch import slurm_commands
from ablation.launch.resources import load_resources
from ablation.store import Store
from ablation.train.checkpoint import load_tensors

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1200)]

TWO_BY_TWO = ("--resource", "train.nodes=2", "--resource", "train.tasks_per_node=2", "--resource", "train.gpus=2")


def curve(store: Store, job: str) -> list[tuple[int, float]]:
    lines = (store.job_folder(job) / "curve.jsonl").read_text().splitlines()
    return [(entry["step"], entry["loss"]) for entry in map(json.loads, lines)]


def test_two_nodes_with_two_processes_each_follow_the_curve_of_one_process(cluster: Cluster, half_done: Path, finished_cell: Path) -> None:
    """Begun by one process, gone on with by four, one of which is killed; then all of it again."""
    store, other = Store(half_done), Store(finished_cell)
    assert submit_cell(half_done, *EVERY_STEP).code == 0
    train = wait_for_training(cluster, half_done)
    cluster.ask("scancel", task_of(half_done, train))
    cluster.idle()
    began = store.job_folder(train).glob("checkpoint-*")
    reached = max(path.name for path in began)
    setup = "env | grep -E '^(CUDA_VISIBLE_DEVICES|SLURM_NNODES|SLURM_NTASKS)=' >&2"
    assert submit_cell(half_done, *EVERY_STEP, *TWO_BY_TWO, "--resource", f"setup={json.dumps([setup])}").code == 0
    cluster.until("further checkpoints", lambda: max((p.name for p in store.job_folder(train).glob("checkpoint-*")), default="") > reached)
    os.kill(process_of(task_of(half_done, train), rank=3), signal.SIGKILL)
    cluster.idle()
    assert [cell["state"] for cell in status(half_done, "cell")] == ["done"]
    events = attempts(store, train)
    assert any("another process was lost" in entry.get("reason", "") for entry in events)
    assert starts(store, train) == 3
    assert store.done(train)["cost"]["processes"] == 4
    found, expected = curve(store, train), curve(other, train)
    assert [step for step, _ in found] == [step for step, _ in expected]
    assert [loss for _, loss in found] == pytest.approx([loss for _, loss in expected], abs=1e-5)
    weights, reference = (load_tensors(each.artifact(train, "denoiser.safetensors"))[0] for each in (store, other))
    assert max(float((weights[name] - reference[name]).abs().max()) for name in reference) < 1e-4
    log = (store.job_folder(train) / "job.log").read_text()
    assert log.count("4 processes") == 2
    (folder,) = [
        path.parent
        for path in (half_done / "slurm" / "cell").glob("*/group.json")
        if '"nodes": 2' in path.read_text() and '"train"' in path.read_text()
    ]
    printed = "".join(path.read_text() for path in folder.glob("*.out"))
    assert "CUDA_VISIBLE_DEVICES=0,1" in printed  # and no process overwrote it: torch would have seen one device twice
    assert "SLURM_NTASKS=4" in printed


def test_an_error_in_one_process_ends_all_and_names_it(cluster: Cluster, tmp_path: Path) -> None:
    text = BREAKS.replace('fit_kind = "closed_form"', 'fit_kind = "gradient"')
    text = text.replace("class Breaks(Tokenizer):", "class Breaks(PatchAE):").replace(
        "from ablation.tokenizers.base import Tokenizer", "import os\nfrom ablation.tokenizers.patch_ae import PatchAE"
    )
    start, end = text.index("    def fit("), text.index("STAGE")
    text = (
        text[:start]
        + (
            "    def encode(self, images):\n"
            "        if os.environ.get('SLURM_PROCID') == '1':\n"
            "            raise RuntimeError('broken in one process')\n"
            "        return super().encode(images)\n\n\n"
        )
        + text[end:]
    )
    stage = tmp_path / "breaks.py"
    stage.write_text(text)
    runs = tmp_path / "runs"
    command = [*cell_command(runs, "--stages", str(stage)), "--set", "tokenizer.global_batch=8", "--launcher", "slurm", *ONE_CPU]
    command[command.index("patch_pca")] = "breaks"
    began = time.monotonic()
    answer = run([*command, "--resource", "tokenizer.nodes=2", "--wait"])
    assert answer.code == 1, answer.err
    store, tokenizer = Store(runs), job_of(runs, "tokenizer")
    assert store.state(tokenizer).name == "failed"
    assert "process 1 on n" in store.state(tokenizer).reason
    assert "broken in one process" in store.state(tokenizer).reason
    assert time.monotonic() - began < 300  # and nobody waited for the time limit
    assert status(runs)[0]["jobs"]["encode"] == "skipped"
    assert starts(store, tokenizer) == 1


def test_a_batch_that_does_not_divide_is_refused_before_anything_is_submitted(cluster: Cluster, tmp_path: Path) -> None:
    answer = submit_cell(tmp_path / "runs", "--resource", "train.nodes=3")
    assert answer.code == 2
    assert "train.global_batch = 8 cannot be divided evenly among 3 processes" in answer.error
    assert not cluster.live()


def test_packed_jobs_fail_apart(cluster: Cluster, tmp_path: Path, finished_cell: Path) -> None:
    """Two cells in tasks of two: the one whose tokenizer breaks does not keep the other from its end."""
    stage = tmp_path / "breaks.py"
    stage.write_text(BREAKS)
    runs = tmp_path / "runs"
    command = [
        *cell_command(runs, "--stages", str(stage), "--only", "breaks"),
        "--launcher",
        "slurm",
        *ONE_CPU,
        "--resource",
        "tokenizer.pack=2",
    ]
    answer = run([*command, "--resource", "encode.pack=2", "--resource", "train.pack=2", "--wait"])
    assert answer.code == 1, answer.err
    cells = {cell["stage"]: cell["jobs"] for cell in status(runs, "cell")}
    assert set(cells["patch_pca"].values()) == {"done"}
    assert cells["breaks"] == {"tokenizer": "failed", "encode": "skipped", "train": "skipped", "probe": "skipped"}
    assert_equal_jobs(Store(runs), Store(finished_cell), Store(finished_cell).jobs())
    groups = [json.loads(path.read_text()) for path in (runs / "slurm" / "cell").glob("*/group.json")]
    assert {group["kind"]: [len(jobs) for jobs in group["tasks"].values()] for group in groups} == {
        **{kind: [2] for kind in ("tokenizer", "encode", "train")},
        "probe": [1, 1],
        "report": [1],
    }
    assert not cluster.live()


def test_a_packed_job_is_cancelled_apart_from_its_neighbours(cluster: Cluster, tmp_path: Path) -> None:
    store = Store(tmp_path / "runs")
    jobs = fake_jobs(store, [{"probe": f"probe-{place:04d}"} for place in range(3)])
    settings = ["gpus=0", "cpus=1", "memory=100M", "time=10", "probe.pack=3", "sbatch={hold: true}"]
    resources = load_resources(None, settings)
    assert slurm_commands.submit(store, "fake", jobs, resources, print).calls == 2
    assert run(["ablation", "cancel", "stage1", "--runs", str(store.root), "--yes"]).code == 0
    assert [cell["state"] for cell in status(store.root)] == ["queued", "cancelled", "queued"]
    record = {"metrics": {}, "protocol": {}, "cost": {"wall_seconds": 0, "peak_memory_gib": 0}, "code": {}, "versions": {}}
    for job in ("probe-0000", "probe-0002"):
        store.mark_done(job, record)
    cluster.ask("scontrol", "release", *{task.partition("_")[0] for task in cluster.tasks("PENDING")})
    cluster.idle(120)
    assert [cell["state"] for cell in status(store.root)] == ["done", "cancelled", "done"]
    assert starts(store, "probe-0001") == 0
    assert slurm_commands.submit(store, "fake", jobs, resources, print).submitted == 1
