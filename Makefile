# demo    optimize a small model on this machine, prove the result and show it
# test    run all tests
# check   lint, formatting, types and the import contract
# clean   remove what the tools leave behind (the environment stays; to begin anew: rm -r .venv)
#
# All that must be there is Python 3.11 or newer. On Linux, PyPI's torch brings gigabytes of CUDA packages along;
# without an NVIDIA GPU, take the small build:
#
#     make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
#
# Tests run in two processes of one thread each. A file stays in one of them, so that what its tests share is made once,
# and files are begun in the order of their folders.

PYTHON ?= python3
TORCH ?= torch==2.13.0
TORCH_INDEX ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
CACHES := .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis dist

.PHONY: demo test check clean

demo: $(VENV)/.for-demo
	@$(BIN)/temper demo

test: $(VENV)/.for-development
	@echo "Tests"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

check: $(VENV)/.for-development
	@echo "Lint"
	@$(BIN)/ruff check .
	@echo "Formatting"
	@$(BIN)/ruff format --check --quiet . || { echo "To format: $(BIN)/ruff format ."; exit 1; }
	@echo "Types"
	@$(BIN)/mypy
	@echo "Imports"
	@$(BIN)/lint-imports --no-logo

clean:
	@rm -rf $(CACHES) src/*.egg-info
	@find src tests benchmarks -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

# The stamps say which extras an environment has and when: a change of pyproject.toml makes them old. Torch goes
# first, so that what depends on it finds it there and does not choose a build of its own.

$(VENV)/.for-demo: pyproject.toml | $(VENV)/.torch
	@echo "Installing temper and what the demo needs, about a minute"
	@$(PIP) install --quiet --editable '.[openvino]'
	@touch $@

$(VENV)/.for-development: pyproject.toml | $(VENV)/.torch
	@echo "Installing temper and its development tools, some minutes"
	@$(PIP) install --quiet --editable '.[openvino,executorch,nncf,torchmetrics,dev]'
	@touch $@ $(VENV)/.for-demo

$(VENV)/.torch: | $(BIN)/python
	@echo "Installing $(TORCH)$(if $(TORCH_INDEX), from $(TORCH_INDEX))"
	@$(PIP) install $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) '$(TORCH)'
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("temper needs Python 3.11 or newer, and " \
	    + sys.executable + " is " + sys.version.split()[0] + "; name another: make PYTHON=python3.12 ...")'
	@echo "Making an environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV) || { rm -f $@; exit 1; }
