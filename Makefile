# Everything happens inside this folder, apart from system packages that are missing. `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: help demo test check typing docs docs-check wheel others nightly modules mutants bench release clean
.DEFAULT_GOAL := test

help:  ## this list
	@sed -n 's/^\([a-z]*\)[a-z -]*:.*## */\1\t/p' $(MAKEFILE_LIST)

# The library in development, from src/, with the tools. Tests run elsewhere: see scripts/wheel_tests.py.
$(VENV)/.installed: pyproject.toml constraints.txt scripts/system-packages.sh
	./scripts/system-packages.sh
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[dev,docs]'
	touch $@

demo: $(VENV)/.installed  ## keys in SoftHSM, tokens, and payments against them
	@./softhsm-setup.sh 2>/dev/null
	@. ./.softhsm/env && $(BIN)/python examples/quickstart.py

check: $(VENV)/.installed typing  ## the source tree, read: style, types, sizes
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m scripts.blocking_vault --check
	$(BIN)/python -m scripts.sizes

typing: $(VENV)/.installed  ## the types that users' editors see
	$(BIN)/basedpyright --warnings

# Strict: a dead link, a name that is not there or a page that no list has fails the build.
docs docs-check: $(VENV)/.installed  ## the documentation, in build/docs
	rm -rf build/docs
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going --nitpicky docs build/docs

wheel: $(VENV)/.installed  ## wheel and sdist, in dist/
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist . >/dev/null

others: wheel  ## the installed wheel: a short set with every other Python; for this one, its environment
	$(BIN)/python -m scripts.wheel_tests --others

# What has nothing to do with each other runs side by side; then all tests, which want the machine for themselves.
test: $(VENV)/.installed  ## checks, docs, the short set with every other Python; then all tests with this one, on the wheel
	./scripts/system-packages.sh tests
	$(MAKE) --no-print-directory --jobs=2 --output-sync=target others check docs-check
	$(BIN)/python -m scripts.wheel_tests
	$(BIN)/python -m scripts.run_lines

nightly: wheel  ## the long tests
	./scripts/system-packages.sh tests
	$(BIN)/python -m scripts.wheel_tests -m nightly --numprocesses 3 --dist worksteal --durations 25

modules: wheel  ## real PKCS#11 modules, with their daemons: as root
	./scripts/system-packages.sh modules
	$(BIN)/python -m scripts.wheel_tests -m modules

# ROOM is one of scripts/mutants/rooms.py; PART=2/8 tries every eighth change, from the second on.
ROOM ?= crypto
PART ?= 1/1
mutants: $(VENV)/.installed  ## small changes planted in ROOM, one at a time: those that no test notices
	./scripts/system-packages.sh tests
	$(BIN)/python -m scripts.mutants $(ROOM) --part $(PART)

# Peers are installed one by one: the benchmark runs without those that can not be, and says so.
$(VENV)/.peers: $(VENV)/.installed benchmarks/peers.txt
	./scripts/system-packages.sh bench
	$(PIP) --editable '.[bench]'
	while read -r peer; do $(BIN)/python -m pip install --quiet --disable-pip-version-check $$peer || true; done <benchmarks/peers.txt
	touch $@

bench: $(VENV)/.peers  ## the benchmarks of docs/benchmarks.md
	$(BIN)/python -m benchmarks --write

release: $(VENV)/.installed  ## what is published, in dist/: wheel, sdist, SBOM, checksums
	$(BIN)/python -m scripts.release

clean:  ## removes whatever the targets made
	rm -rf $(VENV) .venvs .softhsm .demo .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage* htmlcov build dist
