# Everything from a fresh clone with only Python (3.11 or newer) and make.
PYTHON ?= python3
VENV ?= .venv
# Passed on to every pip install, such as the index of the CPU builds of torch.
PIP_ARGS ?=
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: help quickstart test lint types vllm bench sample wheel check-wheel clean

help:
	@echo "make quickstart   install, run the quick-start benchmark, name the report"
	@echo "make test         lint, types, tests, and the wheel in an empty environment"
	@echo "make vllm         a real vLLM for the tests that serve the miniature judge (Linux)"
	@echo "make bench        how fast judging and the report are, and what memory judging takes (minutes)"
	@echo "make sample       remake reports/sample from a fresh quick-start run"
	@echo "make wheel        build dist/*.whl"

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	touch $@

quickstart: $(INSTALLED)
	$(BIN)/autolora-eval run quickstart

test: $(INSTALLED) lint types check-wheel
	$(BIN)/python -m pytest

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/mypy

# An environment of its own in build/vllm; without it 'make test' leaves those tests out.
vllm:
	PYTHON='$(PYTHON)' PIP_ARGS='$(PIP_ARGS)' tests/vllm_environment/make

bench: $(INSTALLED)
	$(BIN)/python tests/benches/judge_throughput.py
	$(BIN)/python tests/benches/report_time.py

sample: $(INSTALLED)
	rm -rf build/sample build/sample-cache
	AUTOLORA_EVAL_CACHE=build/sample-cache $(BIN)/autolora-eval run quickstart --output build/sample
	$(BIN)/python reports/make_sample.py build/sample reports/sample

wheel: $(INSTALLED)
	rm -rf dist
	$(BIN)/python -m build --wheel

check-wheel: wheel
	PYTHON='$(PYTHON)' PIP_ARGS='$(PIP_ARGS)' BIN='$(BIN)' .ci/check_wheel

clean:
	rm -rf $(VENV) build dist
