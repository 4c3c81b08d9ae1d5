"""Copies heap tables into the lake by PyIceberg: how the harness proves that its oracle accepts and objects rightly.

One JSON request on standard input. Column types are those of the mirror; field ids are the columns' positions.
"""

import decimal
import json
import re
import struct
import sys
import urllib.parse

import psycopg2
import pyarrow
from pyiceberg.catalog.sql import SqlCatalog

decimal.getcontext().prec = 100

# Postgres type -> Arrow type, expression that gives an exact integer or text, and what to make of it.
EPOCH = "trunc(extract(epoch FROM {c}) * 1000000)::int8"
TYPES = {
    "bool": (pyarrow.bool_(), "{c}", None),
    "int2": (pyarrow.int32(), "{c}", None),
    "int4": (pyarrow.int32(), "{c}", None),
    "int8": (pyarrow.int64(), "{c}", None),
    "float4": (pyarrow.float32(), "encode(float4send({c}), 'hex')", lambda v: struct.unpack("!f", bytes.fromhex(v))[0]),
    "float8": (pyarrow.float64(), "encode(float8send({c}), 'hex')", lambda v: struct.unpack("!d", bytes.fromhex(v))[0]),
    "text": (pyarrow.string(), "{c}", None),
    "varchar": (pyarrow.string(), "{c}", None),
    "json": (pyarrow.string(), "{c}::text", None),
    "jsonb": (pyarrow.string(), "{c}::text", None),
    "bytea": (pyarrow.binary(), "encode({c}, 'hex')", bytes.fromhex),
    "date": (pyarrow.date32(), "{c} - DATE '1970-01-01'", None),
    "time": (pyarrow.time64("us"), EPOCH, None),
    "timestamp": (pyarrow.timestamp("us"), EPOCH, None),
    "timestamptz": (pyarrow.timestamp("us", "UTC"), EPOCH, None),
    "uuid": (pyarrow.uuid(), "replace({c}::text, '-', '')", bytes.fromhex),
}


def column(cursor, table, name, kind):
    numeric = re.fullmatch(r"numeric\((\d+),(\d+)\)", kind)
    if numeric:
        arrow, expression, convert = pyarrow.decimal128(int(numeric[1]), int(numeric[2])), "{c}", None
    else:
        arrow, expression, convert = TYPES[kind]
    cursor.execute(f"SELECT {expression.format(c=name)} FROM {table} ORDER BY id")
    values = [row[0] for row in cursor.fetchall()]
    if convert:
        values = [None if value is None else convert(value) for value in values]
    if kind in ("date", "time", "timestamp", "timestamptz"):
        width = pyarrow.int32() if kind == "date" else pyarrow.int64()
        return pyarrow.array(values, width).cast(arrow)
    if kind == "uuid":
        return pyarrow.ExtensionArray.from_storage(arrow, pyarrow.array(values, pyarrow.binary(16)))
    return pyarrow.array(values, arrow)


def main():
    request = json.load(sys.stdin)
    connection = psycopg2.connect(
        host=request["host"], port=request["port"], dbname=request["database"], user=request["user"]
    )
    connection.autocommit = True
    query = urllib.parse.urlencode(
        {"host": request["host"], "port": request["port"], "options": "-csearch_path=lake_catalog"},
        quote_via=urllib.parse.quote,
    )
    uri = f"postgresql+psycopg2://{request['user']}@/{request['database']}?{query}"
    catalog = SqlCatalog("lake", uri=uri, warehouse=f"file://{request['warehouse']}", init_catalog_tables="false")
    with connection.cursor() as cursor:
        for table in request["tables"]:
            cursor.execute(
                "SELECT attname, replace(format_type(atttypid, CASE WHEN atttypid = 'numeric'::regtype THEN atttypmod END), ' ', ''),"
                " (SELECT typname FROM pg_type WHERE oid = atttypid)"
                " FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
                [table],
            )
            columns = [(name, full if base == "numeric" else base) for name, full, base in cursor.fetchall()]
            rows = pyarrow.table({name: column(cursor, table, name, kind) for name, kind in columns})
            catalog.create_namespace_if_not_exists(table.split(".")[0])
            catalog.create_table(table, schema=rows.schema).append(rows)
    json.dump({}, sys.stdout)


main()
