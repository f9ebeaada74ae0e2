# `make demo` and `make test` install what they need on first use; PYTHON=... picks the interpreter (3.11 or newer).
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo docs test test-rest test-slurm test-training
demo: $(INSTALLED)
	$(BIN)/python examples/demo.py

test: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	bash tests/slurm/install.sh
	$(MAKE) --no-print-directory --jobs 2 --output-sync=target test-training test-rest
	$(BIN)/python -m pytest tests/slurm

# Two halves, a core each: many tests fork, so they cannot be workers of one pytest, which has threads of its own.
test-training: $(INSTALLED)
	$(BIN)/python -m pytest tests/pretrain tests/structure
test-rest: $(INSTALLED)
	$(BIN)/python -m pytest --ignore tests/pretrain --ignore tests/structure --ignore tests/slurm

# The site, in build/site; a broken link is an error.
docs: $(INSTALLED)
	$(BIN)/zensical build --strict

test-slurm: $(INSTALLED)
	bash tests/slurm/install.sh
	$(BIN)/python -m pytest -rs tests/slurm

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[pretrain,heads,mutate,antibody,judge,structure,deepspeed,esm,hf,docs,dev]'
	# The PyPI packages fair-esm and esm overwrite each other's files, so one test looks into a folder of its own.
	$(BIN)/python -m pip install --no-deps --upgrade --target .venv/fair-esm fair-esm==2.0.0
	touch $@
