# Two commands: `make run` (a whole study in minutes) and `make test`.
# Needs Python 3.11 or newer, make and a C compiler; everything else goes into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OLDEST := .venv-oldest
RUNS ?= runs

.PHONY: run test test-oldest test-slurm docs bench lint types install install-docs clean
.DEFAULT_GOAL := run

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,docs]'
	touch $@

install: $(VENV)/.installed

install-docs: $(VENV)/.installed-docs

run: install  ## the whole ladder on the embedded images, then the reports
	$(BIN)/ablate run --through single_noise_level --scale smoke --runs $(RUNS)

test: install-docs  ## the test suite; it builds the documentation too
	$(BIN)/python -m pytest

$(OLDEST)/.installed: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/pip install --quiet --disable-pip-version-check -c constraints-oldest.txt torch
	$(OLDEST)/bin/pip install --quiet --disable-pip-version-check -c constraints-oldest.txt -e '.[dev]'
	touch $@

test-oldest: $(OLDEST)/.installed  ## the test suite with the oldest dependencies that pyproject.toml allows
	$(OLDEST)/bin/python -m pytest

test-slurm: install  ## on a real SLURM that the tests bring up here; needs root and Debian's packages
	$(BIN)/python -m pytest -m "slurm and not slow" -rs

docs: install-docs  ## the documentation into site/, strictly; open site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: install  ## every benchmark, then benchmarks/README.md; about a quarter of an hour on two quiet cores
	$(BIN)/python -m benchmarks.everything

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check ablation stages tests benchmarks

types: install
	$(BIN)/mypy

clean:  ## the environment and caches; run folders stay
	rm -rf $(VENV) $(OLDEST) .mypy_cache .ruff_cache build dist site
