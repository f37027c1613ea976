//! Records of backfill jobs: what was asked for, and where each job stands.

use serde::{Deserialize, Serialize};

use super::record::KeyTexts;

/// What a backfill reads and for whom. Two requests under one id have to agree in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BackfillSpec {
    /// Tables, as `public.orders`.
    pub tables: Vec<String>,
    /// Only rows for which this SQL expression is true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    /// Only rows changed since: a timestamp, or `last-success`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// Only these columns beside the key; empty means all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub columns: Vec<String>,
    /// Only the rows with these keys; a key that is not there is written as a deletion.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<KeyTexts>,
    /// The only connector that takes the rows; `None` means all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connector: Option<String>,
}

/// How a backfill is run; the last request's counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BackfillOptions {
    /// Most rows a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_rate: Option<u64>,
    /// Pauses itself at this moment, milliseconds since the Unix epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<i64>,
    /// Reads only within this part of the day, as `02:00-05:00`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<String>,
    /// Time zone of the window; UTC when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timezone: Option<String>,
    /// Reads although no index serves the filter.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub allow_scan: bool,
    /// Lets the filter hold a sub-select.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub allow_subquery: bool,
    /// Takes no notice of the brakes and the peak calendar.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub no_brakes: bool,
}

/// Where a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackfillState {
    /// It reads, or waits for its turn.
    Running,
    /// It was asked to stop for now; its progress is kept.
    Paused,
    /// Everything is read and stored.
    Done,
    /// Something has to be mended; its progress is kept.
    Failed,
    /// It was given up.
    Cancelled,
}

impl BackfillState {
    /// The word in every surface.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            BackfillState::Running => "running",
            BackfillState::Paused => "paused",
            BackfillState::Done => "done",
            BackfillState::Failed => "failed",
            BackfillState::Cancelled => "cancelled",
        }
    }

    /// Whether it goes on only when somebody asks.
    #[must_use]
    pub fn is_over(self) -> bool {
        self != BackfillState::Running
    }
}

/// A backfill job; the last record under an id counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackfillJob {
    /// What people call it.
    pub id: String,
    /// Its name in event ids and cursors: `[a-z0-9_]+`.
    pub job: String,
    /// The epoch in which it reads.
    pub epoch: u32,
    /// How often it was started or went on after a session's end: the attempt of its chunks.
    pub run: u32,
    /// What it reads.
    pub spec: BackfillSpec,
    /// How.
    pub options: BackfillOptions,
    /// Where it stands.
    pub state: BackfillState,
    /// Code of what paused or ended it before it was done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// What that means.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// Who asked last.
    pub by: String,
    /// The source's clock when the job first began: where `last-success` of a later one begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_time: Option<String>,
    /// What `since` came to mean.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// Rows stored.
    pub rows: u64,
    /// When it first began.
    pub started_at_ms: i64,
    /// When it was done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at_ms: Option<i64>,
    /// When this was written.
    pub at_ms: i64,
}
