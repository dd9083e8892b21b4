# Every target does its own set-up: a virtual environment in .venv, pinned dependencies, the compiled extension.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TESTABLE := $(VENV)/.testable
SOURCES := setup.py pyproject.toml constraints.txt $(shell find csrc -type f)
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt

.PHONY: demo test test-all compilers oldest lint docs bench gpu clean

demo: $(INSTALLED)
	$(BIN)/cggm demo

test: $(TESTABLE)
	$(BIN)/python -m pytest -m "not slow"

test-all: $(TESTABLE)
	$(BIN)/python -m pytest

# Builds and tests the CPU kernels with each of these that is installed (Debian: apt-get install g++-11 g++-12 clang).
COMPILERS ?= g++-11 g++-12 g++-13 g++-14 clang++

compilers: $(TESTABLE)
	@for compiler in $(COMPILERS); do \
	  command -v $$compiler >/dev/null || { echo "$$compiler: not installed"; continue; }; \
	  folder=build/compilers/$$compiler; rm -rf $$folder; mkdir -p $$folder; \
	  CXX=$$compiler CGGM_CUDA_ARCHS= CGGM_REQUIRE_EXTENSION=1 $(BIN)/python setup.py -q build \
	    --build-base $$folder --build-lib $$folder/lib >$$folder.log 2>&1 || { tail -n 40 $$folder.log; exit 1; }; \
	  echo "$$compiler: built"; \
	  PYTHONPATH=$$folder/lib $(BIN)/pytest -m "not slow" tests/ops || exit 1; \
	done

# The plain-Python path with the oldest torch. Nothing is compiled; it downloads a torch of its own.
PURE_TESTS := tests/junctions tests/model tests/ops tests/optim tests/policies tests/tasks tests/test_doctests.py
NEED_TRANSFORMERS := tests/model/test_other_models.py

oldest:
	rm -rf build/oldest && $(PYTHON) -m venv build/oldest/venv
	build/oldest/venv/bin/python -m pip install --quiet torch==2.6.0 numpy==1.26.0 matplotlib==3.8.0 rich==13.0.0 \
	  scikit-learn==1.4.0 scipy==1.11.2 tyro==0.9.0 expecttest hypothesis pytest pytest-benchmark
	CGGM_PURE_PYTHON=1 build/oldest/venv/bin/python -m pip install --quiet --no-deps --target build/oldest/lib .
	PYTHONPATH=build/oldest/lib build/oldest/venv/bin/pytest -m "not slow" $(PURE_TESTS) --ignore=$(NEED_TRANSFORMERS)

bench: $(TESTABLE)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest benchmarks --benchmark-json=benchmark.json

# With what is installed beside $(PYTHON), on a machine with a GPU and perhaps without a network.
gpu:
	$(PYTHON) benchmarks/gpu

lint: $(TESTABLE)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site, in build/docs; a broken link or a docstring that does not parse is an error.
docs: $(TESTABLE)
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs build/docs

$(BIN)/python:
	$(PYTHON) -m venv $(VENV) || { echo "no virtual environment: on Debian, apt-get install python3-venv"; exit 1; }

# torch, setuptools and ninja first: the extension is built against exactly this torch.
BUILD_NEEDS := torch numpy setuptools ninja

$(INSTALLED): $(BIN)/python $(SOURCES)
	$(PIP) $(BUILD_NEEDS)
	$(PIP) --no-build-isolation --editable ".[demo]"
	touch $@

$(TESTABLE): $(BIN)/python $(SOURCES)
	$(PIP) $(BUILD_NEEDS)
	$(PIP) --no-build-isolation --editable ".[demo,dev,docs,integrations,papers]"
	touch $(INSTALLED) $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis benchmark.json
	find . -name "*.so" -not -path "./.git/*" -delete
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
