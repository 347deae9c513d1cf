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

test-envoy: $(VENV)/.dev ## the same through a real Envoy
	@$(BIN)/pytest tests/envoy

test-demo: $(VENV)/.dev ## the demo's promises, for three seeds (5 minutes)
	@$(BIN)/pytest tests/demo

NEWEST := .tools/newest-transformers
test-newest: ## the recorded token ids and the template comparison, with the newest transformers instead of the pinned one
	@[ -x $(NEWEST)/bin/python ] || $(PYTHON) -m venv $(NEWEST)
	@grep -vE '^(transformers|tokenizers|huggingface_hub|safetensors)==' constraints.txt > $(NEWEST)/constraints.txt
	@$(NEWEST)/bin/pip install -q --disable-pip-version-check --upgrade -c $(NEWEST)/constraints.txt -e '.[dev]' transformers
	@$(NEWEST)/bin/python -c 'import importlib.metadata as m; print("transformers", m.version("transformers"))'
	@$(NEWEST)/bin/pytest tests/integration/tokenization/test_recorded_vllm.py tests/integration/tokenization/test_differential.py tests/integration/tokenization/test_pieces.py

VLLM := .tools/vllm
$(VLLM)/.ready: tools/vllm/install.sh
	@echo "epp: installing a real vLLM (CPU build, 5 GB, about 3 minutes) into $(VLLM)"
	@bash tools/vllm/install.sh $(VLLM)
	@touch $@

build/vllm-model/config.json: $(VLLM)/.ready tools/vllm/make_model.py
	@HF_HUB_OFFLINE=1 $(VLLM)/bin/python tools/vllm/make_model.py build/vllm-model

test-vllm: $(VENV)/.dev $(VLLM)/.ready ## real vLLM engines: token ids of hundreds of generated requests; fleets behind Envoy and epp through resets, eviction, kill -9 (8 minutes)
	@VLLM_HOME=$(CURDIR)/$(VLLM) $(BIN)/pytest --timeout 400 -o faulthandler_timeout=400 tests/vllm

demo-vllm: $(VENV)/.base build/vllm-model/config.json ## two real vLLM engines on CPU behind Envoy and epp, beside plain round robin (6 minutes)
	@$(BIN)/epp demo-vllm --vllm $(VLLM) --model build/vllm-model

COMPILED := build/compiled
compiled: $(VENV)/.dev ## a copy of the checkout whose hot modules are compiled to C, as in a wheel (half a minute; needs gcc)
	@bash tools/compiled.sh $(COMPILED) $(CURDIR)/$(BIN)/python

test-compiled: compiled ## the unit tests, and the suites of the request path, on the compiled build
	@cd $(COMPILED) && PYTHONPATH=$(CURDIR)/$(COMPILED) $(CURDIR)/$(BIN)/python -m pytest $(COMPILED_TESTS)
COMPILED_TESTS := tests/unit tests/wire tests/integration/server tests/integration/app tests/envoy

test-wheel: $(VENV)/.dev ## what `pip install .` makes: a compiled wheel, or where nothing compiles a pure one; a picker from it (2 minutes; needs gcc)
	@$(BIN)/pytest --timeout 400 -o faulthandler_timeout=400 tests/wheel

bench: compiled ## what epp costs a request, beside the Envoy it serves (6 minutes; ARGS=--quick: 2)
	@GRPC_ENABLE_FORK_SUPPORT=0 $(BIN)/python -m bench --compiled $(COMPILED) $(ARGS)

soak: $(VENV)/.dev ## 200,000 requests through a real Envoy on each transport, with cancels and resets: none lost (ARGS=--short: a minute)
	@$(BIN)/python -m tests.soak $(ARGS)

flood: $(VENV)/.dev ## one publisher sends garbage through loopback while requests go through a real Envoy: nobody else notices (3 minutes; ARGS=--short: 1)
	@$(BIN)/python -m tests.flood $(ARGS)

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

envoy: $(VENV)/.dev ## rewrite envoy/*.yaml from epp/testing/bootstrap
	@$(BIN)/python tools/envoy.py

H2SPEC := .tools/h2spec
$(H2SPEC):
	@command -v go >/dev/null || { echo "epp: h2spec is built with Go; on Debian: apt-get install golang-go" >&2; exit 1; }
	@GOBIN=$(CURDIR)/.tools go install github.com/summerwind/h2spec/cmd/h2spec@v2.2.1+incompatible

h2spec: $(VENV)/.dev $(H2SPEC) ## the HTTP/2 conformance suite h2spec against the fast transport (1 minute)
	@$(BIN)/pytest tests/h2spec

clean: ## remove the environment and everything built
	rm -rf $(VENV) build .tools .mypy_cache .ruff_cache .hypothesis

.PHONY: help demo test test-envoy test-demo test-newest test-vllm demo-vllm compiled test-compiled test-wheel bench check format proto envoy h2spec soak flood clean
