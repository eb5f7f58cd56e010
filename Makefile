# The commands of this project; CI runs the same ones. `make` or `make help` lists them.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

export PYTHON

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# The demo is content with what is there, or makes a light environment without the tools.
DEMO_VENV := $(if $(wildcard $(READY)),$(VENV),.venv-demo)
PART := scripts/part

.PHONY: help
help: ## List the commands.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(VENV)/.ready: requirements/test.txt pyproject.toml scripts/venv
	@scripts/venv $(VENV) requirements/test.txt
	@touch $@

.venv-demo/.ready: requirements/demo.txt pyproject.toml scripts/venv
	@scripts/venv .venv-demo requirements/demo.txt
	@touch $@

.PHONY: install
install: $(READY) ## Make .venv with everything that check and test need (PYTHON=... chooses the interpreter).

.PHONY: servers
servers: $(READY) ## Download or install the brokers that the tests run against.
	@$(BIN)/brokerkit sandbox install

.PHONY: check
check: $(READY) ## Lint, layout, types (ruff, mypy, pyright).
	@$(PART) "ruff check" 30 $(BIN)/ruff check
	@$(PART) "ruff format" 30 $(BIN)/ruff format --check
	@$(PART) "mypy" 180 $(BIN)/mypy
	@$(PART) "pyright" 180 $(BIN)/pyright --pythonpath $(BIN)/python

.PHONY: format
format: $(READY) ## Lay out the code and mend what ruff can mend.
	@$(BIN)/ruff format
	@$(BIN)/ruff check --fix

.PHONY: test
test: ## Set up what is missing, run every test, hold the core's branch coverage (ARGS=... goes to pytest).
	@$(PART) "set-up" 300 $(MAKE) --silent --no-print-directory install
# What cannot be had fails CI here; elsewhere its tests are skipped with the reason.
	@$(PART) "servers" 600 $(MAKE) --silent --no-print-directory servers || [[ -z $${CI:-} ]]
	@rm -rf .cache/coverage && mkdir -p .cache/coverage
	@$(PART) "tests" 1200 $(if $(ARGS),$(BIN)/coverage run -m pytest -p tests.time_budget $(ARGS),scripts/tests $(BIN))
	@$(PART) "coverage" 60 scripts/core-coverage $(BIN)

.PHONY: demo
demo: $(if $(BROKER),$(READY),$(DEMO_VENV)/.ready) ## Run the main job with processes that are killed on the way (DEMO_ARGS="-o json", BROKER=kafka).
	@$(if $(BROKER),scripts/demo $(BIN) $(BROKER),$(DEMO_VENV)/bin/brokerkit demo) $(DEMO_ARGS)

.PHONY: conformance
conformance: $(READY) ## Run the suites that every adapter has to keep (ARGS=...).
	@$(BIN)/python -m pytest tests/conformance $(ARGS)

.PHONY: bench
bench: $(READY) ## Measure rates as ratios to raw clients and FastStream (BENCH_ARGS="--broker kafka --rounds 5").
	@$(BIN)/python -m tests.bench $(BENCH_ARGS)

.PHONY: faults
faults: $(READY) ## Run the long form of the fault tests.
	@FAULT_SCALE=1 $(BIN)/python -m pytest -p tests.reliability -m faults $(ARGS)
	@$(BIN)/python scripts/reliability.py

.PHONY: guarantees
guarantees: $(READY) ## Run the suites against every broker and make docs/guarantees.md (BROKERS="kafka nats").
	@$(BIN)/python scripts/guarantees.py $(BROKERS)

.PHONY: mutants
mutants: $(READY) ## Plant faults where a changed line loses a message (MODULES="brokerkit.lanes brokerkit.settler").
	@rm -rf mutants
	@$(BIN)/mutmut run $(foreach module,$(MODULES),"$(module).*")
	@$(BIN)/mutmut results

.PHONY: lock
lock: $(READY) ## Resolve the pinned requirements again (LOCK_ARGS="--upgrade").
	@scripts/lock $(BIN)/uv $(LOCK_ARGS)

.PHONY: clean
clean: ## Remove everything that these commands made.
	@rm -rf .venv .venv-demo .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist mutants *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
