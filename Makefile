# Each target runs from a bare clone to the end, in .venv. PYTHON chooses the interpreter that makes it.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PY     := $(BIN)/python
PIP    := $(PY) -m pip --disable-pip-version-check -qq

VENV_STAMP  := $(VENV)/.stamp
BUILD_STAMP := build/.stamp
# Folders too, so that a file removed counts as a change.
CXX_TREE    := $(shell find csrc)
CXX_FILES    = $(shell find csrc tests/cpp -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' 2>/dev/null)

.DEFAULT_GOAL := help
.PHONY: help venv build demo test lint format sanitize wheel bench ulp docs clean distclean

help:  ## list the targets
	@sed -nE 's/^([a-z]+):[^#]*## (.*)/\1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r name text; do printf '  %-10s %s\n' "$$name" "$$text"; done

$(VENV_STAMP): requirements-dev.txt
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PIP) install -r requirements-dev.txt
	@touch $@

$(BUILD_STAMP): $(VENV_STAMP) $(CXX_TREE) setup.py pyproject.toml inplace_ext/_build.py
	$(PIP) install --no-build-isolation --no-deps -e .
	@mkdir -p $(@D) && touch $@

venv: $(VENV_STAMP)  ## make .venv with everything development needs
build: $(BUILD_STAMP)  ## compile, and install in place into .venv

demo: build  ## pre-process a photograph in place, beside torch
	$(PY) -m inplace_ext.demo

test: build  ## run the tests
	$(BIN)/pytest -q

lint: venv  ## check style, types, formatting and generated files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy inplace_ext
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)
	$(PY) tools/generate.py --check
	$(PY) tools/make_math_tables.py --check

format: venv  ## rewrite the sources in the style that lint checks
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)
	$(PY) tools/generate.py

# The sanitized package lies in a tree of its own, ahead of the editable install on the path. Python
# itself is not instrumented: the runtimes are loaded before it, with libstdc++ so that they find
# __cxa_throw, and its leaks are not counted. pytest's own capture of file descriptors would swallow a report.
SANITIZED := $(CURDIR)/build/sanitize
ASAN_LIBS  = $(foreach lib,asan ubsan stdc++,$(shell $${CXX:-c++} -print-file-name=lib$(lib).so))

sanitize: build  ## run the tests with the C++ under AddressSanitizer and UBSan
	INPLACE_EXT_BUILD=1 INPLACE_EXT_SANITIZE=1 $(PY) setup.py -q build --build-base $(SANITIZED) --build-lib $(SANITIZED)/lib
	INPLACE_EXT_SANITIZE=1 PYTHONPATH=$(SANITIZED)/lib LD_PRELOAD="$(strip $(ASAN_LIBS))" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
	$(BIN)/pytest -q -p no:cacheprovider --capture=sys -m "not slow and not nosanitize" -k "not compile"

wheel: venv  ## build a wheel of this platform and an sdist into dist/
	$(PIP) wheel --no-build-isolation --no-deps -w dist .
	$(PY) -m build --sdist --no-isolation
	@ls -l dist

bench: build  ## print the tables of benchmarks: operations, layouts, softmax, dropout, chains, threads
	$(PY) benchmarks/ops.py
	$(PY) benchmarks/layouts.py
	$(PY) benchmarks/softmax.py
	$(PY) benchmarks/dropout.py
	$(PY) benchmarks/fuse.py
	$(PY) benchmarks/threads.py

ulp: venv  ## measure the maximum errors of the vector math, in minutes
	$(PY) tools/measure_ulp.py

docs: build  ## build the documentation into build/docs, with warnings as errors
	$(BIN)/sphinx-build -q -W --keep-going -b html docs build/docs
	@echo build/docs/index.html

clean:  ## remove what was built
	rm -rf build dist *.egg-info inplace_ext/*.so inplace_ext/_pure_python.txt
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean  ## remove .venv as well
	rm -rf $(VENV)
