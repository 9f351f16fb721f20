"""`ablate cancel` and `ablate retry`: what is done about jobs that SLURM holds. Light."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ablation.options import RunsOption, StudyOption
from ablation.terminal import say


def cancel(
    stage: Annotated[str | None, typer.Argument(help="Only the jobs that no other stage needs. [default: the whole study]")] = None,
    runs: RunsOption = Path("runs"),
    study: StudyOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Cancel the SLURM jobs of a stage, or of a whole study; what is finished stays."""
    from ablation.launch.slurm_commands import cancel as cancel_jobs
    from ablation.store import Store

    store = Store(runs)
    document = store.study(study)
    if not yes:
        typer.confirm(f"Cancel {f'stage {stage} of ' if stage else ''}study {document['name']} in {store.root}?", abort=True)
    say(f"{len(cancel_jobs(store, document, stage))} jobs cancelled; `ablate retry` submits them again")


def retry(
    stage: Annotated[str | None, typer.Argument(help="Only this stage and what it needs. [default: the whole study]")] = None,
    runs: RunsOption = Path("runs"),
    study: StudyOption = None,
) -> None:
    """Submit to SLURM again what failed, was skipped, cancelled or lost; trainings go on from their checkpoints."""
    from ablation.launch.slurm_commands import retry as submit_again
    from ablation.store import Store

    store = Store(runs)
    submit_again(store, store.study(study), stage, say)
