#!/bin/sh
# Installs the extension lake_query into a Postgres: library, beside it DuckDB's library and the extension of it that reads
# object stores, control file and script.
# Each file is replaced in one step, so that a server that starts meanwhile finds the old one or the new one, whole.
set -eu

if [ $# -ne 2 ]; then
    echo "usage: $0 PG_CONFIG TARGET_DIR   (TARGET_DIR holds liblake_query.so, e.g. target/release)" >&2
    exit 2
fi
pg_config=$1
target=$2
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
library=$("$pg_config" --pkglibdir)
extension=$("$pg_config" --sharedir)/extension
duckdb=${DUCKDB_LIB_DIR:-$here/../.deps/duckdb}

for file in "$target/liblake_query.so" "$duckdb/libduckdb.so" "$duckdb/httpfs.duckdb_extension"; do
    if [ ! -f "$file" ]; then
        echo "$0: $file is missing: make setup fetches DuckDB, and cargo build --release -p lake_query builds the extension" >&2
        exit 1
    fi
done

# put FROM TO MODE
put() {
    if [ -f "$2" ] && cmp -s "$1" "$2"; then
        return
    fi
    temporary=$(mktemp "$2.XXXXXX")
    if ! { cat "$1" > "$temporary" && chmod "$3" "$temporary" && mv -f "$temporary" "$2"; }; then
        rm -f "$temporary"
        echo "$0: cannot write $2" >&2
        exit 1
    fi
}

mkdir -p "$library" "$extension"
put "$duckdb/libduckdb.so" "$library/libduckdb.so" 755
put "$duckdb/httpfs.duckdb_extension" "$library/httpfs.duckdb_extension" 644
put "$target/liblake_query.so" "$library/lake_query.so" 755
put "$here/sql/lake_query--0.1.0.sql" "$extension/lake_query--0.1.0.sql" 644
put "$here/lake_query.control" "$extension/lake_query.control" 644
