//! An HTTP server in front of a store, which answers in its place when it is told to.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What a store says that refuses: the status, and S3's document of it.
#[derive(Clone)]
pub(crate) struct Refusal {
    status: u16,
    body: String,
}

impl Refusal {
    pub(crate) fn new(status: u16, code: &str, more: &str) -> Self {
        let body = format!("<Error><Code>{code}</Code><Message>the test says {code}</Message>{more}</Error>");
        Self { status, body }
    }

    /// One without a document, as a load balancer gives it.
    pub(crate) fn bare(status: u16) -> Self {
        Self { status, body: String::new() }
    }
}

#[derive(Default)]
struct State {
    /// How many requests are let through before.
    first: usize,
    /// For the requests that come then.
    refusals: VecDeque<Refusal>,
    /// For all of them.
    always: Option<Refusal>,
    refused: usize,
    /// The ids of the keys that count, and what those hear who have another.
    keys: Option<(HashSet<String>, Refusal)>,
    /// Requests that came with each key, and were let through.
    by_key: HashMap<String, usize>,
    /// The answers of the next so many requests that make a file only if there is none.
    lost: usize,
}

/// It ends with the test's runtime.
#[derive(Clone)]
pub(crate) struct StoreProxy {
    port: u16,
    state: Arc<Mutex<State>>,
}

impl StoreProxy {
    /// In front of the store at this address.
    pub(crate) async fn start(store: &str) -> Self {
        let store = store.strip_prefix("http://").unwrap().to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (port, state) = (listener.local_addr().unwrap().port(), Arc::<Mutex<State>>::default());
        let shared = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(serve(client, store.clone(), Arc::clone(&shared)));
            }
        });
        Self { port, state }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The next requests are refused so, one after the other.
    pub(crate) fn refuse(&self, refusals: &[Refusal]) {
        self.state.lock().unwrap().refusals.extend(refusals.iter().cloned());
    }

    /// All requests are refused but the first so many.
    pub(crate) fn refuse_all_after(&self, first: usize, refusal: Refusal) {
        let mut state = self.state.lock().unwrap();
        (state.first, state.always) = (first, Some(refusal));
    }

    /// The next so many files that are made only if there is none are made, and nobody hears of it.
    pub(crate) fn lose_answers(&self, count: usize) {
        self.state.lock().unwrap().lost = count;
    }

    /// How many answers are still to be lost.
    pub(crate) fn to_lose(&self) -> usize {
        self.state.lock().unwrap().lost
    }

    /// Only these keys count from now on.
    pub(crate) fn admit(&self, keys: &[String], refusal: Refusal) {
        self.state.lock().unwrap().keys = Some((keys.iter().cloned().collect(), refusal));
    }

    /// How many requests were let through, by the id of their key.
    pub(crate) fn by_key(&self) -> HashMap<String, usize> {
        self.state.lock().unwrap().by_key.clone()
    }

    /// How many requests were refused.
    pub(crate) fn refused(&self) -> usize {
        self.state.lock().unwrap().refused
    }

    /// None is refused any more; how many were.
    pub(crate) fn calm(&self) -> usize {
        let state = std::mem::take(&mut *self.state.lock().unwrap());
        state.refused
    }
}

fn next(state: &Mutex<State>, head: &str) -> Option<Refusal> {
    let mut state = state.lock().unwrap();
    let key = head.split_once("Credential=").and_then(|(_, rest)| rest.split('/').next()).unwrap_or("").to_owned();
    if let Some((keys, refusal)) = &state.keys {
        if !keys.contains(&key) {
            let refusal = refusal.clone();
            state.refused += 1;
            return Some(refusal);
        }
        *state.by_key.entry(key).or_default() += 1;
    }
    if state.first > 0 {
        state.first -= 1;
        return None;
    }
    let refusal = state.refusals.pop_front().or_else(|| state.always.clone())?;
    state.refused += 1;
    Some(refusal)
}

/// Whether the answer of a request is lost.
fn loses(state: &Mutex<State>, head: &str) -> bool {
    let mut state = state.lock().unwrap();
    let loses = state.lost > 0 && head.to_ascii_lowercase().contains("\r\nif-none-match:");
    state.lost -= usize::from(loses);
    loses
}

/// One request a connection.
async fn serve(mut client: TcpStream, store: String, state: Arc<Mutex<State>>) {
    let mut head = Vec::new();
    let end = loop {
        let mut bytes = [0; 8192];
        let Ok(read @ 1..) = client.read(&mut bytes).await else { return };
        head.extend_from_slice(&bytes[..read]);
        if let Some(end) = head.windows(4).position(|window| window == b"\r\n\r\n") {
            break end;
        }
    };
    let mut body = head.split_off(end + 4);
    let text = String::from_utf8_lossy(&head[..end]).into_owned();
    let length =
        text.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length:").map(str::to_owned));
    let length: usize = length.map_or(0, |length| length.trim().parse().unwrap());
    while body.len() < length {
        let mut bytes = [0; 65536];
        let Ok(read @ 1..) = client.read(&mut bytes).await else { return };
        body.extend_from_slice(&bytes[..read]);
    }
    if let Some(Refusal { status, body }) = next(&state, &text) {
        let answer = format!(
            "HTTP/1.1 {status} Refused\r\nContent-Type: application/xml\r\nETag: \"0\"\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
        let _ = client.write_all(answer.as_bytes()).await;
        let _ = client.shutdown().await;
        return;
    }
    let Ok(mut server) = TcpStream::connect(&store).await else { return };
    let request = [text.as_bytes(), b"\r\nConnection: close\r\n\r\n", &body].concat();
    let mut answer = Vec::new();
    if server.write_all(&request).await.is_ok() && server.read_to_end(&mut answer).await.is_ok() {
        if loses(&state, &text) {
            answer = b"HTTP/1.1 502 Lost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_vec();
        }
        let _ = client.write_all(&answer).await;
        let _ = client.shutdown().await;
    }
}
