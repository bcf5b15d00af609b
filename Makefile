# Every target sets up what it needs by itself: a Python >= 3.11 is enough. PYTHON=… names another one.
.DEFAULT_GOAL := help
.PHONY: help demo test compose-test faults faults-proof lint format bench clean

PYTEST_ARGS ?=
CODE := sdk platform worker_runtime tests scripts examples bench setup.py
PYTHON_FOLDERS = $(wildcard $(CODE))

help: ## Show what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## Start the platform, deploy the examples, use them, stop it
	@scripts/setup platform
	@.venv/bin/python scripts/demo.py

test: ## Run every test; PYTEST_ARGS='-k name' for some of them
	@scripts/setup platform,dev
	@scripts/test $(PYTEST_ARGS)

compose-test: ## Bring up the stack of compose/, use it, break it under load; minutes, needs a Docker engine
	@scripts/setup platform,dev
	@.venv/bin/python -m pytest tests/compose $(PYTEST_ARGS)

faults: ## Break the platform: each fault once, then at random; MINUTES=5, SEED=… repeats; writes docs/faults.md
	@scripts/setup platform,dev
	@FAULTS_PAGE=docs/faults.md .venv/bin/python -m pytest tests/faults $(PYTEST_ARGS)
	@FAULTS_PAGE=docs/faults.md .venv/bin/python -m pytest -s tests/faults/random_faults.py

faults-proof: ## Take each mechanism out of a copy and see its fault test fail; writes docs/faults.md
	@scripts/setup platform,dev
	@FAULTS_PAGE=docs/faults.md .venv/bin/python -m pytest tests/faults/sabotage.py $(PYTEST_ARGS)

lint: ## ruff (rules and format) and mypy --strict
	@scripts/setup platform,dev
	.venv/bin/ruff check $(PYTHON_FOLDERS)
	.venv/bin/ruff format --check $(PYTHON_FOLDERS)
	.venv/bin/mypy

format: ## Let ruff put the code into shape
	@scripts/setup platform,dev
	.venv/bin/ruff check --fix $(PYTHON_FOLDERS)
	.venv/bin/ruff format $(PYTHON_FOLDERS)

bench: ## Measure against peers; minutes, needs a quiet machine
	@scripts/setup platform,dev
	@bench/run

clean: ## Remove what was made here: .venv, caches, the demo's home
	@if [ -d .demo ]; then chmod -R u+w .demo; fi
	rm -rf .venv .demo build dist .pytest_cache .mypy_cache .ruff_cache sdk/*.egg-info *.egg-info
	find sdk platform worker_runtime tests scripts examples -name __pycache__ -type d -prune -exec rm -rf {} +
