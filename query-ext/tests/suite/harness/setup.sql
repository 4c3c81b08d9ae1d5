CREATE SCHEMA lake;
GRANT USAGE ON SCHEMA lake TO PUBLIC;
CREATE SCHEMA lake_catalog;
CREATE TABLE lake_catalog.mirrored_tables (relation oid, lake_table text);
SET allow_system_table_mods = on;
INSERT INTO pg_extension (oid, extname, extowner, extnamespace, extrelocatable, extversion)
VALUES (90000, 'lake', 10, 'lake'::regnamespace, false, '0.1.0');
RESET allow_system_table_mods;

CREATE TABLE public.t1 (
    id bigint PRIMARY KEY,
    gone integer,
    b boolean,
    i2 smallint,
    i4 integer,
    i8 bigint,
    f4 real,
    f8 double precision,
    n numeric(12,2),
    n2 numeric(30,10),
    s text,
    v varchar(20),
    cs text COLLATE "C",
    by bytea,
    d date,
    tm time,
    ts timestamp,
    tz timestamptz,
    u uuid,
    j json,
    jb jsonb
);
INSERT INTO public.t1
SELECT g, g,
    CASE g % 3 WHEN 0 THEN true WHEN 1 THEN false END,
    CASE WHEN g % 11 = 0 THEN NULL ELSE (g % 700) - 350 END,
    CASE WHEN g % 13 = 0 THEN NULL ELSE (g * 7919) % 100003 - 50000 END,
    CASE WHEN g % 17 = 0 THEN NULL ELSE g::bigint * 4000000000 - 500 END,
    CASE WHEN g % 19 = 0 THEN 'NaN' WHEN g % 23 = 0 THEN NULL ELSE (g % 1000) / 8.0 END,
    CASE WHEN g % 19 = 0 THEN 'Infinity' WHEN g % 29 = 0 THEN 'NaN' ELSE (g % 997) / 7.0 END,
    CASE WHEN g % 7 = 0 THEN NULL ELSE (g % 10007) * 1.37 - 5000 END,
    CASE WHEN g % 31 = 0 THEN NULL ELSE g * 12345678.0123456789 END,
    CASE g % 9 WHEN 0 THEN NULL WHEN 1 THEN '' WHEN 2 THEN 'Ärger ' || g % 20 WHEN 3 THEN 'it''s ' || g % 5
        WHEN 4 THEN 'ZEBRA' ELSE 'row ' || g % 50 END,
    CASE WHEN g % 10 = 0 THEN NULL ELSE 'v' || g % 40 END,
    CASE g % 6 WHEN 0 THEN 'b' || g % 9 WHEN 1 THEN 'B' || g % 9 WHEN 2 THEN 'é' || g % 3 WHEN 3 THEN NULL ELSE 'a' || g % 12 END,
    CASE WHEN g % 8 = 0 THEN NULL ELSE decode(md5((g % 60)::text), 'hex') END,
    CASE WHEN g % 12 = 0 THEN NULL ELSE date '1950-06-01' + (g * 17) % 40000 END,
    CASE WHEN g % 14 = 0 THEN NULL ELSE time '00:00' + (g * 37 % 86400) * interval '1 second' END,
    CASE WHEN g % 15 = 0 THEN NULL ELSE timestamp '1965-02-03 04:05:06.789' + g * interval '7 hours 3 minutes' END,
    CASE WHEN g % 16 = 0 THEN NULL ELSE timestamptz '2001-01-01 00:00:00+00' + g * interval '11 minutes 0.123456 seconds' END,
    CASE WHEN g % 18 = 0 THEN NULL ELSE md5((g % 300)::text)::uuid END,
    CASE WHEN g % 20 = 0 THEN NULL ELSE json_build_object('k', g % 10, 'v', 1.10) END,
    CASE WHEN g % 21 = 0 THEN NULL ELSE jsonb_build_object('k', g % 10, 'l', '[1, 2.50]'::jsonb) END
FROM generate_series(1, 6000) g;
INSERT INTO public.t1 (id, i2, i4, i8, n, n2) VALUES
    (7001, 32767, 2147483647, 9223372036854775807, 9999999999.99, 99999999999999999999.9999999999),
    (7002, -32768, -2147483648, -9223372036854775808, -9999999999.99, -99999999999999999999.9999999999),
    (7003, 0, 0, 0, 0, 0);
ALTER TABLE public.t1 DROP COLUMN gone;

CREATE TABLE public.t2 (k integer PRIMARY KEY, name text COLLATE "C", grp smallint, amount numeric(15,2), disc numeric(4,2), ref bigint);
INSERT INTO public.t2
SELECT g, 'name ' || g % 25, CASE WHEN g % 10 = 0 THEN NULL ELSE g % 7 END, g * 3.25, (g % 11) / 100.0, CASE WHEN g % 5 = 0 THEN NULL ELSE g * 3 END
FROM generate_series(1, 900) g;
CREATE TABLE public.t3 (k integer PRIMARY KEY, name text, x numeric(10,3));
CREATE TABLE public.other (k integer PRIMARY KEY);
INSERT INTO public.other SELECT generate_series(1, 10);
ANALYZE;
INSERT INTO lake_catalog.mirrored_tables
SELECT c.oid, c.relname FROM pg_class c WHERE relname IN ('t1', 't2', 't3') AND relnamespace = 'public'::regnamespace;
CREATE EXTENSION lake_query;
CREATE ROLE reader LOGIN;
GRANT SELECT (k, name) ON public.t2 TO reader;
