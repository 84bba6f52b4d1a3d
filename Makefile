# `make demo` and `make test` are all a fresh machine needs: Python 3.11 or later, pip and make.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# Two test processes on two cores; each keeps torch to one thread.
JOBS   ?= 2
# Programs of benchmarks/, in the order in which they run.
BENCHES := views text engine workers reads shuffle collection_kinds recipes peers

.PHONY: help setup demo test test-nightly lint types layers docs pytest bench bench-full clean

help:
	@echo "make demo          the whole pipeline on a small data set, from nothing"
	@echo "make test          lint, types, layers, docs and tests, from nothing"
	@echo "make docs          the pages as a site, in build/site"
	@echo "make test-nightly  all tests, those of faults with many more rounds: an hour on two cores"
	@echo "make bench         speed against peers and limits, some minutes; bench-full: all rounds"
	@echo "make clean         remove .venv and what demo and tests left"

setup: $(STAMP)

# torch first and alone: a resolver that sees torchvision first may choose another torch.
# Kernels that an older version compiled may have a name that Python prefers to the new one's.
$(STAMP): pyproject.toml setup.py constraints.txt $(wildcard producers/kernels/*.[ch])
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "manyviews needs Python 3.11 or later: make PYTHON=python3.12 ..."; exit 1; }
	@echo "Installing into $(VENV): 2 GB, which takes some minutes and prints nothing."
	rm -f producers/kernels/compiled*.so
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable . --group dev
	@touch $(STAMP)

demo: setup
	$(BIN)/python cli.py demo --out-dir demo

# The checks run side by side, each with its output together.
test: setup
	@$(MAKE) --no-print-directory --output-sync=target --jobs=$(JOBS) lint types layers docs
	@$(MAKE) --no-print-directory pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/python tools/check_wording.py
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema custom.github-workflows-require-timeout .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-forms \
	  $(filter-out %/config.yml, $(wildcard .github/ISSUE_TEMPLATE/*.yml))
	$(BIN)/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff

types: setup
	$(BIN)/mypy

layers: setup
	$(BIN)/lint-imports

# Every warning is an error: a link that leads nowhere, a page that is not listed, a docstring that
# names a parameter that does not exist. (With --quiet, mkdocs would not count warnings.)
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

pytest: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal

# All tests, also those marked nightly: every operation gets every fault, 500 random kills, every
# state of a power cut. Prints the counts.
test-nightly: setup
	OMP_NUM_THREADS=1 MANYVIEWS_TEST_PROFILE=nightly $(BIN)/python -m pytest -q -n $(JOBS) \
	  --dist worksteal -o faulthandler_timeout=1800

# One thread each: rates are per core, and all cores is the engine's own matter.
bench: setup
	@for name in $(BENCHES); do OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.$$name --quick || exit; done

bench-full: setup
	@for name in $(BENCHES); do OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.$$name || exit; done

clean:
	rm -rf $(VENV) .bench demo build producers/kernels/*.so *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
