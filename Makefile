# `make demo`: install, build the embedded study, serve it. `make test`: install the test extras, run the whole suite.
# `make test-long`: the tests that take minutes more: 300 damaged copies of every format, 200 clients for a minute, half an hour of
# requests drawn from the description of the addresses.
# `make test-cluster`: the executor of SLURM clusters, on a private one that the tests start.
# `make coverage`: the suite once more, and the share of lines that it reaches.
# `make audit`: known faults of the packages that constraints.txt names; it asks a service on the network.
# `make dist`: the source distribution and the wheel of this commit, in dist/; the wheel is the same bytes every time with the same setuptools.
# `make check`: the quick checks: lint, format, imports between rooms, types.
PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
PYTEST_ARGS ?=
AUDIT_ARGS ?=
BIN = $(VENV)/bin

.PHONY: demo test test-long test-cluster coverage check audit dist clean
demo: $(VENV)/.demo
	$(BIN)/seedscope demo

test: $(VENV)/.test
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not slow and not cluster" $(PYTEST_ARGS)

test-long: $(VENV)/.test
	$(BIN)/python -m pytest -n 2 --dist load -m "slow and not cluster" $(PYTEST_ARGS)

test-cluster: $(VENV)/.test
	command -v slurmctld >/dev/null && command -v munged >/dev/null || \
		{ as_root=$$([ "$$(id -u)" = 0 ] || echo sudo); $$as_root apt-get update -qq && \
		$$as_root apt-get install -y -qq --no-install-recommends slurm-wlm munge; }
	$(BIN)/python -m pytest -m cluster $(PYTEST_ARGS)

coverage:
	$(MAKE) test PYTEST_ARGS="--cov=app --cov=engine --cov-report="
	$(BIN)/coverage report --format=total

check: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	bash .ci/link && PYTHONPATH=.linked $(BIN)/lint-imports --no-cache
	$(BIN)/mypy -p seedscope

audit: $(VENV)/.demo
	$(BIN)/python -m pip install --quiet -c constraints.txt $(PIP_ARGS) -e '.[audit]'
	$(BIN)/pip-audit --strict --no-deps --disable-pip -r constraints.txt $(AUDIT_ARGS) || \
		{ echo "pip-audit found faults, or its source could not be asked: see above; AUDIT_ARGS=\"-s osv\" asks another one"; exit 1; }

dist: $(VENV)/.demo
	$(BIN)/python -m pip install --quiet -c constraints.txt $(PIP_ARGS) -e '.[release]'
	rm -rf dist
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(BIN)/python -m build

$(VENV)/.demo: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("found Python %d.%d, expected 3.11 or newer; try: make PYTHON=python3.12 demo" % v[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt $(PIP_ARGS) -e .
	touch $@

$(VENV)/.test: $(VENV)/.demo
	$(BIN)/python -m pip install --quiet -c constraints.txt $(PIP_ARGS) -e '.[test]'
	touch $@

clean:
	rm -rf $(VENV)
