# Every target does its own set-up: a virtual environment in .venv, pinned dependencies, the compiled extension.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SOURCES := setup.py pyproject.toml constraints.txt $(shell find csrc -type f)

.PHONY: demo test lint bench clean install

demo: install
	$(BIN)/cggm demo

test: install
	$(BIN)/python -m pytest

bench: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest benchmarks --benchmark-json=benchmark.json

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

install: $(INSTALLED)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV) || { echo "no virtual environment: on Debian, apt-get install python3-venv"; exit 1; }

# torch, setuptools, ninja and pybind11 first: the extension is built against exactly this torch.
$(INSTALLED): $(BIN)/python $(SOURCES)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch numpy setuptools ninja pybind11
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable ".[demo,dev,integrations]"
	touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis benchmark.json
	find . -name "*.so" -not -path "./.git/*" -delete
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
