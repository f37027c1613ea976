//! Every metric: name, type, labels and meaning. `ops::metrics` gives them values; a name stands nowhere else.

/// How a metric behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Rises only; the exposition adds `_total`.
    Counter,
    /// May go either way.
    Gauge,
    /// Times, on the ladder of [`times`](super::times).
    Histogram,
}

/// One metric.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Name without `_total`, base units last.
    pub name: &'static str,
    /// Counter, gauge or histogram.
    pub kind: Kind,
    /// Labels beside `pipeline`.
    pub labels: &'static [&'static str],
    /// One sentence.
    pub help: &'static str,
}

macro_rules! metrics {
    ($($constant:ident $kind:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        $(#[doc = $help] pub const $constant: Metric = Metric { name: $name, kind: Kind::$kind, labels: &[$($label),*], help: $help };)*

        /// All of them, in the order of the exposition.
        pub const ALL: &[Metric] = &[$($constant),*];
    };
}

metrics! {
    BUILD_INFO Gauge "tillstream_build_info" ["version"] "Always 1; the version is a label";
    UPTIME Gauge "tillstream_uptime_seconds" [] "Time since the process began";
    PROCESS_MEMORY Gauge "tillstream_process_resident_memory_bytes" [] "Memory that the process has in use";
    PROCESS_CPU Counter "tillstream_process_cpu_seconds" [] "Processor time of the process";
    HEALTH_STATE Gauge "tillstream_health_state" ["entity", "state"] "1 for the state of the source, the journal and each connector: healthy, catching_up, paused, unknown, degraded, blocked or failed";
    BOTTLENECK Gauge "tillstream_bottleneck" ["entity", "stage", "limit"] "1 for what limits the pipeline: stage and entity are none while nothing does";
    STAGE_UTILIZATION Gauge "tillstream_stage_utilization_ratio" ["entity", "stage"] "Part of the last ten seconds that a stage of capture or of a connector was at work, 0 to 1";
    STAGE_BUSY Counter "tillstream_stage_busy_seconds" ["entity", "stage"] "Time that a stage of capture or of a connector was at work, all of its workers together";
    STAGE_QUEUE Gauge "tillstream_stage_queue" ["entity", "stage", "unit"] "What waits before a stage, in events, entries or bytes";
    CAPTURE_UP Gauge "tillstream_capture_up" [] "1 while bytes are moving or could, else 0";
    CAPTURE_STATE Gauge "tillstream_capture_state" ["state"] "1 for the state capture is in";
    CAPTURE_SESSIONS Counter "tillstream_capture_sessions" [] "Replication sessions begun";
    CAPTURE_TOKEN Gauge "tillstream_capture_token" [] "Number of the capture run; each session takes a higher one";
    CAPTURE_ERROR Gauge "tillstream_capture_error" ["code"] "1 for the code of the error that keeps capture from streaming";
    CAPTURE_ACK_AGE Gauge "tillstream_capture_ack_age_seconds" [] "Time since PostgreSQL was last told that it may forget WAL; 0 while there is none to forget";
    CAPTURE_COMMIT_TO_PUBLISH Histogram "tillstream_capture_commit_to_publish_seconds" [] "From a commit at the source until the journal has confirmed it; one transaction at a time is measured";
    PUBLISH_CONFIRM Histogram "tillstream_publish_confirm_seconds" [] "From handing a batch to the journal until its confirm; one batch at a time is measured";
    CAPTURE_TRANSACTIONS Counter "tillstream_capture_transactions" [] "Transactions received";
    CAPTURE_EVENTS Counter "tillstream_capture_events" [] "Change events written to the journal";
    CAPTURE_READS Counter "tillstream_capture_reads" [] "Rows of backfills written to the journal";
    CAPTURE_SKIPPED Counter "tillstream_capture_skipped" [] "Events that the journal already had";
    CAPTURE_DEAD_LETTERS Counter "tillstream_capture_dead_letters" [] "Changes above the row limit, stored as dead letters";
    CAPTURE_RECEIVED_BYTES Counter "tillstream_capture_received_bytes" [] "Bytes of replication messages received";
    CAPTURE_RECEIVED_LSN Gauge "tillstream_capture_received_lsn" [] "End of what was received; exact up to 2^53";
    CAPTURE_ACKNOWLEDGED_LSN Gauge "tillstream_capture_acknowledged_lsn" [] "What PostgreSQL may forget; exact up to 2^53";
    CAPTURE_SERVER_LSN Gauge "tillstream_capture_server_lsn" [] "The server's position as it last said; exact up to 2^53";
    CAPTURE_UNACKNOWLEDGED_WAL Gauge "tillstream_capture_unacknowledged_wal_bytes" [] "WAL between what is acknowledged and the server's position";
    CAPTURE_RETAINED_WAL Gauge "tillstream_capture_retained_wal_bytes" [] "WAL that the server keeps for the slot: from its restart_lsn to the server's position";
    CAPTURE_WAL_CEILING Gauge "tillstream_capture_wal_ceiling_bytes" [] "WAL that may be kept: wal_budget or max_slot_wal_keep_size, whichever is lower";
    CAPTURE_WAL_TIME_LEFT Gauge "tillstream_capture_wal_ceiling_seconds" [] "Time until the ceiling is reached at the present rate if nothing is released";
    CAPTURE_WAL_PRESSURE Gauge "tillstream_capture_wal_pressure" ["level"] "1 for how the kept WAL stands to its ceiling: calm, warn, page or shed";
    CAPTURE_DECODED_TRANSACTIONS Counter "tillstream_capture_decoded_transactions" ["how"] "Transactions that the server decoded for the slot: all, spilled to its disk, streamed before their commit";
    CAPTURE_DECODED_BYTES Counter "tillstream_capture_decoded_bytes" ["how"] "What the server decoded for the slot: all, spilled to its disk, streamed before the commit";
    CAPTURE_SPOOL_BYTES Gauge "tillstream_capture_spool_bytes" [] "Bytes of transactions that came before they commit and wait for it";
    CAPTURE_LAG Gauge "tillstream_capture_lag_bytes" [] "WAL between what was received and the server's position";
    CAPTURE_COVERAGE_GAPS Gauge "tillstream_capture_coverage_gaps" ["code"] "Tables, columns and operations that are not captured, or not as configured, by code";
    DOCTOR_FINDINGS Gauge "tillstream_doctor_findings" ["code", "severity"] "What the doctor found in the source at its last look and somebody should mend, by code and severity (fail, warn)";
    CAPTURE_BUSY Counter "tillstream_capture_busy_seconds" ["in"] "Time of the capture task by what it did";
    JOURNAL_APPENDED_BYTES Counter "tillstream_journal_appended_bytes" [] "Bytes of batches handed to the journal by capture";
    JOURNAL_BATCHES Counter "tillstream_journal_batches" [] "Batches handed to the journal by capture";
    JOURNAL_UNCONFIRMED_BYTES Gauge "tillstream_journal_unconfirmed_bytes" [] "Bytes handed over and not confirmed";
    JOURNAL_LAST_OFFSET Gauge "tillstream_journal_last_offset" ["partition"] "Offset of the newest confirmed entry";
    JOURNAL_LAG_ENTRIES Gauge "tillstream_journal_lag_entries" ["connector", "partition"] "Entries between what a connector has settled and the newest";
    JOURNAL_LAG_BYTES Gauge "tillstream_journal_lag_bytes" ["connector", "partition"] "Bytes of entries between what a connector has settled and the newest, by the size of those that were read";
    JOURNAL_LAG_SECONDS Gauge "tillstream_journal_lag_seconds" ["connector", "partition"] "Age of the oldest event that was read and is not settled, by its commit; while somebody has paused the connector, of the oldest entry that waits";
    JOURNAL_RETENTION_LEFT Gauge "tillstream_journal_seconds_to_retention_loss" ["connector", "partition"] "Time until retention deletes what a connector has not settled; absent while nothing waits";
    DELIVERY_UP Gauge "tillstream_delivery_up" ["connector"] "1 while the connector delivers or waits for events, else 0";
    DELIVERY_STATE Gauge "tillstream_delivery_state" ["connector", "state"] "1 for the state the connector is in";
    DELIVERY_PAUSED Gauge "tillstream_delivery_paused" ["connector"] "1 while somebody has paused the connector, else 0";
    DELIVERY_EVENTS Counter "tillstream_delivery_events" ["connector", "outcome"] "Events by outcome: applied, duplicate, dead_lettered, redriven, filtered (`when` says no), superseded";
    DELIVERY_RETRIES Counter "tillstream_delivery_retries" ["connector"] "Attempts at single events that are repeated";
    DELIVERY_CALLS Counter "tillstream_delivery_calls" ["connector", "outcome"] "Calls of the target: ok or failed as a whole";
    DELIVERY_PAUSES Counter "tillstream_delivery_pauses" ["connector"] "Pauses that the target asked for";
    DELIVERY_COALESCED Counter "tillstream_delivery_coalesced" ["connector"] "Events that came in one call with a newer event of their row";
    DELIVERY_BREAKER Gauge "tillstream_delivery_breaker_open" ["connector"] "1 while the target counts as away and is only probed, else 0";
    DELIVERY_BREAKER_OPENED Counter "tillstream_delivery_breaker_opened" ["connector"] "Times that the target was found to be away";
    DELIVERY_CALLS_ALLOWED Gauge "tillstream_delivery_calls_allowed" ["connector"] "Calls that may be in the air at once; fewer than the lanes while the target is slow or asks for pauses";
    DELIVERY_REQUEST Histogram "tillstream_delivery_request_seconds" ["connector", "outcome"] "Calls of the target: ok, or failed as a whole";
    DELIVERY_END_TO_END Histogram "tillstream_delivery_end_to_end_seconds" ["connector"] "From an event's commit at the source to its effect; each event of a call counts as its oldest";
    DELIVERY_UTILIZATION Gauge "tillstream_delivery_utilization_ratio" ["connector"] "Calls in the air, of those that there may be, 0 to 1";
    DELIVERY_RATE_LIMITED Counter "tillstream_delivery_rate_limited_seconds" ["connector", "by"] "Lane time spent waiting for the budget of events (rate) or in pauses that the target asked for (pause)";
    DELIVERY_LAG_EVENTS Gauge "tillstream_delivery_lag_events" ["connector"] "Events to be settled in all partitions, those of other processes too";
    DELIVERY_DRAIN Gauge "tillstream_delivery_drain_seconds" ["connector"] "Time until nothing waits if it goes on like this; a day when it never would";
    DELIVERY_REPLICAS Gauge "tillstream_delivery_replicas" ["connector"] "Processes that deliver the connector";
    DELIVERY_RECOMMENDED_REPLICAS Gauge "tillstream_delivery_recommended_replicas" ["connector"] "Processes that would be right for what comes and waits, as `status --scale-advice` says";
    DELIVERY_USEFUL_REPLICAS Gauge "tillstream_delivery_useful_replicas" ["connector"] "Processes beyond which more change nothing";
    DELIVERY_BUSY Counter "tillstream_delivery_busy_seconds" ["connector"] "Time spent in calls, all lanes together";
    DELIVERY_BYTES Counter "tillstream_delivery_bytes" ["connector"] "Body bytes of applied and duplicate events";
    DELIVERY_IN_FLIGHT Gauge "tillstream_delivery_inflight" ["connector"] "Events under way";
    DELIVERY_LAG Gauge "tillstream_delivery_lag_seconds" ["connector"] "Age of the oldest event that is not settled, by its commit";
    DELIVERY_FENCED Counter "tillstream_delivery_fenced" ["connector"] "Entries of overtaken capture runs that were dropped";
    DELIVERY_REPEATS Counter "tillstream_delivery_repeats" ["connector"] "Repeated entries that were dropped";
    CANARY_SECONDS Gauge "tillstream_canary_seconds" ["entity", "stage"] "From the sending of the last canary until it came by the stream and was confirmed by the journal (entity capture), was read and was settled (entity is a connector; its slowest partition)";
    CANARY_AGE Gauge "tillstream_canary_age_seconds" ["entity"] "Time since the sending of the last canary that the journal has confirmed (entity capture) or a connector has settled; absent where none is sent";
    BACKFILL_ROWS Gauge "tillstream_backfill_rows" ["table"] "Rows of the table that the initial load has stored";
    BACKFILL_FINISHED Gauge "tillstream_backfill_finished" [] "1 once the initial load has nothing left to read";
    BACKFILL_RUNNING Gauge "tillstream_backfill_running" [] "Backfills that are not over, the initial load included";
    BACKFILL_RATIO Gauge "tillstream_backfill_progress_ratio" ["id"] "How much of a running backfill is done, 0 to 1, by the server's estimates";
    BACKFILL_ETA Gauge "tillstream_backfill_eta_seconds" ["id"] "Time until a running backfill is done, if it goes on like this";
    BACKFILL_THROTTLED Gauge "tillstream_backfill_throttled_seconds" ["cause"] "Time that readers of backfills waited, by cause";
    BACKFILL_LAST_SUCCESS Gauge "tillstream_backfill_last_success_timestamp_seconds" ["table"] "When a backfill of the table was done last, since the Unix epoch";
    DEAD_LETTERS Gauge "tillstream_dead_letters" ["connector"] "Open dead letters";
    DEAD_LETTER_AGE Gauge "tillstream_dead_letter_oldest_age_seconds" ["connector"] "Time since the oldest open dead letter was stored; 0 without one";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_follow_the_rules() {
        for (i, metric) in ALL.iter().enumerate() {
            assert!(metric.name.starts_with("tillstream_") && !metric.name.ends_with("_total"), "{}", metric.name);
            assert!(metric.name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{}", metric.name);
            assert!(ALL[..i].iter().all(|m| m.name != metric.name), "{} stands here twice", metric.name);
            assert!(!metric.help.ends_with('.'), "{}: the exposition adds the period", metric.name);
        }
    }
}
