"""Compare the files of a run folder with the checksums they were written with."""

from __future__ import annotations

from collections.abc import Iterator

from ablation.data.shards import verify
from ablation.errors import AblationError
from ablation.store import LATENTS, Store, read_json


def check_files(store: Store) -> Iterator[tuple[str, str]]:
    """Yield what was compared and what is wrong with it (empty: nothing), reading every byte again.

    Latents that were encoded before checksums were kept are named as not compared.
    """
    for job_id in store.jobs():
        folder = store.job_folder(job_id)
        if not job_id.startswith("encode-") or store.state(job_id).name != "done":
            continue
        if not (folder / LATENTS).exists():
            yield f"{job_id} (no checksums were kept: only sizes compared)", ""
            continue
        try:
            arrays = read_json(folder / LATENTS)["arrays"]
        except AblationError as error:
            yield job_id, str(error)
            continue
        for entry in (entry for entries in arrays.values() for entry in entries):
            try:
                verify(folder, [entry], again=True)
            except AblationError as error:
                yield f"{job_id}/{entry['file']}", str(error)
            else:
                yield f"{job_id}/{entry['file']}", ""
