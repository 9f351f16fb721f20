"""Loading ahead in the background, in exact order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Loaded = TypeVar("Loaded")

DEPTH = 2
"""Batches loaded ahead: one ready, one on its way."""


def ahead(load: Callable[[Item], Loaded], items: Iterable[Item], depth: int = DEPTH) -> Generator[tuple[Item, Loaded], None, None]:
    """Yield (item, load(item)) in order, loading up to `depth` further items in a thread meanwhile.

    What load raises is raised here, at its item's turn. Memory: depth + 1 loaded items.
    """
    with ThreadPoolExecutor(1) as pool:
        waiting: deque[tuple[Item, Future[Loaded]]] = deque()
        try:
            for item in items:
                waiting.append((item, pool.submit(load, item)))
                if len(waiting) > depth:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            for _, future in waiting:
                future.cancel()
