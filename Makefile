# `make` lists the targets. Every target makes its own set-up; `make quickstart` is the place to start.

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-slurm soak gpu-test setup setup-dev lint docs clean
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
export PYTHON TORCH_INDEX

help:  ## List the targets.
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 24

quickstart: setup  ## Set up, then train and evaluate a classifier on built-in data; ends with a report.
	$(BIN)/launcher run quickstart/api-topics

test: lint  ## Set up, then check style, types and floors, and run the fast tests (at most 15 minutes on 2 cores).
	$(BIN)/python -m pytest -n 2 -m "not slow and not soak and not gpu"

lint: setup-dev  ## Check style, types and the floors of the architecture.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test-slurm: setup-dev  ## Run the tests on a real Slurm cluster that they start on this machine (installs Debian's slurm-wlm where it may).
	@sh scripts/setup_slurm.sh
	$(BIN)/python -m pytest -m "slurm and not soak"

soak: setup-dev  ## Run the long tests; their dated log goes to benchmarks/results/.
	sh scripts/soak.sh

gpu-test: setup-dev  ## Run the tests that need a GPU.
	$(BIN)/python -m pytest -m "gpu and not soak"

setup:  ## Make .venv and install launcher into it (skipped where it is up to date).
	@sh scripts/setup.sh run

setup-dev:  ## The same, with the tools that the tests need.
	@sh scripts/setup.sh dev

docs: setup-dev  ## Write the generated parts of docs/ and the recipes' JSON Schema anew.
	$(BIN)/python docs/generate.py

clean:  ## Remove .venv and what tools left behind; runs/ is kept.
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis
