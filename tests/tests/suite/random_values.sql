-- Rows of random values, by the seed that the session has set.
CREATE TABLE random_values AS SELECT i AS id,
 (random() - 0.5) * 10::float8 ^ (random() * 600 - 300)::int AS f8, ((random() - 0.5) * 10 ^ (random() * 70 - 35)::int)::float4 AS f4,
 round(((random() - 0.5) * 10 ^ (random() * 15)::int)::numeric, (random() * 10)::int) AS nu, ((random() - 0.5) * 1e15)::numeric(30,10) AS n, (random() * 1e6 - 5e5)::numeric(9,3) AS ns,
 to_timestamp(-2.1e11 + random() * 9.4e12) AS tz, to_timestamp(-2.1e11 + random() * 9.4e12)::timestamp AS ts, date '0001-01-01' + (random() * 4e6 - 1e6)::int AS d,
 random() * interval '86399 seconds' + time '00:00' AS tm,
 make_interval(months => (random() * 2e5 - 1e5)::int, days => (random() * 2e5 - 1e5)::int, secs => random() * 2e9 - 1e9) AS iv,
 decode(repeat(md5(random()::text), (random() * 5)::int), 'hex') AS by,
 ARRAY(SELECT (SELECT string_agg(chr(32 + (random() * 94)::int), '') FROM generate_series(j, j + (random() * 12)::int)) FROM generate_series(i, i + (random() * 4)::int) j) AS ta,
 ARRAY(SELECT (random() - 0.5) * 10::float8 ^ (random() * 600 - 300)::int FROM generate_series(i, i + (random() * 4)::int)) AS fa,
 inet '0.0.0.0/24' + (random() * 4e9)::int8 AS ip
FROM generate_series(1, 2000) i;
ALTER TABLE random_values ADD PRIMARY KEY (id);
