//! The decision that history did not continue: a new epoch, with its reason, in the control journal.

use std::sync::Arc;

use tillstream_schemas::Lsn;

use crate::control::{self, Audit, ControlError, Epoch, Record, Writer, now_ms};
use crate::journal::Journal;

/// What was decided, by whom and why.
#[derive(Clone, Debug)]
pub struct Decision {
    /// The new epoch's number: one above the present one.
    pub epoch: u32,
    /// Where the history before it ended, as far as the journal knows.
    pub after: Lsn,
    /// Whether the tables are loaded again.
    pub reload: bool,
    /// The reason, for the audit.
    pub why: String,
    /// Who decided.
    pub by: String,
}

/// Writes the decision and its audit record, and reads both back. A capture that runs ends its session and goes on in the
/// new epoch; otherwise the next run begins in it.
///
/// # Errors
/// Those of the control journal.
pub async fn begin(journal: Arc<dyn Journal>, pipeline: &str, source: &str, decision: Decision) -> Result<(), ControlError> {
    let Decision { epoch, after, reload, why, by } = decision;
    let loads = if reload { "the tables are loaded again" } else { "nothing is loaded again" };
    let audit = Audit { who: by.clone(), what: format!("epoch {epoch} begun after {after}; {loads}"), why: why.clone(), at_ms: now_ms() };
    let state = control::replay(journal.as_ref()).await?;
    let mut writer = Writer::take_operator(journal, pipeline, source, &state, &by).await?;
    writer.store_proven(&Record::Audit(audit)).await?;
    writer.store_proven(&Record::Epoch(Epoch { epoch, after, reload, why, by, at_ms: now_ms() })).await?;
    Ok(())
}
