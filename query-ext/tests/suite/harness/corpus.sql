CREATE TYPE public.level AS ENUM ('one', 'two', 'three');
CREATE TABLE public.corpus (
    id integer PRIMARY KEY,
    g integer,
    b boolean,
    i2 smallint,
    i4 integer,
    i8 bigint,
    f4 real,
    f8 double precision,
    n numeric(12,2),
    n2 numeric(30,10),
    t text,
    ct text COLLATE "C",
    v varchar(20),
    c character(6),
    by bytea,
    d date,
    tm time,
    ts timestamp,
    tz timestamptz,
    u uuid,
    js json,
    jb jsonb,
    e public.level
);
INSERT INTO public.corpus
SELECT i, CASE WHEN i % 5 = 4 THEN NULL ELSE i % 4 END,
    CASE i % 3 WHEN 0 THEN true WHEN 1 THEN false END,
    ('{0,1,-1,2,3,7,-7,100,32767,-32768,32766,255,1}'::smallint[])[i],
    ('{0,1,-1,2,5,7,-7,65536,2147483647,-2147483648,2147483646,46341,1,3}'::integer[])[i],
    ('{0,1,-1,2,10,7,-7,4294967296,9223372036854775807,-9223372036854775808,9223372036854775806,9007199254740993,1,-5}'::bigint[])[i],
    ('{0,-0,1,-1,0.5,1.5,2.5,-2.5,3.4028235e38,-3.4028235e38,1e-45,NaN,Infinity,-Infinity,0.1,16777217,32767.5,-0.49999997}'::real[])[i],
    ('{0,-0,1,-1,0.5,1.5,2.5,-2.5,1.7976931348623157e308,-1.7976931348623157e308,5e-324,NaN,Infinity,-Infinity,0.1,9007199254740993,2147483647.5,-0.49999999999999994,1e300,-1e-300}'::double precision[])[i],
    ('{0,0.01,-0.01,1.00,1.005,2.50,-2.50,9999999999.99,-9999999999.99,3.33,0.50,1.50,100,7,1234567.89,-0.05}'::numeric(12,2)[])[i],
    ('{0,0.0000000001,-0.0000000001,1,1.5,-1.5,2.5,99999999999999999999.9999999999,-99999999999999999999.9999999999,0.3333333333,12345.6789012345,10000,0.0001,9999.99995,3}'::numeric(30,10)[])[i],
    (ARRAY['', ' ', 'a', 'A', 'b', 'ab', 'abc', 'aXc', 'a.b', 'a%b', 'a_b', E'a\\b', E'a\nc', 'ä', 'Ä', 'aä', 'ßx', '日本語', E'e\u0301', '😀b', '  both  ', E'tab\t', 'http://www.example.com/a/b', 'https://host/x', '0123456789', 'K', E'\u212a', 'It''s'])[i],
    (ARRAY['', ' ', 'a', 'A', 'b', 'ab', 'AB', 'aXc', 'x.b', 'Xb', '_', E'\\', E'a\nc', 'ä', 'Ä', 'aä', 'ßx', '日本語', E'e\u0301', '😀b', '  both  ', E'\u017f', E'\u212a', 'kK', '0', 'z', 'é'])[i],
    (ARRAY['', 'a', 'A', 'ab', 'ä', '日本語', 'twenty characters ok', ' x ', 'abc'])[i],
    (ARRAY['', 'a', 'ab', 'AB', 'ä', '日本', 'abcdef', ' x', 'one'])[i],
    (ARRAY['', '\x00', '\xff', '\x00ff', '\x616263', '\xc3a4', '\x80'])[i]::bytea,
    (ARRAY['1970-01-01', '1969-12-31', '2000-02-29', '1900-03-01', '0001-01-01', '9999-12-31', '2024-12-31', '2021-01-03', '2020-12-28', '1582-10-15', '2000-01-31', '1999-12-31'])[i]::date,
    (ARRAY['00:00:00', '23:59:59.999999', '12:00', '00:00:00.000001', '06:30:15.5'])[i]::time,
    (ARRAY['1970-01-01 00:00:00', '1969-12-31 23:59:59.999999', '2000-02-29 12:34:56.789', '1900-03-01', '0001-01-01 00:00:00.000001', '9999-12-31 23:59:59.999999', '2024-12-31 00:00:00.5', '2021-01-03 23:00', '2020-12-28 00:00', '2000-01-31 10:00', '2038-01-19 03:14:07'])[i]::timestamp,
    (ARRAY['1970-01-01 00:00:00+00', '1969-12-31 23:59:59.999999+00', '2000-02-29 12:34:56.789+05:30', '2021-03-28 01:30:00+01', '2021-10-31 01:30:00+00', '9999-12-31 23:59:59+00'])[i]::timestamptz,
    (ARRAY['00000000-0000-0000-0000-000000000000', 'ffffffff-ffff-ffff-ffff-ffffffffffff', '7fffffff-ffff-ffff-ffff-ffffffffffff', '80000000-0000-0000-0000-000000000000', '12345678-9abc-def0-1234-56789abcdef0'])[i]::uuid,
    (ARRAY['{}', '[1, 2]', '"x"', 'null', '{"a":1, "a":2}', '1.10'])[i]::json,
    (ARRAY['{}', '[]', '{"a": 1, "b": [1, {"c": "d"}], "ab": "x\ty\"\\\u0001ä"}', '[1.10, "a", null, {"a": null}, [], "ab", ""]', '"a"', 'null', '1e20', 'true', '{"": "", "a": null, "日本語": {"a": 1}}', '[["a, ]"], "}{"]', '-0.10', '{"a": "ab", "0": 1, "A": false}', '12345678901234567890.123456789000',
        '[1]', '[1, [1, 2], {"a": [1, 2]}]', '{"a": {"b": [1, {"c": 2.0}]}}', '[[1.0]]', '{"b": [{"c": "d"}]}', '1.1', '[1.10, 1.1, "1.1"]', '{"a": {}}', '[{}]', '[[]]'])[i]::jsonb,
    (ARRAY['one', 'two', 'three', 'one'])[i]::public.level
FROM generate_series(1, 29) i;
ANALYZE public.corpus;
INSERT INTO lake_catalog.mirrored_tables VALUES ('public.corpus'::regclass, 'corpus');
CREATE FUNCTION public.failing(expression text, tables integer) RETURNS SETOF integer LANGUAGE plpgsql AS $$
DECLARE
    statement text := 'SELECT ' || expression || ' FROM public.corpus a, public.corpus b, public.corpus c WHERE a.id = $1 AND b.id = $2 AND c.id = $3';
    i integer; j integer; k integer; most integer := (SELECT max(id) FROM public.corpus);
BEGIN
    FOR i IN 1..most LOOP
        FOR j IN 1..(CASE WHEN tables > 1 THEN most ELSE 1 END) LOOP
            FOR k IN 1..(CASE WHEN tables > 2 THEN most ELSE 1 END) LOOP
                BEGIN
                    EXECUTE statement USING i, j, k;
                EXCEPTION WHEN OTHERS THEN
                    RETURN NEXT i * 10000 + j * 100 + k;
                END;
            END LOOP;
        END LOOP;
    END LOOP;
END $$;
