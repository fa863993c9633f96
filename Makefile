# Everything from a fresh clone with only Python (3.11 or newer) and make.
PYTHON ?= python3
VENV ?= .venv
# Passed on to every install, such as the index of the CPU builds of torch.
PIP_ARGS ?=
# Tests run in this many processes, each with one thread.
WORKERS ?= 2
UV_VERSION := 0.13.9
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# uv installs in seconds what takes pip minutes. It reads no settings of pip: pass these on. Unlike
# pip it leaves no bytecode unless asked, and then every first import compiles its libraries.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
INSTALL := $(BIN)/uv pip install --quiet --python $(BIN)/python $(PIP_ARGS)

.PHONY: help quickstart test checks tests test-unit lint types docs vllm performance rehearsal gpu-check sample wheel check-wheel clean

help:
	@echo "make quickstart   install, run the quick-start benchmark, print the path of the report"
	@echo "make test         everything that CI checks: lint, types, docs, the wheel, all tests"
	@echo "make test-unit    the tests that load no model, under two minutes"
	@echo "make docs         build the documentation site into build/site"
	@echo "make vllm         install vLLM for the tests that serve the miniature judge (Linux)"
	@echo "make performance  measure speed and memory against other ways to do the same (45 minutes)"
	@echo "make fuzz         give every reader CASES=10000 hostile inputs (ten minutes)"
	@echo "make torture      kill KILLS=40 runs, fill the disk, set the clock back; ARGS='--engine ray'"
	@echo "make rehearsal    run all but the judge on SDXL, SD3 and DINOv2-giant, random weights"
	@echo "make gpu-check    compare a GPU with the CPU: precision, noise, memory, seconds an image"
	@echo "make sample       remake reports/sample from a fresh quick-start run"
	@echo "make wheel        build dist/*.whl"

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet uv==$(UV_VERSION)
	$(INSTALL) --compile-bytecode -c constraints.txt -e '.[dev]'
	touch $@

quickstart: $(INSTALLED)
	$(BIN)/autolora-eval run quickstart

test: checks tests

checks: $(INSTALLED)
	$(MAKE) --no-print-directory -j2 lint types docs check-wheel

tests: $(INSTALLED)
	$(BIN)/python -m pytest -n $(WORKERS)

test-unit: $(INSTALLED)
	$(BIN)/python -m pytest -n $(WORKERS) -m unit

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/mypy

docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict --site-dir build/site

# vLLM gets an environment of its own in build/vllm. Without it 'make test' skips its tests.
vllm: $(INSTALLED)
	UV='$(BIN)/uv' PYTHON='$(PYTHON)' PIP_ARGS='$(PIP_ARGS)' tests/vllm_environment/make

performance: $(INSTALLED)
	$(BIN)/python -m benchmarks.performance

CASES ?= 10000
fuzz: $(INSTALLED)
	CASES=$(CASES) $(BIN)/python -m pytest tests/test_fuzz.py -n $(WORKERS)

KILLS ?= 40
torture: $(INSTALLED)
	$(BIN)/python tests/torture.py --folder build/torture --kills $(KILLS) $(ARGS)

# The exact architectures with random weights: 16 GB of memory, 16 GB of disk, 15 minutes.
rehearsal: $(INSTALLED)
	$(BIN)/python tests/rehearsal/rehearse.py

gpu-check: $(INSTALLED)
	PYTHONPATH=tests:tests/rehearsal:examples/own_guider $(BIN)/python tests/rehearsal/gpu_check.py

sample: $(INSTALLED)
	rm -rf build/sample build/sample-cache
	AUTOLORA_EVAL_CACHE=build/sample-cache $(BIN)/autolora-eval run quickstart --output build/sample
	$(BIN)/python reports/make_sample.py build/sample reports/sample

wheel: $(INSTALLED)
	rm -rf dist
	$(BIN)/python -m build --wheel --installer uv

check-wheel: wheel
	UV='$(BIN)/uv' PYTHON='$(PYTHON)' PIP_ARGS='$(PIP_ARGS)' BIN='$(BIN)' .ci/check_wheel

clean:
	rm -rf $(VENV) build dist
