//! The sandbox: pretend targets, for tests, the demo and trying out. They do what the real ones do when things go wrong.
//!
//! ```text
//! request ─▶ api: read it in its vendor's form ─▶ book: known key? newer version? ─▶ effects ─▶ api: answer in its form
//!              ▲                                                                                 │
//!              └── faults: fail, ask for a pause, answer late, apply and cut the connection ─────┘
//! ```
//!
//! | path | pretends to be | knows a repeat by |
//! | --- | --- | --- |
//! | `/http/events` | any API that takes events, one or a list (`items`) | `Idempotency-Key`, or each item's `id` |
//! | `/http/state` | an API that keeps rows | nothing: the higher `version` of a `row` wins |
//! | `/webhook` | a receiver of Standard Webhooks, CloudEvents too | `webhook-id` |
//! | `/klaviyo/api/…` | Klaviyo: events, profile import, bulk events | `unique_id` for each profile and metric |
//! | `/segment/v1/batch` | Segment, RudderStack | `messageId` |
//! | `/square/v2/inventory/changes/batch-create` | Square Inventory | `idempotency_key` |
//!
//! A key that comes again with another body is refused by name where the real target does so. Keys are forgotten after the
//! window, as real targets forget them. `/sandbox/…` shows what came and what was applied, and sets faults while it runs.
//!
//! Nothing here is used by delivery. Everything kept has a bound; credentials are looked at and never kept.

mod apis;
mod book;
mod cut;
mod faults;
mod memory;
mod server;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

pub use book::{Counts, Effect, Entry};
pub use faults::{Act, ActError, Faults};

use book::Book;
use cut::Cuttable;

/// The secret with which requests to `/webhook` have to be signed: no secret, since the sandbox is none of anybody's targets.
pub const WEBHOOK_SECRET: &str = "whsec_dGlsbHN0cmVhbSBzYW5kYm94IHNlY3JldA==";

/// How much the sandbox remembers.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How long a key is remembered; 24 hours is what vendors that say anything say.
    pub window: Duration,
    /// Most keys, and most rows, that are remembered; the oldest go first.
    pub keys_max: usize,
    /// Most requests, and most effects, that can be read back; the oldest go first.
    pub log_max: usize,
    /// What goes wrong from the start.
    pub faults: Faults,
}

impl Default for Settings {
    fn default() -> Self {
        Settings { window: Duration::from_secs(24 * 3600), keys_max: 1_000_000, log_max: 10_000, faults: Faults::default() }
    }
}

/// A running sandbox; it ends with the value.
#[derive(Debug)]
pub struct Sandbox {
    address: SocketAddr,
    shared: Arc<Shared>,
    server: JoinHandle<std::io::Result<()>>,
}

#[derive(Debug)]
struct Shared {
    book: Mutex<Book>,
    /// Requests that are worked on.
    working: AtomicUsize,
}

impl Shared {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sandbox {
    /// Listens (port 0 takes a free one) and serves from then on.
    ///
    /// # Errors
    /// When the address cannot be had.
    pub async fn start(listen: SocketAddr, settings: Settings) -> std::io::Result<Sandbox> {
        let listener = TcpListener::bind(listen).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared { book: Mutex::new(Book::new(settings)), working: AtomicUsize::new(0) });
        let router: Router = server::router(shared.clone());
        let service = router.into_make_service_with_connect_info::<cut::Line>();
        let server = tokio::spawn(async move { axum::serve(Cuttable(listener), service).await });
        Ok(Sandbox { address, shared, server })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL of a path, as `/http/events`.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// What goes wrong from now on.
    pub fn set_faults(&self, faults: Faults) {
        self.shared.book().set_faults(faults);
    }

    /// What happens to the next requests, one each, before anything else of the faults counts.
    pub fn next(&self, acts: impl IntoIterator<Item = Act>) {
        self.shared.book().queue(acts);
    }

    /// The latest effects, in the order in which they were applied.
    #[must_use]
    pub fn effects(&self) -> Vec<Effect> {
        self.shared.book().effects()
    }

    /// The latest requests.
    #[must_use]
    pub fn requests(&self) -> Vec<Entry> {
        self.shared.book().requests()
    }

    /// What happened so far, in numbers.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.shared.book().counts()
    }

    /// Whether it works on nothing: requests that nobody waits for any more are brought to their end too.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.shared.working.load(Ordering::Acquire) == 0
    }

    /// Forgets every key, as after the end of the window; effects stay.
    pub fn forget_keys(&self) {
        self.shared.book().forget_keys();
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.server.abort();
    }
}

#[cfg(test)]
mod tests;
