//! Requests, each with its authorization, its time and its size.

use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde::de::DeserializeOwned;
use uuid::Uuid;

use super::super::tables::Moved;
use super::auth::{Auth, RestAuth};
use super::shapes::Problem;
use crate::error::{Error, ErrorKind, Result};

/// For a connection. A server that takes longer is not there.
const CONNECT: Duration = Duration::from_secs(5);
/// For one request, answer included. The server may have to write files to a slow store.
const REQUEST: Duration = Duration::from_secs(30);
/// The largest answer: metadata of a table with as many snapshots and columns as we have ever heard of.
const MOST_BYTES: usize = 64 << 20;
/// What is said with each request, so that an answer with a table has the keys for its files; others have none.
const DELEGATION: (&str, &str) = ("X-Iceberg-Access-Delegation", "vended-credentials");
/// What of an answer that is no JSON is quoted.
const QUOTED: usize = 200;

/// An answer.
pub(super) struct Reply {
    pub(super) status: StatusCode,
    body: Vec<u8>,
}

/// A request without an answer.
pub(super) enum Failure {
    /// It was not sent.
    NotSent(Error),
    /// It may have been carried out.
    Lost(Error),
}

impl Failure {
    pub(super) fn into_error(self) -> Error {
        match self {
            Self::NotSent(error) | Self::Lost(error) => error,
        }
    }

    pub(super) fn into_moved(self) -> Moved {
        match self {
            Self::NotSent(error) => Moved::Refused(error),
            Self::Lost(error) => Moved::Unknown(error),
        }
    }
}

impl Reply {
    pub(super) fn is_success(&self) -> bool {
        self.status.is_success()
    }

    pub(super) fn parse<T: DeserializeOwned>(&self, what: &str) -> Result<T> {
        serde_json::from_slice(&self.body).map_err(|error| Error::format(format!("read {what}")).with_source(error))
    }

    fn problem(&self) -> Option<Problem> {
        serde_json::from_slice(&self.body).ok()
    }

    /// Whether the protocol's own error says this of what is wrong.
    pub(super) fn says(&self, kind: &str) -> bool {
        self.problem().is_some_and(|problem| problem.error.kind.contains(kind))
    }

    /// The error that it is, with what to do about it unless the status says more.
    pub(super) fn into_error(self, what: &str, hint: &str) -> Error {
        let said = match self.problem() {
            Some(problem) => format!("{} ({})", problem.error.message, problem.error.kind),
            None => String::from_utf8_lossy(&self.body).chars().take(QUOTED).collect(),
        };
        let (kind, hint) = match self.status.as_u16() {
            401 | 419 => (
                ErrorKind::Catalog,
                "the catalog does not accept who we are: check catalog.credential_file or catalog.token_file, and \
                 catalog.scope",
            ),
            429 | 500..600 => (ErrorKind::Unavailable, hint),
            _ => (ErrorKind::Catalog, hint),
        };
        let context = format!("{what}: the catalog answers {}: {said}", self.status.as_u16());
        Error::new(kind, context.trim_end_matches([':', ' '])).with_hint(hint)
    }
}

/// Sends requests to one server.
pub(super) struct Client {
    http: reqwest::Client,
    base: String,
    auth: Auth,
    asks_for_keys: bool,
}

impl Client {
    /// Sends requests to the server at an address, which is asked for the keys of tables' files, or is not.
    pub(super) fn new(uri: &str, auth: RestAuth, asks_for_keys: bool) -> Result<Self> {
        let invalid = |error: String| {
            Error::invalid(format!("catalog.uri {uri:?} can't be used: {error}"))
                .with_hint("give it as https://host/path, without /v1")
        };
        let url = reqwest::Url::parse(uri).map_err(|error| invalid(error.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") || !url.username().is_empty() || url.query().is_some() {
            return Err(invalid("it is no plain address".to_owned()));
        }
        // Redirected, a request would carry its credential elsewhere.
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT)
            .timeout(REQUEST)
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("lakemirror/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| invalid(error.to_string()))?;
        let base = format!("{uri}/v1");
        let auth = Auth::new(auth, &base);
        Ok(Self { http, base, auth, asks_for_keys })
    }

    /// Sends a request; again, once, with a new token when the server takes the old one for expired.
    pub(super) async fn send(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, &str)],
        body: Option<serde_json::Value>,
        key: Option<Uuid>,
    ) -> Result<Reply, Failure> {
        let body = body.map(|body| body.to_string().into_bytes());
        let reply = self.send_once(&method, path, query, body.clone(), key).await?;
        if matches!(reply.status.as_u16(), 401 | 419) && self.auth.forget().await {
            return self.send_once(&method, path, query, body, key).await;
        }
        Ok(reply)
    }

    async fn send_once(
        &self,
        method: &Method,
        path: &str,
        query: &[(&str, &str)],
        body: Option<Vec<u8>>,
        key: Option<Uuid>,
    ) -> Result<Reply, Failure> {
        let mut url = format!("{}/{path}", self.base);
        for (index, (name, value)) in query.iter().enumerate() {
            let mark = if index == 0 { '?' } else { '&' };
            url.push_str(&format!("{mark}{}={}", encoded(name), encoded(value)));
        }
        let not_sent = |error: reqwest::Error| Failure::NotSent(unreachable_server(error));
        let mut request = self.http.request(method.clone(), &url);
        if self.asks_for_keys {
            request = request.header(DELEGATION.0, DELEGATION.1);
        }
        if let Some(key) = key {
            request = request.header("Idempotency-Key", key.to_string());
        }
        if let Some(body) = body {
            request = request.header("Content-Type", "application/json").body(body);
        }
        let mut request = request.build().map_err(not_sent)?;
        self.auth.authorize(&self.http, &mut request).await.map_err(Failure::NotSent)?;
        let response = self.http.execute(request).await.map_err(|error| {
            // Only what found no connection was certainly not carried out.
            if error.is_connect() {
                Failure::NotSent(unreachable_server(error))
            } else {
                Failure::Lost(unreachable_server(error))
            }
        })?;
        read(response).await.map_err(Failure::Lost)
    }
}

/// Takes an answer in, up to the most that one may have.
pub(super) async fn read(mut response: reqwest::Response) -> Result<Reply> {
    let status = response.status();
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(unreachable_server)? {
        if body.len() + chunk.len() > MOST_BYTES {
            let context = format!("the catalog's answer is larger than {MOST_BYTES} bytes");
            return Err(Error::new(ErrorKind::Format, context));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Reply { status, body })
}

/// The error of a request without an answer. The address may have a secret in its query, so it is left out.
pub(super) fn unreachable_server(error: reqwest::Error) -> Error {
    Error::new(ErrorKind::Unavailable, "ask the catalog")
        .with_source(error.without_url())
        .with_hint("is the catalog's server running, and is catalog.uri right?")
}

/// A name as one segment of a path, or a value of a query.
pub(super) fn encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(char::from(byte)),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}
