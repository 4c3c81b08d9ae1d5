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

-- What a query's plan calls above what DuckDB delivers: variances and deviations from sums, as the final functions of the aggregates have
-- them, to the last digit. A quotient of numerics has the digits that it has there; the root has as many as what it is taken of.
CREATE FUNCTION lake_catalog.variance_of(count bigint, total numeric, squares numeric, sample boolean) RETURNS numeric
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CASE
        WHEN count <= sample::integer THEN NULL
        WHEN count * squares - total * total <= 0 THEN 0
        ELSE (count * squares - total * total) / (count::numeric * (count - sample::integer))
    END;
CREATE FUNCTION lake_catalog.deviation_of(variance numeric) RETURNS numeric
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    -- sqrt has digits of its own choice: cut to those that are wanted it may be one too high, and is rounded here.
    RETURN (SELECT CASE WHEN (least + unit / 2) * (least + unit / 2) <= variance THEN least + unit ELSE least END
            FROM (SELECT CASE WHEN cut * cut > variance THEN cut - unit ELSE cut END AS least, unit
                  FROM (SELECT trunc(sqrt(variance), scale(variance)) AS cut, ('1e-' || scale(variance))::numeric AS unit) a) b);

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

-- The engine calls it when a table's columns have changed, or when one has got values that DuckDB's type has not
-- ("companions", by number), which the option of that name tells the planner. Few wait behind it, and not for long.
CREATE FUNCTION lake.follow_relation(source oid, name text, companions smallint[]) RETURNS boolean
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET lock_timeout = '200ms' AS $function$
DECLARE
    changes text[] := '{}';
    renames text[] := '{}';
    change text;
    c record;
BEGIN
    FOR c IN
        SELECT coalesce(s.attnum, f.attnum) AS attnum, s.attname AS name, f.attname AS has,
               s.attnum IS NULL OR s.attisdropped AS gone, f.attnum IS NULL AS lacks, f.attisdropped AS dropped,
               format_type(s.atttypid, s.atttypmod) || CASE WHEN s.attcollation <> 0 AND s.attcollation <> t.typcollation
                   THEN format(' COLLATE %I.%I', n.nspname, l.collname) ELSE '' END AS type,
               (s.atttypid, s.atttypmod, s.attcollation) IS DISTINCT FROM (f.atttypid, f.atttypmod, f.attcollation) AS other,
               coalesce(s.attnum = ANY (companions), false) AS companion,
               EXISTS (SELECT FROM pg_options_to_table(f.attfdwoptions) WHERE option_name = 'companion') AS declared
          FROM (SELECT * FROM pg_attribute WHERE attrelid = source AND attnum > 0) s
          FULL JOIN (SELECT a.* FROM pg_attribute a
                       JOIN pg_foreign_table b ON b.ftrelid = a.attrelid AND 'source_oid=' || source = ANY (b.ftoptions)
                       JOIN pg_class r ON r.oid = b.ftrelid AND r.relnamespace = 'lake'::regnamespace AND r.relname = name
                      WHERE a.attnum > 0) f ON f.attnum = s.attnum
          LEFT JOIN pg_type t ON t.oid = s.atttypid
          LEFT JOIN pg_collation l ON l.oid = s.attcollation
          LEFT JOIN pg_namespace n ON n.oid = l.collnamespace
         -- Nothing to follow where either is missing.
         WHERE EXISTS (SELECT FROM pg_class r JOIN pg_foreign_table b ON b.ftrelid = r.oid
                        WHERE r.relnamespace = 'lake'::regnamespace AND r.relname = name AND 'source_oid=' || source = ANY (b.ftoptions))
           AND EXISTS (SELECT FROM pg_class WHERE oid = source)
         ORDER BY 1
    LOOP
        CONTINUE WHEN c.gone AND c.dropped;
        IF c.lacks AND c.gone THEN
            -- Came and went; its number is not given again.
            changes := changes || format('ADD COLUMN %I integer', 'dropped ' || c.attnum) || format('DROP COLUMN %I', 'dropped ' || c.attnum);
        ELSIF c.lacks THEN
            changes := changes || format('ADD COLUMN %I %s', c.name, c.type);
        ELSIF c.gone THEN
            -- First of all: another may have its name.
            renames := format('DROP COLUMN %I', c.has) || renames;
        ELSIF NOT c.dropped THEN
            IF c.has <> c.name THEN
                -- By way of a third name, for two may have changed theirs.
                renames := renames || format('RENAME COLUMN %I TO %I', c.has, 'renamed ' || c.attnum);
                changes := format('RENAME COLUMN %I TO %I', 'renamed ' || c.attnum, c.name) || changes;
            END IF;
            IF c.other THEN
                changes := changes || format('ALTER COLUMN %I TYPE %s', c.name, c.type);
            END IF;
        END IF;
        IF c.companion AND NOT coalesce(c.declared, false) THEN
            changes := changes || format('ALTER COLUMN %I OPTIONS (ADD companion %L)', c.name, 'true');
        ELSIF c.declared AND NOT c.companion AND NOT c.gone THEN
            changes := changes || format('ALTER COLUMN %I OPTIONS (DROP companion)', c.name);
        END IF;
    END LOOP;
    FOREACH change IN ARRAY renames || changes LOOP
        EXECUTE format('ALTER FOREIGN TABLE lake.%I %s', name, change);
    END LOOP;
    RETURN cardinality(renames || changes) > 0;
END
$function$;
COMMENT ON FUNCTION lake.follow_relation(oid, text, smallint[]) IS
    'Give lake.<name> the columns that its table has now; true when it had others. The engine calls it';

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
REVOKE ALL ON FUNCTION lake.create_relation(regclass, text), lake.drop_relation(text), lake.follow_relation(oid, text, smallint[]) FROM PUBLIC;

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
