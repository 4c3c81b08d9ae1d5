//! Syntax that the deparser knows by code.

/// A form of SQL, what is asked of it, and the queries that prove it.
#[derive(Debug, Clone, Copy)]
pub struct Form {
    /// As it is written.
    pub syntax: &'static str,
    /// When it is sent.
    pub when: &'static str,
    /// Queries over the tests' table `@corpus`, whose column of each type has the values from that type's edges. All of them go to
    /// DuckDB whole, and are ordered where `ORDER BY` is in them.
    pub proofs: &'static [&'static str],
}

const fn form(syntax: &'static str, when: &'static str, proofs: &'static [&'static str]) -> Form {
    Form { syntax, when, proofs }
}

/// All forms.
pub const FORMS: &[Form] = &[
    form(
        "`= <> < <= > >=`, `BETWEEN`, `IS [NOT] DISTINCT FROM`, `NULLIF`",
        "integers, floats, numerics of up to 38 digits, dates with timestamps, and each other type with itself; text by `=` and `<>` in a deterministic collation, by the others in `C`; enums by `=` and `<>`",
        &[
            "SELECT a.id, b.id, a.i2 = b.i4, a.i4 < b.i8, a.i8 >= b.i2, a.i4 <> b.i4 FROM @corpus a, @corpus b",
            "SELECT a.id, b.id, a.f4 = b.f8, a.f8 < b.f8, a.f4 >= b.f4, a.f8 <> b.f4 FROM @corpus a, @corpus b",
            "SELECT a.id, b.id, a.n = b.n2, a.n < b.n, a.n2 >= b.n, a.n2 <> b.n2 FROM @corpus a, @corpus b",
            "SELECT a.id, b.id, a.t = b.t, a.t <> b.v, a.ct < b.ct, a.ct >= b.ct, a.c = b.c, a.c <> b.c FROM @corpus a, @corpus b",
            "SELECT a.id, b.id, a.d = b.d, a.d < b.ts, a.ts >= b.d, a.ts <> b.ts, a.tz <= b.tz, a.tm > b.tm FROM @corpus a, @corpus b",
            "SELECT a.id, b.id, a.u = b.u, a.u < b.u, a.by >= b.by, a.by <> b.by, a.b = b.b, a.b < b.b, a.e = b.e, a.e <> b.e FROM @corpus a, @corpus b",
            "SELECT a.id, b.id, a.i4 IS DISTINCT FROM b.i4, a.t IS NOT DISTINCT FROM b.t, a.f8 IS DISTINCT FROM b.f8, nullif(a.d, b.d) FROM @corpus a, @corpus b",
            "SELECT id FROM @corpus WHERE d BETWEEN '-infinity' AND '2000-01-01' OR i4 NOT BETWEEN -5 AND 5",
            "SELECT id FROM @corpus WHERE c = 'ab' OR c = 'ab  ' OR e = 'two'",
        ],
    ),
    form(
        "`AND OR NOT`, `IS [NOT] NULL`, `IS [NOT] TRUE / FALSE / UNKNOWN`",
        "always",
        &[
            "SELECT a.id, b.id, a.b AND b.b, a.b OR b.b, NOT a.b, a.b IS TRUE, a.b IS NOT FALSE, a.b IS UNKNOWN, a.t IS NULL, a.f8 IS NOT NULL FROM @corpus a, @corpus b",
        ],
    ),
    form(
        "`CASE`, `COALESCE`, `GREATEST`, `LEAST`",
        "branches of one type; `COALESCE` and `GREATEST` of numerics of one scale; the greatest and the least of types that both sides order alike, floats excepted",
        &[
            "SELECT id, CASE WHEN i4 > 0 THEN t WHEN b THEN 'b' ELSE NULL END, CASE i2 WHEN 1 THEN d WHEN 0 THEN date '2000-01-01' END FROM @corpus",
            "SELECT id, CASE WHEN b THEN n ELSE 0 END, CASE WHEN i4 > 0 THEN n2 WHEN b THEN n * n2 ELSE 1.5 END FROM @corpus WHERE abs(n) < 100000 AND abs(n2) < 10000",
            "SELECT g, sum(CASE WHEN b THEN n ELSE 0 END), 100.00 * sum(CASE WHEN b THEN n END) / sum(n2), sum(CASE WHEN id < 0 THEN n ELSE 0 END) FROM @corpus WHERE n2 > 0 GROUP BY g",
            "SELECT id, coalesce(i4, i2, 7), coalesce(t, v, ''), coalesce(n, 0.00), coalesce(ts, 'infinity') FROM @corpus",
            "SELECT a.id, b.id, greatest(a.i4, b.i4, 5), least(a.d, b.d), greatest(a.ct, b.ct), least(a.n, b.n) FROM @corpus a, @corpus b",
        ],
    ),
    form(
        "`IN (…)`, `= ANY (array)`, `<> ALL (array)`, and `< <= > >= LIKE` with `ANY` and `ALL`",
        "an array that is a constant or a parameter, of a type that is compared alike",
        &[
            "SELECT id, i2 IN (1, 0, NULL), i4 NOT IN (1, 2), t IN ('', 'ä', 'A'), d IN ('infinity', '2000-01-01'), n IN (0.00, 1.5), i8 = ANY ('{}'::int8[]) FROM @corpus",
            "SELECT id, i4 > ANY ('{1,5,NULL}'::int[]), i4 <= ALL ('{0,7}'::int[]), t LIKE ANY ('{a%,%ä}'), c IN ('ab', 'a'), e IN ('one', 'two') FROM @corpus",
        ],
    ),
    form(
        "`LIKE`, `NOT LIKE`",
        "a constant pattern that does not end in a lone `\\`; a deterministic collation",
        &[
            "SELECT id, t LIKE 'a%', t LIKE '_', t NOT LIKE '%ä%', v LIKE '', t LIKE '%', t LIKE 'a\\%', t LIKE '%\\_%', t LIKE '\\\\%', t LIKE '%\\ä' FROM @corpus",
        ],
    ),
    form(
        "`~`, `!~`, `~*`, `!~*`, `regexp_replace`",
        "a constant pattern of ASCII literals, `.`, `^`, `$`, bracketed sets and ranges without classes or escapes, escaped punctuation, groups, alternatives, and greedy `* + ?`; case is ignored in the `C` collation only; replacements with `\\1` to `\\9` for a pattern from `^` to `$` without alternatives and without repetitions of repetitions",
        &[
            "SELECT id, t ~ '^a', t !~ 'b$', t ~ 'a.c', t ~ '[0-9]+', t ~ '^(ab|cd)', t ~ 'a\\.b', t ~ '^[0-9]|b+$', t ~ '[^a-z]', t ~ '' FROM @corpus",
            "SELECT id, ct ~* 'AB', ct !~* '^x' FROM @corpus",
            "SELECT id, regexp_replace(t, '^https?://(www[.])?([^/]+)/.*$', '\\2') FROM @corpus",
        ],
    ),
    form(
        "`+ - *` of numerics",
        "precision and scale known; past 38 digits the heap answers",
        &[
            "SELECT a.id, b.id, a.n + b.n, a.n - b.n2, a.n * b.n, a.n * 1.5, 3 + a.n2 FROM @corpus a, @corpus b WHERE abs(a.n) < 1000000 AND abs(b.n) < 1000000 AND abs(b.n2) < 100000",
        ],
    ),
    form(
        "`/` of numerics",
        "where only the value counts: in conditions, in keys of groups and joins, under `+ - *` there; in an output Postgres divides",
        &[
            "SELECT a.id, b.id FROM @corpus a, @corpus b WHERE b.n <> 0 AND abs(b.n) < 10000 AND (abs(a.n) >= 1 OR a.n = 0) AND a.n / b.n > 0.3333333333",
            "SELECT a.id, b.id FROM @corpus a, @corpus b WHERE abs(b.n2) BETWEEN 0.01 AND 999 AND abs(a.n2) BETWEEN 1 AND 99999 AND a.n2 / b.n2 * 2 - 1 < a.n",
            "SELECT a.id, b.id, a.n / b.n FROM @corpus a, @corpus b WHERE b.n <> 0",
        ],
    ),
    form(
        "casts to `numeric(p,s)`, `round(numeric, n)`, `trunc(numeric, n)`",
        "a constant number of digits from 0 to the argument's own scale; of integers any",
        &[
            "SELECT id, n2::numeric(30,2), round(n2, 3), round(n, 0), round(n2), trunc(n2, 1), trunc(n), i4::numeric(20,4) FROM @corpus",
        ],
    ),
    form(
        "casts of `integer`, `bigint`, `smallint`, `uuid` to text",
        "always",
        &["SELECT id, i2::text, i4::text, i8::varchar, u::text FROM @corpus"],
    ),
    form(
        "`now()`, `CURRENT_DATE` and their kin, parameters, and what is computed from them and from constants (`now() - interval '1 day'`)",
        "evaluated by Postgres before the query runs",
        &[
            "SELECT count(*) FROM @corpus WHERE tz < now() OR d = current_date OR ts < localtimestamp",
            "SELECT count(*) FROM @corpus WHERE tz > now() - interval '1 day' OR d > current_date - 7 OR ts < date_trunc('month', localtimestamp) OR tz < date_trunc('day', now() AT TIME ZONE 'Europe/Berlin') AT TIME ZONE 'Europe/Berlin'",
        ],
    ),
    form(
        "`timestamptz` compared with dates and timestamps, `timestamptz` in dates, truncated, in fields, `+ interval`",
        "the session's time zone is UTC, or one of its names",
        &[
            "SELECT a.id, b.id, a.tz < b.d, a.tz >= b.ts, a.d = b.tz, a.ts <> b.tz, a.tz BETWEEN b.d AND b.ts FROM @corpus a, @corpus b WHERE isfinite(a.d) AND isfinite(b.d)",
            "SELECT date_trunc('day', tz), tz::date, extract(year FROM tz), count(*) FROM @corpus GROUP BY 1, 2, 3",
        ],
    ),
    form(
        "`(a, b) < (c, d)` and its kin",
        "columns that both sides order alike",
        &[
            "SELECT a.id, b.id, (a.i2, a.ct) < (b.i2, b.ct), (a.i4, a.d, a.n) >= (b.i4, b.d, b.n), (a.b, a.u) <= (b.b, b.u), (a.g, a.id) > (b.g, 3) FROM @corpus a, @corpus b",
        ],
    ),
    form(
        "`jsonb` `#>`, `#>>`, `?|`, `?&`",
        "a constant array without NULLs; steps that are keys, or whole numbers of up to nine digits",
        &[
            "SELECT id, jb #> '{a}', jb #>> '{b,1,c}', jb #> '{b,-1}', jb #>> '{0}', jb #>> '{a,a}', jb #> '{}', jb #>> '{-1}', jb #>> '{0,0}', jb #> '{3,a}' FROM @corpus",
            "SELECT id, jb ?| '{a,b}', jb ?& '{a,b}', jb ?| '{}', jb ?& '{}', jb ?| '{ab,日本語,1}', jb ?& '{\"\"}' FROM @corpus",
        ],
    ),
    form(
        "`count(…)`, `DISTINCT` and `FILTER` in aggregates",
        "anything that can be sent; `DISTINCT` of types whose equal values look alike",
        &[
            "SELECT g, count(*), count(i4), count(f8), count(t), count(jb), count(DISTINCT t), count(DISTINCT i2), count(*) FILTER (WHERE b) FROM @corpus GROUP BY g",
            "SELECT count(DISTINCT d), count(DISTINCT c), count(DISTINCT e), count(DISTINCT u), sum(DISTINCT i2) FROM @corpus",
        ],
    ),
    form(
        "`sum(numeric)`, `avg` of integers and numerics",
        "precision and scale known; Postgres divides",
        &[
            "SELECT g, sum(n), sum(n2), avg(i2), avg(i4), avg(i8), avg(n), avg(n2), avg(DISTINCT i2), avg(i4) FILTER (WHERE b) FROM @corpus GROUP BY g",
            "SELECT avg(i4) + 1, round(avg(n), 3) FROM @corpus WHERE id < 0",
            "SELECT id FROM @corpus WHERE n > (SELECT avg(n) FROM @corpus) ORDER BY id",
            "SELECT a.id FROM @corpus a WHERE a.i4 < (SELECT 0.2 * avg(b.i4) FROM @corpus b WHERE b.g = a.g) ORDER BY id",
        ],
    ),
    form(
        "`variance`, `var_samp`, `var_pop`, `stddev`, `stddev_samp`, `stddev_pop` of integers and numerics",
        "precision and scale known, half of 38 digits at most; no `DISTINCT`; Postgres divides, and takes the root",
        &[
            "SELECT g, variance(i2), var_pop(i4), stddev(i4), stddev_pop(i2), var_samp(i2) FILTER (WHERE b), stddev_samp(n) FROM @corpus WHERE abs(n) < 10000000 AND i4 BETWEEN -99999 AND 99999 GROUP BY g",
            "SELECT variance(n), stddev(n), var_pop(n), stddev_pop(n), round(stddev(i2), 3), stddev(id) FROM @corpus",
            "SELECT id, stddev(i2) OVER (ORDER BY id), var_pop(n) OVER (PARTITION BY g ORDER BY id) FROM @corpus",
            "SELECT g, stddev(id), var_pop(id) FROM @corpus GROUP BY g HAVING variance(id) > 3",
        ],
    ),
    form(
        "`string_agg(text, ',' ORDER BY …)`",
        "a constant delimiter, keys that both sides order alike",
        &["SELECT g, string_agg(t, ', ' ORDER BY id DESC), string_agg(v, '' ORDER BY ct, id) FROM @corpus GROUP BY g"],
    ),
    form(
        "`GROUP BY`, `HAVING`, `DISTINCT`, `GROUP BY` a primary key",
        "types whose equal values look alike: not floats, not `json`",
        &[
            "SELECT t, c, count(*) FROM @corpus GROUP BY t, c",
            "SELECT d, e, u, max(id) FROM @corpus GROUP BY d, e, u HAVING count(*) > 0",
            "SELECT DISTINCT g, b FROM @corpus",
        ],
    ),
    form(
        "`GROUPING SETS`, `ROLLUP`, `CUBE`, `GROUPING()`",
        "as `GROUP BY`, of columns and expressions",
        &[
            "SELECT g, b, count(*), sum(i4) FROM @corpus GROUP BY ROLLUP (g, b)",
            "SELECT g, i2 % 3, count(*), grouping(g), grouping(i2 % 3, g) FROM @corpus WHERE i2 IS NOT NULL GROUP BY CUBE (g, i2 % 3)",
            "SELECT g, b, avg(n) FROM @corpus GROUP BY GROUPING SETS ((g), (b), (g, b), ()) HAVING count(*) > 1",
        ],
    ),
    form(
        "window functions, `lag`, `lead`, `first_value`, `last_value`, `nth_value`, and aggregates over windows",
        "partitions as `GROUP BY`, order as `ORDER BY`; frames of `ROWS`, `GROUPS` and, without an offset, `RANGE`; `EXCLUDE`",
        &[
            "SELECT id, sum(i2) OVER (ORDER BY g, id ROWS BETWEEN 2 PRECEDING AND 2 FOLLOWING EXCLUDE CURRENT ROW), count(*) OVER (ORDER BY g GROUPS BETWEEN 1 PRECEDING AND 1 FOLLOWING EXCLUDE GROUP), max(i4) OVER (ORDER BY g RANGE UNBOUNDED PRECEDING EXCLUDE TIES), sum(n) OVER (ORDER BY g, id ROWS 2 PRECEDING EXCLUDE NO OTHERS) FROM @corpus",
            "SELECT id, first_value(id) OVER w, last_value(id) OVER w, nth_value(id, 2) OVER w FROM @corpus WINDOW w AS (PARTITION BY b ORDER BY id ROWS BETWEEN 3 PRECEDING AND 1 FOLLOWING EXCLUDE CURRENT ROW)",
            "SELECT id, row_number() OVER (PARTITION BY g ORDER BY id), rank() OVER (ORDER BY i2 DESC NULLS LAST), dense_rank() OVER w, count(*) OVER (PARTITION BY b) FROM @corpus WINDOW w AS (PARTITION BY b ORDER BY i4)",
            "SELECT id, sum(i4) OVER (ORDER BY id ROWS BETWEEN 2 PRECEDING AND 1 FOLLOWING), max(d) OVER (PARTITION BY g ORDER BY id), count(t) OVER (ORDER BY i2 GROUPS BETWEEN 1 PRECEDING AND CURRENT ROW) FROM @corpus",
            "SELECT id, lag(t) OVER (ORDER BY id), lead(i4, 2, 0) OVER (ORDER BY id), first_value(u) OVER (PARTITION BY g ORDER BY id), last_value(n) OVER (ORDER BY id), nth_value(d, 2) OVER (ORDER BY id) FROM @corpus",
            "SELECT id, avg(n) OVER (PARTITION BY g ORDER BY id) FROM @corpus",
            "SELECT g, sum(count(*)) OVER (ORDER BY g), rank() OVER (ORDER BY count(*) DESC, g) FROM @corpus GROUP BY g",
            "SELECT * FROM (SELECT id, g, row_number() OVER (PARTITION BY g ORDER BY id DESC) r FROM @corpus) x WHERE r <= 2",
        ],
    ),
    form(
        "`ORDER BY`, `LIMIT`, `OFFSET`, `DISTINCT ON`",
        "numbers, dates, times, `uuid`, `bytea`, `boolean`, text in `C`; in another order Postgres sorts",
        &[
            "SELECT id, f8 FROM @corpus ORDER BY f8 DESC NULLS LAST, id",
            "SELECT ct, id FROM @corpus ORDER BY ct NULLS FIRST, id LIMIT 10 OFFSET 3",
            "SELECT id, c FROM @corpus ORDER BY c COLLATE \"C\", id",
            "SELECT DISTINCT ON (g) g, id, t FROM @corpus ORDER BY g, id DESC",
            "SELECT DISTINCT ON (b, i2) id FROM @corpus ORDER BY b, i2 NULLS FIRST, id LIMIT 5",
        ],
    ),
    form(
        "joins, `USING`, `LATERAL`, `VALUES`",
        "inner, left, right and full joins; conditions as above",
        &[
            "SELECT a.id, b.id FROM @corpus a JOIN @corpus b ON a.i2 = b.i4 AND a.b IS NOT TRUE",
            "SELECT a.id, b.id FROM @corpus a LEFT JOIN @corpus b ON a.t = b.v WHERE b.id IS NULL OR a.g = 1",
            "SELECT a.id, b.id, id2 FROM @corpus a FULL JOIN (SELECT id + 5 AS id, id AS id2 FROM @corpus) b USING (id)",
            "SELECT a.id, x.m, x.n FROM @corpus a, LATERAL (SELECT max(b.id) AS m, count(*) AS n FROM @corpus b WHERE b.g = a.g AND b.id < a.id) x",
            "SELECT a.id, x.id FROM @corpus a LEFT JOIN LATERAL (SELECT b.id FROM @corpus b WHERE b.id > a.id ORDER BY b.id LIMIT 2) x ON true",
            "SELECT a.id, x.name FROM @corpus a JOIN (VALUES (1, 'one'), (2, NULL)) AS x (g, name) ON x.g = a.g",
        ],
    ),
    form(
        "sub-queries in `FROM`, views, CTEs and what `EXISTS` looks at, with columns that are not sent",
        "nobody refers to these columns, as in `SELECT *` of a view; not of a `DISTINCT` or a set operation, no aggregates and window functions, nothing volatile",
        &[
            "SELECT x.id, x.i4 FROM (SELECT *, to_char(ts, 'YYYY') AS year, f8 || 'x' AS f FROM @corpus) x WHERE x.i2 > 0",
            "SELECT a.id, b.i4, c.n FROM @corpus a LEFT JOIN (SELECT age(ts) AS age, id, i4 FROM @corpus WHERE i4 > 0) b ON a.id = b.id, LATERAL (SELECT count(*) AS n FROM (SELECT upper(a.t), d FROM @corpus d WHERE d.g = a.g) y) c",
            "SELECT id FROM @corpus a WHERE EXISTS (SELECT to_char(b.ts, 'YYYY'), * FROM @corpus b WHERE b.i4 = a.i2)",
            "WITH w AS (SELECT id, g, lower(t) AS low FROM @corpus WHERE i4 IS NOT NULL) SELECT a.id, b.id FROM w a JOIN w b ON a.g = b.g AND a.id < b.id",
        ],
    ),
    form(
        "sub-queries: scalar ones, `EXISTS`, `IN`, `= ANY`",
        "correlated ones too; `IN` of one column",
        &[
            "SELECT a.id, (SELECT count(*) FROM @corpus b WHERE b.i2 = a.i2), (SELECT max(t COLLATE \"C\") FROM @corpus) FROM @corpus a",
            "SELECT id FROM @corpus a WHERE EXISTS (SELECT FROM @corpus b WHERE b.i4 = a.i2) OR i2 IN (SELECT g FROM @corpus)",
            "SELECT id FROM @corpus a WHERE i4 NOT IN (SELECT i2 FROM @corpus WHERE i2 IS NOT NULL) AND NOT EXISTS (SELECT FROM @corpus b WHERE b.id = a.id + 1)",
        ],
    ),
    form(
        "`WITH`, `WITH RECURSIVE`",
        "a recursive one without `SEARCH` and `CYCLE`, in a query without `LIMIT`",
        &[
            "WITH s AS (SELECT g, sum(i4) AS t FROM @corpus GROUP BY g), m AS (SELECT max(t) AS t FROM s) SELECT s.g, s.t, (SELECT count(*) FROM s x WHERE x.t < s.t) FROM s, m WHERE s.t <= m.t AND s.g IN (SELECT g FROM s WHERE t IS NOT NULL)",
            "WITH a AS MATERIALIZED (SELECT id, i2 FROM @corpus), b AS NOT MATERIALIZED (SELECT id, i2 FROM a WHERE i2 > 0) SELECT x.id, y.id FROM b x JOIN b y USING (i2) UNION ALL SELECT id, i2 FROM a",
            "WITH x AS (SELECT g, sum(i2) AS s FROM @corpus GROUP BY g) SELECT a.g, a.s, b.s FROM x a JOIN x b ON a.g = b.g",
            "WITH RECURSIVE r (n, id) AS (SELECT 1, id FROM @corpus WHERE id = 1 UNION ALL SELECT r.n + 1, c.id FROM r JOIN @corpus c ON c.id = r.id + 3 WHERE r.n < 50) SELECT * FROM r ORDER BY n",
            "WITH RECURSIVE r AS (SELECT g FROM @corpus WHERE id < 3 UNION SELECT c.g FROM r JOIN @corpus c ON c.g = (r.g + 1) % 4) SELECT g FROM r ORDER BY g",
        ],
    ),
    form(
        "`UNION`, `UNION ALL`, `INTERSECT`, `EXCEPT`",
        "of the same types, of integers and of text; `DISTINCT` ones as `GROUP BY`",
        &[
            "SELECT i2, t FROM @corpus UNION SELECT i8, v FROM @corpus UNION ALL SELECT i4, v FROM @corpus",
            "SELECT i2 FROM @corpus UNION SELECT i2 + 1::smallint FROM @corpus WHERE i2 < 100",
            "SELECT t FROM @corpus UNION ALL SELECT v FROM @corpus",
            "SELECT g FROM @corpus INTERSECT SELECT i4 FROM @corpus",
            "SELECT g, b FROM @corpus INTERSECT ALL SELECT g, b FROM @corpus WHERE id > 9",
            "SELECT g FROM @corpus EXCEPT ALL SELECT i4 FROM @corpus",
            "(SELECT i4 FROM @corpus EXCEPT SELECT g FROM @corpus) ORDER BY 1",
        ],
    ),
];

/// What is not sent, and why: for the README. By the words of `EXPLAIN` where there are some.
pub(crate) const NOT_SENT: &[(&str, &str)] = &[
    ("`sum`, `avg` and other aggregates of floats", "the result depends on the order of the rows"),
    (
        "`stddev` and `variance` of floats, `corr`, `percentile_…`, `mode`",
        "DuckDB computes them in another order, or finds another element",
    ),
    (
        "`exp`, `ln`, `power`, trigonometry, `round(float8)`",
        "the last digit differs between libraries, halves are rounded otherwise",
    ),
    ("`upper`, `lower`, `initcap`, and order of text, outside of the `C` collation", "they are the locale's"),
    ("`to_char`, `to_date`, `format`, `concat`, `age`", "their formats are Postgres's own"),
    (
        "regular expressions beyond the form above",
        "the engines differ in classes, in what `.` is and in which match they prefer",
    ),
    ("`json` operators, other `jsonb` functions, arrays as values", "numbers and duplicates are kept otherwise"),
    (
        "`numeric` without a precision or with more than 38 digits",
        "it is text in the lake; DuckDB's decimals have 38 digits",
    ),
    (
        "`timestamptz` with fields, truncation, arithmetic, dates and timestamps in a session whose time zone is not UTC",
        "DuckDB's rules of time zones are not those of Postgres; `AT TIME ZONE 'UTC'` is sent from everywhere",
    ),
    (
        "order of enums; types that are text in the lake (ranges, `inet`, arrays…)",
        "their text is not ordered as they are",
    ),
    ("volatile functions, `random()`, `nextval`, your own functions and operators", "nobody knows what they do"),
    (
        "system columns, whole rows, `FOR UPDATE`, `TABLESAMPLE`, `WITH TIES`, set-returning functions",
        "DuckDB has no equal",
    ),
    ("a column with a companion (`infinity`, `NaN`, `24:00`)", "DuckDB's type has not got the value"),
];
