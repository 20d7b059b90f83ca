# Every target sets up what it needs, from Python 3.11 and nothing else. `make test ARGS="-k startup -x"` passes on.
PYTHON ?= python3.11
ARGS ?=
# how many tests run at a time, 0 for all in one process: `make test WORKERS=0 ARGS=--pdb`
WORKERS ?= auto
PYTEST := -m pytest --numprocesses=$(WORKERS) --dist=loadgroup --no-loadscope-reorder --durations=10
COMPAT := 0.22 0.23
# the others know nothing of mflux, or measure what does not depend on its version
TOUCHING_MFLUX := adapters apply beside_model commands demo_model dualcache families host options preview startup tiny
# also installed beside this version: live previews, whose Pillow is older than what mflux 0.24 takes
BESIDE_0.23 := 'mlx-taef>=0.8.4,<0.9'
PYTHONS := 3.12 3.13
# import, start-up, options as text, files, and what is computed without a model
TOUCHING_PYTHON := cli coefficients commands forecast layers methods settings speedup startup teacache variants

BIN := .venv/bin
READY := .venv/.ready
DEMO_PLUGIN := examples/demo_model/plugin
SOURCES_OF_THE_ENVIRONMENT := pyproject.toml $(DEMO_PLUGIN)/pyproject.toml $(wildcard build_support/*.*)

.DEFAULT_GOAL := help
.PHONY: help venv test lint format test-compat $(COMPAT:%=test-compat-%) test-pythons $(PYTHONS:%=test-python-%) demo bench \
	bench-demo clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(READY) ## .venv with the plugin (editable), mflux and the development tools

test: $(READY) ## the whole test suite on the newest supported mflux
	$(BIN)/python $(PYTEST) $(ARGS)

lint: $(READY) ## ruff (rules and format), mypy, and which module may import which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@if grep -q '^\[tool\.importlinter\]' pyproject.toml; then echo $(BIN)/lint-imports; $(BIN)/lint-imports; fi

format: $(READY) ## let ruff fix what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test-compat: $(COMPAT:%=test-compat-%) ## what touches mflux, on mflux 0.22 and 0.23

$(COMPAT:%=test-compat-%): test-compat-%: .venv-mflux-%/.ready
	.venv-mflux-$*/bin/python $(PYTEST) $(TOUCHING_MFLUX:%=tests/test_%.py) $(ARGS)

test-pythons: $(PYTHONS:%=test-python-%) ## what may differ between versions of Python, on 3.12 and 3.13 where they are

$(PYTHONS:%=test-python-%): test-python-%: $(READY)
	@python=$$(PYENV_VERSION=$* python$* -c 'import sys; print(sys.executable)' 2>/dev/null) \
	|| python=$$($(BIN)/uv python find --managed-python --no-python-downloads $* 2>/dev/null) \
	|| { echo "no Python $* here: the tests are left out on it"; exit 0; }; \
	$(MAKE) --no-print-directory .venv-python-$*/.ready PYTHON=$$python \
	&& .venv-python-$*/bin/python $(PYTEST) $(TOUCHING_PYTHON:%=tests/test_%.py) $(ARGS)

demo: $(READY) ## the plugin at work through the real mflux command; pictures and figures in demo/
	$(BIN)/mflux-teacache bench examples/demo_model/demo.toml --out demo $(ARGS)

bench: $(READY) ## the scripts in benchmarks/ that need no model named, one after the other
	@set -e; for script in $(filter-out benchmarks/real_size.py benchmarks/fit_traces.py,$(wildcard benchmarks/[a-z]*.py)); do echo "== $$script"; $(BIN)/python $$script $(ARGS); done

bench-demo: $(READY) ## the suite of the demo model: speed and quality of a few settings, a report in bench/demo
	$(BIN)/mflux-teacache bench benchmarks/suites/demo.toml $(ARGS)

clean: ## remove the environments and all that builds, tests and demos leave behind
	rm -rf .venv .venv-* build dist demo bench comparison .pytest_cache .hypothesis .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# An environment in the folder of the stamp: uv if it is there, else a venv that gets uv first, for only uv can leave
# out CUDA and torch (override-dependencies in pyproject.toml). $(1): further requirements.
define environment
	@set -e; rm -rf $(@D); \
	if uv pip install --help 2>/dev/null | grep -q -e --group; then uv=uv; uv venv --python $(PYTHON) $(@D); \
	else uv=$(@D)/bin/uv; $(PYTHON) -m venv $(@D); $(@D)/bin/python -m pip install --quiet uv; fi; \
	$$uv pip install --python $(@D)/bin/python --editable '.[pictures]' --editable $(DEMO_PLUGIN) \
	--group dev $(1)
	@touch $@
endef

$(READY): $(SOURCES_OF_THE_ENVIRONMENT)
	$(call environment)

$(PYTHONS:%=.venv-python-%/.ready): $(SOURCES_OF_THE_ENVIRONMENT)
	$(call environment)

$(COMPAT:%=.venv-mflux-%/.ready): .venv-mflux-%/.ready: $(SOURCES_OF_THE_ENVIRONMENT)
	$(call environment,'mflux==$*.*' 'pillow<13' $(BESIDE_$*))
