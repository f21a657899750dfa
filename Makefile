# `make demo` and `make test` set up what they need in .venv first; both then only check that it is current.
SHELL := /bin/bash
VENV ?= .venv
RUN := source $(VENV)/ros_env.bash &&

.PHONY: help env demo test lint format clean

help:
	@echo 'make demo [SEED=7] [OUT=demo] [DURATION_S=130]   a simulated drive, localized and reported'
	@echo 'make test [PYTEST_ARGS=...]                      all tests'
	@echo 'make env | lint | format | clean'

env:
	@test/ros_wheels/setup_venv.bash $(VENV)

demo: env
	$(RUN) python -m training.demo $(if $(SEED),--seed $(SEED)) $(if $(OUT),--out $(OUT)) \
	  $(if $(DURATION_S),--duration-s $(DURATION_S))

test: env
	$(RUN) python -m pytest $(PYTEST_ARGS)

lint: env
	$(RUN) ruff check .

format: env
	$(RUN) ruff check --fix . && ruff format .

clean:
	rm -rf $(VENV) build install log demo .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
