# Every target may be run on its own; each does first what it needs.
.DEFAULT_GOAL := help
SHELL := /bin/bash

PG_CONFIG ?= /usr/lib/postgresql/15/bin/pg_config
CARGO_FLAGS ?=
# What `make build` builds beside the programs. With --all-targets the tests too: then all is compiled once, for tests need
# some libraries with other features than programs do.
BUILD_TARGETS ?=
TARGET_DIR := $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)
RELEASE := $(TARGET_DIR)/release
PYTHON := $(CURDIR)/.deps/venv/bin/python
# Extensions go to Postgres's own directories; as root there is nothing to ask for.
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
# The extensions are built for one version of Postgres: for 15 with all the rest, for another in a directory of its own.
# (Asked when it is needed: `make setup` may have to install pg_config first.)
PG_MAJOR = $(shell $(PG_CONFIG) --version | sed -nE 's/^PostgreSQL ([0-9]+).*/\1/p')
EXTENSIONS = $(if $(filter 15,$(PG_MAJOR)),$(RELEASE),$(TARGET_DIR)/pg$(PG_MAJOR)/release)
STARTED := $(shell date +%s)

.PHONY: help
help: ## this text
	@echo 'Lakemirror: Postgres tables, live in Apache Iceberg. Targets:'
	@sed -nE 's/^([a-z0-9-]+):.*## (.*)/  make \1 \t\2/p' $(MAKEFILE_LIST) | expand -t 22

.PHONY: setup
setup: ## install what is missing: Postgres, libclang, libduckdb, the Python readers
	@tests/setup.sh

.PHONY: build
build: setup ## build everything (10 minutes the first time, seconds after that)
	@echo 'build: cargo build --release (about 10 minutes the first time on 2 cores)'
	cargo build --release --workspace $(BUILD_TARGETS) $(CARGO_FLAGS)

.PHONY: extensions
extensions: build ## build the extensions for the Postgres of PG_CONFIG (10 minutes the first time, unless it is 15)
	@if [ '$(PG_MAJOR)' != 15 ]; then \
		echo 'extensions: cargo build for PostgreSQL $(PG_MAJOR)'; \
		PGRX_PG_CONFIG_PATH='$(PG_CONFIG)' cargo build --release -p lake -p lake_query --no-default-features \
			--features lake/pg$(PG_MAJOR),lake_query/pg$(PG_MAJOR) --target-dir '$(TARGET_DIR)/pg$(PG_MAJOR)' $(CARGO_FLAGS); \
	fi

.PHONY: install
install: extensions ## copy the extensions lake and lake_query into the Postgres of PG_CONFIG
	@echo "install: lake and lake_query into $$($(PG_CONFIG) --pkglibdir)"
	@$(SUDO) pg-bgworker/install.sh $(PG_CONFIG) $(EXTENSIONS)
	@$(SUDO) query-ext/install.sh $(PG_CONFIG) $(EXTENSIONS)

.PHONY: test
test: install ## the whole test suite, on private Postgres servers
	@echo 'test: cargo test --release --workspace'
	RUST_BACKTRACE=0 PG_CONFIG='$(PG_CONFIG)' $(if $(filter-out 15,$(PG_MAJOR)),LAKE_LIBRARY_DIR='$(EXTENSIONS)') \
		cargo test --release --workspace $(CARGO_FLAGS)

.PHONY: test-matrix
test-matrix: build ## the worker's tests on Postgres 16 and 18, and the extensions built for 18 and tested there
	@tests/matrix.sh all

.PHONY: test-readers
test-readers: build ## what DuckDB, PyIceberg, ClickHouse and Spark make of the lake, and Iceberg's own REST server of the worker (fetches 600 MB the first time)
	@tests/readers.sh
	RUST_BACKTRACE=0 cargo test --release --workspace $(CARGO_FLAGS) --test suite -- --ignored worker_readers worker_takeover worker_java_catalog

.PHONY: test-regress
test-regress: install ## PostgreSQL's own regression queries on mirrored tables, accelerated (fetches their SQL the first time)
	@tests/regress.sh
	RUST_BACKTRACE=0 cargo test --release --workspace $(CARGO_FLAGS) --test suite -- --ignored --nocapture extension_regress

.PHONY: test-sqlsmith
test-sqlsmith: install ## random statements by sqlsmith, accelerated (SECONDS=300 SEED=1; installs sqlsmith the first time)
	@tests/sqlsmith.sh
	RUST_BACKTRACE=0 SMITH_SECONDS='$(SECONDS)' SEED='$(SEED)' cargo test --release --workspace $(CARGO_FLAGS) --test suite -- --ignored --nocapture extension_sqlsmith

.PHONY: bench
bench: install ## whole scenarios beside a peer (SCENARIO=compact|copy|dirty|drain|first_query|huge_txn|index|many_commits|many_files|many_tables|rows_out|source_cost|tpch|write_cost SCALE=1 RUNS=3)
	@SCENARIO='$(SCENARIO)' SCALE='$(SCALE)' RUNS='$(RUNS)' $(RELEASE)/bench

.PHONY: soak
soak: build ## random work and faults until heap and lake differ or the time is over (SECONDS=600 SEED=1 ALTERS=1)
	@SOAK_SECONDS='$(SECONDS)' SEED='$(SEED)' SOAK_ALTERS='$(ALTERS)' $(RELEASE)/soak

.PHONY: lint
lint: setup ## formatting and clippy, as CI checks them
	cargo fmt --all --check
	cargo clippy --release --workspace --all-targets $(CARGO_FLAGS) -- -D warnings

.PHONY: demo
demo: install ## the main job on 336,776 real flights; KEEP=1 leaves it running
	@DEMO_STARTED=$(STARTED) KEEP=$(KEEP) $(RELEASE)/demo run

.PHONY: demo-stop
demo-stop: ## stop a demo that KEEP=1 left running, and remove it
	@$(RELEASE)/demo stop

.PHONY: k8s-validate
k8s-validate: setup ## check the Kubernetes manifests against their schemas, offline
	@$(PYTHON) tests/k8s/validate.py k8s
