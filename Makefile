# Each target sets itself up: a virtual environment and the locked dependencies, then the work.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EXTRAS := azure pgvector postgres qdrant s3 turbopuffer
LLAMA_EXTRAS := llama-index llama-index-stores
LLAMA_VENV := .venv-llama-index
LLAMA_STAMP := $(LLAMA_VENV)/.installed
LLAMA_TLS := $(LLAMA_VENV)/tls
# More than cores: tests of daemons and of retries mostly wait.
TEST_WORKERS ?= 4
DOCS ?=
SINK ?=
SOAK_SECONDS ?= 600
SOAK_KILLS ?= 50
export UV_NO_PROGRESS := 1
export DAGSTER_DISABLE_TELEMETRY := 1
# Empty means that byte code is kept, whatever the caller's environment says: uv makes none, and every process would compile
# the modules of Dagster, the SDKs and the tests anew.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: setup demo dev test test-llama-index soak lint format bench lock clean

setup: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14) and "Indexport needs Python 3.11 to 3.13; say PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --require-hashes --requirements requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	touch $@

$(LLAMA_STAMP): $(STAMP) requirements-llama-index.lock
	$(PYTHON) -m venv $(LLAMA_VENV)
	$(BIN)/uv pip install --quiet --python $(LLAMA_VENV)/bin/python --no-deps --require-hashes --requirements requirements-llama-index.lock
	$(BIN)/uv pip install --quiet --python $(LLAMA_VENV)/bin/python --no-deps --editable .
	touch $@

# The MongoDB tests' engine: beta releases that may disappear from the registry, so that it has a lock of its own.
%/.secantus: requirements-secantus.lock %/.installed
	if $(BIN)/uv pip install --quiet --python $*/bin/python --no-deps --require-hashes --requirements requirements-secantus.lock; \
	  then touch $@; else echo "SecantusDB cannot be installed: the tests end with what is NOT TESTED, and the next try again"; fi

demo: setup
	$(BIN)/indexport demo $(if $(DOCS),--documents "$(DOCS)")

dev: setup
	$(BIN)/indexport dev $(if $(DOCS),--documents "$(DOCS)")

# Workers that start together in a new environment would each compile the same five thousand modules: one process has done it
# before, in both environments at once.
%/.compiled: %/.installed
	-$*/bin/python -m pytest --collect-only --quiet -p no:cacheprovider >/dev/null 2>&1
	touch $@

test: setup $(VENV)/.secantus
	$(MAKE) --no-print-directory --jobs 2 $(VENV)/.compiled $(LLAMA_VENV)/.compiled
	$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist worksteal
	$(MAKE) --no-print-directory test-llama-index

# What needs LlamaIndex, and the sinks whose SDKs it holds at an older major; that of Azure AI Search speaks TLS alone.
test-llama-index: $(LLAMA_STAMP) $(LLAMA_VENV)/.secantus
	$(LLAMA_VENV)/bin/python -m pipeline_tests.emulators.certificate $(LLAMA_TLS)
	AZURE_EMULATOR_CERTIFICATE=$(LLAMA_TLS)/certificate.pem AZURE_EMULATOR_KEY=$(LLAMA_TLS)/key.pem \
	  SSL_CERT_FILE=$(LLAMA_TLS)/certificate.pem REQUESTS_CA_BUNDLE=$(LLAMA_TLS)/certificate.pem \
	  $(LLAMA_VENV)/bin/python -m pytest -n $(TEST_WORKERS) --dist worksteal -rs -p no:cacheprovider \
	  pipeline_tests/llama_index pipeline_tests/conformance pipeline_tests/sinks -k "llama_index or llama_docstore or azure or pinecone"

soak: setup
	SOAK_SECONDS=$(SOAK_SECONDS) SOAK_KILLS=$(SOAK_KILLS) $(BIN)/python -m pytest -n 2 --dist worksteal pipeline_tests/soak

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup
	$(BIN)/python -m benchmarks $(if $(SINK),--sink $(SINK))

lock: COMPILE = $(BIN)/uv pip compile pyproject.toml --group dev --group offline-model --universal --python-version 3.11 \
  --generate-hashes --no-header --no-emit-index-url --quiet
lock:
	$(COMPILE) $(EXTRAS:%=--extra %) --output-file requirements.lock
	$(COMPILE) $(EXTRAS:%=--extra %) $(LLAMA_EXTRAS:%=--extra %) --output-file requirements-llama-index.lock

clean:
	rm -rf $(VENV) $(LLAMA_VENV) .indexport .pytest_cache .mypy_cache .ruff_cache .hypothesis
