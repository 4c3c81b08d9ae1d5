//! Whole workloads, equal to the heap's: TPC-H's queries, and those of a web analyst.

use std::sync::atomic::Ordering;

use crate::harness::compare::{difference, not_whole};
use crate::harness::{add, set_up};

/// A workload, how many of its queries DuckDB has to answer whole, and those that it does not.
async fn equal(schema: &str, queries: &str, tables: &[&str], least: usize) {
    let (server, worker, client) = set_up().await;
    add(&server, &worker, &client, schema, tables).await;
    let (mut failures, mut whole, mut not) = (Vec::new(), 0, Vec::new());
    for query in queries.split("\n-- q").skip(1) {
        let (number, query) = query.split_once('\n').unwrap();
        let query = query.trim().trim_end_matches(';');
        let ordered = query.to_lowercase().contains("order by");
        failures.extend(difference(&client, query, ordered).await);
        match not_whole(&client, query).await {
            None => whole += 1,
            Some(why) => not.push(format!("{number}: {}", why.rsplit('\n').next().unwrap())),
        }
    }
    eprintln!("{whole} whole; others: {not:#?}");
    assert!(!server.crashed(), "{}", server.log());
    assert!(failures.is_empty(), "{} differ:\n{}", failures.len(), failures.join("\n"));
    assert!(whole >= least, "only {whole} are answered by DuckDB alone, not {not:#?}");
    assert!(worker.behaviour.left_out.load(Ordering::SeqCst) > 0, "no query has said which rows count");
}

#[tokio::test]
async fn tpch() {
    let schema = include_str!("../tpch/schema.sql").replace(":sf", "0.01");
    let tables = ["region", "nation", "supplier", "part", "partsupp", "customer", "orders", "lineitem"];
    equal(&schema, include_str!("../tpch/queries.sql"), &tables, 22).await;
}

#[tokio::test]
async fn visits() {
    let schema = include_str!("../visits/schema.sql").replace(":rows", "20000");
    equal(&schema, include_str!("../visits/queries.sql"), &["visits"], 42).await;
}
