"""Compare the files of a run folder with the checksums they were written with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ablation.data.shards import verify
from ablation.errors import AblationError
from ablation.store import IMAGE_CACHE, LATENTS, Store, read_json


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
        yield from _compare(folder, [entry for entries in arrays.values() for entry in entries])
    for manifest in sorted(store.cache.glob(f"*/{IMAGE_CACHE}")):
        try:
            shards = read_json(manifest)["shards"]
        except AblationError as error:
            yield str(manifest), str(error)
            continue
        yield from _compare(manifest.parent, shards)


def _compare(folder: Path, entries: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """Compare a folder's files with their manifest's entries."""
    for entry in entries:
        try:
            verify(folder, [entry], again=True)
        except AblationError as error:
            yield f"{folder.name}/{entry['file']}", str(error)
        else:
            yield f"{folder.name}/{entry['file']}", ""
