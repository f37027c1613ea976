//! The conformance kit: what a sink has to withstand so that every effect happens once, in order, and every item ends right.
//!
//! ```text
//!  Subject: a sink, its target, how to break it ──▶ run ──▶ Row: a verdict for each fault ──▶ table
//! ```
//!
//! The kit drives a sink as delivery does: it repeats what failed under the same keys, waits as long as the target asks, never has two calls under
//! way, cuts batches anew after a restart, and goes by the mark of a transactional sink. What happened it reads from the *target*, never from what
//! the sink says. It needs nothing but a tokio runtime: whoever writes a sink of their own implements [`Subject`] and calls [`run`] from a test.

mod drive;
mod faults;
mod report;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Value, json};
use tillstream_schemas::{Event, Lsn, Position};

use crate::idempotency;
use crate::registry::Target;
use crate::sink::Item;

pub use faults::run;
pub use report::{Row, Verdict, table};

/// The text that an item holds which its target is to refuse for good.
pub const REFUSED: &str = "refuse-me";

/// The longest time that any one step may take.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// What can go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// The same items come again, in other batches, after a restart.
    Duplicates,
    /// Two changes of a row: in order, and (for targets that keep rows) the older one after the newer.
    Reorder,
    /// The target applies, and the answer is lost.
    LostAnswer,
    /// The target takes some items, puts some off, and refuses one for good.
    Partial,
    /// The target asks for a pause, in seconds.
    PauseSeconds,
    /// The target asks for a pause, until a date.
    PauseDate,
    /// The target fails: once without having applied, once after.
    Failure,
    /// The target answers after the sink's timeout.
    Slow,
    /// The process is killed: before the target applies, after, and between the answer and the ledger.
    Kill,
    /// The target answers success, and says in the body that nothing was applied.
    FalseSuccess,
    /// A key comes again with another body.
    OtherBody,
    /// An item could not be mapped.
    Unmappable,
}

impl Fault {
    /// All of them, in the order of the table.
    pub const ALL: [Fault; 12] = [
        Fault::Duplicates,
        Fault::Reorder,
        Fault::LostAnswer,
        Fault::Partial,
        Fault::PauseSeconds,
        Fault::PauseDate,
        Fault::Failure,
        Fault::Slow,
        Fault::Kill,
        Fault::FalseSuccess,
        Fault::OtherBody,
        Fault::Unmappable,
    ];

    /// As it stands in the table.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Fault::Duplicates => "duplicates",
            Fault::Reorder => "reorder",
            Fault::LostAnswer => "lost answer",
            Fault::Partial => "partial",
            Fault::PauseSeconds => "429 seconds",
            Fault::PauseDate => "429 date",
            Fault::Failure => "500",
            Fault::Slow => "slow",
            Fault::Kill => "kill",
            Fault::FalseSuccess => "false 200",
            Fault::OtherBody => "other body",
            Fault::Unmappable => "unmappable",
        }
    }
}

/// How the target is to behave from now on; each but the first concerns the next call and no other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// As it should. It still refuses items that hold [`REFUSED`].
    None,
    /// Applies, and cuts the connection instead of an answer.
    LostAnswer,
    /// Puts off some items of a list; for targets that take one item a call, as [`Trouble::None`].
    PutOff,
    /// Asks for a pause of about a second, in seconds.
    PauseSeconds,
    /// Asks for a pause of about a second, until a date.
    PauseDate,
    /// Fails without having applied.
    Failure,
    /// Applies and fails.
    FailureApplied,
    /// Applies, after the sink's timeout.
    Slow,
    /// Takes the call, and neither applies nor answers it while the sink waits.
    HangBefore,
    /// Applies, and does not answer while the sink waits.
    HangAfter,
    /// Answers success with a body that says that nothing was applied, and applies nothing.
    FalseSuccess,
}

/// Why something cannot happen to a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotApplicable(pub &'static str);

/// What a target makes of items.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeps {
    /// Every item is an effect of its own: an event, a line.
    Facts,
    /// Items change rows: what counts is the newest of each row, and that no row goes back.
    Rows,
}

/// One change of one row, of which an item tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fact {
    /// The row; each fault uses rows of its own.
    pub row: u32,
    /// Counts its changes from 1.
    pub change: u32,
}

/// How an item is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note {
    /// Like any other.
    Plain,
    /// Holds [`REFUSED`].
    Refused,
    /// Has another body than the fact had first.
    Altered,
}

impl Note {
    /// A text that items hold in `note`.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Note::Plain => "plain",
            Note::Refused => REFUSED,
            Note::Altered => "altered",
        }
    }
}

/// A sink with its target, and how to break the target.
#[async_trait]
pub trait Subject: Send {
    /// As it stands in the table.
    fn name(&self) -> String;

    /// The checked `to:` block. Its timeout should be short: the kit waits it out.
    fn target(&self) -> Arc<dyn Target>;

    /// What the target makes of items.
    fn keeps(&self) -> Keeps;

    /// What a connector's `map` would make of the item; `None` where the sink says events in its own words. The row, the change and the note have to
    /// be in it so that [`Subject::effects`] can tell them.
    fn map(&self, _fact: Fact, _note: Note, _item: &Item) -> Option<Value> {
        None
    }

    /// How the target is to behave.
    ///
    /// # Errors
    /// That this cannot happen to such a target, and why.
    async fn arm(&mut self, trouble: Trouble) -> Result<(), NotApplicable>;

    /// Why a whole fault says nothing about this sink; `None` for those that do.
    fn excused(&self, _fault: Fault) -> Option<NotApplicable> {
        None
    }

    /// Whether a call has reached the target since it was last armed.
    async fn reached(&mut self) -> bool;

    /// Whether the target works on nothing any more: what was sent by a sink that gave up has had its effect by then, or never will.
    async fn idle(&mut self) -> bool;

    /// What the target did, in order, as far as it can be told; of rows at least the newest change.
    async fn effects(&mut self) -> Vec<Fact>;
}

/// The item of a change: an update of `public.fact` with the columns `id`, `change` and `note`.
#[must_use]
pub fn item(subject: &dyn Subject, fact: Fact, note: Note) -> Item {
    let Fact { row, change } = fact;
    // Changes of a row stand in the order of their numbers, and every change has a commit of its own.
    let position = Position::new(1, Lsn(u64::from(change) << 32 | u64::from(row) << 4), 0);
    let lsn = format!("{change:X}/{:X}", u64::from(row) << 4);
    let body = json!({
        "id": format!("e{position}"), "op": if change == 1 { "insert" } else { "update" }, "schema": "public", "table": "fact",
        "key": {"id": row}, "before": null, "after": {"id": row, "change": change, "note": note.text()}, "unchanged": [],
        "commit_lsn": lsn, "ordinal": 0, "xid": 7, "committed_at": "2026-11-23T10:00:00.000000Z",
    });
    let event = Event::parse(body.to_string().into()).expect("the kit writes events");
    let key = idempotency::key([&b"conformance"[..], &row.to_be_bytes(), &change.to_be_bytes()]);
    let item = Item { event: Arc::new(event), idempotency_key: key, version: position, mapped: None };
    let mapped = subject.map(fact, note, &item).map(|value| Ok(value.to_string().into()));
    Item { mapped, ..item }
}
