# Every target makes the virtualenv c42c/ and installs what it needs by itself; the next time, that takes no time.
PYTHON ?= python3
BIN := c42c/bin
RUN_ENV := c42c/.run
DEV_ENV := c42c/.dev
BENCH_ENV := c42c/.bench

.PHONY: help demo run test check bench clean

help:  ## show this list
	@grep -hE '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

demo: $(RUN_ENV)  ## serve made-up events on http://127.0.0.1:5000; needs no token
	@exec $(BIN)/python main.py --demo

run: $(RUN_ENV)  ## serve Calendar42's events; needs C42_TOKEN
	@exec $(BIN)/python main.py

test: $(DEV_ENV)  ## run all tests
	@$(BIN)/python -m pytest

check: $(DEV_ENV)  ## lint, check the format and the types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy .

bench: $(BENCH_ENV)  ## measure it beside nginx, Varnish and others, 10 minutes; QUICK=1: one minute, writes nothing
	@$(BIN)/python -m bench $(if $(QUICK),--quick)

clean:  ## delete the virtualenv and all that tools left behind
	rm -rf c42c .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(RUN_ENV): requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "c42c needs Python 3.11 or newer; name one with: make PYTHON=...")'
	$(PYTHON) -m venv c42c
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(DEV_ENV): $(RUN_ENV) requirements-redis.txt requirements-dev.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

$(BENCH_ENV): $(RUN_ENV) bench/requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -r bench/requirements.txt
	@touch $@
