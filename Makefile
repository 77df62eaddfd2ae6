# BenchGen Eval. `make help` lists what can be made.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
# How many tests at a time, each with servers of its own. Those that break things on purpose have the machine alone.
TEST_WORKERS ?= 2
BIN := .venv/bin
INSTALLED := .venv/.installed
PROGRAMS := .venv-programs/.installed

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

.PHONY: setup
setup: $(INSTALLED) $(PROGRAMS) ## Install everything; the command line is then at .venv/bin/benchgen

$(INSTALLED): requirements/dev.txt pyproject.toml scripts/make_venv.sh
	@PYTHON="$(PYTHON)" bash scripts/make_venv.sh
	@touch $@

$(PROGRAMS): requirements/programs.txt scripts/make_programs.sh | $(INSTALLED)
	@PYTHON="$(PYTHON)" bash scripts/make_programs.sh
	@touch $@

.PHONY: demo
demo: setup ## Start a stack, run a ready environment against simulated answers, print the report, stop
	@bash scripts/demo.sh

.PHONY: up
up: setup ## Start the local stack in the foreground; Ctrl-C stops it
	@$(BIN)/benchgen up

.PHONY: test
test: setup ## Run all tests, on real servers that they start themselves
	@$(BIN)/pytest -n $(TEST_WORKERS) --dist loadfile --ignore tests/resilience
	@$(BIN)/pytest tests/resilience

.PHONY: soak
soak: setup ## Kill processes a thousand times over many runs, and other tests that take hours
	@$(BIN)/pytest -m soak -s

.PHONY: check
check: $(INSTALLED) ## Lint, types, import contracts, protobuf contracts, generated code
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/buf lint
	@$(BIN)/buf format --diff --exit-code
	@$(BIN)/buf breaking --against protos/released.binpb.gz
	@$(BIN)/python scripts/generate_stubs.py --check

.PHONY: protos
protos: $(INSTALLED) ## Generate benchgen/eval/v1 from protos/
	@$(BIN)/buf format -w
	@$(BIN)/python scripts/generate_stubs.py

.PHONY: bench
bench: setup ## Measure speed, CPU and memory on a simulator of our own; prints a table
	@$(BIN)/python -m benchmarks

.PHONY: lock
lock: $(INSTALLED) ## Pin the requirements anew (needs uv)
	@uv pip compile -q pyproject.toml --extra platform --extra local --extra dev --generate-hashes \
		--no-emit-index-url --no-annotate --no-header --universal --python-version 3.11 -o requirements/dev.txt
	@uv pip compile -q pyproject.toml --extra platform --extra local --generate-hashes \
		--no-emit-index-url --no-annotate --no-header --universal --python-version 3.11 \
		-c requirements/dev.txt -o requirements/platform.txt
	@uv pip compile -q requirements/programs.in --generate-hashes \
		--no-emit-index-url --no-annotate --no-header --universal --python-version 3.11 -o requirements/programs.txt

.PHONY: clean
clean: ## Remove what was built and cached; data directories of stacks stay
	@rm -rf .venv .venv-programs .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis dist build *.egg-info
