"""The benchmarks of the evaluation do equal work: the same distance, the same accuracy."""

from __future__ import annotations

import torch

from benchmarks import frechet, probe
from benchmarks.harness import Comparison, Measure


def test_all_ways_give_the_same_distance_and_ours_the_smallest_error():
    rows = list(frechet.run(quick=True))
    compared = [row for row in rows if isinstance(row, Comparison)]
    assert len(compared) == 4
    for row in compared:
        assert row.checks["error of ours"] < 1e-9
        assert row.checks["error of the other"] < 1e-3
    singular = [row for row in compared if "singular" in row.case]
    assert all(row.checks["error of ours"] < row.checks["error of the other"] for row in singular)


def test_the_probe_benchmark_compares_accuracies_on_the_same_features():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    rows = list(probe.run(quick=True))
    torch.set_num_threads(before)
    (compared,) = [row for row in rows if isinstance(row, Comparison)]
    assert set(compared.checks) == {"top-1 of ours", "top-1 of the loop at its best rate"}
    assert all(isinstance(row, Comparison | Measure) for row in rows)


def test_features_of_the_probe_benchmark_do_not_depend_on_the_batch():
    images, _ = probe._scenes("train", 8)
    network = probe._network(quick=True)
    whole = probe._features(network, images)
    torch.testing.assert_close(torch.cat([probe._features(network, part) for part in images.split(3)]), whole)
    assert whole.std(0).min() > 0  # not the same for every image
