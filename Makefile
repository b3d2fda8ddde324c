# Each target sets itself up: a virtual environment and the locked dependencies, then the work.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DOCS ?=
SINK ?=
export UV_NO_PROGRESS := 1
export DAGSTER_DISABLE_TELEMETRY := 1

.PHONY: setup demo dev test lint format bench lock clean

setup: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14) and "Indexport needs Python 3.11 to 3.13; say PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --require-hashes --requirements requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	touch $@

demo: setup
	$(BIN)/indexport demo $(if $(DOCS),--documents "$(DOCS)")

dev: setup
	$(BIN)/indexport dev $(if $(DOCS),--documents "$(DOCS)")

test: setup
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup
	$(BIN)/python -m benchmarks $(if $(SINK),--sink $(SINK))

lock:
	$(BIN)/uv pip compile pyproject.toml --all-extras --group dev --group offline-model --universal --python-version 3.11 \
	  --generate-hashes --no-header --no-emit-index-url --quiet --output-file requirements.lock

clean:
	rm -rf $(VENV) .indexport .pytest_cache .mypy_cache .ruff_cache .hypothesis
