"""Timings against well-known alternatives, one module each: `python -m benchmarks.NAME`. Never part of the test suite's verdict."""
