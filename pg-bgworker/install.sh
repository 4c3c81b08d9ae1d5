#!/bin/sh
# Installs the extension lake into a Postgres: library, control file and script.
# Each file is replaced in one step, so that a server that starts meanwhile finds the old one or the new one, whole.
set -eu

if [ $# -ne 2 ]; then
    echo "usage: $0 PG_CONFIG TARGET_DIR   (TARGET_DIR holds liblake.so, e.g. target/release)" >&2
    exit 2
fi
pg_config=$1
target=$2
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
library=$("$pg_config" --pkglibdir)
extension=$("$pg_config" --sharedir)/extension

if [ ! -f "$target/liblake.so" ]; then
    echo "$0: $target/liblake.so is missing: build it with cargo build --release -p lake" >&2
    exit 1
fi

# put FROM TO MODE
put() {
    temporary=$(mktemp "$2.XXXXXX")
    if ! { cat "$1" > "$temporary" && chmod "$3" "$temporary" && mv -f "$temporary" "$2"; }; then
        rm -f "$temporary"
        echo "$0: cannot write $2" >&2
        exit 1
    fi
}

mkdir -p "$library" "$extension"
script=$(mktemp)
trap 'rm -f "$script"' EXIT
cat "$here/sql/head.sql" "$here/../cdc-worker/src/registry/schema.sql" "$here/sql/lake.sql" > "$script"

put "$target/liblake.so" "$library/lake.so" 755
put "$script" "$extension/lake--0.1.0.sql" 644
put "$here/lake.control" "$extension/lake.control" 644
