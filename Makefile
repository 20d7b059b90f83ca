# Every target sets up what it needs, from Python 3.11 and nothing else. `make test ARGS="-k startup -x"` passes on.
PYTHON ?= python3.11
ARGS ?=
COMPAT := 0.22 0.23
# the others know nothing of mflux, or measure what does not depend on its version
TOUCHING_MFLUX := adapters apply commands demo_model dualcache families host options startup tiny

BIN := .venv/bin
READY := .venv/.ready
SOURCES_OF_THE_ENVIRONMENT := pyproject.toml $(wildcard build_support/*)

.DEFAULT_GOAL := help
.PHONY: help venv test lint format test-compat $(COMPAT:%=test-compat-%) demo bench bench-demo clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(READY) ## .venv with the plugin (editable), mflux and the development tools

test: $(READY) ## the whole test suite on the newest supported mflux
	$(BIN)/python -m pytest $(ARGS)

lint: $(READY) ## ruff (rules and format) and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY) ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test-compat: $(COMPAT:%=test-compat-%) ## what touches mflux, on mflux 0.22 and 0.23

$(COMPAT:%=test-compat-%): test-compat-%: .venv-mflux-%/.ready
	.venv-mflux-$*/bin/python -m pytest $(TOUCHING_MFLUX:%=tests/test_%.py) $(ARGS)

demo: $(READY) ## the plugin at work through the real mflux command; pictures and figures in demo/
	$(BIN)/mflux-teacache demo --out demo $(ARGS)

bench: $(READY) ## every script in benchmarks/, one after the other
	@set -e; for script in benchmarks/[a-z]*.py; do echo "== $$script"; $(BIN)/python $$script $(ARGS); done

bench-demo: $(READY) ## the suite of the demo model: speed and quality of a few settings, a report in bench/demo
	$(BIN)/mflux-teacache bench benchmarks/suites/demo.toml $(ARGS)

clean: ## remove the environments and all that builds, tests and demos leave behind
	rm -rf .venv .venv-mflux-* build dist demo bench comparison .pytest_cache .hypothesis .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# An environment in the folder of the stamp: uv if it is there, else a venv that gets uv first, for only uv can leave
# out CUDA and torch (override-dependencies in pyproject.toml). $(1): further requirements.
define environment
	@set -e; rm -rf $(@D); \
	if uv pip install --help 2>/dev/null | grep -q -e --group; then uv=uv; uv venv --python $(PYTHON) $(@D); \
	else uv=$(@D)/bin/uv; $(PYTHON) -m venv $(@D); $(@D)/bin/python -m pip install --quiet uv; fi; \
	$$uv pip install --python $(@D)/bin/python --editable '.[pictures]' --group dev $(1)
	@touch $@
endef

$(READY): $(SOURCES_OF_THE_ENVIRONMENT)
	$(call environment)

$(COMPAT:%=.venv-mflux-%/.ready): .venv-mflux-%/.ready: $(SOURCES_OF_THE_ENVIRONMENT)
	$(call environment,'mflux==$*.*' 'pillow<13')
