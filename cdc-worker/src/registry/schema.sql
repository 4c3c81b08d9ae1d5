-- The mirror's own tables, in the source database. Run by the worker at start, and part of the extension's script; both
-- may run it again. `lake_catalog` is replaced when the configuration names another schema.
--
-- The two iceberg_* tables are the layout of Iceberg's JDBC catalog (PyIceberg, Spark and Trino connect to them).

CREATE TABLE IF NOT EXISTS lake_catalog.iceberg_tables (
    catalog_name varchar(255) NOT NULL,
    table_namespace varchar(255) NOT NULL,
    table_name varchar(255) NOT NULL,
    metadata_location varchar(1000),
    previous_metadata_location varchar(1000),
    iceberg_type varchar(5),
    PRIMARY KEY (catalog_name, table_namespace, table_name)
);

CREATE TABLE IF NOT EXISTS lake_catalog.iceberg_namespace_properties (
    catalog_name varchar(255) NOT NULL,
    namespace varchar(255) NOT NULL,
    property_key varchar(255) NOT NULL,
    property_value varchar(1000),
    PRIMARY KEY (catalog_name, namespace, property_key)
);

-- One row a mirror: who may write (epoch), and how far the lake is (lsn). The commit of every batch moves `lsn` in the
-- same SQL transaction as the tables' metadata, and only when epoch and the expected lsn match: that is the fence. Where
-- the tables are in another catalog, the batch is put on record here first, under the same fence, and `lsn` moves last.
CREATE TABLE IF NOT EXISTS lake_catalog.mirrors (
    mirror text PRIMARY KEY,
    publication text NOT NULL,
    slot text NOT NULL,
    system_id text,
    epoch bigint NOT NULL DEFAULT 0,
    -- The lake holds exactly the transactions whose commit record begins before this position. The slot is never
    -- acknowledged past it.
    lsn pg_lsn,
    -- The attempt that moved `lsn` there: how a lost reply to a commit is recognised.
    attempt uuid,
    committed_at timestamptz,
    -- The batch that is on its way into a catalog outside of this database: everything that it takes to finish it.
    pending text,
    pending_attempt uuid,
    -- Tables that the last batch did not reach, and that have to stop.
    left_out text
);

-- One row a mirrored table: what is wanted, and what became of it. Live positions come from the worker's read service.
CREATE TABLE IF NOT EXISTS lake_catalog.mirrored_tables (
    mirror text NOT NULL REFERENCES lake_catalog.mirrors ON DELETE CASCADE,
    relation oid NOT NULL,
    source_schema text NOT NULL,
    source_table text NOT NULL,
    -- The table's name in the Iceberg catalog; its namespace is the source's schema.
    lake_table text NOT NULL,
    state text NOT NULL DEFAULT 'requested' CHECK (state IN ('requested', 'copying', 'streaming', 'errored')),
    -- The consistent point of the slot whose exported snapshot was copied.
    copy_lsn pg_lsn,
    copied_rows bigint,
    -- The Iceberg table that the copy fills: found in the catalog again, the copy was committed.
    table_uuid uuid,
    error text,
    error_hint text,
    error_lsn pg_lsn,
    -- Only inserts and truncations are wanted: nothing tells the rows apart.
    append_only boolean NOT NULL DEFAULT false,
    -- Its changes are kept too, in the Iceberg table `<lake_table>_history`.
    history boolean NOT NULL DEFAULT false,
    -- Its partitions in Iceberg and the order of rows in its files, by numbers of columns; NULL: neither.
    layout text,
    -- What part of the table the publication sent when it was copied: list of columns and row filter.
    published_as text,
    -- What in the publication has sent the table's changes without a gap since its copy began: oids of rows of
    -- pg_publication_rel and pg_publication_namespace, which differ when a table leaves and comes back.
    published_by text[],
    -- Of a partitioned table: the partitions whose rows the mirror has, and what must be as it was for nothing to have
    -- happened that the stream does not tell.
    partitions text,
    PRIMARY KEY (mirror, relation),
    UNIQUE (mirror, source_schema, lake_table)
);

-- What is done of a copy that is under way. A part is some blocks of the source and the files that hold their rows, as of
-- one snapshot; after a restart the copy goes on with the other blocks.
CREATE TABLE IF NOT EXISTS lake_catalog.copied_parts (
    mirror text NOT NULL,
    relation oid NOT NULL,
    table_uuid uuid NOT NULL,
    -- What the source table must still look like for the part to be of use.
    shape text NOT NULL,
    -- The consistent point of the slot whose exported snapshot was copied.
    as_of pg_lsn NOT NULL,
    part text NOT NULL,
    FOREIGN KEY (mirror, relation) REFERENCES lake_catalog.mirrored_tables ON DELETE CASCADE
);
CREATE INDEX IF NOT EXISTS copied_parts_of_table ON lake_catalog.copied_parts (mirror, relation);

-- What installations from before have not got.
ALTER TABLE lake_catalog.mirrors
    ADD COLUMN IF NOT EXISTS pending text,
    ADD COLUMN IF NOT EXISTS pending_attempt uuid,
    ADD COLUMN IF NOT EXISTS left_out text;
ALTER TABLE lake_catalog.mirrored_tables
    ADD COLUMN IF NOT EXISTS append_only boolean NOT NULL DEFAULT false,
    ADD COLUMN IF NOT EXISTS history boolean NOT NULL DEFAULT false,
    ADD COLUMN IF NOT EXISTS layout text,
    ADD COLUMN IF NOT EXISTS partitions text,
    ADD COLUMN IF NOT EXISTS published_as text,
    ADD COLUMN IF NOT EXISTS published_by text[];
