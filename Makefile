# Every target sets up what it needs: from a bare clone, python3 (3.11 or newer), make and a way to PyPI are enough.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { command -v $$p; break; }; done)
DOCKER ?= docker
BIN := .venv/bin
PIP := -m pip --disable-pip-version-check --quiet install --root-user-action=ignore
CODE = $(wildcard client server migrations tests scripts examples bench)

.DEFAULT_GOAL := help
.PHONY: help setup demo serve up down image-check migrate test fuzz test-floor check lint types proto proto-check schema-check docs docs-check bench crash mutants mutation checker-mutants simulate soak lock clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(firstword $(MAKEFILE_LIST)) | awk -F'|' '{printf "%-14s %s\n", $$1, $$2}'

setup: .venv/.mobd ## make .venv from the locked requirements, with mobd itself in it

demo: setup ## a team of agents at work, end to end, in one terminal (LOG=path takes another log)
	$(BIN)/python examples/release_triage/demo.py $(if $(LOG),--log "$(LOG)")

serve: setup ## run a server on this machine
	$(BIN)/mobd serve $(SERVE_ARGS)

migrate: setup ## bring the database to the newest schema
	$(BIN)/mobd migrate $(MIGRATE_ARGS)

test: setup ## run the tests, as many at a time as there are cores (PYTEST_ARGS are passed on: -n0 is one at a time)
	$(BIN)/python -m pytest -n auto --dist loadgroup $(PYTEST_ARGS)

simulate: setup ## run simulated worlds (SEEDS=how many, FROM=first number, JOBS=processes, STORE=sqlite); failing ones are shrunk
	$(BIN)/python scripts/simulate.py --seeds $(or $(SEEDS),200) --from $(or $(FROM),0) $(if $(JOBS),--jobs $(JOBS)) $(if $(STORE),--store $(STORE))

soak: setup ## kill servers and agents under a long load, on both stores (MOBD_TEST_SEED repeats a run)
	MOBD_TEST_FULL=1 $(BIN)/python -m pytest tests/faults tests/crash/test_soak.py -s $(PYTEST_ARGS)

crash: setup ## kill, freeze, cut off and starve servers, agents and databases (KILLS=200 times; MOBD_TEST_SEED repeats)
	MOBD_TEST_KILLS=$(or $(KILLS),50) $(BIN)/python -m pytest tests/crash -s $(PYTEST_ARGS)

fuzz: setup ## send a server random requests (REQUESTS=100000, FROM=seed, STORE=postgresql; ONLY=call and REPLAY=file repeat)
	$(BIN)/python scripts/fuzz.py $(if $(REQUESTS),--requests $(REQUESTS)) $(if $(FROM),--seed $(FROM)) \
		$(if $(STORE),--store $(STORE)) $(if $(ONLY),--only $(ONLY)) $(if $(REPLAY),--replay $(REPLAY)) $(FUZZ_ARGS)

test-floor: .venv-floor/.mobd ## run the client's tests with the oldest dependencies that it supports
	PYTHONPATH=client .venv-floor/bin/python -m pytest --confcutdir=tests/client -m floor tests/client

up: deploy/secrets/database_password ## run mobd and PostgreSQL in containers (PROFILE=observability: Prometheus too)
	$(DOCKER) compose $(addprefix --profile ,$(PROFILE)) up --build --detach --wait

down: ## stop the containers; the data stay
	$(DOCKER) compose --profile observability down

image-check: setup ## the Dockerfile and docker-compose.yml are valid, and what is written there works
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml
	$(BIN)/hadolint Dockerfile
	$(BIN)/python -m pytest tests/deploy $(PYTEST_ARGS)

check: lint types proto-check schema-check docs-check ## everything that must hold beside the tests

lint: setup ## style, layers, file lengths, deployment files
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports --no-logo
	$(BIN)/python scripts/file_length.py
	$(if $(wildcard docker-compose.yml),$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml)
	$(if $(wildcard Dockerfile),$(BIN)/hadolint Dockerfile)

types: setup ## mypy, strict, over everything
	$(BIN)/mypy $(CODE)

proto: setup .venv-gen/.mobd ## generate the stubs in client/mobd/v1
	$(BIN)/python scripts/gen_proto.py

proto-check: setup .venv-gen/.mobd ## the stubs are fresh, the protocol is documented and breaks nobody
	$(BIN)/python scripts/gen_proto.py --check
	$(BIN)/buf lint
	$(BIN)/python scripts/proto_breaking.py

schema-check: setup ## the migrations lead to the tables in the code
	$(BIN)/python scripts/schema_check.py

docs: setup ## write docs/reference from the protocol and the code
	$(BIN)/python scripts/gen_docs.py

docs-check: setup ## docs/reference is fresh
	$(BIN)/python scripts/gen_docs.py --check

bench: setup ## measure all, and write docs/performance.md (BENCH=deliver: that; QUICK=1: in minutes, and no page)
	$(BIN)/python bench/run.py $(addprefix --only ,$(BENCH)) $(if $(QUICK),--quick) $(BENCH_ARGS)

profile: setup ## where a loaded server spends its time (WORK=batch, round_trips, watches, fanout, replay: under that)
	$(BIN)/python bench/hottest.py $(if $(WORK),--work $(WORK)) $(PROFILE_ARGS)

mutants: setup ## take out one rule at a time and see that a test notices; minutes (MUTANTS=word takes some)
	$(BIN)/python scripts/mutants.py $(MUTANTS)

mutation: .venv-mutation/.mobd ## change the machines in every small way and see that a test notices; hours (MODULES=lanes,inbox)
	.venv-mutation/bin/python scripts/mutation.py $(if $(MODULES),--modules $(MODULES)) $(MUTATION_ARGS)

checker-mutants: setup ## break the server in the ways of tests/mutants and see that the history checker tells; minutes
	$(BIN)/python scripts/checker_mutants.py $(MUTANTS)

UV_COMPILE = $(BIN)/uv --no-config pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-header --no-annotate --no-emit-index-url --no-emit-find-links $(LOCK_ARGS)
lock: setup ## write requirements/*.txt anew (LOCK_ARGS=--upgrade takes newer versions)
	$(UV_COMPILE) pyproject.toml --extra server --extra uvloop -o requirements/server.txt
	$(UV_COMPILE) pyproject.toml --extra server --extra uvloop --group dev -o requirements/dev.txt
	$(UV_COMPILE) pyproject.toml --group floor --resolution lowest-direct -o requirements/client-floor.txt
	$(UV_COMPILE) pyproject.toml --extra server --group mutation -c requirements/dev.txt -o requirements/mutation.txt
	$(UV_COMPILE) requirements/gen.in -o requirements/gen.txt
	$(UV_COMPILE) requirements/build.in -o requirements/build.txt

clean: ## remove the environments and caches
	rm -rf .venv .venv-gen .venv-floor .venv-mutation .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist

# The container's user is another than that of this machine, and a file that compose mounts keeps its mode: who may not
# enter the directory can't read it here either.
deploy/secrets/database_password:
	mkdir -p -m 700 $(@D)
	od -An -N24 -tx1 /dev/urandom | tr -d ' \n' > $@.new
	chmod 444 $@.new
	mv $@.new $@

# An environment is done when its stamp is newer than the lock that it was made from.
.venv/.mobd: requirements/dev.txt pyproject.toml | .venv/bin/python
	$(BIN)/python $(PIP) --require-hashes -r requirements/dev.txt
	$(BIN)/python $(PIP) --no-deps --no-build-isolation -e .
	@touch $@

.venv-gen/.mobd: requirements/gen.txt | .venv-gen/bin/python
	.venv-gen/bin/python $(PIP) --require-hashes -r requirements/gen.txt
	@touch $@

.venv-floor/.mobd: requirements/client-floor.txt | .venv-floor/bin/python
	.venv-floor/bin/python $(PIP) --require-hashes -r requirements/client-floor.txt
	@touch $@

.venv-mutation/.mobd: requirements/mutation.txt | .venv-mutation/bin/python
	.venv-mutation/bin/python $(PIP) --require-hashes -r requirements/mutation.txt
	@touch $@

.venv/bin/python .venv-gen/bin/python .venv-floor/bin/python .venv-mutation/bin/python:
	@test -n "$(PYTHON)" || { echo "mobd needs Python 3.11 or newer: install it, or name it: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "python3 cannot make environments here: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(@D:/bin=)
