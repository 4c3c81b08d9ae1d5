"""Bytes of the live data files of a table: one request on standard input, one answer on standard output.

{"metadata": location, "store": PyIceberg's options of the object store} -> {"bytes": n}
"""

import json
import sys

from pyiceberg.table import StaticTable

request = json.load(sys.stdin)
table = StaticTable.from_metadata(request["metadata"], request["store"])
print(json.dumps({"bytes": sum(table.inspect.data_files()["file_size_in_bytes"].to_pylist())}))
