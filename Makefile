# The commands of the README. Everything happens in .venv beside this file.
SHELL := /bin/bash
.DEFAULT_GOAL := help
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.made-from-lock
NEWEST_VENV := .venv-newest
NEWEST_STAMP := $(NEWEST_VENV)/.made-from-lock
export TF_CPP_MIN_LOG_LEVEL ?= 3
# Tests start many processes; each compiles the product anew where Python may keep no bytecode.
unexport PYTHONDONTWRITEBYTECODE

# Workers take whole files, in the order of tests/conftest.py.
PARALLEL := -n 3 --dist loadfile --no-loadscope-reorder --durations 40
PYTEST := $(BIN)/python -m pytest -q $(PARALLEL)
DOCTESTED := tfrz/agents tfrz/data tfrz/export tfrz/layers tfrz/losses tfrz/metrics tfrz/models \
  tfrz/training tfrz/zoo

.PHONY: help setup demo test test-all doctest test-newest test-newest-all newest-needs lint format bench conformance docs lock protos build-files clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(STAMP) ## make .venv from requirements.lock

$(STAMP): requirements.lock setup.cfg tools/setup.sh tools/find_python.sh
	@bash tools/setup.sh $(VENV) requirements.lock 3.11 && touch $@

$(NEWEST_STAMP): requirements-newest.lock setup.cfg tools/setup.sh tools/find_python.sh
	@bash tools/setup.sh $(NEWEST_VENV) requirements-newest.lock 3.12 3.13 3.11 && touch $@

demo: ## train, evaluate, push and serve DCN-V2 on simulated ratings
	@start=$$(date +%s); $(MAKE) --no-print-directory setup && \
	$(BIN)/python -m tfx_pipelines.demo --root runs/demo --setup-seconds $$(($$(date +%s) - start))

test: setup ## the fast tests of the reference lane
	$(PYTEST) -m "not slow"

test-all: setup doctest ## every test of the reference lane
	$(PYTEST)

doctest: setup ## the examples in the docstrings
	$(BIN)/python -m pytest -q --doctest-modules $(DOCTESTED)

test-newest: $(NEWEST_STAMP) ## the fast tests that need no TFX, on the newest TensorFlow and Keras 3
	$(NEWEST_VENV)/bin/python -m pytest -q --doctest-modules $(filter-out tfrz/agents,$(DOCTESTED)) \
	  --ignore-glob='*beam.py' --ignore=tfrz/data/tft_analyzers.py
	$(NEWEST_VENV)/bin/python -m pytest -q $(PARALLEL) -m "not slow" tests

test-newest-all: $(NEWEST_STAMP) ## every test that needs no TFX, on the newest TensorFlow and Keras 3
	$(NEWEST_VENV)/bin/python -m pytest -q $(PARALLEL) tests

newest-needs: $(NEWEST_STAMP) ## list the tests that do not run on the newest TensorFlow, with what they need
	$(NEWEST_VENV)/bin/python -m pytest -q --list-needs tests

lint: setup ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup ## let ruff lay out the code
	$(BIN)/ruff check --fix -q . ; $(BIN)/ruff format .

bench: setup ## the benchmarks (minutes; leave the machine alone meanwhile)
	$(BIN)/tfrz bench cross
	$(BIN)/tfrz bench serving
	$(BIN)/tfrz bench temporal
	$(BIN)/tfrz bench pointer
	$(BIN)/tfrz bench retrieval
	$(BIN)/tfrz bench reinforce
	$(BIN)/tfrz bench history
	$(BIN)/tfrz bench distill
	$(BIN)/tfrz bench data

conformance: setup ## docs/serving_conformance.md, from a run of the black-box suite (minutes)
	CONFORMANCE_PAGE=docs/serving_conformance.md $(BIN)/python -m pytest -q -n 2 --dist loadfile \
	  tests/tfrz/serving --deselect tests/tfrz/serving/test_conformance_page.py

docs: setup ## the pages made from the registry and the stored results
	$(BIN)/python docs/build.py

lock: setup ## resolve requirements*.in anew
	$(BIN)/uv pip compile -q --python-version 3.11 --override requirements.overrides \
	  --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" \
	  requirements.in -o requirements.lock
	$(BIN)/uv pip compile -q --python-version 3.11 --universal \
	  --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" \
	  requirements-newest.in -o requirements-newest.lock

protos: setup ## compile the .proto files, by the compiler that fits the lock's protobuf
	$(BIN)/uv tool run -q --python $(BIN)/python --from grpcio-tools==1.62.3 --with 'protobuf>=4.25,<5' \
	  --with 'setuptools<70' python -W ignore -m grpc_tools.protoc -I. --python_out=. tfrz/serving/protos/*.proto

build-files: setup ## list every Python file in the BUILD files
	$(BIN)/python tools/update_build.py

clean: ## remove environments and caches
	rm -rf $(VENV) $(NEWEST_VENV) *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
