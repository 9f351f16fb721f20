"""How long the light commands take from a cold start of Python."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

from benchmarks.harness import Measure, Row, main

NAME = "startup"
TITLE = "Start-up and planning"
ABOUT = """
Wall time of a fresh process, median; neither torch nor pandas is loaded for these commands.
"""

LATENT_DIMS = "8,16,32,48"
BETAS = ",".join(str(0.9 + 0.0005 * number) for number in range(25))


def run(quick: bool) -> Iterator[Row]:
    """Yield the time of `ablate --help`, of listing the stages, and of a plan of 10,000 cells."""
    rounds = 1 if quick else 9
    yield Measure("`ablate --help`", _median(["--help"], rounds), "s", at_most=0.3)
    yield Measure("`ablate stages`", _median(["stages"], rounds), "s")
    with tempfile.TemporaryDirectory() as folder:
        seeds = 2 if quick else 100
        grid = ["--grid", f"tokenizer.latent_dim={LATENT_DIMS}", "--grid", f"train.beta1={BETAS}"]
        command = ["plan", "--only", "patch_pca", *grid, "--scale", "smoke", "--no-controls", "--json"]
        seconds = _median([*command, "--seeds", f"0-{seeds - 1}", "--runs", folder], 1 if quick else 3)
        yield Measure(f"`ablate plan` of {4 * 25 * seeds:,} cells", seconds, "s", at_most=3.0, note="4 x 25 settings x seeds, smoke scale")


def _median(arguments: list[str], rounds: int) -> float:
    """Return the median wall time of the command in fresh processes, the first one left out."""
    times = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "ablation", *arguments], check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


if __name__ == "__main__":
    main(run, NAME)
