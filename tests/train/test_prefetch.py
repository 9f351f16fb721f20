"""Loading ahead keeps the order, bounds what is held, and passes errors on at their turn."""

import threading
import time

import pytest

from ablation.train.prefetch import ahead


def test_items_come_in_order_and_are_loaded_by_another_thread():
    threads = set()

    def load(item: int) -> int:
        threads.add(threading.current_thread())
        time.sleep(0.001 * (item % 3))
        return item * item

    assert list(ahead(load, range(20))) == [(item, item * item) for item in range(20)]
    assert threading.current_thread() not in threads


def test_no_more_than_the_depth_is_loaded_ahead():
    loaded: list[int] = []
    stream = ahead(loaded.append, range(100), depth=3)
    next(stream)
    time.sleep(0.05)
    assert len(loaded) == 4
    stream.close()


def test_an_error_is_raised_where_its_item_is_due():
    def load(item: int) -> int:
        if item == 2:
            raise ValueError("bad file")
        return item

    seen = []
    with pytest.raises(ValueError, match="bad file"):
        for item, _ in ahead(load, range(5)):
            seen.append(item)
    assert seen == [0, 1]
