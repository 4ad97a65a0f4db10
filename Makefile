# make demo    the main job on this machine, from nothing: packages, environment, build, run
# make test    the tests, those of the kernels also in safe math and under check, on M4 and where it has kernels of its
#              own on M5 (make test-all: also the slow ones, and under check in fast math)
# make lint    what CI checks; make format applies it
# make bench   our ops against stock torch; make bench-simulator: the simulator itself
# make light   how near the speed of light the kernels are predicted to come on each chip (Linux)
# make macos-wheel  the wheels for macOS, cross-built on Linux; make macos-check: all that can be proved of them there
# make hub     build/hub: what Hugging Face's kernel-builder builds for the Hub, the links of torch-ext followed
# make build   the native parts only; make clean removes everything that was built

PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.mpskernels-requirements
PYTEST := $(PY) -m pytest -q --dist worksteal
# The tests of the kernels: those of every family that metal/ has.
FAMILIES = $(patsubst metal/%_variants.h,%,$(wildcard metal/*_variants.h))
KERNEL_TESTS = $(foreach family,$(FAMILIES),$(wildcard tests/test_$(family)*.py))
# Those with kernels for M5's matrix units, which where there are none run once more on a simulated M5.
M5_TESTS = $(wildcard tests/test_matmul*.py)
M5_PYTEST = $(if $(filter Linux,$(shell uname)),MPSK_SIMULATE=m5 $(PYTEST),@: )
CHECKED = $(if $(filter Linux,$(shell uname)),--mpsk-check)  # the simulator's checker watches them
CPP = git ls-files -co --exclude-standard -- '*.h' '*.cpp' '*.mm' '*.metal'

.PHONY: demo test test-all lint format bench bench-simulator light macos-wheel macos-check hub build setup clean

demo: build
	$(PY) -m mpskernels demo

# With ARGS, one run as they say; --math-mode safe is among them.
test: build
	$(PYTEST) -n 2 -m "not slow" $(ARGS)
	$(if $(ARGS),,$(PYTEST) -n 2 -m "not slow" --math-mode safe $(CHECKED) $(KERNEL_TESTS))
	$(if $(ARGS),,$(M5_PYTEST) -n 2 -m "not slow" --math-mode safe $(CHECKED) $(M5_TESTS))

test-all: build
	$(PYTEST) -n 2 $(ARGS)
	$(if $(ARGS),,$(PYTEST) -n 2 --math-mode safe $(CHECKED) $(KERNEL_TESTS))
	$(if $(ARGS),,$(if $(CHECKED),$(PYTEST) -n 2 -m "not slow" $(CHECKED) $(KERNEL_TESTS),@: ))
	$(if $(ARGS),,$(M5_PYTEST) -n 2 $(M5_TESTS))
	$(if $(ARGS),,$(M5_PYTEST) -n 2 --math-mode safe $(CHECKED) $(M5_TESTS))

lint: setup
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(CPP) | xargs clang-format-19 --dry-run -Werror

format: setup
	$(PY) -m ruff check --fix-only
	$(PY) -m ruff format
	$(CPP) | xargs clang-format-19 -i

bench: build
	$(PY) -m bench.table $(ARGS)

bench-simulator: build
	@.ci/system-packages $(PYTHON) oclgrind
	$(PY) -m bench.bench_simulator

light: build
	$(PY) -m bench.light $(ARGS)

macos-wheel: $(STAMP)-macos
	$(PY) -m macos.build $(ARGS)

macos-check: $(STAMP)-macos
	$(PY) -m macos.check

hub:
	rm -rf build/hub && mkdir -p build/hub
	cp -RL build.toml flake.nix torch-ext csrc metal build/hub

build: setup
	@echo "==> Native build (ninja; nothing to do when nothing changed)"
	$(PY) setup.py -q build_ext --inplace

setup: $(STAMP)
	@.ci/system-packages $(PYTHON)

$(STAMP): requirements.txt
	@.ci/system-packages $(PYTHON)
	@echo "==> Virtual environment $(VENV) with the packages of requirements.txt"
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q -r requirements.txt
	@touch $@

$(STAMP)-macos: $(STAMP) macos/requirements.txt
	$(PY) -m pip install -q -r macos/requirements.txt
	@touch $@

clean:
	rm -rf build dist mpskernels/metal *.egg-info .pytest_cache .ruff_cache bench/.results
	find mpskernels -name '*.so' -delete -o -name '*.metallib' -delete -o -name build.json -delete
