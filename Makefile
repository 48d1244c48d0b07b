# Everything a newcomer needs: `make run` and `make test` set up the rest. Requires Python 3.11+ and make.

PYTHON ?= python3
export UV_PYTHON_DOWNLOADS := never
VENV   := .venv
BIN    := $(VENV)/bin
UV     := $(shell command -v uv 2>/dev/null)
CXX_ON_PATH := $(firstword $(foreach c,$(filter-out g++,$(CXX)) c++ g++ clang++,$(shell command -v $(c) 2>/dev/null)))

ifdef UV
INSTALL := $(UV) pip install --quiet --python $(BIN)/python
else
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
endif

NATIVE_SOURCES := $(wildcard $(addprefix llmosd/runtime/native/,build.py *.cpp *.h kernels/*.cpp kernels/*.h))
SOURCES := llmosd tui tests bench hatch_build.py
MODEL   := smollm2-135m-instruct

.PHONY: run test check check-native bench soak demo install model lock clean

run: model  ## serve the model and talk to it
	$(BIN)/llmosd run --serve

test: check  ## checks, then the whole test suite, with the real model
	$(BIN)/llmosd models pull $(MODEL) --home .cache/home
	$(BIN)/pytest

check: $(VENV)/.test  ## lint, format, types, import contracts
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports

check-native: $(VENV)/.test  ## the native operators' tests under address and undefined-behaviour sanitizers (needs gcc)
	$(BIN)/python llmosd/runtime/native/build.py --sanitize
	LLMOS_NATIVE_LIBRARY=$(CURDIR)/llmosd/runtime/native/lib/libllmos-sanitize.so ASAN_OPTIONS=detect_leaks=0 \
	  LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libstdc++.so)" \
	  $(BIN)/pytest tests/native --timeout 900 --ignore tests/native/test_native_library.py --ignore tests/native/test_native_neon.py

bench: model  ## single-stream and batched speed on this machine
	$(BIN)/python bench/engine.py

soak: model  ## half an hour of mixed load: errors, memory, trend of step time
	$(BIN)/python bench/soak.py --json bench/results/soak.json

demo: model  ## a daemon under gentle load, watched in llmos-top
	$(BIN)/python tui/demo.py

install: $(VENV)/.package

model: install
	$(BIN)/llmosd models pull $(MODEL)

clean:  ## remove what this file made (not the data under LLMOS_HOME)
	rm -rf $(VENV) .cache dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	rm -rf llmosd/runtime/native/lib

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; name one with: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
ifdef UV
	$(UV) venv --quiet --python $(PYTHON) $(VENV)
else
	$(PYTHON) -m venv $(VENV)
endif

$(VENV)/.runtime: requirements/runtime.txt | $(BIN)/python
	@echo "installing dependencies into $(VENV)"
	$(INSTALL) --require-hashes -r requirements/runtime.txt
	@touch $@

$(VENV)/.compiler: requirements/compiler.txt | $(BIN)/python
ifeq ($(CXX_ON_PATH),)
	@echo "no C++ compiler on PATH: installing one (ziglang)"
	$(INSTALL) --require-hashes -r requirements/compiler.txt
endif
	@touch $@

$(VENV)/.package: pyproject.toml hatch_build.py $(NATIVE_SOURCES) $(VENV)/.runtime $(VENV)/.compiler
	$(INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.test: requirements/test.txt $(VENV)/.package
	$(INSTALL) --require-hashes -r requirements/test.txt
	@touch $@

COMPILE := $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-annotate --no-header \
  --python-version 3.11

lock:  ## resolve the dependencies of pyproject.toml afresh
	$(BIN)/python -m pip install --quiet uv
	$(COMPILE) pyproject.toml --group build --upgrade --output-file requirements/runtime.txt
	$(COMPILE) pyproject.toml --group build --extra test --constraint requirements/runtime.txt --upgrade \
	  --output-file requirements/test.txt
	$(COMPILE) --group compiler --upgrade --output-file requirements/compiler.txt
