"""How a graph is cut into sbatch calls, and how task ids are read and written; no SLURM is needed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ablation.launch.slurm_graph import Node, descendants, partition
from ablation.launch.slurm_state import Task, expand, ranges, words

PARENT = st.one_of(st.integers(1, 4).map(str), st.builds(lambda job, index: f"{job}_{index}", st.integers(5, 7), st.integers(0, 6)))
PARENTS = st.lists(st.lists(PARENT, max_size=3, unique=True), max_size=25)


def waits_for(index: str, dependency: str) -> set[str]:
    """Return the tasks that one array task waits for, as SLURM reads a dependency."""
    found: set[str] = set()
    for clause in filter(None, dependency.split(",")):
        kind, *tasks = clause.split(":")
        found |= {f"{task}_{index}" for task in tasks} if kind == "aftercorr" else set(tasks)
    return found


@given(PARENTS, st.integers(7, 12), st.integers(1, 3))
def test_every_job_once_and_waiting_for_its_own_parents_only(parents: list[list[str]], largest: int, pack: int) -> None:
    jobs = {f"job{place}": tasks for place, tasks in enumerate(parents)}
    seen: list[str] = []
    for tasks, array, dependency in partition(jobs, largest, pack):
        assert array == (len(tasks) > 1)
        assert all(int(index) < largest for index in tasks)
        assert array or set(tasks) == {"0"}
        for index, packed in tasks.items():
            assert 1 <= len(packed) <= pack
            seen += packed
            assert all(waits_for(index, dependency) == set(jobs[job]) for job in packed)
    assert sorted(seen) == sorted(jobs)


def test_a_grid_takes_one_call_for_each_kind() -> None:
    first = partition({f"tokenizer{place}": [] for place in range(300)}, 1001)
    assert [(len(tasks), array, dependency) for tasks, array, dependency in first] == [(300, True, "")]
    second = partition({f"encode{place}": [f"8_{place}"] for place in range(300)}, 1001)
    assert [(len(tasks), dependency) for tasks, _, dependency in second] == [(300, "aftercorr:8")]
    third = partition({f"fid{place}": [f"9_{place}", "4"] for place in range(300)}, 1001)
    assert [(len(tasks), dependency) for tasks, _, dependency in third] == [(300, "aftercorr:9,afterok:4")]


def test_several_children_of_each_parent_take_as_many_calls_as_there_are_children_of_one() -> None:
    calls = partition({f"train{place}": [f"8_{place // 3}"] for place in range(300)}, 1001)
    assert [(len(tasks), dependency) for tasks, _, dependency in calls] == [(100, "aftercorr:8")] * 3


def test_packed_jobs_wait_for_packed_parents() -> None:
    first = partition({f"tokenizer{place}": [] for place in range(10)}, 1001, pack=4)
    assert [[len(jobs) for jobs in tasks.values()] for tasks, _, _ in first] == [[4, 4, 2]]
    second = partition({f"encode{place}": [f"8_{place // 4}"] for place in range(10)}, 1001, pack=4)
    assert [([len(jobs) for jobs in tasks.values()], dependency) for tasks, _, dependency in second] == [([4, 4, 2], "aftercorr:8")]
    alone = partition({f"train{place}": [f"9_{place // 4}"] for place in range(10)}, 1001)
    assert [(len(tasks), dependency) for tasks, _, dependency in alone] == [(3, "aftercorr:9")] * 2 + [(2, "aftercorr:9")] * 2


def test_descendants_reach_through_the_graph() -> None:
    jobs = {"t": Node("tokenizer", ()), "e": Node("encode", ("t",)), "a": Node("train", ("e",)), "b": Node("train", ("e",))}
    found = descendants(jobs)
    assert set(found["t"]) == {"e", "a", "b"}
    assert set(found["e"]) == {"a", "b"}
    assert found["a"] == ()


@pytest.mark.parametrize(
    ("text", "tasks"),
    [("8", ["8"]), ("8_3", ["8_3"]), ("10_[0-2,5%3]", ["10_0", "10_1", "10_2", "10_5"]), ("10_[7]", ["10_7"])],
)
def test_reads_ids_that_stand_for_several_tasks(text: str, tasks: list[str]) -> None:
    assert expand(text) == tasks


@given(st.sets(st.integers(0, 60), min_size=1))
def test_ranges_are_read_back_by_expand(indices: set[int]) -> None:
    assert expand(f"5_[{ranges(sorted(indices))}]") == [f"5_{index}" for index in sorted(indices)]


@pytest.mark.parametrize(
    ("state", "reason", "live", "stuck"),
    [
        ("PENDING", "Priority", True, False),
        ("PENDING", "DependencyNeverSatisfied", True, True),
        ("PENDING", "launch failed requeued held", True, True),
        ("SUSPENDED", "None", True, False),
        ("NODE_FAIL", "None", False, False),
        ("OUT_OF_MEMORY", "None", False, False),
    ],
)
def test_our_own_table_of_states(state: str, reason: str, live: bool, stuck: bool) -> None:
    task = Task("1", "name", state, reason)
    assert (task.live, task.stuck) == (live, stuck)


def test_slurms_words_fit_on_one_line() -> None:
    text = (
        "sbatch: error: invalid partition specified: nope\nsbatch: error: Batch job submission failed: Invalid partition name specified\n"
    )
    assert words(text) == "invalid partition specified: nope; Batch job submission failed: Invalid partition name specified"
