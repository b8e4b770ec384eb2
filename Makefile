# make demo: the main job without torch. make test: everything that is checked.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint clean

demo: .venv/.installed
	$(BIN)/ullage rule 70B --bits 16 --gpu-memory 80GB
	@for format in '' '--quantization bnb-int8' '--quantization bnb-nf4'; do \
	  echo; echo "$$ ullage estimate llama-2-70b --gpu h100-80gb $$format"; \
	  $(BIN)/ullage estimate llama-2-70b --gpu h100-80gb $$format || [ $$? -eq 3 ] || exit 1; \
	done

# Many tests start processes of their own, which need not compile the same files again.
test: export PYTHONDONTWRITEBYTECODE =
test: lint .venv/.browser
	$(BIN)/python -m pytest -n 2 --dist worksteal
	@echo "deselected, as they need a CUDA device: $$($(BIN)/python -m pytest -q --collect-only -m cuda tests/test_cuda.py | tail -n 1)"

# Pages and figures are tested in Chromium, which Debian has as a package; elsewhere it has to be there.
.venv/.browser: .venv/bin/python
	@has() { for name in "$${CHROMIUM:-chromium}" chromium-browser google-chrome; do \
	  command -v "$$name" >/dev/null && return; done; return 1; }; \
	has || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get -qq update && DEBIAN_FRONTEND=noninteractive \
	  apt-get -qq install --no-install-recommends chromium fonts-dejavu-core >/dev/null; }; \
	has || { echo "the tests need Chromium: install it, or set CHROMIUM to its path"; exit 1; }
	@touch $@

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ullage needs Python 3.11 or newer")'
	$(PYTHON) -m venv .venv

.venv/.installed: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

# torch first and alone: its exact pin resolves to a CPU build where an index offers one.
.venv/.installed-dev: .venv/.installed .ci/constraints.txt
	$(BIN)/python -m pip install --quiet --constraint .ci/constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint .ci/constraints.txt --editable '.[dev]'
	@touch $@

clean:
	rm -rf .venv
