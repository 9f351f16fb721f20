"""Cut a graph of jobs into as few sbatch calls as leave every job waiting for its own parents only. Pure and light."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Node:
    """What the launcher needs to know of a job: its kind and the jobs it reads."""

    kind: str
    inputs: tuple[str, ...]


def partition(parents: Mapping[str, Sequence[str]], largest: int) -> list[tuple[dict[str, str], bool, str]]:
    """Cut jobs of one kind, given their live parents' tasks, into sbatch calls: (index -> job, whether an array, dependency).

    Jobs with the same parents form an array that waits for these (afterok). Jobs with a parent each, in one array, form an array
    with the same indices (aftercorr), so that each waits for its own parent only. No array is longer than `largest`.
    """
    alike: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for job, tasks in parents.items():
        alike[tuple(tasks)].append(job)
    calls: list[tuple[dict[str, str], bool, str]] = []
    corresponding: dict[tuple[str, tuple[str, ...]], dict[str, str]] = defaultdict(dict)
    for tasks, members in alike.items():
        array, _, index = tasks[0].partition("_") if tasks else ("", "", "")
        if len(members) == 1 and index:
            corresponding[array, tasks[1:]][index] = members[0]
            continue
        after = f"afterok:{':'.join(tasks)}" if tasks else ""
        for start in range(0, len(members), largest):
            part = members[start : start + largest]
            calls.append(({str(place): job for place, job in enumerate(part)}, len(part) > 1, after))
    for (array, others), by_index in corresponding.items():
        rest = f",afterok:{':'.join(others)}" if others else ""
        if len(by_index) == 1:
            ((index, job),) = by_index.items()
            calls.append(({"0": job}, False, f"afterok:{array}_{index}{rest}"))
        else:
            calls.append((by_index, True, f"aftercorr:{array}{rest}"))
    return calls


def descendants(jobs: Mapping[str, Node]) -> dict[str, tuple[str, ...]]:
    """Return everything that needs each job's output, directly or not; jobs come parents first."""
    below: dict[str, dict[str, None]] = {job: {} for job in jobs}
    for job in reversed(list(jobs)):
        for parent in jobs[job].inputs:
            if parent in below:
                below[parent] |= {job: None, **below[job]}
    return {job: tuple(found) for job, found in below.items()}
