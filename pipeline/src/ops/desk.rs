//! What operators decide over the control journal: each decision is written down first, who, what and why, then carried out. Commands, API and console
//! come here, so that none of them can do what the others cannot, or do it unseen.

use std::sync::Arc;
use std::time::Duration;

use super::failure::Failure;
use crate::config::Connector;
use crate::control::{Audit, Pause, Record, State, Writer, now_ms};
use crate::delivery::dead_letter::{self, Wanted};
use crate::delivery::edit::{self, Change};
use crate::delivery::{self, replay};
use crate::journal::{Journal, Log};

/// A decision is stored in a moment; a broker that does not answer for this long is away.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// Event ids that a line of the audit names; of more it says how many.
const NAMED_MAX: usize = 3;

/// Who decides, and why.
#[derive(Clone, Debug)]
pub struct Decision {
    /// Who, as people know them.
    pub by: String,
    /// Why.
    pub reason: String,
}

/// What a request to have a connector go on came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resumed {
    /// Somebody had paused it.
    Pause(Pause),
    /// It goes on with these tables and layouts, which had changed.
    Tables(Vec<(String, String)>),
    /// Nobody had paused it, and no table that changed makes it wait.
    Nothing,
}

/// The way to a pipeline's control journal.
pub struct Desk {
    journal: Arc<dyn Journal>,
    pipeline: String,
    source: String,
    /// Two writers under the operators' name would fence each other off.
    alone: tokio::sync::Mutex<()>,
}

impl std::fmt::Debug for Desk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Desk").field("pipeline", &self.pipeline).finish_non_exhaustive()
    }
}

/// `3 dead letters of connector crm (http.status_422)`, with the ids where they are few.
fn meant(state: &State, wanted: &Wanted) -> String {
    let letters = dead_letter::select(state, wanted);
    let of = wanted.connector.as_ref().map_or_else(|| " of all connectors".to_owned(), |name| format!(" of connector {name}"));
    let code = wanted.code.as_ref().map_or_else(String::new, |code| format!(" ({code})"));
    let ids: Vec<&str> = letters.iter().take(NAMED_MAX).map(|l| l.letter.event_id.as_str()).collect();
    let more = if letters.len() > NAMED_MAX { ", …" } else { "" };
    format!("{} dead letters{of}{code}: {}{more}", letters.len(), ids.join(", "))
}

impl Desk {
    /// The desk of a pipeline.
    #[must_use]
    pub fn new(journal: Arc<dyn Journal>, pipeline: &str, source: &str) -> Desk {
        Desk { journal, pipeline: pipeline.to_owned(), source: source.to_owned(), alone: tokio::sync::Mutex::default() }
    }

    /// The journal.
    #[must_use]
    pub fn journal(&self) -> &Arc<dyn Journal> {
        &self.journal
    }

    async fn writer(&self, state: &State, by: &str) -> Result<Writer, Failure> {
        Ok(in_time(Writer::take_operator(Arc::clone(&self.journal), &self.pipeline, &self.source, state, by)).await??)
    }

    async fn audit(writer: &mut Writer, what: String, decision: &Decision) -> Result<(), Failure> {
        tracing::info!(by = decision.by, "{what}");
        let audit = Audit { who: decision.by.clone(), what, why: decision.reason.clone(), at_ms: now_ms() };
        in_time(writer.store_proven(&Record::Audit(audit))).await??;
        Ok(())
    }

    /// Writes down what is done elsewhere.
    ///
    /// # Errors
    /// Those of the control journal.
    pub async fn note(&self, state: &State, what: String, decision: &Decision) -> Result<(), Failure> {
        let _alone = self.alone.lock().await;
        let mut writer = self.writer(state, &decision.by).await?;
        Desk::audit(&mut writer, what, decision).await
    }

    /// Asks for dead letters to be delivered again, so many a second, or all at once; answers how many.
    ///
    /// # Errors
    /// Those of the control journal.
    pub async fn redrive(&self, state: &State, wanted: &Wanted, rate: Option<usize>, decision: &Decision) -> Result<usize, Failure> {
        let ids: Vec<String> = dead_letter::select(state, wanted).iter().map(|l| l.letter.event_id.clone()).collect();
        if ids.is_empty() {
            return Ok(0);
        }
        let _alone = self.alone.lock().await;
        let mut writer = self.writer(state, &decision.by).await?;
        Desk::audit(&mut writer, format!("redrive of {}", meant(state, wanted)), decision).await?;
        let mut pace = tokio::time::interval(Duration::from_secs(1));
        let mut asked = 0;
        for event_ids in ids.chunks(rate.unwrap_or(ids.len()).max(1)) {
            pace.tick().await;
            let some = Wanted { event_ids: event_ids.to_vec(), ..wanted.clone() };
            asked += in_time(dead_letter::redrive(&mut writer, state, &some, &decision.by)).await??;
        }
        Ok(asked)
    }

    /// Settles dead letters without delivering them; answers how many.
    ///
    /// # Errors
    /// Those of the control journal.
    pub async fn discard(&self, state: &State, wanted: &Wanted, decision: &Decision) -> Result<usize, Failure> {
        if dead_letter::select(state, wanted).is_empty() {
            return Ok(0);
        }
        let _alone = self.alone.lock().await;
        let mut writer = self.writer(state, &decision.by).await?;
        Desk::audit(&mut writer, format!("discard of {}", meant(state, wanted)), decision).await?;
        Ok(in_time(dead_letter::discard(&mut writer, state, wanted, &decision.reason, &decision.by)).await??)
    }

    /// Puts other values into the row of an open dead letter; with `dry_run` only says whether that could be done.
    ///
    /// # Errors
    /// There is no such letter, it cannot be changed so, and those of the control journal.
    pub async fn edit(
        &self,
        state: &State,
        (connector, event_id): (&str, &str),
        changes: &[Change],
        dry_run: bool,
        decision: &Decision,
    ) -> Result<(), Failure> {
        let Some(letter) = state.dead_letter(connector, event_id) else { return Err(unknown_letter(connector, event_id)) };
        let edited = edit::edited(&letter.letter, changes).map_err(|error| Failure::new("usage.arguments", error.to_string()))?;
        if dry_run {
            return Ok(());
        }
        let _alone = self.alone.lock().await;
        let mut writer = self.writer(state, &decision.by).await?;
        in_time(edit::store(&mut writer, edited, changes, &decision.reason, &decision.by)).await??;
        Ok(())
    }

    /// Pauses a connector, in every process; answers who had done so before, if somebody had: then nothing is changed.
    ///
    /// # Errors
    /// Those of the control journal.
    pub async fn pause(&self, state: &State, connector: &str, decision: &Decision) -> Result<Option<Pause>, Failure> {
        if let Some(pause) = state.pause(connector) {
            return Ok(Some(pause.clone()));
        }
        self.decide(state, format!("connector {connector}: paused"), pause_of(connector, false, decision), decision).await?;
        Ok(None)
    }

    /// Has a connector go on: ends the pause where somebody paused it, else decides that it goes on with its tables as they are where one of them changed.
    /// The two are never decided at once. `may_accept`: whether the caller may decide the second.
    ///
    /// # Errors
    /// Those of the control journal, and that the caller may not.
    pub async fn resume(&self, state: &State, connector: &Connector, may_accept: bool, decision: &Decision) -> Result<Resumed, Failure> {
        if let Some(pause) = state.pause(&connector.name).cloned() {
            let what = format!("connector {}: resumed, paused by {} since {}", connector.name, pause.who(), pause.since());
            self.decide(state, what, pause_of(&connector.name, true, decision), decision).await?;
            return Ok(Resumed::Pause(pause));
        }
        if !delivery::is_undecided(connector, state) {
            return Ok(Resumed::Nothing);
        }
        if !may_accept {
            let what = "nobody paused it, a table has changed: that it goes on as it is decides the role admin";
            return Err(Failure::new("admin.forbidden", format!("connector {}: {what}", connector.name)));
        }
        Ok(Resumed::Tables(self.accept(state, connector, decision).await?))
    }

    /// Writes a decision down and stores the record that carries it out.
    async fn decide(&self, state: &State, what: String, record: Record, decision: &Decision) -> Result<(), Failure> {
        let _alone = self.alone.lock().await;
        let mut writer = self.writer(state, &decision.by).await?;
        Desk::audit(&mut writer, what, decision).await?;
        in_time(writer.store_proven(&record)).await??;
        Ok(())
    }

    /// Has a connector that waits because a table has changed go on with its tables as they are; answers tables and layouts.
    async fn accept(&self, state: &State, connector: &Connector, decision: &Decision) -> Result<Vec<(String, String)>, Failure> {
        let accepted = delivery::acceptances(connector, state, true, &decision.by);
        let tables = accepted.iter().map(|a| (a.table.clone(), a.layout.clone())).collect();
        let _alone = self.alone.lock().await;
        let mut writer = self.writer(state, &decision.by).await?;
        Desk::audit(&mut writer, format!("connector {}: goes on with its tables as they are", connector.name), decision).await?;
        for accepted in accepted {
            in_time(writer.store_proven(&Record::LayoutAccepted(accepted))).await??;
        }
        Ok(tables)
    }

    /// Asks for a replay that was planned; answers its number.
    ///
    /// # Errors
    /// Those of the control journal.
    pub async fn replay(
        &self,
        state: &State,
        connector: &str,
        parts: &[replay::Part],
        what: String,
        decision: &Decision,
    ) -> Result<u32, Failure> {
        let _alone = self.alone.lock().await;
        let mut writer = self.writer(state, &decision.by).await?;
        Ok(in_time(replay::request(&mut writer, connector, parts, what, &decision.reason, &decision.by)).await??)
    }

    /// Ends replays of a connector in these partitions; answers the request's number.
    ///
    /// # Errors
    /// Those of the control journal.
    pub async fn end_replay(&self, state: &State, connector: &str, partitions: &[u16], decision: &Decision) -> Result<u32, Failure> {
        let _alone = self.alone.lock().await;
        let mut writer = self.writer(state, &decision.by).await?;
        let what = format!("connector {connector}: replay ended");
        Ok(in_time(replay::cancel(&mut writer, connector, partitions, what, &decision.reason, &decision.by)).await??)
    }

    /// Where the control journal ends now: a state that has come so far knows what was decided.
    ///
    /// # Errors
    /// Those of the journal.
    pub async fn end(&self) -> Result<u64, Failure> {
        Ok(in_time(self.journal.bounds(Log::Control)).await??.map_or(0, |bounds| bounds.last.0))
    }
}

fn pause_of(connector: &str, over: bool, decision: &Decision) -> Record {
    let (reason, by) = (decision.reason.clone(), decision.by.clone());
    Record::Pause(Pause { connector: connector.to_owned(), over, reason, by, at_ms: now_ms() })
}

/// A letter that is not open (any more).
#[must_use]
pub fn unknown_letter(connector: &str, event_id: &str) -> Failure {
    let clean = |text: &str| text.escape_debug().take(200).collect::<String>();
    Failure::new("usage.arguments", format!("connector {} has no open dead letter of event {}", clean(connector), clean(event_id)))
}

/// Waits for the journal only so long.
///
/// # Errors
/// It did not answer.
pub async fn in_time<T>(work: impl Future<Output = T>) -> Result<T, Failure> {
    let late = || Failure::new("journal.unavailable", format!("the journal did not answer within {} s", ANSWER_WITHIN.as_secs()));
    tokio::time::timeout(ANSWER_WITHIN, work).await.map_err(|_| late())
}
