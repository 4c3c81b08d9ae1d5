-- The SQL surface of the extension lake; in the extension's script it follows head.sql and the engine's schema.sql.
--
-- No table here is given to pg_extension_config_dump: a dump restored elsewhere must not believe that it is a mirror.
-- It would name a slot that does not exist there, and Iceberg tables that belong to the database it came from.

-- The newest failure of the engine as a whole: at most one row, none once the engine has run well for half a minute.
CREATE TABLE lake_catalog.engine_error (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    at timestamptz NOT NULL,
    message text NOT NULL,
    hint text,
    failures bigint NOT NULL
);

-- Changes of a mirrored table's columns are told to the engine through the WAL, at the place where they happened: its own looks
-- at the catalog come later. Anybody may write a logical message, so these name a secret that the engine knows.
CREATE TABLE lake_catalog.ddl_secret (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    secret uuid NOT NULL DEFAULT gen_random_uuid()
);
INSERT INTO lake_catalog.ddl_secret DEFAULT VALUES;
REVOKE ALL ON lake_catalog.ddl_secret FROM PUBLIC;

-- What the engine's source::shape reads of the catalog, of one table.
CREATE FUNCTION lake_catalog.columns_told(told oid) RETURNS json
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
    AS $function$
    SELECT json_build_object('file', c.relfilenode::int8, 'columns', json_agg(json_build_object(
               'number', a.attnum, 'name', a.attname, 'type_oid', a.atttypid::int8, 'typmod', a.atttypmod, 'dropped', a.attisdropped,
               'sent', a.attgenerated = '', 'missing', a.atthasmissing, 'stamp', a.xmin::text::int8,
               'base', f.type::int8, 'base_typmod', f.typmod, 'is_enum', f.is_enum, 'is_text', f.is_text) ORDER BY a.attnum))
    FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 LEFT JOIN LATERAL (
        WITH RECURSIVE resolved (type, typmod) AS (
            SELECT a.atttypid, a.atttypmod
            UNION ALL SELECT typbasetype, typtypmod FROM resolved JOIN pg_type ON oid = type WHERE typtype = 'd')
        SELECT r.type, r.typmod, t.typtype = 'e' AS is_enum,
               coalesce(o.prolang = 12 AND o.prosrc = 'textout' AND s.prolang = 12 AND s.prosrc = 'textsend', false) AS is_text
        FROM resolved r JOIN pg_type t ON t.oid = r.type AND t.typtype <> 'd' JOIN pg_proc o ON o.oid = t.typoutput
        LEFT JOIN pg_proc s ON s.oid = t.typsend) f ON NOT a.attisdropped
    WHERE c.oid = told GROUP BY c.oid, c.relfilenode
    $function$;
REVOKE ALL ON FUNCTION lake_catalog.columns_told(oid) FROM PUBLIC;

-- Nobody's ALTER TABLE fails for it: what is not told, the engine finds out by itself, a little later.
CREATE FUNCTION lake_catalog.tell_columns() RETURNS event_trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    AS $function$
BEGIN
    PERFORM pg_logical_emit_message(true, 'lake.columns',
                s.secret || ' ' || m.relation || ' ' || lake_catalog.columns_told(m.relation))
       FROM (SELECT DISTINCT m.relation
               FROM pg_event_trigger_ddl_commands() c
               CROSS JOIN LATERAL (SELECT c.objid AS altered UNION SELECT t.relid FROM pg_partition_tree(c.objid) t) a
               JOIN lake_catalog.mirrored_tables m ON m.relation = a.altered
              WHERE c.classid = 'pg_class'::regclass) m
       CROSS JOIN lake_catalog.ddl_secret s;
    -- Decoding knows a message by the end of its record, a row by the beginning. Of one position, they come in any order when one is
    -- in a subtransaction and the other is not; so there is a record between.
    IF FOUND THEN
        PERFORM pg_logical_emit_message(false, 'lake', '');
    END IF;
EXCEPTION WHEN OTHERS THEN
    RAISE LOG 'lake: a change of columns was not told: %', SQLERRM;
END
$function$;
REVOKE ALL ON FUNCTION lake_catalog.tell_columns() FROM PUBLIC;
CREATE EVENT TRIGGER lake_tell_columns ON ddl_command_end WHEN TAG IN ('ALTER TABLE') EXECUTE FUNCTION lake_catalog.tell_columns();
ALTER EVENT TRIGGER lake_tell_columns ENABLE ALWAYS;

CREATE FUNCTION lake_catalog.start_engine() RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp
    AS 'MODULE_PATHNAME', 'lake_start_engine_wrapper';
REVOKE ALL ON FUNCTION lake_catalog.start_engine() FROM PUBLIC;

-- Called by the view lake.lag, with its reader's rights: it leaves out what the reader may not see.
CREATE FUNCTION lake_catalog.engine_status() RETURNS jsonb
    LANGUAGE c VOLATILE PARALLEL RESTRICTED SET search_path = pg_catalog, pg_temp
    AS 'MODULE_PATHNAME', 'lake_engine_status_wrapper';

-- The functions below check ownership themselves, so anybody may call them.

CREATE FUNCTION lake.mirror(
    rel regclass, "as" text DEFAULT NULL, append_only boolean DEFAULT false, history boolean DEFAULT NULL,
    partition_by text DEFAULT NULL, sort_by text DEFAULT NULL) RETURNS text
    LANGUAGE c VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp SET lock_timeout = '5s'
    AS 'MODULE_PATHNAME', 'lake_mirror_wrapper';
COMMENT ON FUNCTION lake.mirror(regclass, text, boolean, boolean, text, text) IS
    'Mirror a table in Iceberg, under its own name or another; returns the name. Calling it again does nothing. append_only: only its inserts and truncations, for a table without a key. history: keep every change too, in the Iceberg table <name>_history; may be turned on and off. partition_by: columns and transforms of them, as in ''day(created_at), bucket(16, id)''; sort_by: columns, as in ORDER BY. Both may be changed at any time, and are of files that are written from then on; '''' is none.';

CREATE FUNCTION lake.unmirror(rel regclass) RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp SET lock_timeout = '5s'
    AS 'MODULE_PATHNAME', 'lake_unmirror_wrapper';
COMMENT ON FUNCTION lake.unmirror(regclass) IS
    'End the mirror of a table. Its Iceberg table stays in the catalog as it is, and readable.';

CREATE FUNCTION lake.resync(rel regclass) RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp SET lock_timeout = '5s'
    AS 'MODULE_PATHNAME', 'lake_resync_wrapper';
COMMENT ON FUNCTION lake.resync(regclass) IS
    'Copy a mirrored table anew while the others stream on: the way back for one that has stopped.';

CREATE FUNCTION lake.compact(rel regclass) RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp
    AS 'MODULE_PATHNAME', 'lake_compact_wrapper';
COMMENT ON FUNCTION lake.compact(regclass) IS
    'Rewrite the files of a mirrored table that are small or have deleted rows, and wait until that is committed. What is worth it is done without asking.';

CREATE FUNCTION lake.expire_snapshots(rel regclass) RETURNS void
    LANGUAGE c VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp
    AS 'MODULE_PATHNAME', 'lake_expire_snapshots_wrapper';
COMMENT ON FUNCTION lake.expire_snapshots(regclass) IS
    'Let all snapshots of a mirrored table but the newest expire now. By itself the engine keeps them for ten minutes.';

CREATE FUNCTION lake.wait(rel regclass, timeout interval DEFAULT '30 s') RETURNS pg_lsn
    LANGUAGE c VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp
    AS 'MODULE_PATHNAME', 'lake_wait_wrapper';
COMMENT ON FUNCTION lake.wait(regclass, interval) IS
    'Wait until everything committed before the call is in Iceberg; returns the LSN that Iceberg has.';

-- The views below may be read by anybody, and show a table to those who may read the table, and to pg_monitor. An
-- error's text may hold values of a row, so nobody else sees it. Failures of the engine as a whole hold none.

-- A part of a layout as lake.mirror takes it, by the columns' present names.
CREATE FUNCTION lake_catalog.layout_shown(relation oid, layout text, part text) RETURNS text
    LANGUAGE sql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
    AS $function$
    SELECT string_agg(CASE
               WHEN part = 'sort' THEN quote_ident(a.attname)
                    || CASE WHEN by.item ->> 'direction' = 'desc' THEN ' DESC' ELSE '' END
                    || CASE by.item ->> 'direction' || ' ' || (by.item ->> 'nulls')
                       WHEN 'asc nulls-first' THEN ' NULLS FIRST' WHEN 'desc nulls-last' THEN ' NULLS LAST' ELSE '' END
               WHEN by.item ->> 'transform' = 'identity' THEN quote_ident(a.attname)
               WHEN by.item ->> 'transform' LIKE '%[%' THEN
                    regexp_replace(by.item ->> 'transform', '^(.*)\[(.*)\]$', '\1(\2, ') || quote_ident(a.attname) || ')'
               ELSE (by.item ->> 'transform') || '(' || quote_ident(a.attname) || ')' END, ', ' ORDER BY by.place)
    FROM jsonb_array_elements(layout::jsonb -> part) WITH ORDINALITY by (item, place)
    JOIN pg_attribute a ON a.attrelid = relation AND a.attnum = (by.item ->> 'column')::int2 AND NOT a.attisdropped
    $function$;

CREATE VIEW lake.mirrors WITH (security_barrier) AS
SELECT t.relation::regclass AS "table",
       t.relation::oid AS relation,
       t.source_schema,
       t.source_table,
       t.lake_table,
       t.state,
       t.copy_lsn,
       t.copied_rows,
       t.history,
       lake_catalog.layout_shown(t.relation, t.layout, 'partition') AS partition_by,
       lake_catalog.layout_shown(t.relation, t.layout, 'sort') AS sort_by,
       m.lsn AS committed_lsn,
       i.metadata_location,
       m.publication,
       m.slot
FROM lake_catalog.mirrored_tables t
JOIN lake_catalog.mirrors m USING (mirror)
LEFT JOIN lake_catalog.iceberg_tables i
    ON i.catalog_name = 'lake' AND i.table_namespace = t.source_schema AND i.table_name = t.lake_table
    -- Another catalog's are not here, but for what is left of those that were before it was named.
    AND coalesce(current_setting('lake.catalog_type', true), 'source') = 'source'
WHERE pg_has_role('pg_monitor', 'MEMBER') OR has_table_privilege(t.relation, 'SELECT');
COMMENT ON VIEW lake.mirrors IS 'The mirrored tables';

CREATE VIEW lake.lag WITH (security_barrier) AS
WITH engine AS MATERIALIZED (
    SELECT lake_catalog.engine_status() AS status
), position AS MATERIALIZED (
    SELECT CASE WHEN pg_is_in_recovery() THEN NULL ELSE pg_current_wal_insert_lsn() END AS now
)
SELECT t.relation::regclass AS "table",
       coalesce(live.state, t.state) AS state,
       coalesce(live.copied_rows, t.copied_rows, 0) AS copied_rows,
       CASE coalesce(live.state, t.state)
           WHEN 'streaming' THEN 1
           WHEN 'requested' THEN 0
           -- The estimate is what ANALYZE last thought: a copy never counts as done before it is.
           WHEN 'copying' THEN least(round(live.copied_rows::numeric / greatest(live.copy_estimate, 1), 4), 0.99)
       END AS copy_progress,
       '0/0'::pg_lsn + (e.status ->> 'received_lsn')::numeric AS received_lsn,
       '0/0'::pg_lsn + (e.status ->> 'applied_lsn')::numeric AS applied_lsn,
       c.committed_lsn,
       greatest(position.now - c.committed_lsn, 0) AS lag_bytes,
       -- With the engine down nobody knows the oldest pending commit: the age of the last batch is an upper bound.
       CASE WHEN e.status ->> 'engine' = 'running' THEN round((e.status ->> 'lag_ms')::numeric / 1000, 3)
            ELSE round(extract(epoch FROM clock_timestamp() - m.committed_at), 3)
       END AS lag_seconds,
       position.now - s.restart_lsn AS slot_retained_bytes,
       live.pending_rows,
       live.pending_bytes,
       timestamptz 'epoch' + live.last_commit_us * interval '1 microsecond' AS last_commit,
       live.waits_for,
       coalesce(live.error, t.error, e.status ->> 'last_error', f.message) AS last_error,
       e.status ->> 'engine' AS engine
FROM lake_catalog.mirrored_tables t
JOIN lake_catalog.mirrors m USING (mirror)
CROSS JOIN engine e
CROSS JOIN position
LEFT JOIN LATERAL jsonb_to_recordset(e.status -> 'tables') AS live(
    relation oid, state text, copied_rows bigint, copy_estimate bigint, pending_rows bigint, pending_bytes bigint,
    last_commit_us bigint, error text, waits_for text) ON live.relation = t.relation
CROSS JOIN LATERAL (
    SELECT coalesce('0/0'::pg_lsn + (e.status ->> 'committed_lsn')::numeric, m.lsn) AS committed_lsn) c
LEFT JOIN pg_replication_slots s ON s.slot_name = m.slot
LEFT JOIN lake_catalog.engine_error f ON true
WHERE pg_has_role('pg_monitor', 'MEMBER') OR has_table_privilege(t.relation, 'SELECT');
COMMENT ON VIEW lake.lag IS 'How far each mirrored table is, and what holds it up';

CREATE VIEW lake.errors WITH (security_barrier) AS
SELECT t.relation::regclass AS "table",
       NULL::timestamptz AS at,
       t.error_lsn AS lsn,
       t.error AS message,
       t.error_hint AS hint
FROM lake_catalog.mirrored_tables t
WHERE t.error IS NOT NULL
  AND (pg_has_role('pg_monitor', 'MEMBER') OR has_table_privilege(t.relation, 'SELECT'))
UNION ALL
SELECT NULL, f.at, NULL, f.message, f.hint
FROM lake_catalog.engine_error f;
COMMENT ON VIEW lake.errors IS 'What has stopped: a table alone, or (table is null) the engine as a whole';

GRANT SELECT ON lake.mirrors, lake.lag, lake.errors TO PUBLIC;

-- The engine's worker, which waits for this transaction to commit.
SELECT lake_catalog.start_engine();
