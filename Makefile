# The two commands: `make demo` and `make test`. `make check` is the fast tier, `make matrix` the other Pythons.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# The parity gates compare with transformers on torch; a CPU build is enough. Override: make test TORCH=torch
TORCH  ?= torch==2.13.0
OUT    := .cache/demo

.PHONY: demo check test lint types unit wheel matrix lowest extras faults docs docs-serve clean

demo: $(BIN)/.base
	@GOG_EDGE_LIBRARY=$(OUT) $(BIN)/gog-edge demo

# Format, lint and the fast tests: under 40 seconds once the environment is there. What they leave out, `make test` runs.
FAST := $(filter-out tests/test_skips.py tests/test_user_paths.py,$(wildcard tests/test_*.py)) \
	tests/agent/test_loop.py tests/agent/test_request.py tests/dialects tests/families tests/faults/test_session_files.py \
	tests/image tests/runtime/test_generate.py tests/runtime/test_sequence.py tests/runtime/test_speculation.py \
	tests/runtime/test_tokenizer.py tests/search/test_index_store.py
check: lint
	$(BIN)/python -m pytest -q -n auto -m "not slow and not parity and not tensorrt" $(FAST)

test: lint types unit wheel

lint: $(BIN)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(BIN)/.dev
	$(BIN)/mypy

unit: $(BIN)/.dev
	$(BIN)/python tests/tools/fetch_qwen3_tokenizer.py || echo "without it, tests of real tokens are skipped"
	$(BIN)/python -m pytest -q -n auto

# The built wheel in an environment of its own, with the base install alone: what a user gets.
wheel: $(BIN)/.dev
	$(BIN)/python tests/tools/check_wheel.py

# The wheel and the fast tests on Python 3.10 to 3.13, as far as this machine has them.
matrix: $(BIN)/.dev
	$(BIN)/python tests/tools/matrix.py

# The same on the oldest and the newest Python with the oldest packages that pyproject.toml admits.
lowest: $(BIN)/.dev
	$(BIN)/python tests/tools/matrix.py --lowest 3.10 3.13

# Each extra in a clean environment, from the index, and what `doctor` says there (gigabytes for gpu; NAMES of extras).
NAMES ?= all
extras: $(BIN)/.dev
	GOG_EDGE_EXTRAS=$(NAMES) $(BIN)/python -m pytest -q -n 0 tests/test_extras.py

# Fuzzers, kills, sanitizers and a soak; the table goes into docs/reliability.md. MINUTES for all of it.
MINUTES ?= 20
SEED    ?= 0
faults: $(BIN)/.dev
	$(BIN)/python -m tests.faults --minutes $(MINUTES) --seed $(SEED) --write

# The site under build/docs, with search, the command line and the Python reference. No torch.
docs: $(BIN)/.docs
	$(BIN)/python docs/check.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet
	@echo "the site is in build/docs"

docs-serve: $(BIN)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs serve

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(BIN)/.docs: pyproject.toml peers/pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[docs,export,serve]'
	$(BIN)/python -m pip install --quiet --no-deps --editable ./peers
	@touch $@

# Running a bundle needs the base install; `make demo` also exports, hence the extra.
$(BIN)/.base: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[export]'
	@touch $@

$(BIN)/.dev: pyproject.toml peers/pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet '$(TORCH)'
	$(BIN)/python -m pip install --quiet --editable '.[export,parity,grammar,serve,bench,eval,tensorrt-rtx,docs,dev]'
	$(BIN)/python -m pip install --quiet --no-deps --editable ./peers
	$(BIN)/python -m pip install --quiet --no-deps 'live-vlm-webui>=0.4,<0.5'  # a test asks with its client
	@touch $@ $(BIN)/.base

clean:
	rm -rf $(VENV) .cache build dist
