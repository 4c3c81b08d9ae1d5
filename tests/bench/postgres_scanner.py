"""The peer of the scenario `copy`: DuckDB's postgres_scanner, one table into one Parquet file. JSON in, JSON out."""

import json
import sys
import time
from importlib import resources

import duckdb

request = json.load(sys.stdin)
session = duckdb.connect(config={"autoinstall_known_extensions": "false", "autoload_known_extensions": "false"})
package = resources.files("duckdb_extension_postgres_scanner")
session.load_extension(str(next(package.rglob("postgres_scanner.duckdb_extension"))))
session.execute(f"SET threads = {int(request['threads'])}")
session.execute(f"ATTACH 'host={request['host']} port={request['port']} user=postgres dbname=postgres' AS pg (TYPE postgres, READ_ONLY)")
begun = time.monotonic()
session.execute(f"COPY (FROM pg.events) TO '{request['output']}' (FORMAT parquet, COMPRESSION zstd)")
json.dump({"seconds": time.monotonic() - begun}, sys.stdout)
