//! Who decided what, and why, in the control journal.

use std::sync::Arc;
use std::time::Duration;

use crate::config::Pipeline;
use crate::control::{self, Audit, ControlError, Record, Writer, now_ms};
use crate::journal::{self, Journal};

use super::failure::Failure;

/// A journal that does not answer for this long is away.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);

/// Stores an audit record and reads it back.
///
/// # Errors
/// The journal is away, or was never set up.
pub async fn record(pipeline: &Pipeline, what: &str, why: &str, by: &str) -> Result<(), Failure> {
    let store = async {
        let journal: Arc<dyn Journal> = journal::open(&pipeline.journal, "tillstream audit")?;
        let state = control::replay(journal.as_ref()).await?;
        let mut writer = Writer::take_operator(journal, &pipeline.name, &pipeline.source.name, &state, by).await?;
        let audit = Audit { who: by.to_owned(), what: what.to_owned(), why: why.to_owned(), at_ms: now_ms() };
        writer.store_proven(&Record::Audit(audit)).await.map(drop)
    };
    let late = || Failure::new("journal.unavailable", format!("the journal did not answer within {} s", ANSWER_WITHIN.as_secs()));
    tokio::time::timeout(ANSWER_WITHIN, store).await.map_err(|_| late())?.map_err(|error: ControlError| Failure::from(error))
}
