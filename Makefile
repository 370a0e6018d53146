# Two commands: `make quickstart` runs the whole pipeline, `make test` its tests. Both first make a
# virtual environment in .venv and install into it, unless one is active (VIRTUAL_ENV) or a Python
# to use is named (RLHF_PYTHON=/path/to/python).

SHELL := /bin/bash
CONFIG ?= configs/quickstart.yaml
PYTHON3 ?= python3

ifneq ($(RLHF_PYTHON),)
PYTHON := $(RLHF_PYTHON)
else ifneq ($(VIRTUAL_ENV),)
PYTHON := $(VIRTUAL_ENV)/bin/python
else
PYTHON := $(CURDIR)/.venv/bin/python
endif

# One stamp an environment, in a folder that git ignores: what is installed is not installed again,
# so that everything works offline afterwards.
STAMP := build/installed-$(subst /,-,$(PYTHON))
TORCH := $(shell grep '^torch==' constraints.txt)

.PHONY: help install quickstart tiny test lint clean

help:
	@echo "make quickstart   install, then run $(CONFIG): SFT, reward, PPO, DPO, comparison, report"
	@echo "make tiny         install, then run configs/tiny.yaml: the same in about a minute, toy model"
	@echo "make test         install, then run the tests"
	@echo "make lint         install, then ruff and pyright"
	@echo "make clean        remove the environment and caches; runs/ stays"

install: $(STAMP)

# torch is asked for by itself first: an index may offer several builds of one version, and the
# choice should not depend on what else is resolved.
$(STAMP): pyproject.toml constraints.txt
	@if [ ! -x "$(PYTHON)" ]; then scripts/make_venv.sh "$(PYTHON3)" .venv; fi
	scripts/install.sh "$(PYTHON)" "$(TORCH)"
	scripts/install.sh "$(PYTHON)" -c constraints.txt -e ".[dev]"
	@mkdir -p build && touch "$@"

quickstart: $(STAMP)
	"$(PYTHON)" -m pipeline run --config "$(CONFIG)"

tiny: $(STAMP)
	"$(PYTHON)" -m pipeline run --config configs/tiny.yaml

test: $(STAMP)
	"$(PYTHON)" -m pytest -q

lint: $(STAMP)
	"$(PYTHON)" -m ruff check .
	"$(PYTHON)" -m ruff format --check .
	"$(PYTHON)" -m pyright --pythonpath "$(PYTHON)"

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './runs/*' -prune -exec rm -rf {} +
