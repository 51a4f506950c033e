# Synod: `make help` lists the targets.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON := .venv/bin/python
CONFIG ?= deploy/configs/embedded.toml
RUN_DIR ?= runs/service
PARTS ?= all
export PYTHONPATH := $(CURDIR)
PARALLEL := $(PYTHON) -m pytest -n 2 --dist loadfile # a file's tests share their fixtures

.PHONY: help setup demo check test test-full lint format proto up down status weights bench-serving bench-scorers bench-personal chart chart-docs clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

setup: .venv/.installed ## Create .venv from pyproject.toml and constraints.txt

.venv/.installed: pyproject.toml constraints.txt deploy/setup.sh
	@deploy/setup.sh .venv
	@touch $@

demo: setup ## Start the service, score sample images, train briefly, write runs/demo/report.html, stop
	@exec $(PYTHON) -m embedded.demo

check: lint ## Lint, type-check and run the fast tests of units, numbers and architecture (3 minutes)
	@$(PARALLEL) -m "not slow" tests/architecture tests/batching tests/contract tests/numerics tests/unit

test: lint ## Lint, type-check and run every test (under 20 minutes)
	@$(PARALLEL) --ignore=tests/browser --ignore=tests/integration
	@$(PARALLEL) tests/browser tests/integration

test-full: ## The same with more random cases and faults, and a long run under load (an hour)
	@SYNOD_FULL=1 SYNOD_GENEVAL_SETS=5000 $(MAKE) test
	@$(PYTHON) -m benchmarks.faults
	@$(PYTHON) -m benchmarks.nodes

lint: setup ## ruff, mypy, buf, and the words that the glossary replaces
	@.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy
	@.venv/bin/buf lint && .venv/bin/buf breaking --against protos/released.binpb
	@$(PYTHON) deploy/lint_words.py

format: setup ## Rewrite the sources in the project's format
	@.venv/bin/ruff check --fix . ; .venv/bin/ruff format .

proto: setup ## Generate synod/v1 from protos/synod/v1/reward.proto
	@$(PYTHON) protos/generate.py .

up: setup ## Start the service in the background (HTTP on 127.0.0.1:8000; CONFIG=... picks another TOML)
	@$(PYTHON) -m services up $(CONFIG) --detach --run-dir $(RUN_DIR)

status: setup ## Report whether the service of `make up` runs, and which scorers are ready
	@$(PYTHON) -m services status --run-dir $(RUN_DIR)

down: setup ## Stop the service of `make up`
	@$(PYTHON) -m services down --run-dir $(RUN_DIR)

weights: setup ## Retrain the embedded models from seeds, measure them, record golden scores (PARTS=base, flow or all)
	@$(PYTHON) -m embedded.makers --parts $(PARTS)
	@$(PYTHON) -m services golden deploy/configs/embedded.toml embedded/golden.json

bench-serving: setup ## Compare Synod with other servers in one run (ARGS="--quick"; ARGS=--help explains)
	@$(PYTHON) -m benchmarks.serving $(ARGS)

bench-scorers: setup ## Compare the speed of each embedded scorer with a direct call of its model (ARGS="--quick")
	@$(PYTHON) -m benchmarks.scorers $(ARGS)

bench-personal: setup ## Teach the embedded policy six unseen concepts and measure each stage (ARGS="--only geneval"; hours)
	@$(PYTHON) -m benchmarks.personalization $(ARGS)

chart: setup ## Lint and render the Helm chart and check every object that it creates
	@$(PYTHON) -m helm.generate --check && $(PYTHON) -m pytest tests/chart

chart-docs: setup ## Write the generated files of the chart: schema, value table, dashboards, default TOML
	@$(PYTHON) -m helm.generate

clean: ## Remove what the targets above made, .venv included; trainings in runs/ stay
	@rm -rf .venv build dist *.egg-info runs/bench-serving runs/console runs/demo runs/service
