# Set-up and the everyday commands. `make` lists them.
# Targets that need .venv bring it up to date first (scripts/set-up), which costs nothing when it is.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
unexport PYTHONHOME PYTHONPATH

# The environment's commands come first, also for what Snakemake's rules and the tests start.
IN_VENV := env PATH="$(CURDIR)/.venv/bin:$$PATH"
OVERLAY = $(if $(CONFIG),--configfile $(CONFIG))
FAST := not slow and not slurm and not browser and not gpu

##@ Run
.PHONY: all
all: set-up  ## run the experiment on this machine and show the result (CONFIG=experiments/smoke.yaml: an overlay)
	$(IN_VENV) snakemake all --profile local $(OVERLAY)
	$(IN_VENV) msd report --show $(OVERLAY)

.PHONY: plan
plan: set-up  ## list what `make all` would run
	@$(IN_VENV) snakemake all --profile local --dry-run $(OVERLAY)

.PHONY: dag
dag: set-up  ## print the graph of the rules, as Mermaid text
	@$(IN_VENV) snakemake all --profile local --rulegraph mermaid-js $(OVERLAY)

.PHONY: pull
pull: set-up  ## fetch, check and register the results that dvc.lock names (docs/dvc.md)
	$(IN_VENV) dvc pull
	$(IN_VENV) msd report --check
	$(IN_VENV) msd track
	$(IN_VENV) snakemake all --profile local --touch --quiet all

##@ Check
.PHONY: test
test: set-up  ## run the fast tests, two at a time (TESTS=tests/unit: some of them; MARKS=slow: another selection)
	@$(if $(MARKS),,echo "Left out: tests marked slow (minutes), slurm (need SLURM and munge), browser (need Chromium and its driver), gpu (need CUDA). .ci/run also runs slow, browser and slurm.")
	$(IN_VENV) python -m pytest -q --numprocesses 2 --dist loadscope --durations=10 -m "$(or $(MARKS),$(FAST))" $(TESTS)

.PHONY: lint
lint: set-up  ## run ruff, snakefmt, mypy and the import contracts: all of them, then one verdict
	@failed=
	check() { echo "+ $$*"; $(IN_VENV) "$$@" || failed+=" [$$*]"; }
	check ruff check
	check ruff format --check
	check snakefmt --check Snakefile workflow
	check mypy
	check lint-imports --no-logo
	[ -z "$$failed" ] || { echo "lint failed:$$failed" >&2; exit 1; }

.PHONY: screenshot
screenshot: set-up  ## renew docs/images/mlflow.png: two variants' curves in MLflow (needs Chromium and its driver)
	SCREENSHOT="$(CURDIR)/docs/images/mlflow.png" $(IN_VENV) python -m pytest -q -m browser -k one_chart tests/workflow/test_browser.py

.PHONY: format
format: set-up  ## let ruff and snakefmt rewrite the files
	$(IN_VENV) ruff check --fix-only
	$(IN_VENV) ruff format
	$(IN_VENV) snakefmt Snakefile workflow

##@ Environment
.PHONY: set-up
set-up:  ## make or update .venv (PYTHON=/path/to/python3.12: with that interpreter)
	@$(if $(PYTHON),PYTHON="$(PYTHON)") scripts/set-up

.PHONY: lock
lock:  ## renew requirements.lock with the newest versions that pyproject.toml admits
	@scripts/set-up uv
	.tools/bin/uv lock --upgrade
	.tools/bin/uv export --quiet --frozen --all-extras --all-groups --no-header --no-annotate --no-emit-project -o requirements.lock
	if grep -n '://' requirements.lock; then echo "error: requirements.lock names a host" >&2; exit 1; fi

.PHONY: clean-venv
clean-venv:  ## remove .venv and .tools; results stay
	rm -rf .venv .tools

.PHONY: help
help:  ## this list
	@awk -F ':.*## ' '/^##@/ {print "\n" substr($$0, 5)} /^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' Makefile
