//! Whether the server that answers continues the history in the journal. Pure: facts in, verdict out.
//!
//! A log position alone identifies nothing: a restored, promoted or replaced server counts on from an earlier moment. What
//! identifies a history is the system identifier, the timeline, and where each earlier timeline ended. Every case ends in
//! *continue* or in a coded error that names the command which makes a new beginning.

use tillstream_schemas::{Lineage, Lsn, Position};

use super::CaptureError;
use super::source::{Looked, SystemIdentity};
use crate::control::Session;

/// What the journal knows of the history that it holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known<'a> {
    pub(super) pipeline: &'a str,
    pub(super) slot: &'a str,
    pub(super) epoch: u32,
    /// The run that wrote last.
    pub(super) last: Option<&'a Session>,
    /// The highest position stored.
    pub(super) stored: Position,
}

/// Everything that decides whether capture can go on, for people who look before they begin a new epoch.
#[derive(Debug)]
pub struct Standing {
    /// The epoch in force.
    pub epoch: u32,
    /// The run that wrote last.
    pub last: Option<Session>,
    /// The highest position stored.
    pub stored: Position,
    /// The highest position that PostgreSQL may have been told to forget.
    pub released: Option<Lsn>,
    /// The server that answers; an error when none does.
    pub server: Result<(SystemIdentity, Looked), CaptureError>,
    /// What a start would find, as far as it can be told without taking the slot.
    pub verdict: Result<(), CaptureError>,
}

impl Known<'_> {
    /// The run that wrote last, if it worked in the present epoch.
    fn present(&self) -> Option<&Session> {
        self.last.filter(|last| last.epoch >= self.epoch)
    }

    /// Where the server left the timeline that the last run read; `None` when it is still on it.
    fn switch(&self, identity: &SystemIdentity) -> Option<Lsn> {
        let timeline = self.present()?.timeline;
        identity.switches.iter().find(|(ended, _)| *ended == timeline).map(|(_, at)| *at)
    }

    /// Compares the server with what the journal holds.
    pub(super) fn check(&self, identity: &SystemIdentity, lineage: Lineage) -> Result<(), CaptureError> {
        if let Some(last) = self.present() {
            self.check_lineage(last, identity, lineage)?;
            self.check_timeline(last, identity)?;
        }
        if self.stored.epoch == self.epoch && identity.wal_flush < self.stored.commit_lsn {
            let what = format!(
                "the server's WAL ends at {}, the journal holds a transaction that committed at {}",
                identity.wal_flush, self.stored.commit_lsn
            );
            if identity.standby {
                return Err(CaptureError::Unavailable(format!("{what}: the standby has not replayed it yet")));
            }
            return Err(self.halt(
                "capture.source_regressed",
                what,
                "the database was restored to an earlier moment, so later changes will reuse positions that are stored already",
            ));
        }
        Ok(())
    }

    fn check_lineage(&self, last: &Session, identity: &SystemIdentity, lineage: Lineage) -> Result<(), CaptureError> {
        if last.lineage == lineage {
            return Ok(());
        }
        let (was, is) = if last.system_id == identity.system_id {
            (format!("slot \"{}\"", last.slot), format!("slot \"{}\"", self.slot))
        } else {
            (format!("system {}", last.system_id), format!("system {}", identity.system_id))
        };
        Err(self.halt(
            "capture.source_changed",
            format!("the journal was written from {was}, the server answers as {is}"),
            "positions of two histories cannot be compared: what is skipped as stored could be something else",
        ))
    }

    fn check_timeline(&self, last: &Session, identity: &SystemIdentity) -> Result<(), CaptureError> {
        if identity.timeline == last.timeline {
            return Ok(());
        }
        if identity.timeline < last.timeline {
            return Err(self.halt(
                "capture.source_regressed",
                format!("the server is on timeline {}, the journal was written from timeline {}", identity.timeline, last.timeline),
                "a primary that was replaced by a promotion came back, or an old backup answers",
            ));
        }
        let Some(switch) = self.switch(identity) else {
            return Err(self.halt(
                "capture.source_diverged",
                format!("the server's timeline {} does not descend from timeline {} of the journal", identity.timeline, last.timeline),
                "another branch of the database's history answers",
            ));
        };
        if self.stored.epoch == self.epoch && self.stored.commit_lsn >= switch {
            return Err(self.halt(
                "capture.source_diverged",
                format!(
                    "the server left timeline {} at {switch}, the journal holds a transaction that committed at {} on it",
                    last.timeline, self.stored.commit_lsn
                ),
                "what was captured beyond that point never happened on the server that answers now: a standby was promoted before it had \
                 it, or a backup was restored",
            ));
        }
        tracing::info!(from = last.timeline, to = identity.timeline, %switch, stored = %self.stored, "the server was promoted; its history holds all that is stored");
        Ok(())
    }

    /// Compares what the slot has confirmed with what it was ever told.
    pub(super) fn check_slot(&self, identity: &SystemIdentity, confirmed: Lsn, released: Option<Lsn>) -> Result<(), CaptureError> {
        let (Some(_), Some(released)) = (self.present(), released) else { return Ok(()) };
        // A slot that followed a promotion cannot stand beyond the point where the histories part.
        let bound = self.switch(identity).map_or(released, |switch| switch.min(released));
        if confirmed <= bound {
            return Ok(());
        }
        Err(self.halt(
            "capture.slot_advanced",
            format!("slot \"{}\" has confirmed {confirmed}, this pipeline acknowledged {bound} at most", self.slot),
            "it was dropped and created again, or advanced by hand: changes between these positions are gone from the stream",
        ))
    }

    /// An error that only a person can decide on, with the command that makes a new beginning.
    fn halt(&self, code: &'static str, what: String, why: &str) -> CaptureError {
        CaptureError::Definite {
            code,
            what,
            why: why.to_owned(),
            fix: format!(
                "connect to the server and slot that the journal was written from; or, if the change is wanted, begin a new epoch, in which \
                 the tables are loaded again:\n{}",
                bump_command(self.pipeline, self.epoch)
            ),
        }
    }
}

/// The command that begins the next epoch.
pub(super) fn bump_command(pipeline: &str, epoch: u32) -> String {
    format!("tillstream epoch bump --confirm \"{}\" --reason \"…\"", confirmation(pipeline, epoch.saturating_add(1)))
}

/// What has to be typed to begin an epoch.
#[must_use]
pub fn confirmation(pipeline: &str, epoch: u32) -> String {
    format!("{pipeline} epoch {epoch}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINEAGE: Lineage = Lineage(5);

    fn session(timeline: u32) -> Session {
        Session {
            token: 3,
            nonce: "n".to_owned(),
            owner: "host:1".to_owned(),
            pipeline: "shop".to_owned(),
            source: "pos".to_owned(),
            system_id: 9,
            timeline,
            slot: "s".to_owned(),
            epoch: 2,
            lineage: LINEAGE,
            partitioning: None,
            confirmed: None,
            at_ms: 1,
        }
    }

    fn server(timeline: u32, wal: u64, switches: &[(u32, u64)]) -> SystemIdentity {
        let switches = switches.iter().map(|(t, at)| (*t, Lsn(*at))).collect();
        SystemIdentity { system_id: 9, timeline, wal_flush: Lsn(wal), switches, ..SystemIdentity::default() }
    }

    fn known(last: Option<&Session>, stored: u64) -> Known<'_> {
        Known { pipeline: "shop", slot: "s", epoch: 2, last, stored: Position::new(2, Lsn(stored), 0) }
    }

    fn code(result: Result<(), CaptureError>) -> &'static str {
        match result {
            Ok(()) => "continue",
            Err(error) => {
                assert!(error.is_transient() || format!("{error:?}").contains("epoch bump --confirm \\\"shop epoch 3\\\""), "{error:?}");
                error.code()
            }
        }
    }

    #[test]
    fn each_history_continues_or_halts() {
        let two = session(2);
        for (server, stored, expected) in [
            (server(2, 100, &[(1, 10)]), 90, "continue"),
            (server(2, 80, &[(1, 10)]), 90, "capture.source_regressed"),
            (server(1, 100, &[]), 90, "capture.source_regressed"),
            (server(3, 100, &[(1, 10), (2, 95)]), 90, "continue"),
            (server(3, 100, &[(1, 10), (2, 90)]), 90, "capture.source_diverged"),
            (server(3, 100, &[(1, 10)]), 90, "capture.source_diverged"),
            (server(4, 100, &[(1, 10), (2, 95), (3, 97)]), 90, "continue"),
        ] {
            assert_eq!(code(known(Some(&two), stored).check(&server, LINEAGE)), expected, "{server:?}");
        }
        assert_eq!(code(known(Some(&two), 90).check(&server(2, 100, &[]), Lineage(6))), "capture.source_changed");
        let standby = SystemIdentity { standby: true, ..server(2, 80, &[]) };
        assert_eq!(code(known(Some(&two), 90).check(&standby, LINEAGE)), "capture.source_unavailable");
    }

    #[test]
    fn an_earlier_epoch_is_not_compared() {
        let earlier = Session { epoch: 1, ..session(2) };
        let known = Known { stored: Position::new(1, Lsn(90), 0), ..known(Some(&earlier), 0) };
        assert_eq!(code(known.check(&server(1, 5, &[]), Lineage(6))), "continue");
        assert_eq!(code(known.check_slot(&server(1, 5, &[]), Lsn(50), None)), "continue");
    }

    #[test]
    fn a_slot_beyond_what_was_acknowledged_was_moved_by_somebody() {
        let one = session(1);
        let known = known(Some(&one), 40);
        for (server, confirmed, released, expected) in [
            (server(1, 100, &[]), 50, Some(50), "continue"),
            (server(1, 100, &[]), 51, Some(50), "capture.slot_advanced"),
            (server(1, 100, &[]), 51, None, "continue"),
            (server(2, 100, &[(1, 45)]), 45, Some(50), "continue"),
            (server(2, 100, &[(1, 45)]), 48, Some(50), "capture.slot_advanced"),
        ] {
            assert_eq!(code(known.check_slot(&server, Lsn(confirmed), released.map(Lsn))), expected, "{server:?} {confirmed}");
        }
    }
}
