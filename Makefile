# Targets that need the virtualenv c42c/ create it and install what they need there, if it isn't there yet.
PYTHON ?= python3
VENV ?= c42c
BIN := $(VENV)/bin
RUN_ENV := $(VENV)/.run
DEV_ENV := $(VENV)/.dev
DEPLOY_ENV := $(VENV)/.deploy
BENCH_ENV := $(VENV)/.bench
VERSIONS := 3.11 3.12 3.13 3.14 3.15
PIP_INSTALL = $(BIN)/pip install -qq --disable-pip-version-check

.PHONY: help demo run check-service test test-deploy test-all check soak mutants lock bench clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 24

demo: $(RUN_ENV)  ## serve made-up events on http://127.0.0.1:5000; needs no token
	@exec $(BIN)/python main.py --demo

run: $(RUN_ENV)  ## serve Calendar42's events; needs C42_TOKEN
	@exec $(BIN)/python main.py

check-service: $(RUN_ENV)  ## check the settings, Calendar42 with the token in C42_TOKEN, and Redis
	@$(BIN)/python main.py --check

test: $(DEV_ENV)  ## run the tests, in an order that differs each time
	@$(BIN)/python -m pytest --numprocesses=6 --dist=worksteal

test-deploy: $(DEPLOY_ENV)  ## run the slow tests of deployment: image, systemd, nginx, Prometheus, README and others
	@$(BIN)/python -m pytest tests/deploy

test-all:  ## run the tests under each supported Python that is installed
	@for version in $(VERSIONS); do \
		if python$$version -c '' 2>/dev/null; then \
			echo "Python $$version"; \
			$(MAKE) --no-print-directory PYTHON=python$$version VENV=c42c/$$version test || exit 1; \
		else \
			echo "Python $$version: skipped, python$$version is not installed"; \
		fi; \
	done

check: $(DEV_ENV)  ## lint, check the format and the types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy .

soak: $(DEV_ENV)  ## check every answer under traffic, faults and outages for ten minutes; SOAK=60: for 60 seconds
	@$(BIN)/python -m tests.soak --seconds $(or $(SOAK),600)

mutants: $(DEV_ENV)  ## change the code in small ways and list the changes that no test notices; COUNT=20: only 20
	@$(BIN)/python -m tests.mutants --count $(or $(COUNT),150)

lock: $(DEPLOY_ENV)  ## pin the newest versions of what deployment installs, in requirements.lock
	@grep -hvE '^(#|pytest)' requirements.txt requirements-redis.txt | $(BIN)/uv pip compile --quiet --upgrade \
		--universal --python-version 3.11 --generate-hashes --no-annotate --custom-compile-command "make lock" \
		--output-file requirements.lock -

bench: $(BENCH_ENV)  ## compare its speed with nginx, HAProxy, Varnish and others for 15 minutes; QUICK=1: one minute, writes nothing
	@$(BIN)/python -m bench $(if $(QUICK),--quick)

clean:  ## delete the virtualenv and what tools left behind
	rm -rf c42c .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(RUN_ENV): requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "c42c needs Python 3.11 or newer; name one with: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) -r requirements.txt
	@touch $@

$(DEV_ENV): $(RUN_ENV) requirements-redis.txt requirements-dev.txt
	$(PIP_INSTALL) -r requirements-dev.txt
	@touch $@

$(DEPLOY_ENV): $(DEV_ENV) tests/deploy/requirements.txt
	$(PIP_INSTALL) -r tests/deploy/requirements.txt
	@touch $@

$(BENCH_ENV): $(RUN_ENV) bench/requirements.txt
	$(PIP_INSTALL) -r bench/requirements.txt
	@touch $@
