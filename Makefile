# Needs make and Python 3.11, 3.12 or 3.13. Each target does its own set-up, once, below .venv.
#   make book PROFILE=small        another scale          make book PYTHON=python3.12   another Python
#   make book WORKERS=1            one notebook at a time (default at quick: one a core, at most 4)

PROFILE ?= quick
PYTHON ?= $(firstword $(foreach name,python3 python3.13 python3.12 python3.11,$(shell \
	$(name) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null \
	&& echo $(name))))

BIN := .venv/bin
INSTALLED := .venv/installed
LAB_INSTALLED := .venv/installed-lab
PIP_INSTALL := $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help book test lint lab clean

help:  ## show this list
	@echo "poisonkit: training-data poisoning, reproduced"
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{printf "%-14s %s\n", $$1, $$2}'

book: $(INSTALLED)  ## run every notebook at PROFILE (quick) and build _build/html/index.html
	@$(BIN)/poisonkit reproduce --profile $(PROFILE) $(if $(filter quick,$(PROFILE)),--fresh) --build \
		$(if $(WORKERS),--workers $(WORKERS))

test: $(INSTALLED)  ## run the tests; those that need a GPU or the papers' data skip themselves
	@$(BIN)/python -m pytest -q $(PYTEST_ARGUMENTS)

lint: $(INSTALLED)  ## check style, formatting and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

lab: $(LAB_INSTALLED)  ## open the notebooks in JupyterLab
	@$(BIN)/jupyter lab --notebook-dir=notebooks

clean:  ## remove what builds and tests made (the installation in .venv stays)
	@rm -rf _build dist .mypy_cache .pytest_cache .ruff_cache
	@find . -path ./.venv -prune -o -type d -name __pycache__ -exec rm -rf {} +

# Files inside .venv are written by pip, so one stamp stands for the whole installation.
$(INSTALLED): pyproject.toml constraints.txt
	@command -v "$(PYTHON)" >/dev/null || { \
		echo "poisonkit needs Python 3.11, 3.12 or 3.13; not found: $(or $(PYTHON),any of these)." >&2; \
		echo "Install one, or name it: make $(or $(MAKECMDGOALS),book) PYTHON=python3.12" >&2; \
		exit 1; }
	@"$(PYTHON)" -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v < (3, 14) else "poisonkit needs Python 3.11, 3.12 or 3.13; $(PYTHON) is %d.%d" % v)'
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv" >&2; \
		exit 1; }
	@echo "Installing into .venv (once; some 6 GB on Linux, most of it PyTorch with CUDA; takes some minutes)..."
	@test -x $(BIN)/python || "$(PYTHON)" -m venv .venv
	@$(PIP_INSTALL) --editable ".[book,dev]"
	@touch $@

$(LAB_INSTALLED): $(INSTALLED)
	@echo "Installing JupyterLab into .venv (once)..."
	@$(PIP_INSTALL) --editable ".[lab]"
	@touch $@
