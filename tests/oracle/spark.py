"""Spark, with the catalog as the README has it. Needs the environment of tests/readers.sh.

As a program with the argument `fetch`: fetches Iceberg's runtime for the sessions to come. Two sessions that fetch at once
replace each other's jars while they are read, so only tests/readers.sh does it.

As a program without arguments: one JSON request on standard input with `statements`, which are run in their order; one JSON answer on standard
output with what each of them gave, a list of rows of texts.
"""

import contextlib
import json
import os
import pathlib
import sys

IVY = pathlib.Path(__file__).resolve().parents[2] / ".deps/readers/ivy"
PACKAGES = "org.apache.iceberg:iceberg-spark-runtime-4.1_2.13:1.12.0,org.postgresql:postgresql:42.7.14"


def fetch():
    from pyspark.sql import SparkSession

    settings = {"spark.jars.packages": PACKAGES, "spark.jars.ivy": str(IVY), "spark.ui.enabled": "false"}
    start(SparkSession.builder.master("local[1]"), settings).stop()


def start(builder, settings):
    for name, value in settings.items():
        builder = builder.config(name, value)
    return builder.getOrCreate()


def session(request):
    from pyspark.sql import SparkSession

    settings = {
        "spark.jars": ",".join(sorted(str(jar) for jar in (IVY / "jars").glob("*.jar"))),
        "spark.ui.enabled": "false",
        "spark.driver.memory": "1g",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.host": "127.0.0.1",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.shuffle.partitions": "2",
        "spark.sql.extensions": "org.apache.iceberg.spark.extensions.IcebergSparkSessionExtensions",
        "spark.sql.catalog.lake": "org.apache.iceberg.spark.SparkCatalog",
        "spark.sql.catalog.lake.type": "jdbc",
        "spark.sql.catalog.lake.uri": f"jdbc:postgresql://127.0.0.1:{request['port']}/{request['database']}?currentSchema=lake_catalog",
        "spark.sql.catalog.lake.jdbc.user": request["user"],
        "spark.sql.catalog.lake.jdbc.schema-version": "V1",
        "spark.sql.catalog.lake.init-catalog-tables": "false",
        "spark.sql.catalog.lake.warehouse": "file:///",
        "spark.sql.catalog.lake.cache-enabled": "false",
    }
    made = start(SparkSession.builder.master("local[2]").appName("lakemirror"), settings)
    made.sparkContext.setLogLevel("OFF")
    return made


# As often a statement is repeated that has met with another commit, as Iceberg's documentation says one should.
TRIES = 5


def run(spark, text):
    for left in reversed(range(TRIES)):
        try:
            return [[str(value) for value in row] for row in spark.sql(text).collect()]
        except Exception as error:  # py4j's and Spark's have no class in common
            if left == 0 or not any(word in str(error) for word in ("ValidationException", "CommitFailedException")):
                # Without the hundreds of lines of stack that come behind.
                said = [line for line in str(error).splitlines() if not line.startswith(("\tat ", "\t..."))]
                sys.exit("\n".join([text, *said]))


def main():
    if sys.argv[1:] == ["fetch"]:
        return fetch()
    request = json.load(sys.stdin)
    # Spark's start talks on standard output.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with contextlib.closing(answer):
        spark = session(request)
        gave = [run(spark, text) for text in request["statements"]]
        json.dump({"gave": gave}, answer)


if __name__ == "__main__":
    main()
