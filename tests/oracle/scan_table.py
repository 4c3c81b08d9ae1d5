"""What other Iceberg readers see in a table: JSON on standard output, every value as text.

usage: readers.py scan METADATA [COLUMN]   both readers' rows, sorted by the column
       readers.py lineage METADATA         the column id, and each row's number and last commit, as DuckDB has them
       readers.py append URI WAREHOUSE TABLE ID   a row added by PyIceberg through the SQL catalog
"""

import datetime
import decimal
import glob
import json
import os
import sys
import uuid


ENDPOINT = os.environ.get("AWS_ENDPOINT_URL")
S3 = {}
if ENDPOINT:
    S3 = {
        "s3.endpoint": ENDPOINT,
        "s3.access-key-id": os.environ["AWS_ACCESS_KEY_ID"],
        "s3.secret-access-key": os.environ["AWS_SECRET_ACCESS_KEY"],
        "s3.region": os.environ["AWS_REGION"],
    }


def text(value):
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, bytes):
        return "".join(f"\\x{byte:02X}" for byte in value)
    if isinstance(value, decimal.Decimal):
        return format(value, "f")
    if isinstance(value, datetime.datetime):
        zone = "+00" if value.tzinfo else ""
        return value.replace(tzinfo=None).isoformat(sep=" ") + zone
    if isinstance(value, (int, float, uuid.UUID, datetime.date, datetime.time)):
        return str(value)
    raise TypeError(type(value))


def duckdb_session():
    import duckdb

    connection = duckdb.connect(config={"allow_unsigned_extensions": "true"})
    for name in ("httpfs", "avro", "iceberg"):
        folder = os.path.dirname(__import__(f"duckdb_extension_{name}").__file__)
        (extension,) = glob.glob(f"{folder}/extensions/*/{name}.duckdb_extension")
        connection.load_extension(extension)
    connection.execute("SET TimeZone = 'UTC'")
    if ENDPOINT:
        host = ENDPOINT.removeprefix("http://")
        connection.execute(
            f"CREATE SECRET (TYPE s3, KEY_ID '{os.environ['AWS_ACCESS_KEY_ID']}', "
            f"SECRET '{os.environ['AWS_SECRET_ACCESS_KEY']}', REGION '{os.environ['AWS_REGION']}', "
            f"ENDPOINT '{host}', URL_STYLE 'path', USE_SSL false)"
        )
    return connection


def duckdb_rows(metadata, order):
    connection = duckdb_session()
    scan = f"iceberg_scan('{metadata}')"
    types = [row[1] for row in connection.execute(f"DESCRIBE SELECT * FROM {scan}").fetchall()]
    rows = connection.execute(f'SELECT CAST(COLUMNS(*) AS VARCHAR) FROM (SELECT * FROM {scan} ORDER BY "{order}")')
    return {"types": types, "rows": [list(row) for row in rows.fetchall()]}


def lineage(metadata):
    columns = "id, _row_id, _last_updated_sequence_number"
    return duckdb_session().execute(f"SELECT {columns} FROM iceberg_scan('{metadata}') ORDER BY id").fetchall()


def pyiceberg_rows(metadata, order):
    from pyiceberg.table import StaticTable

    table = StaticTable.from_metadata(metadata, S3)
    rows = table.scan().to_arrow().sort_by(order)
    types = [str(field.field_type) for field in table.schema().fields]
    return {"types": types, "rows": [[text(value) for value in row.values()] for row in rows.to_pylist()]}


def append(uri, warehouse, name, number):
    import pyarrow
    from pyiceberg.catalog.sql import SqlCatalog

    table = SqlCatalog("lake", uri=uri, warehouse=warehouse, init_catalog_tables="false", **S3).load_table(name)
    schema = table.schema().as_arrow()
    rows = pyarrow.Table.from_pylist([{"id": int(number), "name": f"name {number}"}], schema=schema)
    table.append(rows)


if sys.argv[1] == "append":
    append(*sys.argv[2:])
elif sys.argv[1] == "lineage":
    json.dump(lineage(sys.argv[2]), sys.stdout)
else:
    order = sys.argv[3] if len(sys.argv) > 3 else "id"
    result = {"duckdb": duckdb_rows(sys.argv[2], order), "pyiceberg": pyiceberg_rows(sys.argv[2], order)}
    json.dump(result, sys.stdout)
