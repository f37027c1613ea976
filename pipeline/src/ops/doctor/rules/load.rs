//! What runs on the server: open transactions, ages, sizes.

use super::{Facts, Findings};
use crate::config::units;
use crate::ops::doctor::finding::Severity;

/// The server stops taking transactions at about 2.1 thousand million; vacuum presses from 1.6 on.
const FROZEN_WARN: i64 = 1_000_000_000;
const FROZEN_FAIL: i64 = 1_600_000_000;

/// Reads of the subtransaction log stay near zero while no transaction has more than 64 of them.
const SUBTRANSACTION_READS: i64 = 10_000;

/// A backfill of a larger table takes hours and should be planned.
const HUGE: u64 = 50 << 30;

pub(super) fn judge(found: &mut Findings, facts: &Facts) {
    if facts.long_transactions.is_empty() {
        found.ok("capture.long_transaction", "no transaction that this role sees is older than 15 minutes");
    }
    for (pid, application, seconds) in &facts.long_transactions {
        found.warn(
            "capture.long_transaction",
            format!("a transaction has been open for {:.0} min (pid {pid}, {application})", seconds / 60.0),
            "WAL since its begin is kept, creating a slot waits for its end, and vacuum cannot clean up",
            format!("end it where it was begun, or SELECT pg_terminate_backend({pid});"),
        );
    }
    if let Some(state) = &facts.state {
        if state.prepared > 0 {
            found.warn(
                "capture.prepared_transaction",
                format!("{} prepared transactions are older than 15 minutes", state.prepared),
                "WAL since then is kept, their locks are held, and creating a slot waits for them",
                "COMMIT PREPARED or ROLLBACK PREPARED each of pg_prepared_xacts",
            );
        } else {
            found.ok("capture.prepared_transaction", "no prepared transaction was forgotten");
        }
        let millions = state.frozen_age / 1_000_000;
        if state.frozen_age > FROZEN_WARN {
            found.add(
                if state.frozen_age > FROZEN_FAIL { Severity::Fail } else { Severity::Warn },
                "capture.wraparound_near",
                format!("the oldest rows are {millions} million transactions old"),
                "at about 2,100 million the server takes no transaction any more, and the point of sale stops",
                "see what keeps vacuum from freezing: slots, prepared and long transactions; then VACUUM (FREEZE) the oldest tables",
            );
        } else {
            found.ok("capture.wraparound_near", format!("the oldest rows are {millions} million transactions old"));
        }
        if state.subtransaction_reads > SUBTRANSACTION_READS {
            found.warn(
                "capture.subtransactions",
                format!("{} reads of the subtransaction log", state.subtransaction_reads),
                "transactions with more than 64 savepoints make every snapshot dearer, and decoding slower",
                "see which part of the application sets a savepoint for each row (exception blocks in loops)",
            );
        } else {
            found.ok("capture.subtransactions", "savepoints are few");
        }
    }
    let pages = |oid: u32| facts.grants.get(&oid).map_or(0, |g| u64::try_from(g.pages).unwrap_or(0));
    for table in facts.tables.iter().filter_map(|(_, t)| t.as_ref()).filter(|t| pages(t.oid) * 8192 > HUGE) {
        found.note(
            "capture.table_huge",
            format!("{} has {}", table.qualified(), units::show_size(pages(table.oid) * 8192)),
            "an initial load or backfill of it takes hours",
            "plan it for quiet hours with --max-rate; load only what targets need with --where",
        );
    }
}
