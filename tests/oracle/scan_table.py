"""What other Iceberg readers see in a table, every value as text. Requests have a `command`, and where the table is in an
object store, `s3` or `azure`:

  scan       METADATA's rows by both readers, sorted by the column `order`
  lineage    the column id, and each row's number and last commit, as DuckDB has them
  append     a row, added by PyIceberg through the SQL catalog at `uri`
"""

import contextlib
import datetime
import decimal
import glob
import os
import uuid

import duckdb
import pyarrow
from adlfs import AzureBlobFileSystem
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.table import StaticTable

from serving import serve


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


def store(request):
    """What PyIceberg is told of the object store."""
    s3, azure = request["s3"], request["azure"]
    if azure:
        return {"py-io-impl": "pyiceberg.io.fsspec.FsspecFileIO", "adls.connection-string": azure["connection"]}
    names = {"endpoint": "s3.endpoint", "key": "s3.access-key-id", "secret": "s3.secret-access-key", "region": "s3.region"}
    return {name: s3[key] for key, name in names.items()} if s3 else {}


def duckdb_session(request):
    s3, azure = request["s3"], request["azure"]
    connection = duckdb.connect(config={"allow_unsigned_extensions": "true"})
    for name in ("httpfs", "avro", "iceberg"):
        folder = os.path.dirname(__import__(f"duckdb_extension_{name}").__file__)
        (extension,) = glob.glob(f"{folder}/extensions/*/{name}.duckdb_extension")
        connection.load_extension(extension)
    connection.execute("SET TimeZone = 'UTC'")
    if s3:
        host = s3["endpoint"].removeprefix("http://")
        connection.execute(
            f"CREATE SECRET (TYPE s3, KEY_ID '{s3['key']}', SECRET '{s3['secret']}', REGION '{s3['region']}', "
            f"ENDPOINT '{host}', URL_STYLE 'path', USE_SSL false)"
        )
    if azure:
        # Its own extension reads such URLs by a protocol that the emulator has not.
        connection.register_filesystem(AzureBlobFileSystem(connection_string=azure["connection"]))
    return connection


def duckdb_rows(request):
    connection, order = duckdb_session(request), request["order"]
    scan = f"iceberg_scan('{request['metadata']}')"
    types = [row[1] for row in connection.execute(f"DESCRIBE SELECT * FROM {scan}").fetchall()]
    rows = connection.execute(f'SELECT CAST(COLUMNS(*) AS VARCHAR) FROM (SELECT * FROM {scan} ORDER BY "{order}")')
    return {"types": types, "rows": [list(row) for row in rows.fetchall()]}


def lineage(request):
    columns = "id, _row_id, _last_updated_sequence_number"
    scan = f"iceberg_scan('{request['metadata']}')"
    return duckdb_session(request).execute(f"SELECT {columns} FROM {scan} ORDER BY id").fetchall()


def pyiceberg_rows(request):
    table = StaticTable.from_metadata(request["metadata"], store(request))
    rows = table.scan().to_arrow().sort_by(request["order"])
    types = [str(field.field_type) for field in table.schema().fields]
    return {"types": types, "rows": [[text(value) for value in row.values()] for row in rows.to_pylist()]}


def scan(request):
    return {"duckdb": duckdb_rows(request), "pyiceberg": pyiceberg_rows(request)}


def append(request):
    catalog = SqlCatalog(
        "lake", uri=request["uri"], warehouse=request["warehouse"], init_catalog_tables="false", **store(request)
    )
    with contextlib.closing(catalog):
        table = catalog.load_table(request["table"])
        schema = table.schema().as_arrow()
        number = request["id"]
        table.append(pyarrow.Table.from_pylist([{"id": number, "name": f"name {number}"}], schema=schema))


COMMANDS = {"scan": scan, "lineage": lineage, "append": append}

if __name__ == "__main__":
    serve(lambda request: COMMANDS[request["command"]](request))
