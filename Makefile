# Every target does its own set-up: a virtual environment in .venv, pinned dependencies, the compiled extension.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TESTABLE := $(VENV)/.testable
SOURCES := setup.py pyproject.toml constraints.txt $(shell find csrc -type f)
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt

.PHONY: demo test test-all lint bench gpu clean

demo: $(INSTALLED)
	$(BIN)/cggm demo

test: $(TESTABLE)
	$(BIN)/python -m pytest -m "not slow"

test-all: $(TESTABLE)
	$(BIN)/python -m pytest

bench: $(TESTABLE)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest benchmarks --benchmark-json=benchmark.json

# With what is installed beside $(PYTHON), on a machine with a GPU and perhaps without a network.
gpu:
	$(PYTHON) benchmarks/gpu

lint: $(TESTABLE)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

$(BIN)/python:
	$(PYTHON) -m venv $(VENV) || { echo "no virtual environment: on Debian, apt-get install python3-venv"; exit 1; }

# torch, setuptools, ninja and pybind11 first: the extension is built against exactly this torch.
BUILD_NEEDS := torch numpy setuptools ninja pybind11

$(INSTALLED): $(BIN)/python $(SOURCES)
	$(PIP) $(BUILD_NEEDS)
	$(PIP) --no-build-isolation --editable ".[demo]"
	touch $@

$(TESTABLE): $(BIN)/python $(SOURCES)
	$(PIP) $(BUILD_NEEDS)
	$(PIP) --no-build-isolation --editable ".[demo,dev,integrations,papers]"
	touch $(INSTALLED) $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis benchmark.json
	find . -name "*.so" -not -path "./.git/*" -delete
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
