# Two commands: `make quickstart` runs the whole pipeline, `make test` its tests. Both first make a
# virtual environment in .venv and install into it, unless one is active (VIRTUAL_ENV) or a Python
# to use is named (RLHF_PYTHON=/path/to/python).

SHELL := /bin/bash
CONFIG ?= configs/quickstart.yaml
# Settings that replace the file's: make quickstart SET="ppo.total_episodes=1280 seed=1"
SET ?=

ifneq ($(RLHF_PYTHON),)
PYTHON := $(RLHF_PYTHON)
else ifneq ($(VIRTUAL_ENV),)
PYTHON := $(VIRTUAL_ENV)/bin/python
else
PYTHON := $(CURDIR)/.venv/bin/python
endif

# The stamp says that these very requirements are installed, so that they are not installed again
# and everything works offline afterwards.
REQUIREMENTS := $(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)
ifeq ($(PYTHON),$(CURDIR)/.venv/bin/python)
STAMP := .venv/.installed-$(REQUIREMENTS)
$(STAMP): | .venv/bin/python
else
STAMP := build/installed-$(REQUIREMENTS)$(subst /,-,$(PYTHON))
endif
TORCH := $(shell grep '^torch==' constraints.txt)

# Shell function: install the arguments with pip, or with uv where pip is missing.
define INSTALLER
install() { \
	if "$(PYTHON)" -m pip --version >/dev/null 2>&1; then "$(PYTHON)" -m pip install --quiet "$$@"; \
	elif command -v uv >/dev/null; then uv pip install --quiet --python "$(PYTHON)" "$$@"; \
	else echo "error: $(PYTHON) has no pip, and there is no uv: install one of them" >&2; exit 1; fi; \
}
endef

.DEFAULT_GOAL := help
.PHONY: help install quickstart tiny test test-long lint notebooks site clean

help:
	@echo "make quickstart   install, then run $(CONFIG)"
	@echo "make tiny         install, then run configs/tiny.yaml: the same in about a minute"
	@echo "make test         install, then run the tests"
	@echo "make lint         install, then ruff and pyright"
	@echo "make notebooks    install, then run the lessons in notebooks/: build/notebooks"
	@echo "make site         install, then the documentation as pages: build/site/index.html"
	@echo "make clean        remove the environment and the caches; runs/ stays"

install: $(STAMP)

.venv/bin/python:
	@set -e; rm -rf .venv; \
	for python in python3 python3.14 python3.13 python3.12 python3.11; do \
		if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			if "$$python" -m venv .venv 2>/dev/null; then exit 0; fi; \
			rm -rf .venv; \
		fi; \
	done; \
	if command -v uv >/dev/null; then uv venv --quiet --python '>=3.11' .venv; exit 0; fi; \
	echo "error: no Python 3.11 or newer with the venv module: install one, or uv" >&2; exit 1

# torch is asked for by itself first: an index may offer several builds of one version, and which
# one is taken should not depend on what else is resolved.
$(STAMP):
	@echo "installing into $(PYTHON) (some minutes, once)" >&2
	@set -e; $(INSTALLER); install "$(TORCH)"; install -c constraints.txt -e ".[dev]"
	@mkdir -p "$(@D)" && touch "$@"

quickstart: $(STAMP)
	@"$(PYTHON)" -m pipeline run --config "$(CONFIG)" $(SET)

tiny: $(STAMP)
	@"$(PYTHON)" -m pipeline run --config configs/tiny.yaml

# A process a core, at most four (each holds torch and its models). A file stays in one process, so
# that what its tests share is trained once.
test: $(STAMP)
	@"$(PYTHON)" -m pytest -q -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# What is too long for every change on a slow machine; alone, as it is.
test-long: $(STAMP)
	"$(PYTHON)" -m pytest -q -m long

lint: $(STAMP)
	"$(PYTHON)" -m ruff check .
	"$(PYTHON)" -m ruff format --check .
	"$(PYTHON)" -m pyright --pythonpath "$(PYTHON)"

# The lessons with their pictures; the site shows those that were made.
notebooks: $(STAMP)
	"$(PYTHON)" notebooks/run.py

# Every warning is an error: a link to nowhere, a page that none leads to, a broken docstring.
site: $(STAMP)
	"$(PYTHON)" -m sphinx --quiet --fail-on-warning --keep-going -b html docs build/site

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './runs/*' -prune -exec rm -rf {} +
