//! What a running backfill sees of the live stream, and how its rows join it.
//!
//! The engine owns the writer and the token; a backfill never writes to the journal itself. The engine calls the hook
//! on its own task, in stream order, and no call may block or await. Without a running backfill there is no hook and
//! the hot path pays one branch.

use tillstream_schemas::{Lsn, Position, TableSchema};

use super::pgoutput::Tuple;
use super::read_rows::ReadRow;

/// Numbers what a hook handed over, in order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct HandOver(pub u64);

/// What the engine does for a hook, between two transactions.
#[derive(Debug)]
pub enum Write {
    /// Append a row as a `read` entry to its partition.
    Row(ReadRow),
    /// Once everything handed over before is confirmed in every partition, append this record to the control journal
    /// under the run's token, and report it by [`Hook::stored`] once it is read back from there under the run's fence.
    Record(HandOver, Box<crate::control::Record>),
}

/// Sees the stream and hands over rows.
pub trait Hook: Send {
    /// Whether the stream brings changes at present: told in every round, for those who read beside it.
    fn live(&mut self, live: bool);

    /// Whether it wants to see rows at present. Asked between transactions, so that an idle hook costs nothing per row.
    fn watches(&self) -> bool;

    /// A transaction begins.
    fn begin(&mut self, xid: u32, commit_lsn: Lsn);

    /// A row of it, if the hook watches: the old tuple when the server sent one, the new one unless it is a delete.
    fn change(&mut self, oid: u32, table: &TableSchema, old: Option<&Tuple<'_>>, new: Option<&Tuple<'_>>);

    /// A table of it was emptied.
    fn truncate(&mut self, oid: u32, table: &TableSchema);

    /// A logical message with our prefix (`tillstream/…`): never published, it carries watermarks.
    fn message(&mut self, prefix: &[u8], content: &[u8], at: Position);

    /// The transaction ends; rows may be handed over from here to the next `begin`.
    fn commit(&mut self, xid: u32, end: Lsn);

    /// Nothing is open, and everything that committed before `reached` came by.
    fn idle(&mut self, reached: Lsn);

    /// What is to be written now, never inside a transaction. The engine asks when it has taken what the stream holds,
    /// and takes no more than it likes at a time: until then a row may still be overtaken by a change of the stream.
    fn write(&mut self) -> Option<Write>;

    /// A record is in the control journal, and with it everything handed over before.
    fn stored(&mut self, upto: HandOver);

    /// Whether everything is stored that can be read: a run until caught up ends then.
    fn is_done(&self) -> bool;

    /// Ready when [`Hook::write`] has something although no transaction came by.
    fn poll(&mut self, cx: &mut std::task::Context<'_>) -> std::task::Poll<()>;
}

/// Makes the hook of each capture session: a backfill resumes from what the control journal says, never from what a
/// lost session saw.
pub trait Hooks: Send + Sync {
    /// Called on the engine's runtime once the session is fenced and verified, before the first frame, with the state
    /// as of the session's own fence. `None` when there is nothing to load. Dropping the hook ends its backfill.
    fn session(&self, state: &crate::control::State, epoch: u32) -> Option<Box<dyn Hook>>;
}
