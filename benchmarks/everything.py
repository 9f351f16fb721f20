"""Run every benchmark, each in a process of its own, and make the page: `python -m benchmarks.everything`, or `make bench`."""

from __future__ import annotations

import subprocess
import sys
import time

from benchmarks.readme import README, generate, names


def main(arguments: list[str]) -> int:
    """Run the benchmarks named, or all; returns how many failed. `--quick` is passed on."""
    quick = [argument for argument in arguments if argument.startswith("-")]
    failed = 0
    for name in [argument for argument in arguments if not argument.startswith("-")] or names():
        began = time.monotonic()
        print(f"== {name}", flush=True)
        failed += subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *quick], check=False).returncode != 0
        print(f"   {time.monotonic() - began:.0f} s", flush=True)
    if not quick:
        README.write_text(generate(), encoding="utf-8")
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
