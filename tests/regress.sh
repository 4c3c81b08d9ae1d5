#!/usr/bin/env bash
# Fetches the SQL of PostgreSQL's own regression tests into .deps/regress/sql, for `make test-regress`. No package of the server has it;
# a crate with the server's parser has it among its tests. Safe to run again.
set -euo pipefail
cd "$(dirname "$0")/.."

CRATE=pg_query
VERSION=5.1.1

HERE=$PWD/.deps/regress
want="$CRATE $VERSION"
[[ -f $HERE/stamp && $(<"$HERE/stamp") == "$want" ]] && exit 0
rm -rf "$HERE"
mkdir -p "$HERE/src"
printf '[workspace]\n[package]\nname = "regress"\nversion = "0.0.0"\n[dependencies]\n%s = "=%s"\n' "$CRATE" "$VERSION" >"$HERE/Cargo.toml"
: >"$HERE/src/lib.rs"
echo "regress: the SQL of PostgreSQL's regression tests"
cargo fetch --quiet --manifest-path "$HERE/Cargo.toml"
manifest=$(cargo metadata --quiet --format-version 1 --manifest-path "$HERE/Cargo.toml" |
    python3 -c 'import json, sys; print(next(p["manifest_path"] for p in json.load(sys.stdin)["packages"] if p["name"] == sys.argv[1]))' "$CRATE")
cp -r "$(dirname "$manifest")/libpg_query/test/sql/postgres_regress" "$HERE/sql"
echo "$want" >"$HERE/stamp"
