# `make demo` and `make test` need only python3 (3.11 or later) and make: each
# builds a private environment in $(VENV) first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PYTEST := $(BIN)/python -m pytest -n $(or $(WORKERS),2) --dist worksteal -q

.PHONY: demo test test-fast bench lint clean

demo: $(READY)  ## train dense, prune to 90 % in 4x16 blocks, print the table
	$(BIN)/python -m experiments.run --config experiments/configs/demo.py --workdir runs/demo --overwrite

test: $(READY)  ## the whole suite
	$(PYTEST) tests

test-fast: $(READY)  ## what one runs while working: under three minutes
	$(PYTEST) -m "not slow" tests

bench: $(READY)  ## what the transforms cost on this machine
	$(BIN)/python -m experiments.bench.transforms

lint: $(READY)
	$(BIN)/python -m pip install -q -e '.[dev]'
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/pyright --pythonpath $(BIN)/python

$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "jaxsparse needs Python 3.11 or later, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[experiments,test]'
	@touch $@

clean:
	rm -rf .venv* runs
