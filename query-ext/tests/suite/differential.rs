//! Heap and lake side by side: the same rows, types, order and errors, by the expected way.

use crate::harness::compare::{difference, plan, run, sides, way};
use crate::harness::set_up;

#[tokio::test]
async fn lake_answers_as_the_heap() {
    let (server, worker, client) = set_up().await;
    let mut failures = Vec::new();
    let mut ways = std::collections::BTreeMap::new();
    for line in include_str!("harness/queries.txt").lines().filter(|line| !line.trim().is_empty()) {
        let (mark, query) = line.split_once(' ').unwrap();
        let ordered = mark.contains('!');
        let (heap, lake) = sides(query);
        failures.extend(difference(&client, query, ordered).await);
        let expected = run(&client, &heap).await;
        // On the source's own name too.
        client.batch_execute("SET lake.accelerate = force").await.unwrap();
        let mut accelerated = run(&client, &heap).await;
        let whole =
            plan(&client, &format!("EXPLAIN (COSTS off) {heap}")).await.is_some_and(|plan| plan.contains("(LakeScan)"));
        client.batch_execute("RESET lake.accelerate").await.unwrap();
        let mut alone = expected.clone();
        if !ordered {
            for (_, rows) in [&mut accelerated, &mut alone].into_iter().flatten() {
                rows.sort();
            }
        }
        if accelerated != alone {
            failures.push(format!("{query}\n  differs when it is accelerated"));
        }
        if expected.is_ok() && whole != mark.contains('W') {
            failures.push(format!("{query}\n  accelerated: {whole}"));
        }
        let answered = way(&client, &lake).await;
        if expected.is_ok() && answered != mark.chars().next() {
            let reason = run(&client, &format!("EXPLAIN (COSTS off) {lake}")).await;
            failures.push(format!("{query}\n  expected {mark}, was {answered:?} {reason:?}"));
        }
        if expected.is_ok() && answered != Some('H') && !mark.contains('~') {
            let ran = plan(&client, &format!("EXPLAIN (ANALYZE, COSTS off) {lake}")).await.unwrap_or_default();
            if ran.contains("Answered By") {
                failures.push(format!("{query}\n  fell back: {ran}"));
            }
        }
        *ways.entry(answered).or_insert(0) += 1;
    }
    eprintln!("ways: {ways:?}");
    let fallbacks = run(&client, "SELECT * FROM lake.stat_fallback").await;
    eprintln!("fallbacks: {fallbacks:?}");
    assert!(!server.crashed(), "{}", server.log());
    assert!(failures.is_empty(), "{} differ:\n{}", failures.len(), failures.join("\n"));
    assert!(worker.drained(), "a lease is still open");
    worker.close();
    assert_eq!(run(&client, "SELECT count(*) FROM lake.t1").await, Err("57P03".into()));
}
