//! A short look at the slot: what it keeps, how far it is acknowledged, who reads it. One connection, one statement.

use std::time::Duration;

use secrecy::SecretString;
use tillstream_schemas::Lsn;
use tokio::time::timeout;

use super::{session, sql_error};
use crate::capture::CaptureError;
use crate::capture::source::{Decoding, Looked, SlotLook};

/// A living server answers within milliseconds; a slower answer comes too late for whoever asks again in a second.
const LOOK_TIMEOUT: Duration = Duration::from_secs(10);

/// A slot whose reader has acknowledged so much more than it still keeps is held by something else.
const PINNED_BYTES: u64 = 32 << 20;

/// Everything at once. The application name of another role's session is hidden from us; ours is not. The oldest
/// transaction is told by its age in transactions: when it began is hidden too.
const LOOK: &str = "SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END::text, \
     (SELECT setting::int8 FROM pg_settings WHERE name = 'max_slot_wal_keep_size'), \
     s.slot_name IS NOT NULL, s.restart_lsn::text, s.confirmed_flush_lsn::text, coalesce(s.wal_status, ''), s.safe_wal_size, \
     (SELECT concat_ws(' ', nullif(a.application_name, ''), 'as ' || a.usename::text, 'from ' || coalesce(host(a.client_addr), 'a local socket')) \
      FROM pg_stat_activity a WHERE a.pid = s.active_pid), \
     (SELECT format('a transaction of process %s (%s)', a.pid, a.usename) \
      FROM pg_stat_activity a WHERE a.backend_xid IS NOT NULL AND a.pid IS DISTINCT FROM s.active_pid ORDER BY age(a.backend_xid) DESC LIMIT 1), \
     (SELECT format('a prepared transaction of %s', p.owner) FROM pg_prepared_xacts p ORDER BY p.prepared LIMIT 1), \
     d.spill_txns, d.spill_bytes, d.stream_txns, d.stream_bytes, d.total_txns, d.total_bytes \
     FROM (SELECT) one LEFT JOIN pg_replication_slots s ON s.slot_name = $1::text::name \
     LEFT JOIN pg_stat_replication_slots d ON d.slot_name = s.slot_name";

/// Looks at a slot and closes the connection again.
pub(crate) async fn look(url: &SecretString, application: &str, allow_weak_auth: bool, slot: &str) -> Result<Looked, CaptureError> {
    let looking = async {
        let client = session::open(url, application, allow_weak_auth).await?;
        let row = client.query_one(LOOK, &[&slot]).await.map_err(sql_error)?;
        let lsn = |column: usize| -> Option<Lsn> { row.get::<_, Option<String>>(column)?.parse().ok() };
        let bytes = |column: usize| row.get::<_, Option<i64>>(column).and_then(|n| u64::try_from(n).ok());
        let found: bool = row.get(2);
        let slot = found.then(|| {
            let (restart, confirmed) = (lsn(3), lsn(4));
            let pinned = matches!((restart, confirmed), (Some(r), Some(c)) if c.0.saturating_sub(r.0) > PINNED_BYTES);
            let pinned_by = row.get::<_, Option<String>>(9).or_else(|| row.get(8));
            SlotLook {
                restart,
                confirmed,
                wal_status: row.get(5),
                safe_bytes: bytes(6),
                holder: row.get(7),
                decoding: bytes(10).map(|spill_txns| Decoding {
                    spill_txns,
                    spill_bytes: bytes(11).unwrap_or_default(),
                    stream_txns: bytes(12).unwrap_or_default(),
                    stream_bytes: bytes(13).unwrap_or_default(),
                    total_txns: bytes(14).unwrap_or_default(),
                    total_bytes: bytes(15).unwrap_or_default(),
                }),
                pinned_by: pinned_by.filter(|_| pinned),
            }
        });
        Ok(Looked { wal: lsn(0).unwrap_or_default(), slot, keep_bytes: bytes(1).map(|mb| mb << 20) })
    };
    let late = || CaptureError::Unavailable(format!("the server did not answer within {} s", LOOK_TIMEOUT.as_secs()));
    timeout(LOOK_TIMEOUT, looking).await.map_err(|_| late())?
}
