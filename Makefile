# make demo: install into .venv and run the main job.  make test: the same set-up, then lint, types and tests.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# Named in the same command as everything else, so that no other package brings another build of torch.
TORCH  ?= torch==2.13.0
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-all lint types docs bench clean

$(VENV)/.core: pyproject.toml constraints.txt
	@echo "installing into $(VENV) (a few minutes the first time)"
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH) -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.core
	$(PIP) $(TORCH) -e ".[test,lint]"
	@touch $@

demo: $(VENV)/.core
	OMP_NUM_THREADS=1 $(BIN)/tangentcl run experiments/demo.toml

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

test: lint types
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not slow"

test-all: lint types
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile

docs: $(VENV)/.dev
	$(PIP) $(TORCH) -e ".[docs]"
	$(BIN)/mkdocs build --strict

bench: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.loop
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.forecast_linear
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.forecast_scale
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.ntk
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.ntk_cl
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.heads
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.faults

clean:
	rm -rf $(VENV) build dist site
