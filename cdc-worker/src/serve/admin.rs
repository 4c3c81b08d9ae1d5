//! The admin endpoint: `/livez` (the loop turns; `/healthz` is the same), `/readyz` (it streams), `/metrics`.
//!
//! A dead dependency never fails `/livez`: killing the worker would not bring the dependency back.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use lake_protocol::RequestBody;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::Result;
use crate::error::{Error, ErrorKind};

use super::metrics;
use super::{Ask, Health, Pulse, Reply};

/// A scrape waits this long for fresh gauges, then shows the last ones.
const STATUS_DEADLINE: Duration = Duration::from_secs(2);

#[derive(Clone)]
struct Admin {
    pulse: Arc<Pulse>,
    asks: mpsc::Sender<Ask>,
    metrics: PrometheusHandle,
}

/// Binds the address and answers.
///
/// # Errors
/// [`ErrorKind::Io`] when the address is taken.
pub(super) fn listen(address: SocketAddr, pulse: Arc<Pulse>, asks: mpsc::Sender<Ask>) -> Result<JoinHandle<()>> {
    let fail = |error: std::io::Error| {
        Error::new(ErrorKind::Io, format!("listen on {address}"))
            .with_hint("choose another [admin] listen address")
            .with_source(error)
    };
    let listener = std::net::TcpListener::bind(address).map_err(fail)?;
    listener.set_nonblocking(true).map_err(fail)?;
    let listener = tokio::net::TcpListener::from_std(listener).map_err(fail)?;
    let recorder = PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    // A second engine in one process (only tests have that) keeps the first one's recorder.
    if ::metrics::set_global_recorder(recorder).is_err() {
        tracing::debug!("a metrics recorder is set already");
    }
    metrics::describe();
    let admin = Admin { pulse, asks, metrics: handle };
    let routes = Router::new()
        .route("/livez", get(alive))
        .route("/healthz", get(alive))
        .route("/readyz", get(ready))
        .route("/metrics", get(scrape))
        .with_state(admin);
    Ok(tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, routes).await {
            tracing::error!(error = %error, "the admin endpoint ended");
        }
    }))
}

fn verdict(good: bool, health: Health) -> (StatusCode, String) {
    let status = if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, format!("alive: {}\nstreaming: {}\n", health.alive, health.ready))
}

async fn alive(State(admin): State<Admin>) -> (StatusCode, String) {
    let health = admin.pulse.health();
    verdict(health.alive, health)
}

async fn ready(State(admin): State<Admin>) -> (StatusCode, String) {
    let health = admin.pulse.health();
    verdict(health.ready, health)
}

async fn scrape(State(admin): State<Admin>) -> String {
    let (reply, answer) = oneshot::channel();
    if admin.asks.try_send(Ask { body: RequestBody::Status, reply }).is_ok()
        && let Ok(Ok(Reply::Status(status))) = tokio::time::timeout(STATUS_DEADLINE, answer).await
    {
        metrics::observe(&status);
    }
    metrics::observe_store();
    admin.metrics.render()
}
