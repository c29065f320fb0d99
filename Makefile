# Casemate's daily commands. Each sets up what it needs first; run `make` for the list.
PYTHON := .venv/bin/python
# Two files of tests at a time: most of them wait for processes, and the goal is two cores.
PYTEST := $(PYTHON) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help up demo check check-long test tuf-conformance lint format bench bench-guard fuzz docs guard-train lock setup-device setup-dev

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

up: setup-device ## Set up everything, then serve the demo model on 127.0.0.1:8080
	@exec .venv/bin/casemate up

demo: setup-device ## Set up everything, then show five attacks being blocked
	@exec .venv/bin/casemate demo

check: lint test ## Set up everything, then run every check and test (under 20 minutes on 2 cores)

lint: setup-dev ## Format, lint, types, layers, lock files
	$(PYTHON) -m ruff format --check src tests benchmarks tools examples
	$(PYTHON) -m ruff check src tests benchmarks tools examples
	$(PYTHON) -m mypy
	.venv/bin/lint-imports
	.venv/bin/uv lock --check --quiet
	shellcheck setup .ci/run

test: setup-dev ## Run the tests
	$(PYTEST) -q

check-long: lint ## Everything, and the long tests (crash rounds, 10^5 chunkings, a fresh clone)
	HYPOTHESIS_PROFILE=long $(PYTEST) -q -m "long or not long" --timeout=1800

tuf-conformance: setup-dev ## Run the public suite tuf-conformance on our client: make tuf-conformance DIR=CHECKOUT
	@test -n "$(DIR)" || { echo "give DIR=, a checkout of theupdateframework/tuf-conformance" >&2; exit 2; }
	cd "$(DIR)" && $(CURDIR)/$(PYTHON) -m pytest tuf_conformance --entrypoint "$(CURDIR)/$(PYTHON) $(CURDIR)/tests/conformance/tuf_client.py"

bench: setup-dev ## Measure against the peers; writes bench-results/*.json and prints tables
	$(PYTHON) benchmarks/run.py

bench-guard: setup-dev ## Measure the guard beside Presidio and detect-secrets, which it installs into .venv
	.venv/bin/uv sync --quiet --locked --inexact --extra device --extra release --extra fleet --extra tpm --group dev --group bench
	$(PYTHON) benchmarks/bench_guard_redact.py --json bench-results/guard_redact.json
	$(PYTHON) benchmarks/bench_guard_injection.py --json bench-results/guard_injection.json

fuzz: setup-dev ## Fuzz the guard with atheris, which it installs into .venv (FUZZ_SECONDS=600)
	.venv/bin/uv sync --quiet --locked --inexact --extra device --extra release --extra fleet --extra tpm --group dev --group fuzz
	$(PYTHON) tests/fuzz/fuzz_guard.py -max_total_time=$${FUZZ_SECONDS:-600} -max_len=8192
	$(PYTHON) tests/fuzz/fuzz_redaction.py -max_total_time=$${FUZZ_SECONDS:-600} -max_len=512

format: setup-dev ## Rewrite the code in the house format
	$(PYTHON) -m ruff format src tests benchmarks tools examples
	$(PYTHON) -m ruff check --fix-only src tests benchmarks tools examples

docs: setup-dev ## Rewrite the generated pages: references, threat model, the README's transcript and table
	@for tool in tools/make_*.py; do echo $$tool; $(PYTHON) $$tool || exit 1; done

guard-train: setup-dev ## Train the guard again: the same tree writes the same src/casemate/guard/data/injection.json
	$(PYTHON) -m tools.train_guard

lock: .venv/bin/uv ## After a change in pyproject.toml: new uv.lock and hashed requirements
	.venv/bin/uv lock
	.venv/bin/uv export -q --locked --no-emit-project --no-header --extra device --no-dev --group build -o requirements/device.txt
	.venv/bin/uv export -q --locked --no-emit-project --no-header --extra device --extra release --extra fleet --extra tpm --group dev -o requirements/dev.txt

# Not setup-dev: that one refuses a lock that does not fit, which is what `make lock` mends.
.venv/bin/uv:
	@./setup dev

setup-device:
	@./setup device

setup-dev:
	@./setup dev
