# python3 (3.11 or later) and make are enough: each target first makes the virtual environment it
# needs, one per Python version. PYTHON= chooses another Python, ARGS= is handed to the program.
PYTHON ?= python3
ARGS ?=

TAG  := $(shell $(PYTHON) -c 'import sys; print(sys.implementation.cache_tag)' 2>/dev/null)
VENV := .venv/$(or $(TAG),unknown)
BIN  := $(VENV)/bin
PIP  := $(BIN)/python -m pip --disable-pip-version-check -qq

.PHONY: demo market test check format coverage bench bench-own hitcost plots conformance explore mutants build clean
.NOTPARALLEL:

demo: $(VENV)/.runtime
	$(BIN)/async-safe-cache demo $(ARGS)

# A service whose origin has a bad day, without and with the library; about 35 seconds.
market: $(VENV)/.examples
	$(BIN)/python -m examples.market_data $(ARGS)

test: $(VENV)/.dev
	$(BIN)/python -m pytest $(ARGS)

check: $(VENV)/.dev
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/basedpyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports --no-logo

format: $(VENV)/.dev
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

coverage: $(VENV)/.dev
	$(BIN)/python -m coverage run -m pytest $(ARGS)
	$(BIN)/python -m coverage report

# This library beside others, each question in a process of its own; under ten minutes on two cores
# that nothing else uses. ARGS='hit stampede' asks some; the answers go to benchmarks/results/.
bench: $(VENV)/.benchmarks
	$(BIN)/python -m benchmarks $(ARGS)

# Our own absolute times, to compare before and after a change.
bench-own: $(VENV)/.dev
	$(BIN)/python -m pytest benchmarks -o asyncio_debug=false -o timeout=0 $(ARGS)

# Instructions of a hit, compared with benchmarks/hitcost.json; under two minutes. Needs valgrind or perf.
hitcost: $(VENV)/.runtime
	$(BIN)/python -m benchmarks.hitcost $(ARGS)

# The plots, and the tables of docs/benchmarks.md and the README, from benchmarks/results/.
plots: $(VENV)/.benchmarks
	$(BIN)/python -m benchmarks.plots
	$(BIN)/python -m benchmarks.tables

# The same stories told to this library and to others, each in a process of its own; about a minute.
conformance: $(VENV)/.conformance
	$(BIN)/python -m benchmarks.conformance $(ARGS)

# Two million schedules and more; several minutes. ARGS=--scale=0.01 is a trial.
explore: $(VENV)/.dev
	$(BIN)/python -m tests.explore $(ARGS)

# Plant each known bug on a copy and see it found; several minutes.
mutants: $(VENV)/.dev
	$(BIN)/python -m tests.mutants $(ARGS)

build: $(VENV)/.dev
	$(BIN)/python -m hatchling build

clean:
	rm -rf .venv dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	rm -rf .hypothesis .benchmarks .coverage htmlcov
	find . -name __pycache__ -prune -exec rm -rf {} +

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo 'error: PYTHON=$(PYTHON) is not Python 3.11 or later; try: make PYTHON=python3.13 $(MAKECMDGOALS)' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { \
	  echo 'error: PYTHON=$(PYTHON) has no venv module; install it (Debian, Ubuntu: the package python3-venv)' >&2; exit 1; }
	@echo 'Preparing $(VENV) ...'
	@$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/.runtime: $(VENV)/.python pyproject.toml
	@$(PIP) install -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.python pyproject.toml
	@$(PIP) install -e '.[dev]'
	@touch $(VENV)/.runtime $@

$(VENV)/.examples: $(VENV)/.python pyproject.toml
	@$(PIP) install -e '.[examples]'
	@touch $(VENV)/.runtime $@

$(VENV)/.conformance: $(VENV)/.python pyproject.toml
	@$(PIP) install -e '.[conformance]'
	@touch $(VENV)/.runtime $@

$(VENV)/.benchmarks: $(VENV)/.python pyproject.toml
	@$(PIP) install -e '.[benchmarks]'
	@touch $(VENV)/.runtime $@
