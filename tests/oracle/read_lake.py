"""Reads mirrored tables as strangers do (DuckDB's iceberg_scan, PyIceberg), and compares them with the heap, bit by bit.

Requests have a `command` (see serving.py for how they come):

  compare    every table of the request: heap = DuckDB = PyIceberg, column types and field ids included; the heap may
             be a query, for a table of which the lake has some rows and columns only
  invariant  one SQL query, evaluated by DuckDB on the newest source LSNs that retained snapshots stand for; all values
  read       one SQL query, evaluated by DuckDB on the current snapshots
  partitions every row of every data file is in the partition that its file says, by PyIceberg's own transforms; and each
             delete file is in that of the data files that it is about
  history    tables' histories, replayed up to each remembered moment and up to now: they must give what the heap had, by
             both readers
  drop       takes a table out of the catalog
  strays     the files of a warehouse that no retained snapshot of the catalog's tables names

The caller keeps the source still while `compare` and `history` run, and has waited until the lake has caught up.
"""

import collections
import contextlib
import decimal
import io
import json
import pathlib
import re
import time
import urllib.parse
import uuid
from importlib import resources

import duckdb
import numpy
import psycopg2
import psycopg2.sql
import pyarrow
import pyarrow.compute
import pyarrow.csv
import pyarrow.fs
import pyarrow.parquet
import sqlalchemy
from adlfs import AzureBlobFileSystem
from pyiceberg.catalog.rest import RestCatalog
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.io import load_file_io
from pyiceberg.manifest import DataFileContent

from hadoop_tables import HadoopTables
from serving import serve

decimal.getcontext().prec = 100

# Postgres type -> (Iceberg type, SQL that prints a value canonically). Floats are printed as the integer of their bits,
# times as counts of microseconds, so that nothing depends on how a reader prints. What is not here is held as the text of
# the type's output function, which COPY writes by itself, under SETTINGS.
TYPES = {
    "bool": ("boolean", "{c}::text"),
    "int2": ("int", "{c}::text"),
    "int4": ("int", "{c}::text"),
    "int8": ("long", "{c}::text"),
    "float4": ("float", "CASE {c} WHEN 'NaN' THEN 'nan' ELSE (('x' || encode(float4send({c}), 'hex'))::bit(32)::int4)::text END"),
    "float8": ("double", "CASE {c} WHEN 'NaN' THEN 'nan' ELSE (('x' || encode(float8send({c}), 'hex'))::bit(64)::int8)::text END"),
    "numeric": ("decimal({p}, {s})", "trunc({c} * 1e{s}::numeric)::text"),
    "bpchar": ("string", "rtrim({c}::text, ' ')"),
    "oid": ("long", "{c}::text"),
    "xid": ("long", "{c}::text"),
    "cid": ("long", "{c}::text"),
    "xid8": ("decimal(20, 0)", "{c}::text"),
    "money": ("long", "('x' || encode(cash_send({c}), 'hex'))::bit(64)::int8::text"),
    "text": ("string", "{c}"),
    "varchar": ("string", "{c}"),
    "json": ("string", "{c}::text"),
    "jsonb": ("string", "{c}::text"),
    "bytea": ("binary", "encode({c}, 'hex')"),
    "date": ("date", "({c} - DATE '1970-01-01')::text"),
    "time": ("time", "trunc(extract(epoch FROM {c}) * 1000000)::int8::text"),
    "timestamp": ("timestamp", "(('x' || encode(timestamp_send({c}), 'hex'))::bit(64)::int8 + 946684800000000)::text"),
    "timestamptz": ("timestamptz", "(('x' || encode(timestamptz_send({c}), 'hex'))::bit(64)::int8 + 946684800000000)::text"),
    "uuid": ("uuid", "replace({c}::text, '-', '')"),
}

TEXT = ("string", "{c}")

# Values that the Iceberg type has not. The lake has them as the text of a companion column; here they begin with a sign.
FOREIGN = {
    "numeric": "{c} = 'NaN'",
    "date": "NOT isfinite({c})",
    "time": "{c} = '24:00'",
    "timestamp": "NOT isfinite({c}) OR {c} >= '294247-01-10 04:00:54.775807'",
    "timestamptz": "NOT isfinite({c}) OR {c} >= '294247-01-10 04:00:54.775807+00'",
}
SIGN = "= "
COMPANION_IDS = 10_000
SETTINGS = """
SET search_path = pg_catalog; SET DateStyle = ISO; SET IntervalStyle = iso_8601; SET TimeZone = UTC; SET extra_float_digits = 1;
SET bytea_output = hex; SET xmloption = content; SET lc_monetary = 'C'
"""

COLUMNS = """
WITH RECURSIVE resolved (attnum, type, typmod) AS (
    SELECT attnum, atttypid, atttypmod FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped
    UNION ALL SELECT attnum, typbasetype, typtypmod FROM resolved JOIN pg_type ON oid = type WHERE typtype = 'd')
SELECT a.attnum, a.attname, t.typname, ((r.typmod - 4) >> 16) & 65535, (((r.typmod - 4) & 2047) # 1024) - 1024, r.typmod,
       EXISTS (SELECT FROM pg_index i WHERE i.indrelid = a.attrelid AND i.indisprimary AND a.attnum = ANY (i.indkey)),
       t.typnamespace = 'pg_catalog'::regnamespace, a.attgenerated <> ''
FROM resolved r JOIN pg_attribute a ON a.attrelid = %s::regclass AND a.attnum = r.attnum
JOIN pg_type t ON t.oid = r.type AND t.typtype <> 'd' ORDER BY a.attnum
"""


def kind_of(column):
    """The Iceberg type and the printing SQL of a column."""
    kind, precision, scale = column["type"], column["precision"], column["scale"]
    if not column["built_in"]:
        return TEXT
    if kind == "numeric" and (column["typmod"] < 4 or precision > 38 or not 0 <= scale <= precision):
        return TEXT
    if kind == "bpchar" and column["typmod"] < 4:
        return TEXT
    iceberg, printing = TYPES.get(kind, TEXT)
    if kind in FOREIGN:
        printing = f"CASE WHEN {FOREIGN[kind]} THEN '{SIGN}' || {{c}}::text ELSE {printing} END"
    return iceberg, printing


def connect(request):
    connection = psycopg2.connect(
        host=request["host"], port=request["port"], dbname=request["database"], user=request["user"]
    )
    connection.autocommit = True
    connection.set_client_encoding("UTF8")
    with connection.cursor() as cursor:
        cursor.execute(SETTINGS)
    return connection


def quoted(table):
    schema, name = table.split(".", 1)
    return psycopg2.sql.SQL(".").join([psycopg2.sql.Identifier(schema), psycopg2.sql.Identifier(name)])


def columns_of(connection, table, heap):
    with connection.cursor() as cursor:
        name = quoted(table).as_string(connection)
        cursor.execute(COLUMNS, [name, name])
        names = ("id", "name", "type", "precision", "scale", "typmod", "key", "built_in", "generated")
        columns = [dict(zip(names, row)) for row in cursor.fetchall()]
        for column in columns:
            column["iceberg"], column["print"] = kind_of(column)
            if column["type"] == "xid8":
                column["precision"], column["scale"] = 20, 0
        cursor.execute(f"SELECT * FROM {heap} LIMIT 0")
        wanted = {column.name for column in cursor.description}
        return [column for column in columns if column["name"] in wanted]


def locations(connection, request):
    """The metadata file of every table of the mirror, and the LSN that they have reached: where they are in the source's
    own catalog, by one statement; else the LSN was looked at first."""
    schema = psycopg2.sql.Identifier(request["catalog_schema"])
    where = request.get("catalog")
    if where:
        with connection.cursor() as cursor:
            cursor.execute(psycopg2.sql.SQL("SELECT lsn::text FROM {0}.mirrors").format(schema))
            lsn = cursor.fetchone()[0]
        catalog = pyiceberg_catalog(request)
        names = [name for namespace in catalog.list_namespaces() for name in catalog.list_tables(namespace)]
        return lsn, {".".join(name): catalog.load_table(name).metadata_location for name in names}
    query = psycopg2.sql.SQL(
        "SELECT m.lsn::text, t.table_namespace || '.' || t.table_name, t.metadata_location"
        " FROM {0}.mirrors m, {0}.iceberg_tables t WHERE t.catalog_name = %s"
    ).format(schema)
    with connection.cursor() as cursor:
        cursor.execute(query, [request["catalog_name"]])
        rows = cursor.fetchall()
    return (rows[0][0] if rows else None), {row[1]: row[2] for row in rows}


def heap_rows(connection, heap, columns):
    """The heap's rows in canonical text."""
    prints = []
    for column in columns:
        name = psycopg2.sql.Identifier(column["name"]).as_string(connection)
        prints.append(column["print"].format(c=name, s=column["scale"]))
    statement = f"COPY (SELECT {', '.join(prints)} FROM {heap}) TO STDOUT (FORMAT csv, FORCE_QUOTE *)"
    buffer = io.BytesIO()
    with connection.cursor() as cursor:
        cursor.copy_expert(statement, buffer)
    names = [column["name"] for column in columns]
    if buffer.tell() == 0:
        return pyarrow.table({name: pyarrow.array([], pyarrow.large_string()) for name in names})
    buffer.seek(0)
    return pyarrow.csv.read_csv(
        buffer,
        read_options=pyarrow.csv.ReadOptions(column_names=names, block_size=1 << 26),
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types={name: pyarrow.large_string() for name in names},
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
            null_values=[""],
        ),
    )


def canonical(array, column):
    """A reader's column in the canonical text of TYPES."""
    if isinstance(array, pyarrow.ChunkedArray):
        array = array.combine_chunks()
        if isinstance(array, pyarrow.ChunkedArray):
            array = pyarrow.concat_arrays(array.chunks)
    if isinstance(array, pyarrow.ExtensionArray):
        array = array.storage
    kind, text = column["type"], pyarrow.large_string()
    if column["iceberg"] == "string":
        expect(array.type in (pyarrow.string(), text), f"{column['name']} came as {array.type}")
        return array.cast(text)
    if kind in ("float4", "float8"):
        width = numpy.float32 if kind == "float4" else numpy.float64
        expect(array.type == pyarrow.from_numpy_dtype(width), f"{column['name']} came as {array.type}")
        valid = array.is_valid().to_numpy(zero_copy_only=False)
        values = numpy.ascontiguousarray(array.fill_null(0).to_numpy(zero_copy_only=False), dtype=width)
        bits = pyarrow.array(values.view(numpy.int32 if kind == "float4" else numpy.int64)).cast(text)
        bits = pyarrow.compute.if_else(pyarrow.array(numpy.isnan(values)), pyarrow.scalar("nan", text), bits)
        return pyarrow.compute.if_else(pyarrow.array(valid), bits, pyarrow.scalar(None, text))
    if kind in ("numeric", "xid8"):
        wanted = pyarrow.decimal128(column["precision"], column["scale"])
        expect(array.type == wanted, f"{column['name']} came as {array.type}, not as {wanted}")
        unscaled = [None if v is None else str(int(v.scaleb(column["scale"]))) for v in array.to_pylist()]
        return pyarrow.array(unscaled, text)
    if kind == "bytea":
        return pyarrow.array([None if v is None else v.hex() for v in array.to_pylist()], text)
    if kind == "uuid":
        if pyarrow.types.is_fixed_size_binary(array.type):
            return pyarrow.array([None if v is None else v.hex() for v in array.to_pylist()], text)
        return pyarrow.compute.replace_substring(array.cast(text), "-", "")
    if kind == "date":
        expect(array.type == pyarrow.date32(), f"{column['name']} came as {array.type}")
        return array.cast(pyarrow.int32()).cast(text)
    if kind in ("time", "timestamp", "timestamptz"):
        unit = getattr(array.type, "unit", None)
        zone = getattr(array.type, "tz", None)
        expect(unit == "us" and (zone is not None) == (kind == "timestamptz"), f"{column['name']} came as {array.type}")
        return array.cast(pyarrow.int64()).cast(text)
    if kind == "bool":
        expect(array.type == pyarrow.bool_(), f"{column['name']} came as {array.type}")
        return array.cast(text)
    if column["iceberg"] in ("int", "long"):
        wanted = pyarrow.int64() if column["iceberg"] == "long" else pyarrow.int32()
        expect(array.type == wanted, f"{column['name']} came as {array.type}, not as {wanted}")
    return array.cast(text)


class Unequal(Exception):
    """The lake is not what the heap is."""


def expect(condition, message):
    if not condition:
        raise Unequal(message)


def ordered(table, columns):
    keys = [column["name"] for column in columns if column["key"]] or table.column_names
    return table.sort_by([(key, "ascending") for key in keys])


def with_companion(lake, column):
    """A column in canonical text, with the values that its companion has."""
    own = canonical(lake.column(column["name"]), column)
    if "companion" not in column:
        return own
    beside = lake.column(column["companion"]).combine_chunks().cast(pyarrow.large_string())
    both = pyarrow.compute.and_(own.is_valid(), beside.is_valid())
    expect(not pyarrow.compute.any(both).as_py(), f"{column['name']} has a value twice")
    signed = pyarrow.compute.binary_join_element_wise(pyarrow.scalar(SIGN, beside.type), beside, pyarrow.scalar("", beside.type))
    return pyarrow.compute.if_else(beside.is_valid(), signed, own)


def compare_rows(heap, lake, columns):
    lake = pyarrow.table({column["name"]: with_companion(lake, column) for column in columns})
    expect(lake.num_rows == heap.num_rows, f"{lake.num_rows} rows, the heap has {heap.num_rows}")
    lake = ordered(lake, columns)
    for column in columns:
        ours, theirs = heap.column(column["name"]).combine_chunks(), lake.column(column["name"]).combine_chunks()
        if ours.equals(theirs):
            continue
        for row, (here, there) in enumerate(zip(ours.to_pylist(), theirs.to_pylist())):
            if here != there:
                key = {c["name"]: heap.column(c["name"])[row].as_py() for c in columns if c["key"]}
                raise Unequal(f"column {column['name']}, near key {key}: heap {here!r:.200}, lake {there!r:.200}")


def compare_schema(iceberg, columns):
    found = [(field.field_id, field.name, str(field.field_type)) for field in iceberg.schema().fields]
    wanted = []
    for column in columns:
        kind = column["iceberg"].format(p=column["precision"], s=column["scale"])
        wanted.append((column["id"], column["name"], kind))
    # Companions are behind all columns, in their order, each of a column whose type lacks values.
    names = {column["name"] for column in columns}
    for column in columns:
        beside = [name for number, name, _ in found if number == column["id"] + COMPANION_IDS]
        if beside and column["type"] in FOREIGN and column["iceberg"] != "string":
            column["companion"] = beside[0]
            wanted.append((column["id"] + COMPANION_IDS, beside[0], "string"))
            expect(beside[0] not in names and beside[0].startswith(column["name"] + "__text"), f"companion {beside[0]}")
    expect(found == wanted, f"Iceberg schema {found}, wanted {wanted}")


def store(request):
    """What PyIceberg is told of the object store."""
    if azure := request.get("azure"):
        return {"py-io-impl": "pyiceberg.io.fsspec.FsspecFileIO", "adls.connection-string": azure["connection"]}
    s3 = request.get("s3")
    names = {"endpoint": "s3.endpoint", "key": "s3.access-key-id", "secret": "s3.secret-access-key", "region": "s3.region"}
    return {name: s3[key] for key, name in names.items()} if s3 else {}


def duckdb_session(request):
    session = duckdb.connect(config={"autoinstall_known_extensions": "false", "autoload_known_extensions": "false"})
    for name in ("httpfs", "avro", "iceberg"):
        package = resources.files(f"duckdb_extension_{name}")
        path = next(package.rglob(f"{name}.duckdb_extension"))
        session.load_extension(str(path))
    session.execute("SET TimeZone = 'UTC'; SET threads = 2")
    if s3 := request.get("s3"):
        address = urllib.parse.urlsplit(s3["endpoint"])
        session.execute(
            f"CREATE SECRET (TYPE s3, KEY_ID {literal(s3['key'])}, SECRET {literal(s3['secret'])}, REGION {literal(s3['region'])}, "
            f"ENDPOINT {literal(address.netloc)}, URL_STYLE 'path', USE_SSL {str(address.scheme == 'https').lower()})"
        )
    if azure := request.get("azure"):
        # Its own extension reads such URLs by a protocol that the emulator has not.
        session.register_filesystem(AzureBlobFileSystem(connection_string=azure["connection"]))
    return session


def literal(text):
    return "'" + text.replace("'", "''") + "'"


def local(location):
    """A location as DuckDB opens it."""
    return urllib.parse.unquote(location.removeprefix("file://")) if location.startswith("file:") else location


def pyiceberg_catalog(request):
    where = request.get("catalog") or {**request, "type": "jdbc", "schema": request["catalog_schema"]}
    if where["type"] == "hadoop":
        return HadoopTables(where["warehouse"], store(request))
    if where["type"] == "rest":
        named = {key: where[key] for key in ("uri", "warehouse", "credential")}
        return RestCatalog(request["catalog_name"], **named, **store(request))
    query = urllib.parse.urlencode(
        {"host": where["host"], "port": where["port"], "options": f"-csearch_path={where['schema']}"},
        quote_via=urllib.parse.quote,
    )
    user = urllib.parse.quote(request["user"])
    uri = f"postgresql+psycopg2://{user}@/{urllib.parse.quote(where['database'])}?{query}"
    catalog = SqlCatalog(request["catalog_name"], uri=uri, init_catalog_tables="false", **store(request))
    # Its connections end with what they are for: the server may be gone before this process.
    catalog.engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.pool.NullPool)
    return catalog


def drop(connection, request):
    pyiceberg_catalog(request).drop_table(request["table"])
    return {}


def by_duckdb(session, location):
    return session.execute(f"SELECT * FROM iceberg_scan({literal(local(location))})").to_arrow_table()


def compare_table(connection, request, session, catalog, table):
    lsn, found = locations(connection, request)
    expect(table in found, f"not in the catalog, which has {sorted(found)}")
    query = request["heap"].get(table)
    source = f"({query}) part" if query else quoted(table).as_string(connection)
    with connection.cursor() as cursor:
        cursor.execute("SET search_path = public, pg_catalog" if query else "SET search_path = pg_catalog")
    columns = columns_of(connection, table, source)
    heap = ordered(heap_rows(connection, source, columns), columns)
    iceberg = catalog.load_table(tuple(table.split(".", 1)))
    compare_schema(iceberg, columns)
    result = {"table": table, "rows": heap.num_rows, "lsn": lsn}
    # Without a catalog DuckDB finds the file by the hint, as a user's would.
    by_hint = (request.get("catalog") or {}).get("type") == "hadoop"
    opened = found[table].rpartition("/metadata/")[0] if by_hint else found[table]
    for reader, rows in (
        ("duckdb", lambda: by_duckdb(session, opened)),
        ("pyiceberg", lambda: iceberg.scan().to_arrow()),
    ):
        try:
            compare_rows(heap, rows(), columns)
        except Unequal as difference:
            raise Unequal(f"read by {reader}: {difference}") from None
    return result


def compare(connection, request):
    session, catalog = duckdb_session(request), pyiceberg_catalog(request)
    results = []
    for table in request["tables"]:
        for attempt in range(5):
            _, before = locations(connection, request)
            try:
                results.append(compare_table(connection, request, session, catalog, table))
                break
            except Unequal as difference:
                results.append({"table": table, "difference": str(difference)})
                break
            except Exception:
                # A commit may expire the snapshot that is being read. Only that is worth another try.
                _, after = locations(connection, request)
                if attempt == 4 or before.get(table) == after.get(table):
                    raise
    return {"tables": results}


def partitions_of(catalog, table, request):
    """How often each partition of each spec has a file, and what a spec is by. Every row is checked."""
    iceberg = catalog.load_table(tuple(table.split(".", 1)))
    schema, specs = iceberg.schema(), iceberg.specs()
    counts, homes, deletes = {}, {}, []
    for entry in [entry for manifest in iceberg.current_snapshot().manifests(iceberg.io) for entry in manifest.fetch_manifest_entry(iceberg.io)]:
        file = entry.data_file
        spec = specs[file.spec_id]
        values = tuple(file.partition[place] for place in range(len(spec.fields)))
        path = local(file.file_path) if not request.get("s3") else file.file_path
        rows = pyarrow.parquet.read_table(path) if not request.get("s3") else None
        if file.content != DataFileContent.DATA:
            deletes.append((file.spec_id, values, set(rows.column("file_path").to_pylist())))
            continue
        homes[file.file_path] = (file.spec_id, values)
        key = (file.spec_id, repr(values))
        counts[key] = counts.get(key, 0) + 1
        for field, value in zip(spec.fields, values):
            source = schema.find_field(field.source_id)
            name = next(f.name for f in rows.schema if f.metadata[b"PARQUET:field_id"] == str(field.source_id).encode())
            column = rows.column(name)
            if isinstance(column.type, pyarrow.ExtensionType):
                column = pyarrow.chunked_array([chunk.storage for chunk in column.chunks])
            kind, transform = source.field_type, field.transform.transform(source.field_type)
            whole = pyarrow.types.is_temporal(column.type)
            width = pyarrow.int32() if column.type == pyarrow.date32() else pyarrow.int64()
            for found in set((column.cast(width) if whole else column).to_pylist()):
                if isinstance(found, bytes) and str(kind) == "uuid":
                    found = uuid.UUID(bytes=found)
                wanted = transform(found)
                wanted = wanted.bytes if isinstance(wanted, uuid.UUID) and isinstance(value, bytes) else wanted
                value_there = value.bytes if isinstance(value, uuid.UUID) and isinstance(wanted, bytes) else value
                expect(wanted == value_there, f"{table}: a row with {found!r} is in {field.name} = {value!r}, not {wanted!r}")
    for spec_id, values, paths in deletes:
        for path in paths:
            expect(homes.get(path) == (spec_id, values), f"{table}: a delete file of {values} is about {path} of {homes.get(path)}")
    by = {spec.spec_id: [f"{field.name}={field.transform}" for field in spec.fields] for spec in specs.values()}
    found = [{"spec": by[spec_id], "values": values, "files": files} for (spec_id, values), files in sorted(counts.items())]
    return {"table": table, "now": by[iceberg.spec().spec_id], "found": found}


def partitions(connection, request):
    catalog = pyiceberg_catalog(request)
    return {"tables": [partitions_of(catalog, table, request) for table in request["tables"]]}


def position(lsn):
    high, low = lsn.split("/")
    return (int(high, 16) << 32) + int(low, 16)


def substitute(query, scans):
    """Replaces {schema.table} by the table's scan."""
    return re.sub(r"\{([^}]+)\}", lambda match: scans[match.group(1)], query)


def retained(connection, request, tables):
    """Of every table its metadata file, and its snapshots as (LSN, sequence number, id) in order, up to the LSN that all have
    reached."""
    reached, found = locations(connection, request)
    snapshots = {}
    for table in tables:
        with load_file_io(store(request), found[table]).new_input(found[table]).open() as file:
            metadata = json.load(file)
        held = metadata.get("snapshots", [])
        held = [(position(s["summary"]["lake.lsn"]), s["sequence-number"], s["snapshot-id"]) for s in held]
        snapshots[table] = sorted(snapshot for snapshot in held if snapshot[0] <= position(reached))
    return found, snapshots


def invariant(connection, request):
    session = duckdb_session(request)
    tables = set(re.findall(r"\{([^}]+)\}", request["query"]))
    values, deadline = {}, time.monotonic() + 20
    while True:
        try:
            found, snapshots = retained(connection, request, tables)
            lsns = sorted({lsn for held in snapshots.values() for lsn, _, _ in held})
            for lsn in lsns[-request["newest"] :]:
                if lsn in values:
                    continue
                scans = {}
                for table in tables:
                    at = [snapshot for snapshot in snapshots[table] if snapshot[0] <= lsn]
                    if at:
                        path = literal(local(found[table]))
                        scans[table] = f"iceberg_scan({path}, snapshot_from_id = {at[-1][2]}::UBIGINT)"
                if len(scans) == len(tables):
                    row = session.execute(substitute(request["query"], scans)).fetchone()
                    values[lsn] = {"lsn": f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}", "value": str(row[0])}
            return {"values": list(values.values())}
        except (FileNotFoundError, duckdb.IOException):
            # Snapshots expire while the writers go on: what is retained by now is looked at instead.
            _, now = locations(connection, request)
            if time.monotonic() > deadline or all(now[table] == found[table] for table in tables):
                raise


def read(connection, request):
    lsn, found = locations(connection, request)
    scans = {table: f"iceberg_scan({literal(local(path))})" for table, path in found.items()}
    rows = duckdb_session(request).execute(substitute(request["query"], scans)).fetchall()
    return {"lsn": lsn, "rows": [[None if value is None else str(value) for value in row] for row in rows]}


MARKS = [(30001, "_op", "string"), (30002, "_lsn", "long"), (30003, "_committed_at", "timestamptz"), (30004, "_xid", "long"), (30005, "_seq", "long")]


def moments_of(connection, table):
    """What the harness remembered of a table (`Oracle::remember`), and what it is now."""
    with connection.cursor() as cursor:
        now = "SELECT NULL, pg_current_wal_insert_lsn()::text, (extract(epoch FROM clock_timestamp()) * 1000000)::int8, NULL"
        cursor.execute("SELECT to_regclass('oracle.moments') IS NOT NULL")
        remembered = "SELECT copy, lsn::text, at, numbers FROM oracle.moments WHERE name = %s UNION ALL " if cursor.fetchone()[0] else ""
        cursor.execute(remembered + now, [table] if remembered else None)
        moments = cursor.fetchall()
    for copy, lsn, at, numbers in moments:
        name = copy or table
        heap = quoted(name).as_string(connection)
        columns = columns_of(connection, name, heap)
        rows = heap_rows(connection, heap, columns)
        rows = list(zip(*(rows.column(column["name"]).to_pylist() for column in columns)))
        ids = numbers or [column["id"] for column in columns]
        yield {"lsn": lsn, "at": at, "columns": [(n, c["iceberg"]) for n, c in zip(ids, columns)], "rows": rows}


def replayed(changes, key, until):
    """The rows of a table before a position. Of one without a key, each as often as it is there."""
    rows = collections.Counter()
    by_key = {}
    for change in changes:
        if change["_lsn"] >= until:
            break
        kind, row = change["_op"], change["row"]
        if kind == "truncate":
            rows.clear()
            by_key.clear()
            continue
        if key is None:
            there = rows[row] > 0
            rows[row] += -1 if kind == "delete" else 1
            expect(there or kind != "delete", f"{change} of a row that is not there")
            continue
        name = tuple(row[place] for place in key)
        # An update that moves a row to another key has deleted the former one.
        there = name in by_key
        expect(kind == "update" or there == (kind == "delete"), f"{change}, of a row that {'is' if there else 'is not'} there")
        if kind == "delete":
            del by_key[name]
        else:
            by_key[name] = row
    return collections.Counter(by_key.values()) if key is not None else +rows


def check_order(changes, moments):
    by_lsn = {}
    for change in changes:
        by_lsn.setdefault(change["_lsn"], []).append(change)
    for lsn, those in by_lsn.items():
        expect([change["_seq"] for change in those] == list(range(1, len(those) + 1)), f"numbers of the changes at {lsn}")
        copied = those[0]["_xid"] is None
        kinds = {change["_op"] for change in those[1:]} if copied else {"copy"} & {change["_op"] for change in those}
        expect(kinds <= {"copy"} if copied else not kinds, f"changes at {lsn}: {kinds}")
        expect(not copied or those[0]["_op"] == "truncate", f"the copy at {lsn} begins with {those[0]}")
        expect(len({(change["_xid"], change["_committed_at"]) for change in those}) == 1, f"transactions at {lsn}")
    for moment in moments:
        for change in changes:
            before = change["_lsn"] < position(moment["lsn"])
            told = change["_xid"] is None or before == (change["_committed_at"] <= moment["at"])
            expect(told, f"{change} was committed at another time than its place, before or behind {moment['at']}")


def by_reader(table, columns):
    own = [with_companion(table, column).to_pylist() for column in columns]
    rows = list(zip(*own))
    times = table.column("_committed_at")
    expect(times.type.unit == "us" and times.type.tz is not None, f"_committed_at came as {times.type}")
    marks = {name: table.column(name).to_pylist() for name in ("_op", "_lsn", "_xid", "_seq")}
    marks["_committed_at"] = times.cast(pyarrow.int64()).to_pylist()
    changes = [{"row": row, **{name: values[n] for name, values in marks.items()}} for n, row in enumerate(rows)]
    return sorted(changes, key=lambda change: (change["_lsn"], change["_seq"]))


def history_of_table(connection, request, session, catalog, table):
    heap, name = quoted(table).as_string(connection), f"{table}_history"
    # Generated ones are left out.
    columns = [column for column in columns_of(connection, table, heap) if not column["generated"]]
    _, found = locations(connection, request)
    iceberg = catalog.load_table(tuple(name.split(".", 1)))
    fields = [(field.field_id, field.name, str(field.field_type)) for field in iceberg.schema().fields]
    companions = {number: name for number, name, _ in fields if COMPANION_IDS <= number < 2 * COMPANION_IDS}
    fields = [field for field in fields if field[0] not in companions]
    for column, (number, *_) in zip(columns, fields):
        if number + COMPANION_IDS in companions:
            column["companion"] = companions.pop(number + COMPANION_IDS)
    expect(not companions, f"companions of no column: {companions}")
    expect(fields[-len(MARKS) :] == MARKS, f"the marks are {fields}")
    expect([field[1] for field in fields[: -len(MARKS)]] == [column["name"] for column in columns], f"fields {fields}")
    expect(not any(field.required for field in iceberg.schema().fields), "a column is required")
    moments = list(moments_of(connection, table))
    key = [place for place, column in enumerate(columns) if column["key"]] or None
    readers = [by_reader(by_duckdb(session, found[name]), columns), by_reader(iceberg.scan().to_arrow(), columns)]
    expect(readers[0] == readers[1], "DuckDB and PyIceberg read different histories")
    changes = readers[0]
    check_order(changes, moments)
    for moment in moments:
        known = {column: place for place, column in enumerate(moment["columns"])}
        # Columns that went since are no more in the history, those that came since were not there.
        common = [(known[c["id"], c["iceberg"]], n) for n, c in enumerate(columns) if (c["id"], c["iceberg"]) in known]
        expect(key is None or set(key) <= {n for _, n in common}, "the key was another")
        wanted = collections.Counter(tuple(row[place] for place, _ in common) for row in moment["rows"])
        rows = collections.Counter()
        for row, times in replayed(changes, key, position(moment["lsn"])).items():
            rows[tuple(row[n] for _, n in common)] += times
        expect(rows == wanted, f"at {moment['lsn']}: not in the heap {str(rows - wanted):.300}, not in the history {str(wanted - rows):.300}")
    kinds = collections.Counter(change["_op"] for change in changes)
    return {"changes": len(changes), "kinds": kinds, "moments": len(moments)}


def history(connection, request):
    session, catalog = duckdb_session(request), pyiceberg_catalog(request)
    results = []
    for table in request["tables"]:
        try:
            results.append({"table": table, **history_of_table(connection, request, session, catalog, table)})
        except Unequal as difference:
            results.append({"table": table, "difference": str(difference)})
    return {"tables": results}


def files_below(warehouse, request):
    if not warehouse.startswith("s3://"):
        return [str(path) for path in pathlib.Path(warehouse).rglob("*") if path.is_file()]
    s3 = request["s3"]
    address = urllib.parse.urlsplit(s3["endpoint"])
    objects = pyarrow.fs.S3FileSystem(
        access_key=s3["key"], secret_key=s3["secret"], region=s3["region"], endpoint_override=address.netloc, scheme=address.scheme
    )
    selector = pyarrow.fs.FileSelector(warehouse.removeprefix("s3://"), recursive=True, allow_not_found=True)
    return ["s3://" + found.path for found in objects.get_file_info(selector) if found.is_file]


def strays(connection, request):
    catalog = pyiceberg_catalog(request)
    _, found = locations(connection, request)
    folders, named = set(), set()
    for name in found:
        table = catalog.load_table(tuple(name.split(".", 1)))
        folders.add(local(table.location()))
        for snapshot in table.snapshots():
            for manifest in snapshot.manifests(table.io):
                entries = manifest.fetch_manifest_entry(table.io, discard_deleted=False)
                named.update(local(entry.data_file.file_path) for entry in entries)
    files = []
    for path in files_below(request["warehouse"], request):
        # The metadata of the tables that there are is not looked at.
        known = any(path.startswith(folder + "/metadata/") for folder in folders)
        if not known and path not in named:
            files.append(path)
    return {"strays": sorted(files)}


COMMANDS = {
    "compare": compare,
    "invariant": invariant,
    "read": read,
    "history": history,
    "partitions": partitions,
    "strays": strays,
    "drop": drop,
}


def answer(request):
    with contextlib.closing(connect(request)) as connection:
        return COMMANDS[request["command"]](connection, request)


if __name__ == "__main__":
    serve(answer)
