-- A table with a column of each type that Iceberg has not, and the values at the types' edges.
CREATE EXTENSION citext; CREATE EXTENSION hstore; CREATE EXTENSION ltree; CREATE EXTENSION cube; CREATE EXTENSION seg; CREATE EXTENSION isn;
CREATE SCHEMA shop;
CREATE TYPE shop.mood AS ENUM ('sad', 'very "happy"', 'so, so', '');
CREATE DOMAIN shop.positive AS int CHECK (VALUE > 0);
CREATE DOMAIN shop.code AS char(5);
CREATE DOMAIN shop.codes AS shop.code[];
CREATE DOMAIN shop.amount AS numeric(12,2);
CREATE DOMAIN shop.price AS shop.amount;
CREATE TYPE shop.item AS (name text, price shop.price, tags text[], mood shop.mood, during tstzrange, again interval);
CREATE DOMAIN shop.real_item AS shop.item CHECK ((VALUE).name <> 'none');
CREATE TYPE shop.floatrange AS RANGE (subtype = float8);
CREATE TABLE every_type (
    id int PRIMARY KEY,
    bp bpchar, c1 char(1), c5 char(5), nm name, ch "char", x xml, md shop.mood, ct citext, rv refcursor,
    dp shop.positive, dc shop.code, dcs shop.codes, da shop.amount, dpr shop.price, di shop.real_item,
    o oid, xi xid, cd cid, x8 xid8, mo money, nu numeric, nb numeric(500,100), nn numeric(5,-2), ns numeric(2,5),
    iv interval, iy interval year to month, tz timetz, tz0 timetz(0),
    ia int[], ta text[], fa float8[], ra float4[], ba bytea[], na numeric[], sa timestamptz[], ja jsonb[], ma shop.mood[], ca char(3)[],
    ita shop.item[], dpa shop.positive[], ha hstore[], bla bool[], tma time[],
    it shop.item,
    ri int4range, rl int8range, rn numrange, rs tsrange, rz tstzrange, rd daterange, rf shop.floatrange, mi int4multirange, mz tstzmultirange,
    ip inet, ci cidr, mac macaddr, m8 macaddr8, bi bit(5), vb varbit, tv tsvector, tq tsquery, ls pg_lsn, jp jsonpath,
    po point, li line, sg lseg, bx box, pa path, pg polygon, ci2 circle,
    rgc regclass, rgp regprocedure, rgf regproc, rgo regoperator, rgt regtype, rgr regrole, rgn regnamespace, rgl regcollation, rgd regdictionary,
    tx txid_snapshot, sn pg_snapshot, v2 int2vector, vo oidvector, ti tid, al aclitem[],
    hs hstore, lt ltree, lq lquery, cu cube, se seg, isb isbn13,
    n int);
ALTER TABLE every_type ALTER ta SET STORAGE EXTERNAL;
INSERT INTO every_type (id) VALUES (0);
INSERT INTO every_type VALUES
(1, 'keeps ', 'x', 'ab', 'a name', 'c', '<a b="1">text &amp; more</a>', 'very "happy"', 'MiXed', 'cursor',
 7, 'dc', '{ab,"c d",NULL}', 12.34, 0.10, ROW('x', 1.50, '{a,b}', 'sad', '[2020-01-01 00:00+00,infinity)', '1 day'),
 4294967295, '4294967295', '4294967295', '18446744073709551615', '-92233720368547758.08', 'NaN', repeat('9', 400)::numeric + repeat('7', 50)::numeric / ('1' || repeat('0', 50))::numeric, 12345, 0.00012,
 '178000000 years 11 mons 30 days 23:59:59.999999', '3 years 2 mons', '23:59:59.999999+15:59:59', '24:00:00-15:59:59',
 '{}', '{plain,"with \"quotes\"","with, comma","with \\ backslash",NULL,"NULL",""," ","{}"}', '{NaN,Infinity,-Infinity,-0,5e-324,1.7976931348623157e308,0.1}',
 '{NaN,-0,1e-45,3.4028235e38,0.1}', ARRAY['\x', '\x00ff5c22'::bytea, NULL], '{NaN,Infinity,1.00,-0.000}',
 ARRAY['infinity', '-infinity', '0044-03-15 12:00:00+00 BC', '294276-12-31 23:59:59.999999+00']::timestamptz[],
 ARRAY['{"a": [1, "x,y"]}', 'null', NULL]::jsonb[], '{sad,"so, so","very \"happy\"",""}', '{a,"bc ",NULL}',
 ARRAY[ROW('n,"\', 2, '{"x y",NULL}', 'so, so', 'empty', '-1 mons +2 days -03:04:05.000006')::shop.item, NULL, ROW(NULL, NULL, NULL, NULL, NULL, NULL)::shop.item],
 '{1,2}', ARRAY['a=>1, b=>NULL', '""=>"\"q\""', NULL]::hstore[], '{t,f,NULL}', '{24:00:00,00:00:00.000001}',
 ROW('', NULL, '{}', '', '(,)', 'PT0S'),
 '[1,5)', '(,)', '[1.50,2.000]', '["0044-03-15 00:00:00 BC",infinity]', '[-infinity,"2024-02-29 12:00:00.000001+00")', '[0044-03-15 BC,infinity]',
 '[-0,NaN]', '{[1,3),[5,)}', '{(,"2000-01-01 00:00+00"],["2020-01-01 00:00+00",infinity]}',
 '::ffff:1.2.3.4/128', '10.1.0.0/16', '08:00:2b:01:02:03', '08:00:2b:ff:fe:01:02:03', B'10101', B'', $$'a':1A,3 'b''c':2B '\\':4$$, $$'a' & !'b c':*A | 'd' <2> 'e'$$, 'FFFFFFFF/FFFFFFFF',
 'strict $."a b"[*]?(@.x > 1.5 && @.y like_regex "^a" flag "i")',
 '(-0,1.5e300)', '{1,-1,0.1}', '[(0.1,0.2),(1e-300,3)]', '(3,4),(1,2)', '[(0,0),(1,1),(2,0)]', '((0,0),(1,1),(2,0))', '<(0.1,0.2),1e10>',
 'every_type', 'pg_catalog.int4in(cstring)', 'now', '+(int4,int4)', 'shop.mood', 'postgres', 'shop', '"C"', 'simple',
 '10:20:10,14,15', '10:20:10,14,15', '1 -2 32767', '1 2 4294967295', '(4294967295,65535)', '{postgres=arwdDxt/postgres,=r/postgres}',
 '"a b"=>"c\"d", e=>NULL, ""=>""', 'Top.Sub_1.x', 'a.*{1,2}.b|c@*', '(1,2,0.1),(3,-4,1e-300)', '1.50 .. 2.0', '978-0-306-40615-7', 1),
(2, '', ' ', '     ', '', '', 'no element', '', '', '', 1, '', '{}', -9999999999.99, NULL, NULL,
 0, '0', '0', '0', '92233720368547758.07', '-Infinity', -0.1, -99499, -0.00099,
 '-178000000 years -11 mons -30 days -23:59:59.999999', '-3 years -2 mons', '00:00:00-00:00:01', '00:00+00',
 '[-2:-1][0:1]={{1,NULL},{3,4}}', '[5:5][-1:0][2:2]={{{a},{b}}}', '{{1,2},{3,4}}', '[0:0]={-0}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{NULL}', '{}', '{{t,f},{f,t}}', '{}',
 ROW('quote "" comma , paren () backslash \', -1, ARRAY['a'], 'very "happy"', 'empty', NULL),
 'empty', '[-9223372036854775808,9223372036854775806]', 'empty', '(,)', '(,)', '[,2000-01-01)', '(1e-300,1e300)', '{}', '{}',
 '192.168.1.5/24', '::/0', 'ff:ff:ff:ff:ff:ff', '00:00:00:00:00:00:00:00', B'00000', B'1', '', '', '0/0', '$',
 '(NaN,Infinity)', '{0,1,-Infinity}', '[(0,0),(0,0)]', '(0,0),(0,0)', '((0,0),(1,1))', '((0,0))', '<(0,0),0>',
 0, 0, 0, 0, 0, 0, 0, 0, 0, '1:1:', '1:1:', '', '', '(0,0)', '{}', '', '', '*', '(0)', '< 1.0', '979-10-90636-07-1', 2),
(3, '  ', 'ü', 'üé', 'ünïcödé', '\', '<?xml version="1.0" standalone="yes"?><ü/>', 'sad', 'ÜBER', 'ü', 2147483647, 'üüüüü', '[0:1]={ü,NULL}', 0, 0, ROW('ü', 0, NULL, NULL, NULL, NULL),
 1, '1', '1', '1', '0', ('0.' || repeat('0', 1000))::numeric, 0, 0, 0, '0', '0', '12:00:00.5+05:30', '12:00+00',
 '{{{1}}}', '{ü,"日本語 🦆","line
break"}', '{}', '{}', '{}', ARRAY[(repeat('9', 1000) || '.' || repeat('1', 500))::numeric], ARRAY['2024-02-29 12:00:00.5+00'::timestamptz], '{}', '{}', '{ü}', '{}', '{}', '{}', '{}', '{}',
 ROW(E'tab\t new\nline', 1, '{NULL}', NULL, '[2020-01-01,2020-01-02)', '1 microsecond'),
 '[,5)', '[5,)', '(0.1,0.10]', '[2000-01-01,2000-01-01]', '[2000-01-01,2000-01-01]', '[2000-01-01,2000-01-01]', '[0.1,0.3]', '{[1,2)}', '{[2000-01-01,2000-01-02)}',
 '1.2.3.4', '1.2.3.4/32', '00:00:00:00:00:00', 'ff:ff:ff:ff:ff:ff:ff:ff', B'11111', (repeat('10', 500))::varbit, $$'ü' 'x':1,16383$$, $$'ü':*$$, '16/B374D848', '$.ü ? (@ == "x")',
 '(0.1,0.2)', '{1,0,0}', '[(-0,0),(1,1)]', '(1,1),(-1,-1)', '[(0.1,0.2)]', '((0.1,0.2),(3,4))', '<(-0,0),1>',
 'shop.item', 'pg_catalog.lower(text)', 'pg_catalog.pi', '-(NONE,int4)', 'shop.item[]', 'lakemirror', 'public', '"C"', 'english_stem',
 '1:1:', '1:1:', '3', '3', '(1,1)', '{lakemirror=r*/postgres}', 'ü=>ü', 'a', 'b', '(0.1)', '~1', '978-1-4028-9462-6', 3);
INSERT INTO every_type (id, ta, nu, x, n)
SELECT 10, array_agg(md5(i::text)), (repeat('8', 90000) || '.' || repeat('3', 9000))::numeric, xmlelement(name r, xmlagg(xmlelement(name e, md5(i::text)))), 0
FROM generate_series(1, 2000) i;
UPDATE every_type SET ch = (-23)::"char" WHERE id = 0;
