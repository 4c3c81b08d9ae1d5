\echo Use "CREATE EXTENSION lake_query" to load this file. \quit

-- Refuses, with a hint, when the library is not preloaded: a planner hook that only some sessions have would answer
-- from the lake in one session and fail in another.
CREATE FUNCTION lake_catalog.require_query_preload() RETURNS void
    LANGUAGE c STRICT VOLATILE AS 'MODULE_PATHNAME', 'require_query_preload_wrapper';
SELECT lake_catalog.require_query_preload();

CREATE FUNCTION lake_catalog.query_fdw_handler() RETURNS fdw_handler
    LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'query_fdw_handler_wrapper';
REVOKE ALL ON FUNCTION lake_catalog.query_fdw_handler(), lake_catalog.require_query_preload() FROM PUBLIC;

CREATE FOREIGN DATA WRAPPER lake HANDLER lake_catalog.query_fdw_handler NO VALIDATOR;
CREATE SERVER lake FOREIGN DATA WRAPPER lake;

CREATE FUNCTION lake_catalog.query_fallbacks(OUT reason text, OUT queries bigint) RETURNS SETOF record
    LANGUAGE c STRICT VOLATILE AS 'MODULE_PATHNAME', 'query_fallbacks_wrapper';

CREATE VIEW lake.stat_fallback AS SELECT reason, queries FROM lake_catalog.query_fallbacks();
COMMENT ON VIEW lake.stat_fallback IS
    'Queries on mirrored tables that the heap answered because DuckDB failed before the first row, by reason, since the server started';
GRANT SELECT ON lake.stat_fallback TO PUBLIC;

-- lake.<name>: a foreign table with the attribute numbers of its source. It depends on nothing but its columns' types, so
-- that nothing on the source is ever blocked by it; SELECT is for everybody, because the planner checks the privileges on the source.
CREATE FUNCTION lake.create_relation(source regclass, name text) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $function$
DECLARE
    columns text;
    placeholders text;
BEGIN
    IF EXISTS (SELECT FROM pg_class WHERE relnamespace = 'lake'::regnamespace AND relname = name)
        OR EXISTS (SELECT FROM pg_type WHERE typnamespace = 'lake'::regnamespace AND typname = name) THEN
        RAISE EXCEPTION USING ERRCODE = 'duplicate_table',
            MESSAGE = format('relation "lake.%s" already exists', name),
            HINT = 'choose another name with the option "as" of lake.mirror';
    END IF;
    SELECT string_agg(
               CASE WHEN a.attisdropped THEN format('%I integer', 'dropped ' || a.attnum)
                    ELSE format('%I %s', a.attname, format_type(a.atttypid, a.atttypmod))
                        || CASE WHEN a.attcollation <> 0 AND a.attcollation <> t.typcollation
                                THEN format(' COLLATE %I.%I', n.nspname, c.collname) ELSE '' END
               END, ', ' ORDER BY a.attnum),
           string_agg(format('DROP COLUMN %I', 'dropped ' || a.attnum), ', ') FILTER (WHERE a.attisdropped)
      INTO columns, placeholders
      FROM pg_attribute a
      LEFT JOIN pg_type t ON t.oid = a.atttypid
      LEFT JOIN pg_collation c ON c.oid = a.attcollation
      LEFT JOIN pg_namespace n ON n.oid = c.collnamespace
     WHERE a.attrelid = source AND a.attnum > 0;
    EXECUTE format('CREATE FOREIGN TABLE lake.%I (%s) SERVER lake OPTIONS (source_oid %L)',
                   name, columns, source::oid::text);
    IF placeholders IS NOT NULL THEN
        EXECUTE format('ALTER FOREIGN TABLE lake.%I %s', name, placeholders);
    END IF;
    EXECUTE format('GRANT SELECT ON lake.%I TO PUBLIC', name);
    -- A member of the extension: pg_dump leaves it out, DROP EXTENSION drops it. While the extension's own script runs
    -- it is a member already.
    IF NOT EXISTS (SELECT FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
                    WHERE d.classid = 'pg_class'::regclass AND d.objid = format('lake.%I', name)::regclass
                      AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e') THEN
        EXECUTE format('ALTER EXTENSION lake_query ADD FOREIGN TABLE lake.%I', name);
    END IF;
END
$function$;
COMMENT ON FUNCTION lake.create_relation(regclass, text) IS 'Make lake.<name> for a mirrored table; lake.mirror calls it';

CREATE FUNCTION lake.drop_relation(name text) RETURNS void
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $function$
BEGIN
    IF EXISTS (SELECT FROM pg_foreign_table f
                 JOIN pg_class c ON c.oid = f.ftrelid
                 JOIN pg_foreign_server s ON s.oid = f.ftserver
                WHERE s.srvname = 'lake' AND c.relnamespace = 'lake'::regnamespace AND c.relname = name) THEN
        EXECUTE format('ALTER EXTENSION lake_query DROP FOREIGN TABLE lake.%I', name);
        EXECUTE format('DROP FOREIGN TABLE lake.%I', name);
    END IF;
END
$function$;
COMMENT ON FUNCTION lake.drop_relation(text) IS 'Drop lake.<name>; lake.unmirror calls it';
REVOKE ALL ON FUNCTION lake.create_relation(regclass, text), lake.drop_relation(text) FROM PUBLIC;

-- The tables that are mirrored already.
DO $do$
DECLARE
    t record;
BEGIN
    FOR t IN SELECT m.relation, m.lake_table FROM lake_catalog.mirrored_tables m JOIN pg_class c ON c.oid = m.relation LOOP
        PERFORM lake.create_relation(t.relation::regclass, t.lake_table);
    END LOOP;
END
$do$;
