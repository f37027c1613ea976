//! What every stage does, in numbers: rate, time, queue and how much of the time it is at work, over the last seconds; and how
//! far each connector is behind, counted from what it has settled.
//!
//! ```text
//! receive ▸ decode ▸ encode ▸ publish ▸ confirm │ read ▸ map ▸ deliver ▸ settle
//!        capture, one task                      │   each connector, a task for each partition
//! ```
//!
//! Plain data, made by [`window`] from the loops' own counters. `status`, the metrics, the console and the advice all show these
//! and nothing of their own; what follows from them is decided in `bottleneck` and `scale`.

pub mod window;

use serde::{Deserialize, Serialize};

/// A stage of the pipeline, in the order in which an event passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StageName {
    /// Waiting for the server's bytes while it has more than has come.
    Receive,
    /// Reading its messages.
    Decode,
    /// Writing events and filling batches.
    Encode,
    /// Handing batches to the journal, most of it waiting for room.
    Publish,
    /// Waiting for the journal's confirms.
    Confirm,
    /// Waiting for the journal's entries.
    Read,
    /// Filtering, parsing and mapping.
    Map,
    /// Calling the target.
    Deliver,
    /// Booking what became of events, and storing dead letters.
    Settle,
}

impl StageName {
    /// The word in every surface.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            StageName::Receive => "receive",
            StageName::Decode => "decode",
            StageName::Encode => "encode",
            StageName::Publish => "publish",
            StageName::Confirm => "confirm",
            StageName::Read => "read",
            StageName::Map => "map",
            StageName::Deliver => "deliver",
            StageName::Settle => "settle",
        }
    }
}

/// One stage over the last seconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    /// Which.
    pub stage: StageName,
    /// Events a second that pass it.
    pub events_per_second: f64,
    /// Part of the time that it is at work, 0 to 1; of several workers the mean, unless it says otherwise.
    pub utilisation: f64,
    /// Seconds that one event, or one batch or call, takes; `None` while nothing passes.
    pub seconds: Option<f64>,
    /// The same at the 95th percentile, where it is measured.
    pub p95_seconds: Option<f64>,
    /// What waits before it.
    pub queue: u64,
    /// `events`, `entries` or `bytes`.
    pub queue_unit: String,
}

/// Capture.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CaptureFigures {
    /// What it is doing.
    pub doing: String,
    /// Receive, decode, encode, publish, confirm.
    pub stages: Vec<Stage>,
    /// Events written to the journal a second, rows of backfills too.
    pub events_per_second: f64,
    /// Events of one transaction, on average; `None` without any.
    pub events_per_transaction: Option<f64>,
    /// Bytes of changes received a second.
    pub received_bytes_per_second: f64,
    /// WAL that was not received yet.
    pub lag_bytes: u64,
    /// Bytes of transactions that came before they commit.
    pub spool_bytes: u64,
    /// Bytes handed to the journal and not confirmed.
    pub unconfirmed_bytes: u64,
    /// Events of the largest transaction that came by, as far as it has come.
    pub largest_transaction_events: u64,
    /// The slot, as the server showed it last.
    pub slot: Option<SlotFigures>,
}

/// The WAL that is kept for the slot.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SlotFigures {
    /// Kept bytes.
    pub retained_bytes: u64,
    /// Most that may be kept.
    pub ceiling_bytes: u64,
    /// Time until that is reached at the present rate; `None` while nothing is written.
    pub seconds_to_ceiling: Option<u64>,
    /// WAL that the whole server writes a second.
    pub wal_bytes_per_second: f64,
    /// What else holds the oldest WAL, where it is not us.
    pub pinned_by: Option<String>,
}

/// The journal.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct JournalFigures {
    /// Why it does not answer.
    pub away: Option<String>,
    /// Age of the oldest batch without a confirm.
    pub oldest_unconfirmed_seconds: Option<f64>,
    /// Data partitions.
    pub partitions: u16,
    /// Entries written a second, all partitions together; `None` until that was seen twice.
    pub entries_per_second: Option<f64>,
}

/// Parts of the lanes' time (0 to 1) spent waiting for leave to call, by what kept it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GateWaits {
    /// The budget of events a second.
    pub rate: f64,
    /// Pauses that the target asked for.
    pub pause: f64,
    /// Other calls in the air.
    pub calls: f64,
    /// A target that counts as away.
    pub breaker: f64,
}

/// What serving one event costs, as it was measured last; kept while nothing passes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Service {
    /// Lane time in calls for one event, seconds.
    pub call_seconds_per_event: f64,
    /// Processor time of the partition's task for one event, seconds.
    pub map_seconds_per_event: f64,
    /// Items of one call, on average.
    pub items_per_call: f64,
    /// Seconds of one call, on average.
    pub call_seconds: f64,
    /// What one more item adds to a call; `None` until calls of different sizes were seen.
    pub seconds_per_item: Option<f64>,
}

/// One connector, as seen from this process.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ConnectorFigures {
    /// Its name.
    pub name: String,
    /// What it is doing.
    pub doing: String,
    /// Who paused it, since when and why; `None` while nobody has.
    pub paused: Option<String>,
    /// Why it waits for a person; `None` while it does not.
    pub stopped: Option<String>,
    /// Read, map, deliver, settle, in the partitions of this process.
    pub stages: Vec<Stage>,
    /// Events for it that come a second, all partitions together; `None` until that was seen twice.
    pub arrival_per_second: Option<f64>,
    /// Events settled a second by this process.
    pub settled_per_second: f64,
    /// What one event costs; `None` before the first.
    pub service: Option<Service>,
    /// Lanes of one partition.
    pub lanes: u64,
    /// Most calls at once that this process may make by its file.
    pub calls_max: u64,
    /// The same as the target seems to bear.
    pub calls_allowed: u64,
    /// Calls in the air, on average.
    pub calls_in_air: f64,
    /// Most events in one call.
    pub batch_items: u64,
    /// Events a second that all processes together may send.
    pub rate_limit: Option<f64>,
    /// Where lanes wait for leave to call.
    pub waits: GateWaits,
    /// The target is away: it is only probed.
    pub away: bool,
    /// The target wants to be left alone for so long.
    pub paused_seconds: Option<f64>,
    /// Times a second that the target asked for a pause.
    pub pauses_per_second: f64,
    /// Calls that failed, of all.
    pub failed_ratio: f64,
    /// Age of an event when it takes effect, 95th percentile.
    pub end_to_end_p95_seconds: Option<f64>,
    /// Its partitions, those of other processes too.
    pub partitions: Vec<PartitionFigures>,
    /// Partitions of this process.
    pub owned: u16,
    /// Processes that deliver it.
    pub replicas: u16,
    /// Processors that a process can use.
    pub processors: u16,
    /// Events to be settled, all partitions together: entries, less what is not for this connector as far as that was seen.
    pub lag_events: u64,
    /// Bytes of the journal to be settled, about.
    pub lag_bytes: u64,
    /// Age of the oldest event that is read and not settled.
    pub lag_seconds: Option<f64>,
    /// Time until nothing is behind if it goes on like this; `None` when it would never be, or that is not known yet.
    pub drain_seconds: Option<f64>,
}

/// One partition of a connector.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PartitionFigures {
    /// Which.
    pub partition: u16,
    /// This process delivers it.
    pub owned: bool,
    /// Entries between what is settled and the newest.
    pub lag_entries: u64,
    /// The same in bytes, about; `None` before any was read.
    pub lag_bytes: Option<u64>,
    /// Age of the oldest event that is read and not settled.
    pub lag_seconds: Option<f64>,
    /// Time until retention deletes what is not settled; `None` when nothing is behind, or nothing is deleted.
    pub retention_seconds: Option<f64>,
    /// Nothing more is read until something is settled.
    pub full: bool,
    /// Part of the time that its task maps.
    pub mapping: f64,
    /// Part of the time that its task waits for the journal.
    pub reading: f64,
    /// Part of the time that its task books outcomes.
    pub settling: f64,
    /// Part of the time that its lanes are in calls, on average.
    pub lanes_busy: f64,
    /// The same of the busiest lane.
    pub busiest_lane: f64,
}

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Seconds that rates are taken over.
    pub window_seconds: f64,
    /// `None` when this process does not capture.
    pub capture: Option<CaptureFigures>,
    /// The journal.
    pub journal: JournalFigures,
    /// Connectors; none when this process does not deliver.
    pub connectors: Vec<ConnectorFigures>,
}

impl CaptureFigures {
    /// One of its stages.
    #[must_use]
    pub fn stage(&self, name: StageName) -> Option<&Stage> {
        self.stages.iter().find(|stage| stage.stage == name)
    }

    /// Part of the time that a stage is at work; 0 of one that is not there.
    #[must_use]
    pub fn utilisation(&self, name: StageName) -> f64 {
        self.stage(name).map_or(0.0, |stage| stage.utilisation)
    }
}

impl ConnectorFigures {
    /// One of its stages.
    #[must_use]
    pub fn stage(&self, name: StageName) -> Option<&Stage> {
        self.stages.iter().find(|stage| stage.stage == name)
    }

    /// Part of the time that a stage is at work; 0 of one that is not there.
    #[must_use]
    pub fn utilisation(&self, name: StageName) -> f64 {
        self.stage(name).map_or(0.0, |stage| stage.utilisation)
    }

    /// How long a call takes at the 95th percentile.
    #[must_use]
    pub fn call_p95(&self) -> Option<f64> {
        self.stage(StageName::Deliver).and_then(|stage| stage.p95_seconds)
    }
}
