# `make demo` and `make test` install what they need on first use; PYTHON=... picks the interpreter (3.11 or newer).
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo test test-slurm
demo: $(INSTALLED)
	$(BIN)/python examples/demo.py

test: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	bash tests/slurm/install.sh
	$(BIN)/python -m pytest

test-slurm: $(INSTALLED)
	bash tests/slurm/install.sh
	$(BIN)/python -m pytest -rs tests/slurm

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[pretrain,heads,judge,structure,deepspeed,esm,dev]'
	# The PyPI packages fair-esm and esm overwrite each other's files, so one test looks into a folder of its own.
	$(BIN)/python -m pip install --no-deps --upgrade --target .venv/fair-esm fair-esm==2.0.0
	touch $@
