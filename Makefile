# Needs make and a Python 3.11+ with pip; everything else goes into .venv.
#   make demo    two real jobs on all cores
#   make test    lint, types, layering, the whole suite
#   make sim     random programs on simulated clusters (SEEDS=1000, or SEEDS=5000-9999; JOBS=2)
# PYTHON=/path/to/python chooses the interpreter, ARGS="..." is passed on to pytest and to the benchmarks;
# MINUTES=20 is how long `make soak` takes, SECONDS=60 how long `make fuzz` does;
# TEST_JOBS=2 is how many files of tests `make test` works on at a time.

SHELL := /bin/bash
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
.NOTPARALLEL:

VENV   := .venv
BIN    := $(VENV)/bin
PY     := $(BIN)/python
PIP    := $(PY) -m pip --quiet --quiet --disable-pip-version-check
PYTEST := $(PY) -m pytest
ARGS   ?=
MINUTES ?= 20
SECONDS ?= 60
SEEDS  ?= 1000
JOBS   ?= 2
TEST_JOBS ?= 2
RESULTS ?= $(wildcard bench-*.json)

# The stamps name what was installed; a change of pyproject.toml installs it again.
RUN    := $(VENV)/.installed-run
TEST   := $(VENV)/.installed-test
DEV    := $(VENV)/.installed-dev
PEERS  := $(VENV)/.installed-bench
PLOT   := $(VENV)/.installed-plot

.PHONY: help demo test sim lint types layering unit integration bench bench-peers guard plots chaos soak soak-docs \
  fuzz dev clean

help:
	@sed -n 's/^#   //p' Makefile
	@echo "also: lint types layering unit integration bench bench-peers guard plots chaos soak soak-docs fuzz dev clean"

# --- environment -------------------------------------------------------------------------------------------

# Candidates are run, not only looked up: a version manager's shim may exist for a version that does not.
# Where the interpreter has pip but not ensurepip (Debian without python3-venv), its pip fills the environment.
$(VENV)/.created:
	@set -e; found=; \
	for candidate in "$(PYTHON)" python3 python3.13 python3.12 python3.11 python3.14 python; do \
	  [ -n "$$candidate" ] || continue; \
	  if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	    found=$$candidate; break; \
	  fi; \
	  if [ -n "$(PYTHON)" ]; then break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	  if [ -n "$(PYTHON)" ]; then \
	    echo "error: PYTHON=$(PYTHON) is not a Python 3.11 or newer" >&2; \
	  else \
	    echo "error: no Python 3.11 or newer found on PATH; install one, or name it: make PYTHON=/path/to/python" >&2; \
	  fi; \
	  exit 1; \
	fi; \
	rm -rf $(VENV); \
	if ! "$$found" -m venv $(VENV) >/dev/null 2>&1; then \
	  rm -rf $(VENV); \
	  "$$found" -m venv --without-pip $(VENV) \
	    && "$$found" -m pip --quiet --quiet --disable-pip-version-check --python $(PY) install pip \
	    || { rm -rf $(VENV); echo "error: $$found can neither create a virtual environment with pip nor fill one; install its venv module (Debian: python3-venv)" >&2; exit 1; }; \
	fi; \
	touch $@

$(RUN): pyproject.toml $(VENV)/.created
	@$(PIP) install --editable .
	@touch $@

$(TEST): pyproject.toml $(VENV)/.created
	@$(PIP) install --editable '.[test]'
	@touch $@ $(RUN)

$(DEV): pyproject.toml $(VENV)/.created
	@$(PIP) install --editable '.[dev]'
	@touch $@ $(TEST) $(RUN)

$(PEERS): pyproject.toml $(VENV)/.created
	@$(PIP) install --editable '.[bench]'
	@touch $@ $(RUN)

$(PLOT): pyproject.toml $(VENV)/.created
	@$(PIP) install --editable '.[plot]'
	@touch $@ $(RUN)

dev: $(DEV)

# --- use ---------------------------------------------------------------------------------------------------

demo: $(RUN)
	@$(PY) examples/monte_carlo_pi.py
	@echo
	@$(PY) examples/index_source_tree.py

bench: $(RUN)
	@$(PY) -m framework.benchmarks $(ARGS)

bench-peers: $(PEERS)
	@$(PY) -m framework.benchmarks --peers $(ARGS)

# Counts per call against their bounds; ARGS=--write makes new ones.
guard: $(RUN)
	@$(PY) -m framework.benchmarks guard $(ARGS)

# Pictures of results of --json, into docs/design: make plots RESULTS="bench-rows.json bench-curves.json"
plots: $(PLOT)
	@$(PY) -m framework.benchmarks plot $(RESULTS) docs/design

# ARGS="--duration 300 --seed 7"; docs/design/chaos.md
chaos: $(RUN)
	@$(PY) -m framework.chaos $(ARGS)

# Text, JSON and a picture in build/soak; `make soak-docs` takes them into docs/design/endurance.md and .svg.
soak: $(PLOT)
	@mkdir -p build/soak
	@set -o pipefail; $(PY) -m framework.benchmarks.soak --minutes $(MINUTES) \
	  --json build/soak/soak.json --plot build/soak/soak.svg $(ARGS) | tee build/soak/soak.txt

soak-docs: $(PLOT)
	@$(PY) -m framework.benchmarks.soak_docs build/soak/soak.json docs/design

# By atheris where it can be installed, else by a plain mutator.
fuzz: $(TEST)
	@$(PIP) install --editable '.[fuzz]' 2>/dev/null || true
	@if $(PY) -c 'import atheris' 2>/dev/null; then \
	  $(PY) tests/fuzz/fuzz_frames.py --atheris -max_total_time=$(SECONDS) -rss_limit_mb=2000 $(ARGS); \
	else \
	  echo "atheris cannot be installed here: a plain mutator does it"; \
	  $(PY) tests/fuzz/fuzz_frames.py --seconds $(SECONDS) $(ARGS); \
	fi

# --- checks ------------------------------------------------------------------------------------------------

lint: $(TEST)
	@$(PY) -m ruff check .

types: $(TEST)
	@$(PY) -m mypy

layering: $(TEST)
	@$(PYTEST) -q tests/unit/test_layering.py

unit: $(TEST)
	@$(PYTEST) tests/unit $(ARGS)

integration: $(TEST)
	@$(PYTEST) tests/integration $(ARGS)

sim: $(TEST)
	@$(PY) -m framework._sim --seeds $(SEEDS) --jobs $(JOBS) $(ARGS)

# One after the other, cheapest first, whatever -j says: the last line is pytest's summary of the whole suite.
test: $(TEST)
	@$(MAKE) lint
	@$(MAKE) types
	@$(MAKE) layering
	@$(PYTEST) --numprocesses $(TEST_JOBS) --dist loadfile $(ARGS)

clean:
	@rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
