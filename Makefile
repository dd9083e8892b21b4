# Every target does its own set-up: a virtual environment in .venv, pinned dependencies, the compiled extension.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TESTABLE := $(VENV)/.testable
SOURCES := setup.py pyproject.toml constraints.txt $(shell find csrc -type f)
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt
DIST ?= dist

.PHONY: demo test test-all coverage compilers oldest newest wheel pure-wheel wheels lint docs bench gpu clean

demo: $(INSTALLED)
	$(BIN)/cggm demo

test: $(TESTABLE)
	$(BIN)/python -m pytest -m "not slow"

test-all: $(TESTABLE)
	$(BIN)/python -m pytest

# The share of lines that the fast tests run, in processes that they start, too. pyproject.toml has the settings. Where the
# disk is full, coverage itself cannot write.
coverage: $(TESTABLE)
	$(BIN)/python -m pytest -m "not slow" -k "not on_a_full_disk" --cov --cov-report=term-missing:skip-covered

# Builds and tests the CPU kernels with each of these that is installed (Debian: apt-get install g++-11 g++-12 clang).
COMPILERS ?= g++-11 g++-12 g++-13 g++-14 clang++ clang++-16 clang++-19

compilers: $(TESTABLE)
	@for compiler in $(COMPILERS); do \
	  command -v $$compiler >/dev/null || { echo "$$compiler: not installed"; continue; }; \
	  folder=build/compilers/$$compiler; rm -rf $$folder; mkdir -p $$folder; \
	  CXX=$$compiler CGGM_CUDA_ARCHS= CGGM_REQUIRE_EXTENSION=1 $(BIN)/python setup.py -q build \
	    --build-base $$folder --build-lib $$folder/lib >$$folder.log 2>&1 || { tail -n 40 $$folder.log; exit 1; }; \
	  echo "$$compiler: built"; \
	  PYTHONPATH=$$folder/lib $(BIN)/pytest -m "not slow" tests/ops || exit 1; \
	done

# A source distribution in $(DIST), and made from it a wheel for this platform: one file for every Python from 3.10 and every
# torch from 2.11 on. CUDA kernels are in it where nvcc is found. On Linux it fits as old a system as the compiler allows;
# torch's own libraries stay out.
wheel: $(TESTABLE)
	rm -rf build/wheel && mkdir -p $(DIST)
	CGGM_REQUIRE_EXTENSION=1 CGGM_CUDA_ARCHS="$${CGGM_CUDA_ARCHS-default}" \
	  $(BIN)/python -m build --no-isolation --outdir build/wheel >build/wheel.log 2>&1 || { tail -n 40 build/wheel.log; exit 1; }
	rm -f $(DIST)/cggm-*-abi3-*.whl && cp build/wheel/*.tar.gz $(DIST)
	if [ "$$(uname -s)" = Linux ]; then PATH="$(abspath $(BIN)):$$PATH" auditwheel repair \
	  --exclude 'libtorch*' --exclude 'libc10*' --wheel-dir $(DIST) build/wheel/*.whl; \
	else cp build/wheel/*.whl $(DIST); fi

# A source distribution, and one wheel for every platform, without compiled kernels.
pure-wheel: $(TESTABLE)
	CGGM_PURE_PYTHON=1 $(BIN)/python -m build --no-isolation --outdir $(DIST) >/dev/null

# The wheels for Linux, macOS and both processors, by cibuildwheel, which needs Docker on Linux.
wheels: $(BIN)/python
	$(PIP) cibuildwheel
	$(BIN)/python -m cibuildwheel --output-dir $(DIST)

# The wheels with versions that they were not built with: the lowest of pyproject.toml, and the newest or another torch,
# also with another Python: make newest TORCH=torch==2.11.0 PYTHON=python3.10. Each downloads a torch of its own.
TORCH ?= torch
TEST_NEEDS := expecttest hypothesis pytest pytest-benchmark

# Without tests/distributed: sharding on a CPU fails inside torch 2.6.
oldest: pure-wheel
	rm -rf build/oldest && $(PYTHON) -m venv build/oldest
	grep -oE '"[a-z0-9-]+>=[0-9.]+' pyproject.toml | grep -v triton | tr -d '"' | sed 's/>=/==/' >build/oldest/lowest.txt
	build/oldest/bin/python -m pip install --quiet --constraint build/oldest/lowest.txt $(TEST_NEEDS) \
	  "$$(ls $(DIST)/cggm-*-none-any.whl)[demo,integrations,papers]"
	build/oldest/bin/pytest -m "not slow" --ignore=tests/test_packaging.py --ignore=tests/distributed

newest: wheel
	rm -rf build/newest && $(PYTHON) -m venv build/newest
	build/newest/bin/python -m pip install --quiet $(TORCH) $(TEST_NEEDS) \
	  "$$(ls $(DIST)/cggm-*-abi3-*.whl)[demo,integrations,papers]"
	build/newest/bin/pytest -m "not slow" --ignore=tests/test_packaging.py

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
