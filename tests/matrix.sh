#!/usr/bin/env bash
# The source matrix. `tests/matrix.sh all` runs the worker's tests on PostgreSQL 16 and 18, builds the extensions for 18 and
# runs their tests there; `tests/matrix.sh smoke` runs of the worker's tests those that differ most between versions.
# The servers are those of tests/servers.sh: nothing is installed outside of .deps. `make build` comes first.
set -euo pipefail
cd "$(dirname "$0")/.."
case ${1:-} in
all) WORKER=(worker_) ;;
smoke) WORKER=(worker_crash worker_kinds worker_schema worker_standby worker_stream:: worker_types worker_versions) ;;
*)
    echo "usage: $0 all|smoke" >&2
    exit 2
    ;;
esac
TARGET=${CARGO_TARGET_DIR:-$PWD/target}
export RUST_BACKTRACE=0

step() {
    local name=$1 started=$SECONDS
    shift
    printf '\n== %s\n' "$name"
    "$@"
    printf '== %s: ok, %d s\n' "$name" $((SECONDS - started))
}

# The tests themselves are the same program for every server. `--workspace` always, lest other features be resolved.
on() {
    local major=$1
    shift
    # shellcheck disable=SC2086
    PG_CONFIG=$PWD/.deps/pg$major/bin/pg_config cargo test --release --workspace ${CARGO_FLAGS:-} "$@"
}

build_extensions() {
    make --no-print-directory extensions PG_CONFIG="$PWD/.deps/pg18/bin/pg_config" CARGO_FLAGS="${CARGO_FLAGS:-}"
    pg-bgworker/install.sh .deps/pg18/bin/pg_config "$TARGET/pg18/release"
    query-ext/install.sh .deps/pg18/bin/pg_config "$TARGET/pg18/release"
}

extensions() {
    export LAKE_LIBRARY_DIR=$TARGET/pg18/release
    on 18 --test suite -- extension_
    # The crates' own tests, by their names: `main` of pg-bgworker, not that of iceberg-writer.
    on 18 --test query
    on 18 --test main -- life:: mirror:: refusals::
}

step 'servers' tests/servers.sh
for major in 16 18; do
    step "worker on PostgreSQL $major" on "$major" --test suite -- "${WORKER[@]}"
done
if [[ $1 == all ]]; then
    step 'extensions for PostgreSQL 18' build_extensions
    step 'extensions on PostgreSQL 18' extensions
fi
