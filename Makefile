# make story                              from a fresh clone: an environment, a build, a story
# make story CHECKPOINT=stories15M.bin    the same with another model
# make test                               from a fresh clone: an environment, a build, the quick tests

PYTHON ?= python3
VENV ?= .venv
CHECKPOINT ?=
ARGS ?=
BIN := $(VENV)/bin
SOURCES := setup.py pyproject.toml $(wildcard csrc/*)

.PHONY: story test test-slow lint sanitize adversary docs wheel clean

story: $(VENV)/.story
	@$(BIN)/python -m llama2py run $(CHECKPOINT) $(ARGS)

test: $(VENV)/.test
	$(BIN)/python -m pytest -n auto $(ARGS)

# What takes longer: the slow tests alone.
test-slow: $(VENV)/.test
	$(BIN)/python -m pytest -n auto -m slow $(ARGS)

# Style and types of the Python code; style of the C code, which compiles without a warning (and in `make test`, which
# optimizes, too).
lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy docs/cookbook/*.py
	$(BIN)/clang-format --dry-run --Werror csrc/*.[ch] csrc/*.inc tests/c/*.[ch] tests/adversary/*.c
	ls csrc/*.c | xargs -P 2 -I SOURCE \
	  $(CC) -std=c11 -fsyntax-only -Wall -Wextra -Werror SOURCE

# The tests on an extension that checks its memory accesses and its arithmetic.
sanitize: $(VENV)/.test
	$(BIN)/python tests/sanitize.py $(ARGS)

# Hostile files, failing allocations, signals and callbacks at bad moments, for an hour.
MINUTES ?= 60
adversary: $(VENV)/.test
	$(BIN)/python -W ignore::DeprecationWarning -m tests.adversary --minutes $(MINUTES) $(ARGS)

# The documentation site, in site/. A warning, a dead link or a dead anchor is an error.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo site/index.html

wheel: $(VENV)/.story
	$(BIN)/pip wheel --no-deps --wheel-dir dist .

clean:
	rm -rf $(VENV) build dist site *.egg-info llama2py/engine/_engine.*so llama2py/engine/_engine.c

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.story: $(VENV)/bin/python $(SOURCES)
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.test: $(VENV)/bin/python $(SOURCES)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@ $(VENV)/.story

$(VENV)/.docs: $(VENV)/bin/python $(SOURCES)
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	@touch $@ $(VENV)/.story
