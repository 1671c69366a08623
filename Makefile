# Each target makes .venv and installs what it needs, so that nothing else has to be typed on a fresh machine.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-long lint bench study clean

demo: .venv/.run
	$(BIN)/nacme demo --out demo

test: .venv/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not long" -n 2

test-long: .venv/.dev
	$(BIN)/python -m pytest -m long

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/.dev
	$(BIN)/python -m analysis.benchmarks --out bench

study: .venv/.dev
	$(BIN)/python -m analysis.studies

clean:
	rm -rf .venv demo bench

.venv/bin/python:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip

.venv/.run: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/.dev: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@ .venv/.run
