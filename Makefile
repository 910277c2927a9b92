# Everything a newcomer needs; `make` alone explains it.
# Python 3.11 or newer and this folder are enough: the rest is installed into .venv from requirements.lock.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
VENV := .venv
STAMP := $(VENV)/.installed
REPORT := reports/demo/index.html
# DVC starts the stages as `python -m pipeline …`: let that be this environment's python.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export DVC_NO_ANALYTICS := 1

.PHONY: help setup demo test lint clean

help:
	@echo "make setup   make .venv and install requirements.lock (three to four minutes, once)"
	@echo "make demo    guidance, training, fusion and report for the embedded data set"
	@echo "make test    the test suite"
	@echo "make lint    ruff and mypy"
	@echo "make clean   remove what the demo and the tools made (not .venv)"

setup: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	@python=; for candidate in python3.12 python3.11 python3; do \
	    if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	        python="$$candidate"; break; fi; done; \
	if [ -x $(VENV)/bin/python ]; then :; \
	elif [ -z "$$python" ]; then \
	    echo "error: no Python 3.11 or newer found (looked for python3.12, python3.11, python3); install one and run make again" >&2; \
	    exit 2; \
	else "$$python" -m venv $(VENV) || { rm -rf $(VENV); \
	    echo "error: $$python cannot make a virtual environment; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 2; }; fi
	@echo "Installing $$(wc -l < requirements.lock) pinned packages into $(VENV) …"
	@$(VENV)/bin/python -m pip install -qq --no-compile --disable-pip-version-check -r requirements.lock
	@$(VENV)/bin/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e .
	@# On all cores, which pip does not. Files for newer Pythons do not compile, and nothing imports them.
	@echo "Compiling …"
	@$(VENV)/bin/python -m compileall -qq -j 0 $(VENV)/lib pipeline model || true
	@touch $@

# A release archive is no git clone; DVC then has to be told so, once.
demo: setup
	@git rev-parse --git-dir >/dev/null 2>&1 || $(VENV)/bin/dvc config --local core.no_scm true
	@$(VENV)/bin/dvc repro report
	@echo; echo "Report: $(CURDIR)/$(REPORT)"

test: setup
	@$(VENV)/bin/python -m pytest

lint: setup
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy

clean:
	rm -rf data guidance runs reports build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find pipeline model tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
