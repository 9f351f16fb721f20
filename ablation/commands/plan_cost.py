"""What `ablate plan --cost` prints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

from ablation.data.storage import in_words
from ablation.terminal import console, emit_json, number, plain, print_notes, print_table

if TYPE_CHECKING:
    from ablation.plan import Decision
    from ablation.pricing import Bill
    from ablation.study import Study


def print_cost(study: Study, decisions: Mapping[str, Decision], accelerator: str | None, as_json: bool) -> None:
    """Print what every job of a study takes, the total, what sharing saves, and what the seeds can show."""
    from ablation.pricing import ASSUMED_DEVIATION, detectable_effect, observed_deviation, price_plan
    from ablation.rates import choose_rates

    bill = price_plan(study.plan, choose_rates(accelerator, study.store.root), study.store.cache)
    missing = [job for job, decision in decisions.items() if decision.action != "reuse"]
    seeds = len(study.request.seeds)
    found = observed_deviation(study.store)
    deviation = found[0] if found else ASSUMED_DEVIATION
    basis = f"spread over seeds of {found[1]} steps in {study.store.root}" if found else "assumed: nothing is measured here yet"
    effect = detectable_effect(seeds, deviation)
    if as_json:
        emit_json(
            {
                "study": study.name,
                "scale": study.scale,
                "accelerator": {"name": bill.rates.name, "basis": bill.rates.basis, "measured": bill.rates.measured},
                "jobs": [asdict(price) for price in bill.jobs],
                "hours": bill.seconds() / 3600,
                "missing_hours": bill.seconds(missing) / 3600,
                "kept_bytes": bill.kept_bytes,
                "unshared_jobs": bill.unshared_jobs,
                "unshared_hours": bill.unshared_seconds / 3600,
                "seeds": seeds,
                "deviation": deviation,
                "deviation_basis": basis,
                "detectable_effect": effect,
            }
        )
        return
    _print_jobs(study, bill)
    print_notes(study)
    _print_totals(bill, missing)
    if effect is None:
        console().print(
            f"one seed: no change between rows can be told from chance; spread of a change {deviation:.2f} points ({plain(basis)})"
        )
    else:
        console().print(
            f"{seeds} seeds: a change of {effect:.2f} points of accuracy between two rows is found with power 0.8 "
            f"(paired t test, 5 %; spread of a change {deviation:.2f} points, {plain(basis)})",
            soft_wrap=True,
        )


def _print_jobs(study: Study, bill: Bill) -> None:
    """Print one line per job."""
    rows = []
    for price in bill.jobs:
        cells = study.plan.cells_of(price.job)
        serves = cells[0].id + (f" and {len(cells) - 1} more" if len(cells) > 1 else "")
        parameters = number(price.parameters / 1e6, 1) if price.parameters else ""
        kept = in_words(price.kept_bytes) if price.kept_bytes else ""
        scratch = in_words(price.scratch_bytes) if price.scratch_bytes else ""
        rows.append((price.job, plain(serves), parameters, f"{price.flops:.2e}", hours(price.seconds), kept, scratch))
    print_table(("job", "serves", "parameters, M", "FLOPs", "hours", "disk", "more while it runs"), rows)


def _print_totals(bill: Bill, missing: list[str]) -> None:
    """Print sums by kind of job, over all, and without sharing."""
    kinds = dict.fromkeys(price.kind for price in bill.jobs)
    print()
    by_kind = []
    for kind in kinds:
        jobs = [price for price in bill.jobs if price.kind == kind]
        kept = in_words(sum(price.kept_bytes for price in jobs))
        by_kind.append(
            (kind, str(len(jobs)), f"{sum(price.flops for price in jobs):.2e}", hours(sum(price.seconds for price in jobs)), kept)
        )
    print_table(("kind", "jobs", "FLOPs", "hours", "disk"), by_kind)
    out = console()
    total, apart = bill.seconds(), bill.unshared_seconds
    out.print(f"\n[bold]{hours(total)} hours[/] of one {plain(bill.rates.name)} and {in_words(bill.kept_bytes)} of disk; ", end="")
    out.print(f"still to run: {hours(bill.seconds(missing))} hours, {len(missing)} of {len(bill.jobs)} jobs", soft_wrap=True)
    out.print(f"rates: {plain(bill.rates.basis)}", soft_wrap=True)
    saved = 1 - total / apart
    fewer = 1 - len(bill.jobs) / bill.unshared_jobs
    out.print(
        f"sharing saves {bill.unshared_jobs - len(bill.jobs)} of {bill.unshared_jobs} jobs ({100 * fewer:.0f} %) "
        f"and {hours(apart - total)} of {hours(apart)} hours ({100 * saved:.0f} %)",
        soft_wrap=True,
    )


def hours(seconds: float) -> str:
    """Write a time in hours with three digits that count."""
    value = seconds / 3600
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
