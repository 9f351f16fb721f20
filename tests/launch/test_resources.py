"""What jobs ask SLURM for: layers, types, and errors that name the field."""

from __future__ import annotations

from pathlib import Path

import pytest

from ablation.errors import ConfigError
from ablation.launch.resources import KINDS, load_resources, minutes, sbatch_options


@pytest.mark.parametrize(
    ("text", "expected"),
    [(90, 90), ("90", 90), ("10:30", 11), ("2:00:00", 120), ("1-00", 1440), ("1-02:30", 1590), ("1-00:00:01", 1441)],
)
def test_reads_times_as_slurm_writes_them(text: str | int, expected: int) -> None:
    assert minutes(text) == expected


def test_a_users_defaults_win_over_the_built_in_kinds(tmp_path: Path) -> None:
    path = tmp_path / "resources.yaml"
    path.write_text("defaults: {gpus: 0, partition: cpu, time: 1:30:00}\nkinds: {train: {gpus: a100:2, memory: 64G}}\n")
    kinds = load_resources(path, ["probe.cpus=3"], account="vision").kinds
    assert set(kinds) == set(KINDS)
    assert (kinds["tokenizer"].gpus, kinds["train"].gpus) == (0, "a100:2")
    assert kinds["train"].time == 90  # unquoted, YAML 1.1 would read the number 5400
    assert (kinds["probe"].cpus, kinds["fid"].cpus) == (3, 4)
    assert {wanted.account for wanted in kinds.values()} == {"vision"}


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("defaults: {gpu: 1}", "'gpu'"),
        ("kinds: {trian: {gpus: 1}}", "'trian'"),
        ("defaults: {gpus: -1}", "gpus"),
        ("defaults: {memory: 12 GB}", "memory"),
        ("defaults: {time: soon}", "time"),
        ("defaults: {time: 0}", "time"),
        ("defaults: {cpus: many}", "cpus"),
        ("kinds: {train: {sbatch: {array: 0-3}}}", "'array'"),
        ("default: {gpus: 1}", "'default'"),
        ("defaults: {nodes: 2}", "a reference job is one process, so nodes and tasks_per_node must be 1"),
        ("kinds: {probe: {tasks_per_node: 2}}", "Set them for tokenizer and train"),
        ("kinds: {train: {gpus: 1, tasks_per_node: 2}}", "gpus=1 does not fit tasks_per_node=2"),
        ("kinds: {train: {gpus: 'a100:1', tasks_per_node: 2}}", "gpus=1 does not fit tasks_per_node=2"),
        ("kinds: {train: {nodes: 2, pack: 2}}", "Choose one of them"),
        ("kinds: {train: {gpus: 2, pack: 2}}", "packed jobs share one GPU"),
        ("kinds: {train: {nodes: 0}}", "nodes"),
        ("kinds: {train: {sbatch: {nodes: 2}}}", "'nodes'"),
        ("defaults: [gpus]", "not a mapping"),
        ("- gpus", "mapping"),
        ("defaults: {gpus: ", "not valid YAML"),
    ],
)
def test_a_wrong_file_is_one_line_naming_file_and_field(tmp_path: Path, content: str, named: str) -> None:
    path = tmp_path / "resources.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError) as raised:
        load_resources(path)
    assert named in str(raised.value)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("setting", ["gpus", "trian.gpus=1", "gpu=1", "train.cpus=0", "memory=lots"])
def test_a_wrong_setting_is_refused(setting: str) -> None:
    with pytest.raises(ConfigError):
        load_resources(None, [setting])


def test_what_sbatch_is_asked_for_by_shared_and_by_packed_jobs() -> None:
    shared = load_resources(None, ["train.nodes=2", "train.tasks_per_node=4", "train.gpus=h100:4"]).kinds["train"]
    assert shared.processes == 8
    assert {"nodes": 2, "ntasks-per-node": 4, "gpus-per-node": "h100:4"}.items() <= sbatch_options(shared).items()
    kinds = load_resources(None, ["pack=3"]).kinds
    assert {kind for kind, wanted in kinds.items() if wanted.pack == 1} == {"report"}
    packed = kinds["probe"]
    assert packed.processes == 1
    assert {"nodes": 1, "ntasks-per-node": 3, "gpus-per-node": 1}.items() <= sbatch_options(packed).items()
