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
CXX_FILES    = $(shell find csrc tests/cpp tests/emulate -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' 2>/dev/null)

.DEFAULT_GOAL := help
.PHONY: help venv build demo test lint format sanitize emulate emulate-asan emulate-tsan cuda cuda-check wheel
.PHONY: bench bench-check bench-results ulp docs clean distclean

help:  ## list the targets
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/\1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r name text; do printf '  %-14s %s\n' "$$name" "$$text"; done

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

# The kernels of the device run on the CPU (tests/emulate): the whole suite of the CPU's kernels, and the
# device's own tests with the sanitizers in the kernels and the emulation. tests/test_softmax.py takes too long on
# fibers: softmax on the device has its own tests of every length, layout and mask in tests/test_emulated.py.
EMULATED_TESTS := tests/test_emulated.py tests/test_emulated_faults.py tests/test_emulated_programs.py \
                  tests/test_emulated_indexing.py tests/test_emulated_own.py tests/test_emulated_layouts.py

emulate: build  ## run the tests of the kernels on the emulated CUDA device
	INPLACE_EXT_TEST_EMULATED=1 $(BIN)/pytest -q -p no:cacheprovider tests/test_parity.py tests/test_layouts.py \
	tests/test_engine.py tests/test_operations.py tests/test_dropout.py tests/test_hypothesis.py tests/test_indexing.py
	INPLACE_EXT_TEST_CUDA=emulated $(BIN)/pytest -q -p no:cacheprovider tests/test_cuda.py

emulate-asan: build  ## run the tests of the emulated device under AddressSanitizer and UBSan
	INPLACE_EXT_EMULATE_SANITIZE=address LD_PRELOAD="$(strip $(ASAN_LIBS))" \
	ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=0 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 \
	$(BIN)/pytest -q -p no:cacheprovider --capture=sys $(EMULATED_TESTS)

# Threads of the device are threads of the system here, which takes long: a part of the tests. Python and torch are
# not instrumented, and the sanitizer of GCC 12 needs addresses that are not random.
TSAN_LIBS = $(foreach lib,tsan stdc++,$(shell $${CXX:-c++} -print-file-name=lib$(lib).so))
emulate-tsan: build  ## run the tests of the emulated device under ThreadSanitizer
	INPLACE_EXT_EMULATE_SANITIZE=thread LD_PRELOAD="$(strip $(TSAN_LIBS))" \
	TSAN_OPTIONS=halt_on_error=1:report_mutex_bugs=0:ignore_noninstrumented_modules=1 \
	OMP_NUM_THREADS=1 setarch -R $(BIN)/pytest -q -p no:cacheprovider --capture=sys $(EMULATED_TESTS) \
	-k "faults or seed_from or many or test_ways and add_ and float32 or draws_of and float32-contiguous or grid_nor and layouts"

# A second environment, with the CUDA build of torch, and a build in a tree of its own: beside the other one,
# whose modules are for another torch. No GPU is needed for either. -m would take the package of this folder.
CUDA_VENV  := .venv-cuda
CUDA_STAMP := $(CUDA_VENV)/.stamp
CUDA_TORCH := 2.14.1
CUDA_TREE  := $(CURDIR)/build/cuda

$(CUDA_STAMP): requirements-dev.txt
	test -x $(CUDA_VENV)/bin/python || $(PYTHON) -m venv $(CUDA_VENV)
	$(CUDA_VENV)/bin/python -m pip --disable-pip-version-check -qq install torch==$(CUDA_TORCH)
	grep -v '^torch==' requirements-dev.txt | $(CUDA_VENV)/bin/python -m pip --disable-pip-version-check -qq install -r /dev/stdin
	@touch $@

cuda: $(CUDA_STAMP)  ## build with the CUDA kernels, for sm_80, sm_90 and sm_120, and test what needs no GPU (and what does, where one is)
	INPLACE_EXT_BUILD=1 INPLACE_EXT_CUDA=1 TORCH_CUDA_ARCH_LIST="8.0;9.0;12.0" \
	$(CUDA_VENV)/bin/python setup.py -q build --build-base $(CUDA_TREE) --build-lib $(CUDA_TREE)/lib
	cd $(CUDA_TREE) && PYTHONPATH=lib $(CURDIR)/$(CUDA_VENV)/bin/python -m inplace_ext
	INPLACE_EXT_TEST_CUDA=1 PYTHONPATH=$(CUDA_TREE)/lib \
	$(CUDA_VENV)/bin/pytest -q -p no:cacheprovider tests/test_cuda.py

cuda-check: venv  ## compile the CUDA kernels for sm_75 to sm_120 and check registers, spills and vector accesses
	$(BIN)/pytest -q -s tests/test_cuda_static.py --cuda-architectures 75,80,90,100,120

wheel: venv  ## build a wheel of this platform and an sdist into dist/
	$(PIP) wheel --no-build-isolation --no-deps -w dist .
	$(PY) -m build --sdist --no-isolation
	@ls -l dist

# BENCH is handed to the harness: make bench BENCH="--suite fuse --quick"
bench: build  ## measure, beside torch, NumPy and numexpr (BENCH="--suite fuse --quick")
	$(PY) -m benchmarks run $(BENCH)

bench-check: build  ## measure the quick cases, and fail below the floors of benchmarks/floors.toml
	$(PY) -m benchmarks check $(BENCH)

# The committed file, and everything made from it. A run that was interrupted goes on where it stopped.
RESULTS ?= benchmarks/results/xeon-avx512.csv
bench-results: build  ## measure everything into benchmarks/results, and make README's tables and pictures from it
	$(PY) -m benchmarks run --resume --output build/bench-results.csv $(BENCH)
	cp build/bench-results.csv $(RESULTS)
	$(PY) -m benchmarks plot --results $(RESULTS)
	$(PY) -m benchmarks tables --results $(RESULTS)

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
