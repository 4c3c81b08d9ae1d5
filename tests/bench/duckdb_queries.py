"""Seconds that DuckDB itself takes for queries over Parquet files: one request on standard input, one answer on standard output.

{"tables": {name: glob}, "queries": [sql], "runs": n, "threads": n} -> {"seconds": [the median of each query]}
"""

import json
import statistics
import sys
import time

import duckdb

request = json.load(sys.stdin)
connection = duckdb.connect()
connection.execute(f"SET threads = {int(request['threads'])}")
# As the extension has it.
connection.execute("SET parquet_metadata_cache = true")
connection.execute("SET preserve_insertion_order = false")
for name, files in request["tables"].items():
    connection.execute(f"CREATE VIEW {name} AS SELECT * FROM read_parquet('{files}')")
seconds = []
for query in request["queries"]:
    taken = []
    for _ in range(request["runs"]):
        begun = time.perf_counter()
        connection.execute(query).fetchall()
        taken.append(time.perf_counter() - begun)
    seconds.append(statistics.median(taken))
print(json.dumps({"seconds": seconds}))
