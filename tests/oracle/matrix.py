"""What each of Iceberg's readers makes of mirrored tables: the readers' matrix.

One JSON request on standard input: `steps`, each with a table's metadata file as it was after some change of the source, and
the table `copy` in the source that has the rows of that moment; or with the table's name in the catalog (`by_name`, of Spark:
the others' catalogs are `read_lake.py`'s to prove). One JSON answer on standard output: of
every step and reader, "equal", or what is different or was refused. Rows are compared as `read_lake.py` does, bit by bit;
before that a value is only brought from a reader's own type into the one that Iceberg's type has in Arrow, as READERS says.

Needs the environment of tests/readers.sh.
"""

import contextlib
import json
import os
import re
import sys

import pyarrow
from pyiceberg.table import StaticTable

import read_lake
import spark
from read_lake import Unequal


class DuckDB:
    def __init__(self, request):
        self.session = read_lake.duckdb_session(request)

    def rows(self, location, snapshot):
        at = f", snapshot_from_id = {snapshot}::UBIGINT" if snapshot else ""
        return self.session.execute(f"SELECT * FROM iceberg_scan({read_lake.literal(read_lake.local(location))}{at})").to_arrow_table()


class PyIceberg:
    def __init__(self, request):
        pass

    def rows(self, location, snapshot):
        return StaticTable.from_metadata(location).scan(snapshot_id=snapshot).to_arrow()


class ClickHouse:
    def __init__(self, request):
        import chdb

        # It reads files below the working directory only.
        os.chdir("/")
        self.query = chdb.query

    def rows(self, location, snapshot):
        folder, metadata = read_lake.local(location).rsplit("/metadata/", 1)
        settings = f"iceberg_metadata_file_path = {read_lake.literal('metadata/' + metadata)}"
        at = f", iceberg_snapshot_id = {snapshot}" if snapshot else ""
        # Texts and bytes are one type there.
        options = f"output_format_arrow_string_as_string = 0, use_iceberg_metadata_files_cache = 0{at}"
        scan = f"icebergLocal({read_lake.literal(folder)}, SETTINGS {settings})"
        return self.query(f"SELECT * FROM {scan} SETTINGS {options}", "ArrowTable")


class Spark:
    def __init__(self, request):
        self.session = spark.session(request)

    def by_name(self, table):
        return self.session.table(f"lake.{table}").toArrow()

    def rows(self, location, snapshot):
        reader = self.session.read.format("iceberg")
        if snapshot:
            reader = reader.option("versionAsOf", str(snapshot))
        return reader.load(location).toArrow()


READERS = {"DuckDB": DuckDB, "PyIceberg": PyIceberg, "ClickHouse": ClickHouse, "Spark": Spark}


def in_arrow(array, column):
    """A column as Iceberg's type is in Arrow, when the reader has another type of its own for the same values."""
    if isinstance(array, pyarrow.ChunkedArray):
        array = array.combine_chunks()
    text = column["iceberg"] == "string"
    if text and (pyarrow.types.is_binary(array.type) or pyarrow.types.is_large_binary(array.type)):
        return array.cast(pyarrow.large_string())
    if text and pyarrow.types.is_large_string(array.type):
        return array
    # ClickHouse reads a time as a number, and writes both kinds of timestamps with a zone.
    if column["type"] == "time" and array.type == pyarrow.int64():
        return array.cast(pyarrow.time64("us"))
    if column["type"] == "timestamp" and pyarrow.types.is_timestamp(array.type) and array.type.tz is not None:
        return array.cast(pyarrow.timestamp(array.type.unit))
    return array


def compare(heap, columns, rows):
    arrays = {name: in_arrow(rows.column(name), column) for name, column in columns.items()}
    # Companions are text without a column of the heap's.
    for name in rows.column_names:
        if name not in arrays:
            arrays[name] = in_arrow(rows.column(name), {"iceberg": "string", "type": "text"})
    read_lake.compare_rows(heap, pyarrow.table(arrays), list(columns.values()))


def outcome(step, reader, heap, columns):
    try:
        name = step.get("by_name")
        compare(heap, columns, reader.by_name(name) if name else reader.rows(step["location"], step.get("snapshot")))
        return "equal"
    except Exception as error:  # whatever a reader throws is its outcome
        said = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        return re.sub(r"(file:)?/\S+", "…", said)[:300]


def main():
    request = json.load(sys.stdin)
    connection = read_lake.connect(request)
    results = []
    # Spark's start talks on standard output, and so may other libraries.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with contextlib.closing(answer):
        readers = {name: READERS[name](request) for name in request["readers"]}
        for step in request["steps"]:
            name = step["copy"]
            table = read_lake.quoted(name).as_string(connection)
            columns = read_lake.columns_of(connection, name, table)
            for column in columns:
                column["key"] = column["name"] in step["key"]
                if column["name"] + "__text" in step["companions"]:
                    column["companion"] = column["name"] + "__text"
            heap = read_lake.ordered(read_lake.heap_rows(connection, table, columns), columns)
            by_name = {column["name"]: column for column in columns}
            for reader in step.get("readers", readers):
                results.append({"of": step["of"], "step": step["name"], "reader": reader, "outcome": outcome(step, readers[reader], heap, by_name)})
        json.dump({"results": results}, answer)


main()
