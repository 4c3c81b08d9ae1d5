#!/usr/bin/env bash
# Installs the readers of the readers' matrix that the other tests do not need (1.5 GB), for `make test-readers`: ClickHouse
# and Spark, with the Python readers once more, in .deps/readers, Iceberg's runtime
# for Spark, and Iceberg's own REST server. Needs what tests/setup.sh installs. Safe to run again.
set -euo pipefail
cd "$(dirname "$0")/.."

PACKAGES=(chdb==4.4.0 pyspark==4.1.4)
JAVA=openjdk-17-jre-headless

DEPS=$PWD/.deps
HOME_OF_READERS=$DEPS/readers
LOG=$DEPS/readers.log

say() { printf 'readers: %s\n' "$*"; }

quietly() {
    if ! "$@" >>"$LOG" 2>&1; then
        tail -n 25 "$LOG" >&2
        printf "readers: error: '%s' failed; the whole log is %s\n" "$*" "$LOG" >&2
        exit 1
    fi
}

mkdir -p "$DEPS"
exec 9>"$DEPS/readers.lock"
flock 9
want=$(cat tests/readers.sh tests/oracle/spark.py tests/java_catalog/ivy.xml tests/requirements.txt | sha256sum | cut -d' ' -f1)
if [[ -f $HOME_OF_READERS/stamp && $(<"$HOME_OF_READERS/stamp") == "$want" ]] && command -v java >/dev/null; then
    exit 0
fi
: >"$LOG"
if ! command -v java >/dev/null; then
    say "Java for Spark: $JAVA"
    as_root=()
    [[ $(id -u) == 0 ]] || as_root=(sudo)
    quietly "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -y --no-install-recommends install "$JAVA"
fi
say "ClickHouse and Spark (2-3 minutes)"
quietly python3 -m venv --clear "$HOME_OF_READERS/venv"
quietly "$HOME_OF_READERS/venv/bin/pip" install --disable-pip-version-check --no-input --requirement tests/requirements.txt "${PACKAGES[@]}"
quietly "$HOME_OF_READERS/venv/bin/python" tests/oracle/spark.py fetch
say "Iceberg's REST server (less than 1 minute)"
rm -rf "$HOME_OF_READERS/java_catalog"
# Spark brings Ivy.
quietly java -jar "$HOME_OF_READERS"/venv/lib/python3*/site-packages/pyspark/jars/ivy-*.jar -m2compatible \
    -cache "$HOME_OF_READERS/ivy/cache" -ivy tests/java_catalog/ivy.xml -types jar bundle \
    -retrieve "$HOME_OF_READERS/java_catalog/[artifact]-[revision](-[classifier]).[ext]"
echo "$want" >"$HOME_OF_READERS/stamp"
