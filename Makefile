# make quickstart   set up .venv, train and evaluate a small model here, print where the report is
# make test         the same environment with the test extras, then the test suite
# make test-slow    the tests that take minutes
# make test-latest  unit and integration tests with the newest TRL, Transformers and Datasets, in .venv-latest
# make check        ruff, mypy, import layers
# make docs         the site of docs/ in build/site; a warning is an error
# make clean        remove .venv, caches and build results (runs/ stays)
#
# PYTHON=...        the Python to use, 3.11 to 3.13; found by itself otherwise
# TORCH_INDEX=...   another package index for torch alone; for a smaller build without CUDA:
#                   make quickstart TORCH_INDEX=https://download.pytorch.org/whl/cpu
# ARGS=...          more arguments: make quickstart ARGS="--fast --seed 1", make test ARGS="-k grpo"
# WORKERS=2         processes of the test suite

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help quickstart test test-slow test-latest check docs clean

ifndef PYTHON
PYTHON := $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	"$$p" -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	>/dev/null 2>&1 && { echo "$$p"; break; }; done)
endif
WORKERS ?= 2
LATEST := trl==1.16.0 transformers==5.23.0 datasets==5.2.0
UNSLOTH := unsloth==2026.10.9 unsloth_zoo==2026.10.9

# Paths are relative, because make cannot hold a path with a space in it. The key changes with the place and the pins.
KEY := $(shell { pwd; cat pyproject.toml constraints.txt; } | cksum | cut -d' ' -f1)
BASE := .venv/base-$(KEY)
FULL := .venv/full-$(KEY)
CODE := src tests benchmarks scripts examples
PY := .venv/bin/python
PIP := $(PY) -m pip install --quiet --constraint constraints.txt

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore

help:
	@sed -n '/^$$/q; s/^# \{0,1\}//p' Makefile

quickstart: $(BASE)
	@$(PY) -m aligntune quickstart $(ARGS)

# One thread for each process: threads that contend for two cores make every test several times slower.
test: $(FULL)
	@$(PY) -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

test-slow: $(FULL)
	@$(PY) -m pytest -m slow $(ARGS)

test-latest: .venv-latest/ready-$(KEY)
	@.venv-latest/bin/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

check: $(FULL)
	@$(PY) -m ruff check $(CODE)
	@$(PY) -m ruff format --check $(CODE)
	@$(PY) -m mypy
	@$(PY) -m pytest tests/unit/test_layers.py

docs: $(FULL)
	@$(PIP) --editable '.[docs]'
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict
	@echo "the site: build/site/index.html; to search in it: python3 -m http.server --directory build/site"

# An index for torch alone need not hold the pinned versions of what torch needs: the next line installs those.
$(BASE):
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 to 3.13 with venv found; install one (on Debian and Ubuntu: apt install python3-venv) or set PYTHON=..." >&2; exit 1; }
	@echo "setting up .venv with $(PYTHON) (the first time takes minutes: PyTorch is large)"
	@"$(PYTHON)" -m venv .venv
	@$(PIP) $(if $(TORCH_INDEX),--no-deps --index-url "$(TORCH_INDEX)") "$$(grep '^torch==' constraints.txt)"
	@$(PIP) --editable .
	@rm -f .venv/base-* .venv/full-*
	@touch $(BASE)

$(FULL): $(BASE)
	@echo "adding the test tools and Unsloth to .venv"
	@$(PIP) --editable '.[dev,test]'
	@$(PIP) --no-deps $(UNSLOTH)
	@touch $(FULL)

# The pins of everything else hold; Unsloth is left out, because it does not declare to work with these.
.venv-latest/ready-$(KEY):
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 to 3.13 with venv found; set PYTHON=..." >&2; exit 1; }
	@echo "setting up .venv-latest with $(LATEST)"
	@"$(PYTHON)" -m venv .venv-latest
	@grep -v -E '^(trl|transformers|datasets|fsspec|huggingface_hub|tokenizers)==' constraints.txt > .venv-latest/constraints.txt
	@.venv-latest/bin/python -m pip install --quiet $(if $(TORCH_INDEX),--no-deps --index-url "$(TORCH_INDEX)") "$$(grep '^torch==' constraints.txt)"
	@.venv-latest/bin/python -m pip install --quiet --constraint .venv-latest/constraints.txt $(LATEST) --editable '.[dev,test]'
	@rm -f .venv-latest/ready-*
	@touch $@

clean:
	rm -rf .venv .venv-latest build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis unsloth_compiled_cache
	find src tests benchmarks scripts examples -name __pycache__ -type d -prune -exec rm -rf {} +
