//! A private Postgres with `lake_query`, and a stand-in for the worker that serves the heap's own rows: some from a file
//! with deleted rows, some from a file without, some fresh.

pub(crate) mod ask;
pub(crate) mod compare;
pub(crate) mod server;
pub(crate) mod tables;
pub(crate) mod wanted;
pub(crate) mod worker;

use server::Server;
use tables::{SETUP, copy};
use tokio_postgres::Client;
use worker::Worker;

/// A server with the tables, the extension and the stand-in.
pub(crate) async fn set_up() -> (Server, Worker, Client) {
    let server = Server::start();
    let client = server.connect("postgres").await;
    client.batch_execute(SETUP).await.unwrap();
    let database: u32 =
        client.query_one("SELECT oid FROM pg_database WHERE datname = current_database()", &[]).await.unwrap().get(0);
    let worker = Worker::start(&server.data(), database);
    std::fs::create_dir(server.files()).unwrap();
    for table in ["t1", "t2", "t3"] {
        worker.add(&server.files(), &copy(&client, &format!("public.{table}")).await);
    }
    (server, worker, client)
}

/// Makes tables, and has the stand-in serve them.
pub(crate) async fn add(server: &Server, worker: &Worker, client: &Client, schema: &str, tables: &[&str]) {
    client.batch_execute(schema).await.unwrap();
    for table in tables {
        worker.add(&server.files(), &copy(client, &format!("public.{table}")).await);
        client.batch_execute(&format!("SELECT lake.create_relation('public.{table}', '{table}')")).await.unwrap();
    }
}
