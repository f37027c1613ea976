//! Which kinds of sink this program has, and how a connector file's `to:` block becomes one.
//!
//! Resolving a block is pure ([`Kind::validate`]); building starts nothing; only [`crate::sink::Sink`] acts.

use std::sync::Arc;

use serde_json::Value;

use crate::http::HttpKind;
use crate::jsonl::JsonlKind;
use crate::klaviyo::KlaviyoKind;
use crate::mapping::Mapping;
use crate::own::OwnKind;
use crate::scaffold::Scaffold;
use crate::segment::SegmentKind;
use crate::show::{Shown, Unshown};
use crate::sink::{Compare, Idempotency, Item, LaneId, OnDelete, Sink};
use crate::sql::SqlKind;
use crate::square::SquareKind;
use crate::webhook::WebhookKind;

/// One problem in a `to:` block, by path within the block (`tables.public.stock_txn.key`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Dotted path within the block; empty for the block itself.
    pub path: String,
    /// What is wrong.
    pub message: String,
    /// How to mend it.
    pub help: Option<String>,
}

impl Problem {
    /// A problem at a path of the block, told as "`path` message".
    #[must_use]
    pub fn new(path: &str, message: &str, help: &str) -> Problem {
        crate::block::problem(path, message, Some(help.to_owned()))
    }
}

/// What a connector wants of each event, known without touching the target.
#[derive(Clone, Debug)]
pub struct SinkPlan {
    /// What keeps a repeat from having two effects.
    pub idempotency: Idempotency,
    /// The longest one call may take; a new owner waits it out before its first send.
    pub call_timeout: std::time::Duration,
    /// Tables (`schema.table`) and the columns the sink reads of them; checked against the catalogue by `validate`.
    pub columns: Vec<(String, Vec<String>)>,
    /// For how long the target knows a key again, where its maker says so. What is sent again later than that may have a second effect.
    pub remembers: Option<std::time::Duration>,
    /// Most items of one request to the target, at least 1. A call with more of them makes several requests, one after another.
    pub items_per_request: usize,
    /// What becomes of an event that the target took long ago and is given once more, below its mark.
    pub repeats: Repeats,
    /// The most its maker says it takes; counts where the file says nothing.
    pub budget: Option<Budget>,
}

/// So many events in a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// At least one.
    pub events: u64,
    /// In how long.
    pub per: std::time::Duration,
}

/// What a target makes of an event that it took long ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeats {
    /// Whatever it holds of the row stays when that is as new or newer; else the event is applied.
    Compared,
    /// It has no effect for as long as the target remembers its key.
    Remembered,
    /// It is applied again.
    Applied,
}

impl SinkPlan {
    /// A plan that reads no columns by itself. A transactional target is taken for one that knows events by its marks alone, unless `repeats` says
    /// otherwise.
    #[must_use]
    pub fn new(idempotency: Idempotency, call_timeout: std::time::Duration) -> SinkPlan {
        let repeats = match idempotency {
            Idempotency::Version => Repeats::Compared,
            Idempotency::Key => Repeats::Remembered,
            Idempotency::Transactional | Idempotency::None => Repeats::Applied,
        };
        SinkPlan { idempotency, call_timeout, columns: Vec::new(), remembers: None, items_per_request: usize::MAX, repeats, budget: None }
    }
}

/// A checked `to:` block: can say what it wants and build one sink a lane.
pub trait Target: Send + Sync + std::fmt::Debug {
    /// What it wants of each event.
    fn plan(&self) -> &SinkPlan;

    /// One lane's sink. Starts nothing.
    fn build(&self, lane: LaneId, on_delete: OnDelete) -> Box<dyn Sink>;

    /// What its block asks of an event by expressions, as in a URL; `None` where it holds none.
    fn expressions(&self) -> Option<&Mapping> {
        None
    }

    /// What this target would be sent of an event, alone and as things are now; `None` for kinds that do not tell. Sends nothing.
    fn show(&self, _item: &Item, _on_delete: OnDelete) -> Option<Result<Shown, Unshown>> {
        None
    }

    /// What compares the target with the source; `None` for targets that cannot be read. Starts nothing.
    fn compare(&self) -> Option<Box<dyn Compare>> {
        None
    }
}

/// One kind of sink: the key below `to:`.
pub trait Kind: Send + Sync {
    /// The key, as `sql`.
    fn name(&self) -> &'static str;

    /// The keys of its block, for editors; empty when the kind does not tell them.
    fn keys(&self) -> &'static [&'static str] {
        &[]
    }

    /// A connector file to begin with; `None` when the kind brings none.
    fn scaffold(&self) -> Option<Scaffold> {
        None
    }

    /// Holds a connector's `map` against what the target takes, as far as it tells before any event: names, what is missing, and literal values of a wrong
    /// type. Paths begin with `map`. Pure.
    fn check_map(&self, _block: &Value, _map: &Value) -> Vec<Problem> {
        Vec::new()
    }

    /// Checks the block under the key (secrets already resolved) and reports every problem at once. Pure: touches no network and no file.
    /// `mapped` says that the connector has a `map`, so that every item comes with the JSON to send.
    ///
    /// # Errors
    /// All problems found.
    fn validate(&self, block: &Value, mapped: bool) -> Result<Arc<dyn Target>, Vec<Problem>>;
}

/// The kinds a program offers.
#[derive(Default)]
pub struct Registry {
    kinds: Vec<Box<dyn Kind>>,
}

impl Registry {
    /// The kinds that come with Tillstream.
    #[must_use]
    pub fn built_in() -> Self {
        Registry::default()
            .with(Box::new(SqlKind))
            .with(Box::new(HttpKind))
            .with(Box::new(WebhookKind))
            .with(Box::new(KlaviyoKind))
            .with(Box::new(SegmentKind))
            .with(Box::new(SquareKind))
            .with(Box::new(JsonlKind))
    }

    /// Adds a kind; a later one of the same name wins, so that a program can replace a built-in.
    #[must_use]
    pub fn with(mut self, kind: Box<dyn Kind>) -> Self {
        self.kinds.retain(|k| k.name() != kind.name());
        self.kinds.push(kind);
        self
    }

    /// Adds a kind of one's own. `read` makes a sink of the block under its key, or says what is wrong there, and touches nothing; each lane gets a copy
    /// of that sink. `plan` says what keeps a repeat from having two effects, and how long a call may take.
    #[must_use]
    pub fn with_sink<S, R>(self, name: &'static str, plan: SinkPlan, read: R) -> Self
    where
        S: Sink + Clone + Sync + 'static,
        R: Fn(&Value) -> Result<S, Vec<Problem>> + Send + Sync + 'static,
    {
        self.with(Box::new(OwnKind { name, plan, read }))
    }

    /// The kind of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&dyn Kind> {
        self.kinds.iter().find(|k| k.name() == name).map(AsRef::as_ref)
    }

    /// All names, for messages.
    #[must_use]
    pub fn names(&self) -> Vec<&'static str> {
        self.kinds.iter().map(|k| k.name()).collect()
    }
}
