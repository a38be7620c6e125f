# `make demo` and `make test` each do everything on a fresh machine with Python >= 3.11 and make.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/pip install --quiet --constraint constraints.txt
# One thread a test process: two processes on two cores are faster than two threads on each.
# The bundled checkpoints are so small that a second thread only waits for the first.
ONE_THREAD := OMP_NUM_THREADS=1
# Bytecode is kept even where the shell says otherwise: the tests start a hundred processes.
unexport PYTHONDONTWRITEBYTECODE
TEST_ENV := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1

# make demo's evaluations, one process a core; the base's table comes first.
DEMO_RUNS := demo-run-base demo-run-soft demo-run-hard demo-run-fuzzy

.DEFAULT_GOAL := help
.PHONY: help demo $(DEMO_RUNS) test all quick slow check format demo-base demo-train wheel docs clean

help: ## what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "softeval needs Python >= 3.11"'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt pip setuptools
	$(INSTALL) --editable . --config-settings editable_mode=compat
	touch $@

# What tests need, and the site, are installed only where they are asked for.
.venv/installed-%: .venv/installed
	$(INSTALL) --editable '.[$*]' --config-settings editable_mode=compat
	touch $@

demo: .venv/installed ## evaluate the four bundled checkpoints under seven CoT modes, and report
	$(MAKE) --jobs=2 $(DEMO_RUNS)
	$(ONE_THREAD) $(BIN)/softeval report runs/demo/base runs/demo/hard runs/demo/soft runs/demo/fuzzy \
	  --title "The bundled checkpoints" --output runs/demo/report.html
	@echo 'Open runs/demo/report.html in a browser. To go on: source .venv/bin/activate, then softeval'

$(DEMO_RUNS): demo-run-%: .venv/installed
	$(ONE_THREAD) $(BIN)/softeval run --model softeval/checkpoints/$* --tasks arithmetic_hidden_30 --limit 100 \
	  --modes all,soft_thinking --num-samples 32 --batch-size 256 --seed 0 --output-path runs/demo/$*
	[ $* = base ] || $(ONE_THREAD) $(BIN)/softeval diagnose runs/demo/$* \
	  --base softeval/checkpoints/base --sets own,base --limit 20
	[ $* != soft ] || $(ONE_THREAD) $(BIN)/softeval attribute runs/demo/$* \
	  --modes hard_sample,soft_sample,soft_thinking --limit 20

demo-train: .venv/installed ## train hard, soft and fuzzy as the bundled ones were, ten minutes each
	for method in hard soft fuzzy; do \
	  $(ONE_THREAD) $(BIN)/softeval train --config demo_$$method --dataset arithmetic_hidden_30 --max-steps 800 \
	    --seed 2 --output-path runs/demo-train/$$method || exit 1; \
	done

test: .venv/installed-dev ## everything: style, types, unit tests, slow tests
	$(MAKE) --jobs=2 check all

check: .venv/installed-dev ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

quick: .venv/installed-dev ## unit tests, under two minutes on two cores
	$(TEST_ENV) $(BIN)/pytest -q -n 2 --dist loadfile -m 'not slow and not browser'

# A worker more than cores: a quarter of their time tests wait for processes and browsers.
all: .venv/installed-dev
	$(TEST_ENV) $(BIN)/pytest -q -n 3 --dist worksteal --durations=30

slow: .venv/installed-dev ## tests that run processes, browsers and whole evaluations
	$(TEST_ENV) $(BIN)/pytest -q -n 3 --dist worksteal -m 'slow or browser'

format: .venv/installed-dev ## format and sort imports
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

demo-base: .venv/installed ## make the bundled base checkpoint anew, from its seed
	$(BIN)/python -m softeval.trainers.demo_base --output-path softeval/checkpoints/base --seed 0

wheel: ## build dist/softeval-*.whl, by the environment that is active
	rm -rf build/lib # from which setuptools would take files that are no more
	$(PYTHON) -m pip wheel --quiet --no-deps --wheel-dir dist .

docs: .venv/installed-docs ## build the documentation as a site in build/site, with three reports of the demo
	[ -d runs/demo/fuzzy ] || $(MAKE) demo
	$(BIN)/python docs/assemble.py runs/demo build/docs
	$(BIN)/mkdocs build --quiet --config-file docs/mkdocs.yml

clean: ## remove the environment and build products (never runs/)
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache
