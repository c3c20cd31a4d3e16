# Everything happens inside this folder, apart from system packages that are missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test check docs docs-check nightly bench clean
.DEFAULT_GOAL := test

$(VENV)/.installed: pyproject.toml constraints.txt scripts/system-packages.sh
	./scripts/system-packages.sh
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(VENV)/.installed
	@./softhsm-setup.sh 2>/dev/null
	@. ./.softhsm/env && $(BIN)/python examples/quickstart.py

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m scripts.blocking_vault --check

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	touch $@

# Strict: a dead link, a name that is not there or a page that no list has fails the build.
docs docs-check: $(VENV)/.docs
	rm -rf build/docs
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going --nitpicky docs build/docs

test: check docs-check
	./scripts/system-packages.sh tests
	$(BIN)/pytest --numprocesses 2 --dist worksteal

nightly: $(VENV)/.installed
	./scripts/system-packages.sh tests
	$(BIN)/pytest -m nightly

# Peers are installed one by one: the benchmark runs without those that can not be, and says so.
$(VENV)/.peers: $(VENV)/.installed benchmarks/peers.txt
	./scripts/system-packages.sh bench
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[bench]'
	while read -r peer; do $(BIN)/python -m pip install --quiet --disable-pip-version-check $$peer || true; done <benchmarks/peers.txt
	touch $@

bench: $(VENV)/.peers
	$(BIN)/python -m benchmarks --write

clean:
	rm -rf $(VENV) .softhsm .demo .mypy_cache .ruff_cache .pytest_cache .hypothesis dist
