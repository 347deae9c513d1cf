# Every target makes the environment it needs: `make demo` and `make test` work as the first command on a fresh machine.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
SHELL  := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  \033[1m%-18s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.base: pyproject.toml constraints.txt
	@echo "epp: preparing the Python environment in $(VENV) (once, about a minute)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "epp needs Python 3.11 or newer; set PYTHON=... to one")'
	@$(PYTHON) -m venv $(VENV) || { echo "epp: python3 -m venv failed; on Debian: apt-get install python3-venv" >&2; exit 1; }
	@$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[demo]'
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	@$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(VENV)/.base ## real Envoy, epp and simulated vLLM pods: three ways of routing the same chats, compared (2 minutes)
	@$(BIN)/epp demo

test: $(VENV)/.dev ## unit, wire and integration tests (no network, no cluster, no GPU)
	@$(BIN)/pytest

check: $(VENV)/.dev ## lint, types, import contracts, generated code
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python tools/proto.py --check

format: $(VENV)/.dev ## format the code
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix-only -q .

proto: $(VENV)/.dev ## regenerate epp/_proto from proto/
	@$(BIN)/python tools/proto.py

clean: ## remove the environment and everything built
	rm -rf $(VENV) build .tools .mypy_cache .ruff_cache .hypothesis

.PHONY: help demo test check format proto clean
