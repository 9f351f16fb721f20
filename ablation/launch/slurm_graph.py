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


Tasks = dict[str, tuple[str, ...]]
"""Array index -> the jobs of that task; "0" for a call that is no array."""


def partition(parents: Mapping[str, Sequence[str]], largest: int, pack: int = 1) -> list[tuple[Tasks, bool, str]]:
    """Cut jobs of one kind, given their live parents' tasks, into sbatch calls: (tasks, whether an array, dependency).

    Jobs with the same parents form an array that waits for these (afterok). Jobs whose first parents are different tasks of one
    array form arrays with the same indices (aftercorr), so that each waits for its own parents only; where several share a parent,
    one such array for each. A task holds up to `pack` jobs with the same parents. No array is longer than `largest`.
    """
    sets: dict[tuple[str, tuple[str, ...]], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for job, tasks in parents.items():
        array, _, index = tasks[0].partition("_") if tasks else ("", "", "")
        sets[(array, tuple(tasks[1:])) if index else ("", tuple(tasks))][index].append(job)
    calls: list[tuple[Tasks, bool, str]] = []
    for (array, others), by_index in sets.items():
        packs = {index: [tuple(jobs[at : at + pack]) for at in range(0, len(jobs), pack)] for index, jobs in by_index.items()}
        if len(packs) == 1:
            ((index, alike),) = packs.items()
            after = _after(f"{array}_{index}" if index else "", others)
            for start in range(0, len(alike), largest):
                part = alike[start : start + largest]
                calls.append(({str(place): jobs for place, jobs in enumerate(part)}, len(part) > 1, after))
            continue
        for layer in range(max(map(len, packs.values()))):
            tasks_of = {index: found[layer] for index, found in packs.items() if layer < len(found)}
            if len(tasks_of) == 1:
                ((index, jobs_of),) = tasks_of.items()
                calls.append(({"0": jobs_of}, False, _after(f"{array}_{index}", others)))
            else:
                rest = f",{_after('', others)}" if others else ""
                calls.append((tasks_of, True, f"aftercorr:{array}{rest}"))
    return calls


def _after(first: str, others: Sequence[str]) -> str:
    """Return the dependency on the success of tasks."""
    tasks = [*([first] if first else []), *others]
    return f"afterok:{':'.join(tasks)}" if tasks else ""


def descendants(jobs: Mapping[str, Node]) -> dict[str, tuple[str, ...]]:
    """Return everything that needs each job's output, directly or not; jobs come parents first."""
    below: dict[str, dict[str, None]] = {job: {} for job in jobs}
    for job in reversed(list(jobs)):
        for parent in jobs[job].inputs:
            if parent in below:
                below[parent] |= {job: None, **below[job]}
    return {job: tuple(found) for job, found in below.items()}
