# make demo: one simulated patient, forecast with the shipped weights. make test: every test; make test-fast: in a minute.
PYTHON ?= python3
BIN = .venv/bin
DEMO = demo
# One thread a worker: the workers share the cores. The tests of a file run in one worker, as they share fixtures.
# One worker more than cores: many tests wait for a program that they run.
WORKERS = $$(($$(getconf _NPROCESSORS_ONLN) + 1))
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: setup demo test test-fast test-kill test-browser test-worlds bundle lint clean

setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	touch $@

demo: setup
	$(BIN)/python -m scripts.simulate_trial --out $(DEMO)/trial --patients 1 --seed 25
	PYTHONWARNINGS="ignore:parsing config_file" \
		$(BIN)/python -m monai.bundle run inference --config_file configs/inference.json \
		--dataset_dir $(DEMO)/trial --output_dir $(DEMO)/forecasts
	@echo
	@echo "The forecast of one simulated patient, never seen in training:"
	@ls -1 $(DEMO)/forecasts/*/*

test: setup
	$(PYTEST)

test-kill: setup
	KILL_TESTS=1 $(PYTEST) -m kill

test-fast: setup
	$(PYTEST) -m "not slow"

test-browser: setup
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[browser]"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/browser

# With the real programs, each in an environment of its own; those of a program that cannot be installed are skipped.
test-worlds: setup
	for script in tests/environments/*.sh; do PYTHON=$(PYTHON) sh $$script || echo "$$script failed: no tests of it"; done
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/worlds

bundle: setup
	$(BIN)/python -m scripts.make_bundle

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports
	$(BIN)/mypy

clean:
	rm -rf .venv .environments $(DEMO) *.egg-info
