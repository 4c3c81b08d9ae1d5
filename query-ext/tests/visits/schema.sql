-- Page views as a web counter takes them down, the same in every run. ':rows' stands for their number.

CREATE TABLE visits (
    id bigint PRIMARY KEY,
    event_at timestamp NOT NULL,
    event_day date NOT NULL,
    received_at timestamp NOT NULL,
    counter_id integer NOT NULL,
    user_id bigint NOT NULL,
    session_id bigint NOT NULL,
    network integer NOT NULL,
    region_id integer NOT NULL,
    language text NOT NULL,
    utc_minutes smallint NOT NULL,
    page_url text NOT NULL,
    page_hash bigint NOT NULL,
    page_title text NOT NULL,
    referrer text NOT NULL,
    referrer_hash bigint NOT NULL,
    traffic_source smallint NOT NULL,
    search_engine smallint NOT NULL,
    search_phrase text NOT NULL,
    ad_engine smallint NOT NULL,
    campaign text,
    social_network text NOT NULL,
    browser smallint NOT NULL,
    phone_brand smallint NOT NULL,
    phone_model text NOT NULL,
    screen_width smallint NOT NULL,
    screen_height smallint NOT NULL,
    client_width smallint NOT NULL,
    client_height smallint NOT NULL,
    is_mobile smallint NOT NULL,
    is_refresh smallint NOT NULL,
    is_link smallint NOT NULL,
    is_download smallint NOT NULL,
    is_bounce smallint NOT NULL,
    load_ms integer,
    dwell_seconds integer NOT NULL,
    goals smallint NOT NULL,
    order_cents bigint NOT NULL
);

-- A number for a key; the seed tells one use from another.
CREATE FUNCTION pg_temp.large(key bigint, seed integer) RETURNS bigint LANGUAGE sql IMMUTABLE AS
    $$ SELECT hashint8extended(key, seed) & 9223372036854775807 $$;
-- One from 0 to n - 1, all of them alike.
CREATE FUNCTION pg_temp.even(key bigint, seed integer, n integer) RETURNS integer LANGUAGE sql IMMUTABLE AS
    $$ SELECT (pg_temp.large(key, seed) % n)::integer $$;
-- One from 0 to n - 1, small ones more often by far. It takes three seeds.
CREATE FUNCTION pg_temp.skewed(key bigint, seed integer, n integer) RETURNS integer LANGUAGE sql IMMUTABLE AS $$
    SELECT pg_temp.even(key, seed, 1 + pg_temp.even(key, seed + 1, 1 + pg_temp.even(key, seed + 2, n)))
$$;
-- One of some words, the first more often.
CREATE FUNCTION pg_temp.word(key bigint, seed integer, words text[]) RETURNS text LANGUAGE sql IMMUTABLE AS
    $$ SELECT words[1 + pg_temp.skewed(key, seed, cardinality(words))] $$;
CREATE FUNCTION pg_temp.digest(value text) RETURNS bigint LANGUAGE sql IMMUTABLE AS
    $$ SELECT ('x' || left(md5(value), 16))::bit(64)::bigint $$;
CREATE FUNCTION pg_temp.site(counter integer) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE counter % 4 WHEN 3 THEN 'http://' WHEN 2 THEN 'https://www.' ELSE 'https://' END
        || ('{lavka,kino-arena,pressa,docs.motor,forum.retro,музей,bilety,mebel24,weather}'
            ::text[])[1 + counter % 9] || '.example/'
$$;
CREATE FUNCTION pg_temp.section(page integer) RETURNS text LANGUAGE sql IMMUTABLE AS
    $$ SELECT pg_temp.word(page, 300, '{catalog,news,film,sale,help,archive,товары,profile}') $$;
CREATE FUNCTION pg_temp.url(counter integer, page integer) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT pg_temp.site(counter) || pg_temp.section(page) || '/' || 10 + page * 7
        || CASE page % 11
            WHEN 2 THEN '?discount=15%25' WHEN 4 THEN '?author=O''Hara' WHEN 5 THEN '\print'
            WHEN 7 THEN '?utm_medium=letter&part=' || page % 3 WHEN 9 THEN '/' ELSE '' END
$$;
CREATE FUNCTION pg_temp.title(counter integer, page integer) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE
        WHEN page % 17 = 16 THEN ''
        WHEN counter % 3 = 1 THEN
            pg_temp.word(page, 310, '{Новый,Старый,Лучший,Дешёвый,Редкий,Зимний}') || ' '
            || pg_temp.word(page, 313, '{диван,фильм,билет,самовар,"журнал «Мотор»",чайник,шкаф \"Берёза\"}')
            || CASE page % 5 WHEN 1 THEN ' — скидка 30%' WHEN 3 THEN ', страница ' || page ELSE '' END
        ELSE
            pg_temp.word(page, 320, '{Cheap,Rare,Used,Today''s,"\"Original\"",Winter}') || ' '
            || pg_temp.word(page, 323, '{sofas,films,maps of D:\\data,tickets,teapots,engines,carpets}')
            || CASE page % 5 WHEN 0 THEN ': 100% reviewed' WHEN 2 THEN ', page ' || page ELSE '' END
    END
$$;

INSERT INTO visits
SELECT
    k, event_at, event_at::date,
    event_at + pg_temp.skewed(k, 1, 400) * interval '1 second' + pg_temp.even(k, 4, 1000) * interval '1 millisecond',
    100 + 13 * counter, pg_temp.large(visitor, 5), pg_temp.large(visitor * 64::bigint + day, 6),
    pg_temp.even(visitor, 7, 2000000000) - 1000000000, 1 + pg_temp.skewed(visitor, 8, 85),
    pg_temp.word(visitor, 11, '{ru,en,de,tr,uk,fr,kk}'),
    (60 * pg_temp.skewed(visitor, 14, 12) - 180)::smallint,
    page_url, pg_temp.digest(page_url), pg_temp.title(counter, page),
    referrer, pg_temp.digest(referrer), source::smallint, engine::smallint, phrase,
    CASE WHEN source = 3 THEN 1 + pg_temp.skewed(k, 17, 5) ELSE 0 END::smallint,
    CASE WHEN source = 3 THEN pg_temp.word(k, 20, '{spring,Весна 2021,20% off,five o''clock,a\\b test}') END,
    CASE WHEN source = 4 THEN pg_temp.word(k, 23, '{krug,Друзья,flock,circle}') ELSE '' END,
    (1 + pg_temp.skewed(visitor, 26, 9))::smallint,
    (mobile * brand)::smallint,
    CASE WHEN mobile = 1 THEN
        ('{Nota,Vega,Мечта,Orbit,"6\" Slab",Kite,Pike}'::text[])[brand] || ' ' || 1 + pg_temp.skewed(visitor, 29, 6)
        ELSE '' END,
    width, height,
    CASE WHEN hidden THEN 0 ELSE width - 16 * pg_temp.skewed(k, 32, 12) END::smallint,
    CASE WHEN hidden THEN 0 ELSE height - 60 - 10 * pg_temp.skewed(k, 35, 9) END::smallint,
    mobile::smallint,
    (pg_temp.even(k, 38, 100) < 9)::int::smallint,
    (source = 1 AND pg_temp.even(k, 39, 100) < 55)::int::smallint,
    (pg_temp.even(k, 40, 100) < 3)::int::smallint,
    bounce::int::smallint,
    CASE WHEN pg_temp.even(k, 41, 100) >= 8 THEN 60 + pg_temp.skewed(k, 42, 12000) END,
    CASE WHEN bounce THEN 0 ELSE 1 + pg_temp.skewed(k, 45, 1800) END,
    goals::smallint,
    CASE WHEN goals < 2 THEN 0 WHEN k % 50 = 0 THEN 3000000000 + k ELSE 99 + 100 * pg_temp.skewed(k, 48, 9000) END
FROM (
    SELECT k, visitor, counter, source, page, mobile, bounce, engine, day,
        pg_temp.url(counter, page) AS page_url,
        -- A tenth comes in half an hour, after an announcement.
        CASE WHEN rush THEN timestamp '2021-03-14 12:00:00' + pg_temp.even(k, 51, 1800) * interval '1 second'
            ELSE timestamp '2021-03-01 00:00:00' + day * interval '1 day'
                + (pg_temp.even(k, 52, 43200) + pg_temp.even(k, 53, 43200)) * interval '1 second'
        END AS event_at,
        CASE source
            WHEN 1 THEN pg_temp.url(counter, pg_temp.skewed(k, 54, 300))
            WHEN 2 THEN ('{https://www.iskra.example/,https://seek.example/,http://www.find.example/web/,
                    https://poisk.example/}'::text[])[1 + engine % 4] || 'results?n=' || pg_temp.skewed(k, 57, 900)
            WHEN 3 THEN 'https://ads.banner.example/click/' || pg_temp.even(k, 60, 5000)
            WHEN 4 THEN 'http://m.krug.example/away?to=' || 100 + 13 * counter || '%2F'
            WHEN 5 THEN pg_temp.word(k, 61, '{https://post.example,mail://inbox/unread,http://www.letters.example/}')
            ELSE ''
        END AS referrer,
        CASE WHEN source = 2 AND pg_temp.even(k, 64, 10) > 0 THEN
            pg_temp.word(k, 65, '{купить,cheap,рецепт,how to repair,смотреть,where is,недорогой}') || ' '
            || pg_temp.word(k, 68, '{диван,bicycle,борщ,"фильм \"Мост\"",oak table,100% шерсть,don''t panic,c:\\temp}')
            || CASE k % 7 WHEN 1 THEN ' 2021' WHEN 4 THEN ' отзывы' ELSE '' END
            ELSE ''
        END AS phrase,
        1 + pg_temp.skewed(visitor, 71, 7) AS brand,
        CASE WHEN mobile = 1 THEN ('{390,360,412,375}'::smallint[])[screen]
            ELSE ('{1920,1366,1536,2560}'::smallint[])[screen] END AS width,
        CASE WHEN mobile = 1 THEN ('{844,800,915,667}'::smallint[])[screen]
            ELSE ('{1080,768,864,1440}'::smallint[])[screen] END AS height,
        pg_temp.even(k, 74, 100) < 4 AS hidden,
        CASE WHEN bounce THEN 0 ELSE pg_temp.skewed(k, 75, 5) END AS goals
    FROM (
        SELECT k, visitor, rush, day,
            CASE WHEN rush THEN pg_temp.even(k, 78, 2) ELSE pg_temp.skewed(k, 79, 90) END AS counter,
            CASE WHEN roll < 33 THEN 0 WHEN roll < 64 THEN 1 WHEN roll < 80 THEN 2 WHEN roll < 88 THEN 3
                WHEN roll < 95 THEN 4 ELSE 5 END AS source,
            CASE WHEN roll BETWEEN 64 AND 79 THEN 1 + pg_temp.skewed(k, 82, 8) ELSE 0 END AS engine,
            pg_temp.skewed(k, 85, 300) AS page,
            (pg_temp.even(visitor, 88, 100) < 42)::int AS mobile,
            1 + pg_temp.skewed(visitor, 89, 4) AS screen,
            pg_temp.even(k, 92, 100) < 37 AS bounce
        FROM (
            SELECT k::bigint AS k, pg_temp.skewed(k, 93, 1 + (:rows)::int / 6) AS visitor,
                pg_temp.even(k, 96, 10) = 0 AS rush,
                CASE WHEN pg_temp.even(k, 96, 10) = 0 THEN 13 ELSE pg_temp.even(k, 97, 31) END AS day,
                pg_temp.even(k, 98, 100) AS roll
            FROM generate_series(1, (:rows)::int) k
            OFFSET 0
        ) who
        OFFSET 0
    ) what
    OFFSET 0
) view;

DROP FUNCTION pg_temp.title(integer, integer);
DROP FUNCTION pg_temp.url(integer, integer);
DROP FUNCTION pg_temp.section(integer);
DROP FUNCTION pg_temp.site(integer);
DROP FUNCTION pg_temp.digest(text);
DROP FUNCTION pg_temp.word(bigint, integer, text[]);
DROP FUNCTION pg_temp.skewed(bigint, integer, integer);
DROP FUNCTION pg_temp.even(bigint, integer, integer);
DROP FUNCTION pg_temp.large(bigint, integer);
