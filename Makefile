# Each target first sets up .venv, or checks that it is up to date.
SHELL := /bin/bash
VENV ?= .venv
RUN := source $(VENV)/ros_env.bash &&

# EVAL_ONLY=1: the shipped weights on the town SEED, the LAYOUT, or both; written to OUT only.
DENSE_SEEDS = $(or $(SEED),$(if $(LAYOUT),,500))
DENSE_WORLDS = $(if $(EVAL_ONLY),$(if $(DENSE_SEEDS),--seeds $(DENSE_SEEDS)),--seeds 400 401 402 403 404 405 --keep)
REAL_LAYOUT = $(wildcard $(or $(CROSSVIEW_DATA),../shared/data)/kitti09_overhead)
DENSE_LAYOUT = $(or $(LAYOUT),$(if $(EVAL_ONLY),,$(REAL_LAYOUT)))
DEMO_SEEDS = $(or $(SEED),31 32 33)
DEMO_OUT = $(or $(OUT),build/demo)
FUSION_OUT = $(or $(OUT),$(if $(SMOKE)$(EVAL_ONLY),build/fusion,docs/results))

.PHONY: help env demo test test-jazzy faults endurance fuzz results-demo results-dense results-real results-fusion results-paper results-adapt bench bench-map-size docs-check lint format clean

help:
	@echo 'make demo [QUICK=1] [SEED=7 OUT=demo DURATION_S=130]   a simulated drive, localized and reported'
	@echo 'make test [PYTEST_ARGS=...]                      all tests'
	@echo 'make results-demo [SEED= OUT=]                   demos of three drives, with wrong images and other matchers'
	@echo 'make results-dense [EVAL_ONLY=1 SEED= | LAYOUT= | DEMOS= BLIND=] [OUT=]   the dense matcher alone'
	@echo 'make results-real [REAL_PAIRS= WEIGHTS= OUT=]     the dense matcher on real street and overhead pictures'
	@echo 'make results-fusion [SMOKE=1 | EVAL_ONLY=1 SEED= OUT=]   the filter: outages, calibration, lies, real logs, a peer, starts'
	@echo 'make results-paper [SMOKE=1 | EVAL_ONLY=1 SEED= | PLAN=cpu TRAIN_SEEDS="3 4"] [OUT=]   local loss against global'
	@echo 'make results-adapt [PARTS="simulation real" STEPS= HOURS=1.8 BAGS= ORTHO= OUT= ADAPT_ARGS=]   adaptation to drives without truth'
	@echo 'make bench [REPEATS=3 SMOKE=1 DEVICE=cpu|cuda OUT= BENCH_ARGS=--resume]   speed of each step, and how it grows'
	@echo 'make bench-map-size [GB=20]                      maps of all sizes, written in full up to GB'
	@echo 'make docs-check                                  run the commands of the documentation'
	@echo 'make test-jazzy [PYTEST_ARGS=...]                all tests on ROS 2 Jazzy, in .venv-jazzy'
	@echo 'make faults | endurance                          the node in each fault; an hour of driving'
	@echo 'make fuzz [FUZZ_EXAMPLES=2000]                   damaged files of each kind, for longer'
	@echo 'make env | lint | format | clean'

env:
	@PYTHON=$(or $(PYTHON),python3) test/ros_wheels/setup_venv.bash $(VENV)

demo: env
	$(RUN) python -m benchmarks.demo $(if $(SEED),--seed $(SEED)) $(if $(OUT),--out $(OUT)) \
	  $(if $(DURATION_S),--duration-s $(DURATION_S)) $(if $(QUICK),--quick)

# Two processes: half of the tests' time is spent waiting. PYTEST_ARGS='-n 0 --pdb' runs them in one.
test: env
	$(RUN) python -m pytest -n 2 --dist loadfile $(PYTEST_ARGS)

results-demo: env
	$(RUN) for seed in $(DEMO_SEEDS); do \
	  python -m benchmarks.demo --controls --seed $$seed --out $(DEMO_OUT)/$$seed || exit; done
	$(RUN) python -m benchmarks.demo --pool $(DEMO_SEEDS:%=$(DEMO_OUT)/%) \
	  --json $(if $(SEED)$(OUT),$(DEMO_OUT),docs/results)/demo.json
	$(if $(SEED)$(OUT),,$(RUN) python -m benchmarks.results)

results-dense: env
	$(RUN) python -m benchmarks.accuracy.single_frames --out $(or $(OUT),build/dense) $(DENSE_WORLDS) \
	  $(if $(DENSE_LAYOUT),--layouts '$(DENSE_LAYOUT)' --layout-seed $(or $(firstword $(SEED)),1)) \
	  $(if $(DEMOS),--demos $(DEMOS)) $(if $(BLIND),--blind-weights $(BLIND))
	$(if $(EVAL_ONLY),,$(RUN) python -m benchmarks.results)

results-real: env
	$(RUN) python -m benchmarks.accuracy.real_pairs --out $(or $(OUT),docs/results) \
	  $(if $(REAL_PAIRS),--pairs '$(REAL_PAIRS)') $(if $(WEIGHTS),--weights $(WEIGHTS))
	$(RUN) python -m benchmarks.accuracy.foreign_pictures --out $(or $(OUT),docs/results) \
	  $(if $(REAL_PAIRS),--pairs '$(REAL_PAIRS)') $(if $(WEIGHTS),--weights $(firstword $(WEIGHTS)))
	$(if $(OUT),,$(RUN) python -m benchmarks.results)

results-fusion: env
	$(RUN) python -m benchmarks.fusion --out $(FUSION_OUT) $(if $(SMOKE),--smoke) \
	  --frames $(or $(OUT),build/fusion)/frames.csv.gz --worlds $(or $(OUT),build/fusion)/towns \
	  $(if $(SEED),--seed $(SEED))
	$(if $(SMOKE)$(EVAL_ONLY)$(OUT),,$(RUN) python -m benchmarks.results)

results-paper: env
	$(RUN) python -m benchmarks.accuracy.paper --out $(or $(OUT),build/paper) $(if $(SMOKE),--smoke) \
	  $(if $(EVAL_ONLY),--eval-only) $(if $(SEED),--world-seed $(SEED)) \
	  $(if $(PLAN),--plan $(PLAN)) $(if $(TRAIN_SEEDS),--seeds $(TRAIN_SEEDS))
	$(if $(SMOKE)$(EVAL_ONLY),,$(RUN) python -m benchmarks.results)

results-adapt: env
	$(RUN) python -m benchmarks.accuracy.adaptation --out $(or $(OUT),docs/results) \
	  $(if $(PARTS),--parts $(PARTS)) $(if $(STEPS),--steps $(STEPS)) $(if $(HOURS),--hours $(HOURS)) \
	  $(if $(BAGS),--bags $(BAGS) --orthophoto $(ORTHO)) $(if $(SEED),--seed $(SEED)) $(ADAPT_ARGS)
	$(if $(OUT),,$(RUN) python -m benchmarks.results)

test-jazzy:
	ROS_DISTRO_WHEELS=jazzy $(MAKE) test VENV=.venv-jazzy

bench: env
	$(RUN) python -m benchmarks.speed $(if $(SMOKE),--smoke) --device $(or $(DEVICE),cpu) \
	  --repeats $(or $(REPEATS),1) --out $(or $(OUT),build/bench) $(BENCH_ARGS) \
	  --json $(if $(SMOKE)$(OUT),$(or $(OUT),build/bench)/bench.json,docs/results/bench.json)

bench-map-size: env
	$(RUN) python -m benchmarks.speed --only map_size --map-gb $(or $(GB),20) \
	  --out $(or $(OUT),build/bench)

faults: env
	$(RUN) python -m benchmarks.robustness.faults $(if $(OUT),--out $(OUT))

endurance: env
	$(RUN) python -m benchmarks.robustness.endurance $(if $(OUT),--out $(OUT))

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
