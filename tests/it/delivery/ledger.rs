//! A pretend target that remembers: which keys it has seen, which change of each row it applied, and what came twice or
//! out of order. It fails one call in twenty, in each of the ways that targets fail.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use rand::RngExt;
use serde::Deserialize;
use serde_json::json;

/// Where the pretend target stands.
#[derive(Debug, Default)]
struct Book {
    /// Hashes of the keys that were applied.
    keys: HashSet<u64>,
    /// The last change of each row.
    last: Vec<u64>,
    /// The same change under two keys, or an older one after a newer.
    wrong: u64,
    repeats: u64,
    /// When each event was applied, for those that ask.
    applied_at: Vec<(u64, Instant)>,
}

/// The pretend target.
#[derive(Debug)]
pub(super) struct Ledger {
    book: Mutex<Book>,
    requests: AtomicU64,
    failures: AtomicU64,
    /// Faults in a thousand calls.
    faults: AtomicU32,
    /// How long an answer is kept back after the effect, when it is to be lost.
    lost_after: Duration,
    down: AtomicBool,
    /// A row whose events are refused with a status that asks for a repeat.
    poisoned: AtomicU64,
    timed: bool,
}

/// One item, as the sink writes it.
#[derive(Deserialize)]
struct Item {
    id: String,
    data: Row,
}

#[derive(Deserialize)]
struct Row {
    id: u64,
    qty: u64,
}

#[derive(Deserialize)]
struct List {
    items: Vec<Item>,
}

/// Nobody is poisoned.
const NOBODY: u64 = u64::MAX;

impl Ledger {
    /// Serves `/one`, `/list` and Klaviyo's `/api/events` on a free port.
    pub(super) async fn start(rows: usize, faults: u32, lost_after: Duration, timed: bool) -> (Arc<Ledger>, SocketAddr) {
        let ledger = Arc::new(Ledger {
            book: Mutex::new(Book { last: vec![0; rows], ..Book::default() }),
            requests: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            faults: AtomicU32::new(faults),
            lost_after,
            down: AtomicBool::new(false),
            poisoned: AtomicU64::new(NOBODY),
            timed,
        });
        let router = Router::new()
            .route("/one", axum::routing::post(one))
            .route("/list", axum::routing::post(list))
            .route("/api/events", axum::routing::post(guest_event))
            .with_state(ledger.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("bound");
        tokio::spawn(async move { axum::serve(listener, router).await });
        (ledger, address)
    }

    /// Effects so far.
    pub(super) fn applied(&self) -> u64 {
        self.book.lock().expect("sound").keys.len() as u64
    }

    /// Changes that had a second effect or came after a newer one.
    pub(super) fn wrong(&self) -> u64 {
        self.book.lock().expect("sound").wrong
    }

    pub(super) fn repeats(&self) -> u64 {
        self.book.lock().expect("sound").repeats
    }

    pub(super) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    pub(super) fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// When each event was applied, by row.
    pub(super) fn applied_at(&self) -> Vec<(u64, Instant)> {
        self.book.lock().expect("sound").applied_at.clone()
    }

    pub(super) fn set_down(&self, down: bool) {
        self.down.store(down, Ordering::SeqCst);
    }

    /// Refuses this row's events from now on; `None` heals it.
    pub(super) fn poison(&self, row: Option<u64>) {
        self.poisoned.store(row.unwrap_or(NOBODY), Ordering::SeqCst);
    }

    fn apply(&self, items: &[Item]) {
        let mut book = self.book.lock().expect("sound");
        for item in items {
            if !book.keys.insert(fnv(item.id.as_bytes())) {
                book.repeats += 1;
                continue;
            }
            let row = usize::try_from(item.data.id).expect("small");
            // Changes of a row are numbered from 1 without gaps.
            if item.data.qty != book.last[row] + 1 {
                book.wrong += 1;
            }
            book.last[row] = item.data.qty;
            if self.timed {
                book.applied_at.push((item.data.id, Instant::now()));
            }
        }
    }

    async fn answer(&self, items: &[Item], results: bool) -> Response {
        self.requests.fetch_add(1, Ordering::Relaxed);
        if self.down.load(Ordering::SeqCst) {
            self.failures.fetch_add(1, Ordering::Relaxed);
            return StatusCode::SERVICE_UNAVAILABLE.into_response();
        }
        let poisoned = self.poisoned.load(Ordering::SeqCst);
        let (mut fault, half) = (None, items.len() / 2);
        if rand::rng().random_range(0..1000) < self.faults.load(Ordering::Relaxed) {
            self.failures.fetch_add(1, Ordering::Relaxed);
            fault = Some(rand::rng().random_range(0..4));
        }
        let (healthy, ill): (Vec<&Item>, Vec<&Item>) = items.iter().partition(|i| i.data.id != poisoned);
        match fault {
            Some(0) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
            Some(1) => (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "0")]).into_response(),
            Some(2) => {
                // The effect stays, the answer is lost.
                if ill.is_empty() {
                    self.apply(items);
                }
                tokio::time::sleep(self.lost_after).await;
                StatusCode::OK.into_response()
            }
            Some(_) if results => {
                if ill.is_empty() {
                    self.apply(&items[..half]);
                }
                let of = |(n, item): (usize, &Item)| json!({"id": item.id, "status": if n < half && ill.is_empty() { 200 } else { 503 }});
                let results: Vec<_> = items.iter().enumerate().map(of).collect();
                (StatusCode::MULTI_STATUS, axum::Json(json!({"results": results}))).into_response()
            }
            Some(_) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
            None if ill.is_empty() => {
                self.apply(items);
                StatusCode::OK.into_response()
            }
            None if results => {
                for item in healthy {
                    self.apply(std::slice::from_ref(item));
                }
                let of = |item: &Item| json!({"id": item.id, "status": if item.data.id == poisoned { 500 } else { 200 }});
                let results: Vec<_> = items.iter().map(of).collect();
                (StatusCode::MULTI_STATUS, axum::Json(json!({"results": results}))).into_response()
            }
            None => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        }
    }
}

async fn one(State(ledger): State<Arc<Ledger>>, body: Bytes) -> Response {
    let item: Item = serde_json::from_slice(&body).expect("an item");
    ledger.answer(&[item], false).await
}

/// An event as Klaviyo takes it: known by its `unique_id`; that it was taken is said with 202.
async fn guest_event(State(ledger): State<Arc<Ledger>>, body: Bytes) -> Response {
    let event: serde_json::Value = serde_json::from_slice(&body).expect("an event");
    let attributes = &event["data"]["attributes"];
    assert_eq!(attributes["metric"]["data"]["attributes"]["name"], "Changed");
    assert!(attributes["profile"]["data"]["attributes"]["external_id"].is_string());
    let id = attributes["unique_id"].as_str().expect("a unique_id").to_owned();
    let data = serde_json::from_value(attributes["properties"].clone()).expect("a row");
    let answer = ledger.answer(&[Item { id, data }], false).await;
    if answer.status() == StatusCode::OK { StatusCode::ACCEPTED.into_response() } else { answer }
}

async fn list(State(ledger): State<Arc<Ledger>>, body: Bytes) -> Response {
    let list: List = serde_json::from_slice(&body).expect("a list");
    ledger.answer(&list.items, true).await
}

fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}
