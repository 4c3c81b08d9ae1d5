-- The eight tables of TPC-H, with data of the specification's shape that is the same in every run. ':sf' stands for the
-- scale factor: 0.01 gives some 60,000 rows in lineitem.

CREATE TABLE region (
    r_regionkey integer PRIMARY KEY,
    r_name char(25) NOT NULL,
    r_comment varchar(152)
);
CREATE TABLE nation (
    n_nationkey integer PRIMARY KEY,
    n_name char(25) NOT NULL,
    n_regionkey integer NOT NULL,
    n_comment varchar(152)
);
CREATE TABLE supplier (
    s_suppkey integer PRIMARY KEY,
    s_name char(25) NOT NULL,
    s_address varchar(40) NOT NULL,
    s_nationkey integer NOT NULL,
    s_phone char(15) NOT NULL,
    s_acctbal decimal(15,2) NOT NULL,
    s_comment varchar(101) NOT NULL
);
CREATE TABLE part (
    p_partkey integer PRIMARY KEY,
    p_name varchar(55) NOT NULL,
    p_mfgr char(25) NOT NULL,
    p_brand char(10) NOT NULL,
    p_type varchar(25) NOT NULL,
    p_size integer NOT NULL,
    p_container char(10) NOT NULL,
    p_retailprice decimal(15,2) NOT NULL,
    p_comment varchar(23) NOT NULL
);
CREATE TABLE partsupp (
    ps_partkey integer NOT NULL,
    ps_suppkey integer NOT NULL,
    ps_availqty integer NOT NULL,
    ps_supplycost decimal(15,2) NOT NULL,
    ps_comment varchar(199) NOT NULL,
    PRIMARY KEY (ps_partkey, ps_suppkey)
);
CREATE TABLE customer (
    c_custkey integer PRIMARY KEY,
    c_name varchar(25) NOT NULL,
    c_address varchar(40) NOT NULL,
    c_nationkey integer NOT NULL,
    c_phone char(15) NOT NULL,
    c_acctbal decimal(15,2) NOT NULL,
    c_mktsegment char(10) NOT NULL,
    c_comment varchar(117) NOT NULL
);
CREATE TABLE orders (
    o_orderkey bigint PRIMARY KEY,
    o_custkey integer NOT NULL,
    o_orderstatus char(1) NOT NULL,
    o_totalprice decimal(15,2) NOT NULL,
    o_orderdate date NOT NULL,
    o_orderpriority char(15) NOT NULL,
    o_clerk char(15) NOT NULL,
    o_shippriority integer NOT NULL,
    o_comment varchar(79) NOT NULL
);
CREATE TABLE lineitem (
    l_orderkey bigint NOT NULL,
    l_partkey integer NOT NULL,
    l_suppkey integer NOT NULL,
    l_linenumber integer NOT NULL,
    l_quantity decimal(15,2) NOT NULL,
    l_extendedprice decimal(15,2) NOT NULL,
    l_discount decimal(15,2) NOT NULL,
    l_tax decimal(15,2) NOT NULL,
    l_returnflag char(1) NOT NULL,
    l_linestatus char(1) NOT NULL,
    l_shipdate date NOT NULL,
    l_commitdate date NOT NULL,
    l_receiptdate date NOT NULL,
    l_shipinstruct char(25) NOT NULL,
    l_shipmode char(10) NOT NULL,
    l_comment varchar(44) NOT NULL,
    PRIMARY KEY (l_orderkey, l_linenumber)
);

-- A number from 0 to n - 1 for a row's key; the seed tells one column from another.
CREATE FUNCTION pg_temp.pick(key bigint, seed integer, n integer) RETURNS integer LANGUAGE sql IMMUTABLE AS
    $$ SELECT ((hashint8extended(key, seed) & 9223372036854775807) % n)::integer $$;
CREATE FUNCTION pg_temp.words(key bigint, seed integer) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT ('{quickly,slowly,carefully,furiously,blithely,fluffily,daringly,never}'
            ::text[])[1 + pg_temp.pick(key, seed, 8)]
        || ' ' || ('{special,pending,unusual,express,final,ironic,regular,bold,even,silent,close,dogged,quiet,ruthless,
            thin,sly}'::text[])[1 + pg_temp.pick(key, seed + 1, 16)]
        || ' ' || ('{requests,packages,accounts,deposits,foxes,ideas,theodolites,pinto beans,instructions,dependencies,
            excuses,platelets,asymptotes,courts,dolphins,multipliers}'::text[])[1 + pg_temp.pick(key, seed + 2, 16)]
        || ' ' || ('{sleep,wake,are,cajole,haggle,nag,use,boost,affix,detect,integrate,maintain}'
            ::text[])[1 + pg_temp.pick(key, seed + 3, 12)]
$$;
CREATE FUNCTION pg_temp.address(key bigint, seed integer) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT substr(translate(md5(key || '/' || seed) || md5(seed || '/' || key), '02468ace', 'XkQ zR,w'),
        1, 10 + pg_temp.pick(key, seed, 31))
$$;
CREATE FUNCTION pg_temp.phone(key bigint, seed integer, nation integer) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT 10 + nation || '-' || 100 + pg_temp.pick(key, seed, 900) || '-' || 100 + pg_temp.pick(key, seed + 1, 900)
        || '-' || 1000 + pg_temp.pick(key, seed + 2, 9000)
$$;
CREATE FUNCTION pg_temp.retail_price(part bigint) RETURNS numeric LANGUAGE sql IMMUTABLE AS
    $$ SELECT (90000 + part / 10 % 20001 + 100 * (part % 1000)) / 100.0 $$;
-- The i-th (from 0) of a part's four suppliers.
CREATE FUNCTION pg_temp.part_supplier(part bigint, i integer, suppliers integer) RETURNS integer
    LANGUAGE sql IMMUTABLE AS
    $$ SELECT ((part + (part - 1) / suppliers + i * (suppliers / 4)) % suppliers + 1)::integer $$;
CREATE FUNCTION pg_temp.order_date(o bigint) RETURNS date LANGUAGE sql IMMUTABLE AS
    $$ SELECT date '1992-01-01' + pg_temp.pick(o, 700, 2406) $$;

INSERT INTO region
SELECT k - 1, name, pg_temp.words(k, 1) || ' ' || pg_temp.words(k, 5)
FROM unnest('{AFRICA,AMERICA,ASIA,EUROPE,MIDDLE EAST}'::text[]) WITH ORDINALITY r (name, k);

INSERT INTO nation
SELECT k, name, region, pg_temp.words(k, 11) || ' ' || pg_temp.words(k, 15)
FROM (VALUES
    (0, 'ALGERIA', 0), (1, 'ARGENTINA', 1), (2, 'BRAZIL', 1), (3, 'CANADA', 1), (4, 'EGYPT', 4), (5, 'ETHIOPIA', 0),
    (6, 'FRANCE', 3), (7, 'GERMANY', 3), (8, 'INDIA', 2), (9, 'INDONESIA', 2), (10, 'IRAN', 4), (11, 'IRAQ', 4),
    (12, 'JAPAN', 2), (13, 'JORDAN', 4), (14, 'KENYA', 0), (15, 'MOROCCO', 0), (16, 'MOZAMBIQUE', 0), (17, 'PERU', 1),
    (18, 'CHINA', 2), (19, 'ROMANIA', 3), (20, 'SAUDI ARABIA', 4), (21, 'VIETNAM', 2), (22, 'RUSSIA', 3),
    (23, 'UNITED KINGDOM', 3), (24, 'UNITED STATES', 1)
) n (k, name, region);

-- Every nation has suppliers from 25 suppliers on.
INSERT INTO supplier
SELECT k, 'Supplier#' || lpad(k::text, 9, '0'), pg_temp.address(k, 101), nation, pg_temp.phone(k, 102, nation),
    (pg_temp.pick(k, 105, 1099999) - 99999) / 100.0,
    CASE k % 40
        WHEN 7 THEN 'carefully final Customer foxes wake. Complaints '
        WHEN 27 THEN 'silent Customer ideas Recommends '
        ELSE ''
    END || pg_temp.words(k, 106)
FROM (SELECT k, (k * 7 + k / 25 * 11) % 25 AS nation FROM generate_series(1, (10000 * :sf)::int) k) s;

INSERT INTO part
SELECT k, colours[1 + c] || ' ' || colours[1 + (c + 1 + pg_temp.pick(k, 201, 22)) % 92]
        || ' ' || colours[1 + (c + 23 + pg_temp.pick(k, 202, 23)) % 92]
        || ' ' || colours[1 + (c + 46 + pg_temp.pick(k, 203, 23)) % 92]
        || ' ' || colours[1 + (c + 69 + pg_temp.pick(k, 204, 23)) % 92],
    'Manufacturer#' || m, 'Brand#' || m || 1 + pg_temp.pick(k, 206, 5),
    ('{STANDARD,SMALL,MEDIUM,LARGE,ECONOMY,PROMO}'::text[])[1 + pg_temp.pick(k, 207, 6)]
        || ' ' || ('{ANODIZED,BURNISHED,PLATED,POLISHED,BRUSHED}'::text[])[1 + pg_temp.pick(k, 208, 5)]
        || ' ' || ('{TIN,NICKEL,BRASS,STEEL,COPPER}'::text[])[1 + pg_temp.pick(k, 209, 5)],
    1 + pg_temp.pick(k, 210, 50),
    ('{SM,LG,MED,JUMBO,WRAP}'::text[])[1 + pg_temp.pick(k, 211, 5)]
        || ' ' || ('{CASE,BOX,BAG,JAR,PKG,PACK,CAN,DRUM}'::text[])[1 + pg_temp.pick(k, 212, 8)],
    pg_temp.retail_price(k), left(pg_temp.words(k, 213), 5 + pg_temp.pick(k, 217, 19))
FROM
    (
        SELECT k, pg_temp.pick(k, 200, 92) AS c, 1 + pg_temp.pick(k, 205, 5) AS m
        FROM generate_series(1, (200000 * :sf)::int) k
    ) p,
    (SELECT '{
        almond,antique,aquamarine,azure,beige,bisque,black,blanched,blue,blush,brown,burlywood,burnished,
        chartreuse,chiffon,chocolate,coral,cornflower,cornsilk,cream,cyan,dark,deep,dim,dodger,drab,
        firebrick,floral,forest,frosted,gainsboro,ghost,goldenrod,green,grey,honeydew,hot,indian,ivory,
        khaki,lace,lavender,lawn,lemon,light,lime,linen,magenta,maroon,medium,metallic,midnight,mint,
        misty,moccasin,navajo,navy,olive,orange,orchid,pale,papaya,peach,peru,pink,plum,powder,puff,
        purple,red,rose,rosy,royal,saddle,salmon,sandy,seashell,sienna,sky,slate,smoke,snow,spring,steel,
        tan,thistle,tomato,turquoise,violet,wheat,white,yellow
    }'::text[] AS colours) c;

INSERT INTO partsupp
SELECT k, pg_temp.part_supplier(k, i, (10000 * :sf)::int), 1 + pg_temp.pick(k * 4 + i, 300, 9999),
    (100 + pg_temp.pick(k * 4 + i, 301, 99901)) / 100.0,
    pg_temp.words(k * 4 + i, 302) || ', ' || pg_temp.words(k * 4 + i, 306) || '. ' || pg_temp.words(k * 4 + i, 310)
FROM generate_series(1, (200000 * :sf)::int) k, generate_series(0, 3) i;

INSERT INTO customer
SELECT k, 'Customer#' || lpad(k::text, 9, '0'), pg_temp.address(k, 401), nation, pg_temp.phone(k, 402, nation),
    (pg_temp.pick(k, 405, 1099999) - 99999) / 100.0,
    ('{AUTOMOBILE,BUILDING,FURNITURE,MACHINERY,HOUSEHOLD}'::text[])[1 + pg_temp.pick(k, 406, 5)],
    pg_temp.words(k, 407) || ' ' || pg_temp.words(k, 411)
FROM (SELECT k, pg_temp.pick(k, 400, 25) AS nation FROM generate_series(1, (150000 * :sf)::int) k) c;

-- An order has one to seven lines, and every 997th has seven large ones. OFFSET 0 has a row's values computed once.
INSERT INTO lineitem
SELECT o, part, pg_temp.part_supplier(part, pg_temp.pick(k, 603, 4), (10000 * :sf)::int), line, quantity,
    quantity * pg_temp.retail_price(part), pg_temp.pick(k, 604, 11) / 100.0, pg_temp.pick(k, 605, 9) / 100.0,
    CASE WHEN received > date '1995-06-17' THEN 'N' WHEN pg_temp.pick(k, 606, 2) = 0 THEN 'R' ELSE 'A' END,
    CASE WHEN shipped > date '1995-06-17' THEN 'O' ELSE 'F' END,
    shipped, ordered + 30 + pg_temp.pick(k, 607, 61), received,
    ('{DELIVER IN PERSON,COLLECT COD,NONE,TAKE BACK RETURN}'::text[])[1 + pg_temp.pick(k, 608, 4)],
    ('{REG AIR,AIR,RAIL,SHIP,TRUCK,MAIL,FOB}'::text[])[1 + pg_temp.pick(k, 609, 7)],
    left(pg_temp.words(k, 610), 10 + pg_temp.pick(k, 614, 35))
FROM (
    SELECT l.*, shipped + 1 + pg_temp.pick(k, 602, 30) AS received
    FROM (
        SELECT l.*, 1 + pg_temp.pick(k, 600, (200000 * :sf)::int) AS part,
            ordered + 1 + pg_temp.pick(k, 601, 121) AS shipped,
            CASE WHEN i % 997 = 0 THEN 40 + pg_temp.pick(k, 615, 11) ELSE 1 + pg_temp.pick(k, 615, 50) END AS quantity
        FROM (
            SELECT i, o, line, pg_temp.order_date(o) AS ordered, o * 8 + line AS k
            FROM
                (
                    SELECT i, (i - 1)::bigint / 8 * 32 + (i - 1) % 8 + 1 AS o
                    FROM generate_series(1, (1500000 * :sf)::int) i
                ) o,
                generate_series(1, CASE WHEN i % 997 = 0 THEN 7 ELSE 1 + pg_temp.pick(o, 701, 7) END) line
        ) l
        OFFSET 0
    ) l
    OFFSET 0
) l;

-- A third of the customers has no orders.
INSERT INTO orders
SELECT l_orderkey, customer + (customer % 3 = 0)::int,
    CASE WHEN open = lines THEN 'O' WHEN open = 0 THEN 'F' ELSE 'P' END, price,
    pg_temp.order_date(l_orderkey),
    ('{1-URGENT,2-HIGH,3-MEDIUM,4-NOT SPECIFIED,5-LOW}'::text[])[1 + pg_temp.pick(l_orderkey, 703, 5)],
    'Clerk#' || lpad((1 + pg_temp.pick(l_orderkey, 704, 1 + (1000 * :sf)::int))::text, 9, '0'), 0,
    left(pg_temp.words(l_orderkey, 705) || ' ' || pg_temp.words(l_orderkey, 709),
        19 + pg_temp.pick(l_orderkey, 713, 61))
FROM (
    SELECT l_orderkey, 1 + pg_temp.pick(l_orderkey, 702, (150000 * :sf)::int - 1) AS customer, count(*) AS lines,
        count(*) FILTER (WHERE l_linestatus = 'O') AS open,
        sum(l_extendedprice * (1 + l_tax) * (1 - l_discount)) AS price
    FROM lineitem
    GROUP BY l_orderkey
    ORDER BY l_orderkey
) l;

DROP FUNCTION pg_temp.order_date(bigint);
DROP FUNCTION pg_temp.part_supplier(bigint, integer, integer);
DROP FUNCTION pg_temp.retail_price(bigint);
DROP FUNCTION pg_temp.phone(bigint, integer, integer);
DROP FUNCTION pg_temp.address(bigint, integer);
DROP FUNCTION pg_temp.words(bigint, integer);
DROP FUNCTION pg_temp.pick(bigint, integer, integer);
