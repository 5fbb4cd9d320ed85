# Everything a person or CI runs. Only Python >= 3.11, a C/C++ compiler and cmake are needed.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: help setup demo test test-all check fix wheel clean

help:      ## this list
	@grep -E '^[a-z-]+: .*##' Makefile | sed -E 's/: .*##/\t/' | expand -t 12

setup: $(VENV)/.ready  ## .venv with the pinned dependencies

# llama.cpp is built from source once (pip keeps the wheel), without its multimodal part.
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	CMAKE_ARGS="-DMTMD_BUILD=OFF" CMAKE_BUILD_PARALLEL_LEVEL=$$(nproc) \
		$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: setup  ## the whole pipeline on the embedded model and task
	$(BIN)/edgeft demo

test: setup  ## the fast tests (what CI runs)
	$(BIN)/python -m pytest -m 'not slow'

test-all: setup  ## every test
	$(BIN)/python -m pytest

check: setup  ## lint and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fix: setup  ## what ruff can mend by itself
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: setup  ## dist/*.whl
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

clean:  ## everything that make and the demo made
	rm -rf $(VENV) demo dist build *.egg-info .mypy_cache .ruff_cache .pytest_cache
