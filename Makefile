# `make demo` and `make test` set up what they need in .venv first; both then only check that it is current.
SHELL := /bin/bash
VENV ?= .venv
RUN := source $(VENV)/ros_env.bash &&

# EVAL_ONLY=1 SEED= LAYOUT=: the shipped weights on one new world, into OUT alone.
DENSE_WORLDS = $(if $(EVAL_ONLY),--seeds $(or $(SEED),500),--seeds 400 401 402 403 404 --keep)
DENSE_LAYOUT = $(if $(LAYOUT),--layouts $(LAYOUT))
FUSION_OUT = $(or $(OUT),$(if $(SMOKE)$(EVAL_ONLY),build/fusion,docs/results))

.PHONY: help env demo test test-jazzy faults endurance fuzz results-dense results-fusion docs-check lint format clean

help:
	@echo 'make demo [SEED=7] [OUT=demo] [DURATION_S=130]   a simulated drive, localized and reported'
	@echo 'make test [PYTEST_ARGS=...]                      all tests'
	@echo 'make results-dense [EVAL_ONLY=1 SEED= LAYOUT= OUT=]   single frames of the dense matcher'
	@echo 'make results-fusion [SMOKE=1 | EVAL_ONLY=1 SEED= OUT=]   the filter: real logs, spoofing, starts'
	@echo 'make docs-check                                  run the commands of the documentation'
	@echo 'make test-jazzy [PYTEST_ARGS=...]                all tests on ROS 2 Jazzy, in .venv-jazzy'
	@echo 'make faults | endurance                          the node in every fault; an hour of driving'
	@echo 'make fuzz [FUZZ_EXAMPLES=2000]                   damaged files of each kind, for longer'
	@echo 'make env | lint | format | clean'

env:
	@test/ros_wheels/setup_venv.bash $(VENV)

demo: env
	$(RUN) python -m training.demo $(if $(SEED),--seed $(SEED)) $(if $(OUT),--out $(OUT)) \
	  $(if $(DURATION_S),--duration-s $(DURATION_S))

test: env
	$(RUN) python -m pytest $(PYTEST_ARGS)

results-dense: env
	$(RUN) python -m benchmarks.dense --out $(or $(OUT),build/dense) $(DENSE_WORLDS) $(DENSE_LAYOUT)
	$(if $(EVAL_ONLY),,$(RUN) python -m benchmarks.results)

results-fusion: env
	$(RUN) python -m benchmarks.fusion --out $(FUSION_OUT) $(if $(SMOKE),--smoke) \
	  --frames $(or $(OUT),build/fusion)/frames.csv.gz $(if $(SEED),--seed $(SEED)) \
	  $(if $(EVAL_ONLY),--seeds 1)

test-jazzy:
	ROS_DISTRO_WHEELS=jazzy $(MAKE) test VENV=.venv-jazzy

faults: env
	$(RUN) python -m benchmarks.faults $(if $(OUT),--out $(OUT))

endurance: env
	$(RUN) python -m benchmarks.endurance $(if $(OUT),--out $(OUT))

fuzz: env
	$(RUN) FUZZ_EXAMPLES=$(or $(FUZZ_EXAMPLES),2000) python -m pytest test/test_hostile_files.py $(PYTEST_ARGS)

docs-check: env
	$(RUN) python test/docs_check.py

lint: env
	$(RUN) ruff check .

format: env
	$(RUN) ruff check --fix . && ruff format .

clean:
	rm -rf $(VENV) build install log demo .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
