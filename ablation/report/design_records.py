"""Find the rows of designs among records: what a cell stands for is written in the record itself. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ablation.report.attribution import Order, Sampled, Stages, all_orders, order_counts, passes, sampled_shares, shapley
from ablation.report.intervals import Change, mean, paired_change
from ablation.report.measures import differing_fields, measure
from ablation.report.results import Record, Row, pick_seeds

BESIDE = ("add_one", "leave_one_out", "put_back")


def roles_of(record: Record) -> list[Mapping[str, Any]]:
    """Return what a record's cell stands for; records from before there were designs say nothing."""
    return list(record.get("designs") or [])


def has_designs(records: Iterable[Record]) -> bool:
    """Say whether any record belongs to a design other than the ladder."""
    return any(role["design"] != "ladder" for record in records for role in roles_of(record))


def has_ladder(records: Iterable[Record]) -> bool:
    """Say whether the ladder was asked for; records from before there were designs are always a ladder's."""
    roles = [role for record in records for role in roles_of(record)]
    return not roles or any(role["design"] == "ladder" for role in roles)


def design_row(records: Sequence[Record], design: str, stage: str | None) -> Row:
    """Collect the records of one stage's cell in a design; None: of what its cells are compared with."""
    found = [r for r in records if any(role["design"] == design and role["stage"] == stage for role in roles_of(r))]
    picked, complaint = pick_seeds(found)
    seeds = tuple(sorted({record["seed"] for record in records if record["stage"] is not None}))
    name = f"{design} of {stage}" if stage else f"reference of {design}"
    return Row(name, name, None, None, picked, any(r["labels_used"] for r in picked), False, complaint, seeds)


def left_out(records: Sequence[Record]) -> dict[tuple[str, str], tuple[str, str]]:
    """Map design and stage to the kind (impossible, no change) and the reason for which there is no cell."""
    return {(hole["design"], hole["stage"]): (hole["kind"], hole["reason"]) for record in records for hole in record.get("left_out") or []}


def remarks(records: Sequence[Record]) -> dict[tuple[str, str], str]:
    """Map design and stage to what else the stage's cell undoes, where it does."""
    return {
        (role["design"], role["stage"]): role["remark"]
        for record in records
        for role in roles_of(record)
        if role["stage"] and role["remark"]
    }


@dataclass(frozen=True)
class Attribution:
    """Shapley values by stage: changes with an interval over seeds (exact), or estimates with a standard error over orders."""

    exact: Mapping[str, Change]
    sampled: Mapping[str, Sampled]
    seeds: tuple[int, ...]
    used: int  # complete orders
    total: int  # feasible orders
    refusal: str = ""


def attribution(records: Sequence[Record], metric: str) -> Attribution | None:
    """Return the Shapley values that the records allow, exact or sampled, or why there are none; None where none were asked for."""
    rows: dict[Stages, list[Record]] = {}
    orders: dict[int, set[Stages]] = {}
    total = 0
    for record in records:
        for role in roles_of(record):
            if role["design"] == "shapley":
                steps = frozenset(role["steps"])
                rows.setdefault(steps, []).append(record)
                total = max(total, int(role["total"]))
                for number in role["orders"]:
                    orders.setdefault(int(number), set()).add(steps)
    if not rows:
        return None
    everything = [record for group in rows.values() for record in group if record["state"] == "done"]
    if everything and (fields := differing_fields(everything, metric)):
        return Attribution({}, {}, (), 0, total, f"{', '.join(fields)} differ{'s' if len(fields) == 1 else ''}")
    measured = {steps: measure(Row("", "", None, None, pick_seeds(group)[0], False), metric).values for steps, group in rows.items()}
    return _attribution(measured, [_order(sets) for sets in orders.values()], total)


def _order(sets: Iterable[Stages]) -> Order:
    """Turn the sets that an order passes through back into the order."""
    ordered = sorted(sets, key=len)
    return tuple(next(iter(after - before)) for before, after in pairwise(ordered))


def _attribution(measured: Mapping[Stages, Mapping[int, float]], sampled: Sequence[Order], total: int) -> Attribution:
    """Work out exact values on the seeds that every set has, else estimates from the orders that are complete."""
    seeds = sorted(set.intersection(*(set(values) for values in measured.values())))
    if seeds and not sampled:
        by_seed = {seed: shapley({steps: values[seed] for steps, values in measured.items()}) for seed in seeds}
        stages = sorted(by_seed[seeds[0]])
        zero = dict.fromkeys(seeds, 0.0)
        shares = {stage: paired_change(zero, {seed: by_seed[seed][stage] for seed in seeds}) for stage in stages}
        return Attribution({stage: share for stage, share in shares.items() if share}, {}, tuple(seeds), total, total)
    whole: Stages = frozenset().union(*measured)
    ends = set(measured.get(frozenset(), {})) & set(measured.get(whole, {}))
    complete = [steps for steps, values in measured.items() if ends and ends <= set(values)]
    if sampled:
        usable = [order for order in sampled if set(passes(order)) <= set(complete)]
    else:
        usable = all_orders(complete) if complete and order_counts(complete)[1].get(frozenset()) else []
    if not usable:
        missing = sorted(" + ".join(sorted(steps)) or "none of the stages" for steps in measured if steps not in complete)
        return Attribution({}, {}, (), 0, total, f"no order is complete; missing: {', '.join(missing)}")
    averages = {steps: mean([measured[steps][seed] for seed in sorted(ends)]) for steps in complete}
    return Attribution({}, sampled_shares(averages, usable, total), tuple(sorted(ends)), len(usable), total)
