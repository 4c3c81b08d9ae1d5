//! The requests that this process has sent to object stores: what a store bills for.
//!
//! Tries count, not calls: a request that is tried three times is three requests. Counters of the process, as all metrics
//! are; they only grow.

use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpRequest, HttpResponse, HttpService, ReqwestConnector,
};

/// Kinds of requests, as stores bill them.
const KINDS: [&str; 6] = ["put", "post", "list", "get", "head", "delete"];

static COUNTS: [AtomicU64; KINDS.len()] = [const { AtomicU64::new(0) }; KINDS.len()];
static REFUSED: AtomicU64 = AtomicU64::new(0);
static SENT: AtomicU64 = AtomicU64::new(0);
static RECEIVED: AtomicU64 = AtomicU64::new(0);

/// What has been asked of object stores so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreRequests {
    /// Requests by kind: `put`, `post`, `list`, `get`, `head`, `delete`.
    pub by_kind: Vec<(&'static str, u64)>,
    /// Those without an answer, or with one that was not a success.
    pub failed: u64,
    /// Bytes of the objects sent.
    pub bytes_sent: u64,
    /// Bytes of the answers.
    pub bytes_received: u64,
}

impl StoreRequests {
    /// Of this process.
    pub fn so_far() -> Self {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Self {
            by_kind: KINDS.iter().zip(&COUNTS).map(|(kind, count)| (*kind, read(count))).collect(),
            failed: read(&REFUSED),
            bytes_sent: read(&SENT),
            bytes_received: read(&RECEIVED),
        }
    }
}

/// The usual client, which counts.
#[derive(Debug, Default)]
pub(super) struct CountingConnector;

impl HttpConnector for CountingConnector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(Counting(ReqwestConnector::default().connect(options)?)))
    }
}

#[derive(Debug)]
struct Counting(HttpClient);

#[async_trait]
impl HttpService for Counting {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let kind = kind(request.method().as_str(), request.uri().query());
        if let Some(index) = KINDS.iter().position(|known| *known == kind) {
            COUNTS[index].fetch_add(1, Ordering::Relaxed);
        }
        SENT.fetch_add(request.body().content_length() as u64, Ordering::Relaxed);
        let is_head = kind == "head";
        let answer = self.0.execute(request).await;
        match &answer {
            Ok(answer) if answer.status().is_success() => {
                let length = answer.headers().get("content-length").and_then(|length| length.to_str().ok());
                let length = length.and_then(|length| length.parse::<u64>().ok()).filter(|_| !is_head);
                RECEIVED.fetch_add(length.unwrap_or(0), Ordering::Relaxed);
            }
            _ => {
                REFUSED.fetch_add(1, Ordering::Relaxed);
            }
        }
        answer
    }
}

fn kind(method: &str, query: Option<&str>) -> &'static str {
    let lists = query.is_some_and(|query| query.contains("list-type=") || query.contains("comp=list"));
    match method {
        "PUT" => "put",
        "POST" => "post",
        "GET" if lists => "list",
        "GET" => "get",
        "HEAD" => "head",
        "DELETE" => "delete",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_is_not_a_get() {
        assert_eq!(kind("GET", Some("list-type=2&prefix=x")), "list");
        assert_eq!(kind("GET", Some("restype=container&comp=list")), "list");
        assert_eq!(kind("GET", Some("partNumber=1")), "get");
        assert_eq!(kind("PUT", Some("partNumber=1&uploadId=x")), "put");
    }
}
