# make demo: one simulated patient, forecast with the shipped weights. make test: every test.
PYTHON ?= python3
BIN = .venv/bin
DEMO = demo

.PHONY: setup demo test clean

setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	touch $@

demo: setup
	$(BIN)/python -m scripts.simulate_trial --out $(DEMO)/trial --patients 1 --seed 1036
	$(BIN)/python -m monai.bundle run inference --config_file configs/inference.json \
		--dataset_dir $(DEMO)/trial --output_dir $(DEMO)/forecasts
	@echo
	@echo "The forecast of one simulated patient, never seen in training:"
	@ls -1 $(DEMO)/forecasts/*/*

test: setup
	$(BIN)/python -m pytest

clean:
	rm -rf .venv $(DEMO) *.egg-info
