-- 43 queries of somebody who analyses page views; '@' stands for the schema. Every order is a total one, and texts are
-- ordered by their bytes.

-- q1
SELECT count(*), count(load_ms) AS timed, count(campaign) AS announced FROM @visits;

-- q2
SELECT min(event_day) AS first_day, max(event_day) AS last_day, max(received_at) AS last_received
FROM @visits
WHERE traffic_source = 3;

-- q3
SELECT id, event_at, page_url, is_refresh
FROM @visits
WHERE user_id = 9050011652953362478
ORDER BY event_at, id;

-- q4
SELECT count(*) AS downloads, avg(load_ms) AS load
FROM @visits
WHERE is_download = 1 AND is_refresh = 0 AND screen_width > 1000;

-- q5
SELECT counter_id, avg(length(page_title)) AS letters, max(length(page_url)) AS longest, count(*) AS views
FROM @visits
WHERE is_bounce = 0 AND page_title <> ''
GROUP BY counter_id
HAVING count(*) > 30
ORDER BY letters DESC, counter_id
LIMIT 15;

-- q6
SELECT language, is_mobile, count(*) AS views, count(DISTINCT session_id) AS sessions
FROM @visits
GROUP BY language, is_mobile
ORDER BY views DESC, language COLLATE "C", is_mobile
LIMIT 10;

-- q7
SELECT count(*), count(DISTINCT user_id) AS visitors
FROM @visits
WHERE page_url LIKE '%/catalog/%' AND referrer NOT LIKE '%.example/catalog/%';

-- q8
SELECT extract(minute FROM event_at) AS minute, browser, count(*) AS views
FROM @visits
WHERE traffic_source <> 0
GROUP BY extract(minute FROM event_at), browser
ORDER BY views DESC, minute, browser
LIMIT 10;

-- q9
SELECT event_day, count(*) AS views, sum(goals) AS goals, sum(order_cents) AS revenue, avg(dwell_seconds) AS dwell
FROM @visits
WHERE counter_id IN (100, 126, 165)
GROUP BY event_day
ORDER BY event_day;

-- q10
SELECT campaign, ad_engine, count(*) AS clicks, sum(is_bounce) AS bounces
FROM @visits
WHERE ad_engine > 0
GROUP BY campaign, ad_engine
ORDER BY clicks DESC, campaign COLLATE "C", ad_engine
LIMIT 10;

-- q11
SELECT count(DISTINCT page_hash) AS pages, count(DISTINCT page_title) AS titles, count(DISTINCT network) AS networks
FROM @visits
WHERE is_mobile = 1;

-- q12
SELECT sum(order_cents) AS revenue, avg(order_cents) AS mean_order, max(order_cents) AS dearest, sum(goals) AS goals,
    avg(load_ms) AS load, count(*) AS orders
FROM @visits
WHERE order_cents > 0;

-- q13
SELECT regexp_replace(referrer, '^https?://(?:www[.])?([^/]+)/.*$', '\1') COLLATE "C" AS source_host,
    count(*) AS views, count(DISTINCT user_id) AS visitors, avg(dwell_seconds) AS dwell
FROM @visits
WHERE referrer <> '' AND is_refresh = 0
GROUP BY source_host
HAVING count(*) > 40
ORDER BY views DESC, source_host
LIMIT 12;

-- q14
SELECT user_id, count(*) AS views, min(event_at) AS first_seen, max(event_at) AS last_seen
FROM @visits
WHERE is_link = 1
GROUP BY user_id
ORDER BY views DESC, user_id
LIMIT 10;

-- q15
SELECT event_at, counter_id, search_phrase
FROM @visits
WHERE search_phrase <> '' AND search_engine IN (2, 3, 5)
ORDER BY event_at, id
LIMIT 20;

-- q16
SELECT search_engine, min(page_url COLLATE "C") AS some_page, count(*) AS views, sum(goals) AS goals,
    count(DISTINCT region_id) AS regions
FROM @visits
WHERE page_title LIKE '%скидка%' AND search_engine > 0
GROUP BY search_engine
ORDER BY search_engine;

-- q17
SELECT phone_brand, phone_model, count(*) AS views, max(screen_width) AS widest, avg(client_height) AS height
FROM @visits
WHERE phone_model <> ''
GROUP BY phone_brand, phone_model
ORDER BY views DESC, phone_brand, phone_model COLLATE "C"
LIMIT 10;

-- q18
SELECT date_trunc('minute', event_at) AS minute, count(*) AS views, count(DISTINCT user_id) AS visitors
FROM @visits
WHERE event_day = date '2021-03-14' AND counter_id = 113
GROUP BY date_trunc('minute', event_at)
ORDER BY views DESC, minute
LIMIT 10;

-- q19
SELECT CASE WHEN is_mobile = 1 AND client_width < 380 THEN 'narrow' ELSE 'wide' END COLLATE "C" AS form,
    traffic_source, count(*) AS views, avg(load_ms) AS load
FROM @visits
WHERE event_day BETWEEN date '2021-03-08' AND date '2021-03-21' AND client_width > 0
GROUP BY form, traffic_source
ORDER BY views DESC, form, traffic_source;

-- q20
SELECT search_phrase, count(*) AS searches, count(DISTINCT counter_id) AS counters
FROM @visits
WHERE search_phrase <> '' AND is_bounce = 1
GROUP BY search_phrase
ORDER BY searches DESC, search_phrase COLLATE "C"
LIMIT 10;

-- q21
SELECT page_url, count(*) AS views
FROM @visits
WHERE counter_id = 100
    AND event_day >= date '2021-03-05'
    AND event_day < date '2021-03-26'
    AND is_download = 0
GROUP BY page_url
ORDER BY views DESC, page_url COLLATE "C"
LIMIT 10 OFFSET 20;

-- q22
SELECT *
FROM @visits
WHERE page_url LIKE '%O''Hara%' AND dwell_seconds > 60
ORDER BY received_at DESC, id
LIMIT 6;

-- q23
SELECT region_id, count(DISTINCT user_id) AS visitors, count(*) AS views
FROM @visits
WHERE event_day > date '2021-03-15'
GROUP BY region_id
ORDER BY visitors DESC, views DESC, region_id
LIMIT 10;

-- q24
SELECT user_id - 1 AS before, user_id % 1000 AS tail, counter_id + 1 AS after, count(*) AS views
FROM @visits
GROUP BY user_id - 1, user_id % 1000, counter_id + 1
ORDER BY views DESC, before, after
LIMIT 10;

-- q25
SELECT
    sum(client_width + 1), sum(client_width + 2), sum(client_width + 3), sum(client_width + 4), sum(client_width + 5),
    sum(client_width + 6), sum(client_width + 7), sum(client_width + 8), sum(client_width + 9), sum(client_width + 10),
    sum(client_width + 11), sum(client_width + 12), sum(client_width + 13), sum(client_width + 14),
    sum(client_width + 15), sum(client_width + 16), sum(client_width + 17), sum(client_width + 18),
    sum(client_width + 19), sum(client_width + 20), sum(client_width + 21), sum(client_width + 22),
    sum(client_width + 23), sum(client_width + 24), sum(client_width + 25), sum(client_width + 26),
    sum(client_width + 27), sum(client_width + 28), sum(client_width + 29), sum(client_width + 30),
    sum(client_width + 31), sum(client_width + 32), sum(client_width + 33), sum(client_width + 34),
    sum(client_width + 35), sum(client_width + 36), sum(client_width + 37), sum(client_width + 38),
    sum(client_width + 39), sum(client_width + 40), sum(client_width + 41), sum(client_width + 42),
    sum(client_width + 43), sum(client_width + 44), sum(client_width + 45), sum(client_width + 46),
    sum(client_width + 47), sum(client_width + 48), sum(client_width + 49), sum(client_width + 50),
    sum(client_width + 51), sum(client_width + 52), sum(client_width + 53), sum(client_width + 54),
    sum(client_width + 55), sum(client_width + 56), sum(client_width + 57), sum(client_width + 58),
    sum(client_width + 59), sum(client_width + 60)
FROM @visits
WHERE is_refresh = 0;

-- q26
SELECT traffic_source, count(*) AS views, count(*) FILTER (WHERE is_bounce = 1) AS bounces,
    count(*) FILTER (WHERE goals > 0) AS successes
FROM @visits
GROUP BY traffic_source
ORDER BY views DESC, traffic_source;

-- q27
SELECT counter_id, min(page_title COLLATE "C") AS some_title, min(referrer COLLATE "C") AS some_referrer,
    count(*) AS views, count(DISTINCT session_id) AS sessions
FROM @visits
WHERE page_url LIKE '%utm_medium=%' AND referrer LIKE 'https%' AND page_title LIKE '%, %'
GROUP BY counter_id
ORDER BY sessions DESC, counter_id
LIMIT 8;

-- q28
SELECT screen_width, screen_height, count(*) AS views, sum(client_width) AS widths, sum(client_height) AS heights
FROM @visits
WHERE client_height > 0
GROUP BY screen_width, screen_height
ORDER BY views DESC, screen_width, screen_height;

-- q29
SELECT session_id, count(*) AS views, sum(dwell_seconds) AS dwell, sum(order_cents) AS revenue
FROM @visits
WHERE event_day <> date '2021-03-14'
GROUP BY session_id
ORDER BY dwell DESC, session_id
LIMIT 10;

-- q30
SELECT search_engine, length(search_phrase) AS letters, count(*) AS searches
FROM @visits
WHERE search_phrase <> ''
GROUP BY search_engine, length(search_phrase)
ORDER BY searches DESC, search_engine, letters
LIMIT 10;

-- q31
SELECT page_hash, event_day, count(*) AS views
FROM @visits
WHERE counter_id IN (100, 113, 139)
    AND traffic_source IN (1, 4)
    AND event_day >= date '2021-03-10'
    AND event_day <= date '2021-03-24'
    AND is_refresh = 0
GROUP BY page_hash, event_day
ORDER BY views DESC, page_hash, event_day
LIMIT 10 OFFSET 5;

-- q32
SELECT search_phrase, event_at
FROM @visits
WHERE search_phrase LIKE '%\%%' AND region_id < 40
ORDER BY search_phrase COLLATE "C" DESC, event_at DESC, id
LIMIT 12;

-- q33
SELECT client_width, client_height, count(*) AS views
FROM @visits
WHERE is_mobile = 0 AND event_day BETWEEN date '2021-03-01' AND date '2021-03-14' AND load_ms IS NOT NULL
GROUP BY client_width, client_height
ORDER BY views DESC, client_width, client_height
LIMIT 10 OFFSET 10;

-- q34
SELECT user_id, traffic_source, event_day, count(*) AS views
FROM @visits
GROUP BY user_id, traffic_source, event_day
ORDER BY views DESC, user_id, traffic_source, event_day
LIMIT 10;

-- q35
SELECT date_trunc('minute', received_at) AS minute, sum(goals) AS goals, count(*) AS views
FROM @visits
WHERE counter_id = 100
    AND received_at >= timestamp '2021-03-14 00:00:00'
    AND received_at < timestamp '2021-03-16 00:00:00'
GROUP BY date_trunc('minute', received_at)
ORDER BY minute
LIMIT 15 OFFSET 60;

-- q36
SELECT CASE WHEN search_engine > 0 AND search_phrase <> '' THEN search_phrase ELSE social_network END COLLATE "C"
        AS origin,
    count(*) AS views, max(event_day) AS last_day
FROM @visits
WHERE traffic_source IN (2, 4)
GROUP BY origin
ORDER BY views DESC, origin
LIMIT 10;

-- q37
SELECT network, network + 1 AS next, network / 65536 AS block, count(*) AS views, avg(load_ms) AS load
FROM @visits
WHERE search_engine = 0
GROUP BY network, network + 1, network / 65536
ORDER BY views DESC, network
LIMIT 10;

-- q38
SELECT page_title, avg(length(referrer)) AS letters, count(*) AS views
FROM @visits
WHERE page_title LIKE '%100\%%' OR page_title LIKE '%"%'
GROUP BY page_title
HAVING count(*) > 10
ORDER BY views DESC, page_title COLLATE "C"
LIMIT 10;

-- q39
SELECT browser, utc_minutes, count(*) AS views, sum(is_refresh) AS refreshes, avg(screen_width) AS width
FROM @visits
WHERE referrer <> ''
GROUP BY browser, utc_minutes
ORDER BY refreshes DESC, views DESC, browser, utc_minutes
LIMIT 10;

-- q40
SELECT extract(minute FROM received_at) AS minute, count(*) AS views, count(DISTINCT page_hash) AS pages
FROM @visits
WHERE event_day = date '2021-03-14'
GROUP BY extract(minute FROM received_at)
HAVING count(*) >= 5
ORDER BY minute;

-- q41
SELECT DISTINCT language COLLATE "C" AS spoken, social_network COLLATE "C" AS met_at
FROM @visits
WHERE social_network <> ''
ORDER BY spoken, met_at;

-- q42
SELECT count(*) AS views, sum(load_ms) AS load, avg(goals) AS goals, min(load_ms) AS fastest,
    max(dwell_seconds) AS longest
FROM @visits
WHERE user_id IN (5899049151015577204, 8747601887904921792) AND is_bounce = 0;

-- q43
SELECT counter_id, page_url, is_mobile, count(*) AS views, count(DISTINCT region_id) AS regions
FROM @visits
WHERE referrer LIKE '%.example/%' AND page_url NOT LIKE '%/sale/%'
GROUP BY counter_id, page_url, is_mobile
ORDER BY views DESC, counter_id, page_url COLLATE "C", is_mobile
LIMIT 10;
