//! What the server says when it refuses, and what that means for capture.
//!
//! Decisions rest on SQLSTATE; where one code covers several faults, the English text decides, and a server that speaks
//! another language gets the more general error.

use tokio_postgres::error::SqlState;

use crate::capture::CaptureError;
use crate::capture::catalog::sql;

/// An ErrorResponse.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServerError {
    /// SQLSTATE.
    pub(crate) code: SqlState,
    /// Primary message. May quote a value: show it through [`ServerError::describe`] only.
    pub(crate) message: String,
}

/// What was asked of the server.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Asked<'a> {
    /// To let us in.
    Login { host: &'a str, user: &'a str, database: &'a str },
    /// To stream from a slot.
    Stream { slot: &'a str, publication: &'a str },
    /// Ordinary SQL.
    Sql,
}

impl ServerError {
    /// Reads the fields of an ErrorResponse body. Damaged bytes make an error with an unknown code, never a panic.
    pub(crate) fn parse(body: &[u8]) -> ServerError {
        let (mut code, mut message) = ("XX000", String::new());
        for field in body.split(|b| *b == 0) {
            match field.split_first() {
                Some((b'C', rest)) => code = std::str::from_utf8(rest).unwrap_or(code),
                Some((b'M', rest)) => message = String::from_utf8_lossy(rest).chars().take(300).collect(),
                _ => {}
            }
        }
        ServerError { code: SqlState::from_code(code), message }
    }

    /// The message with its code; without the message where the class of error quotes data.
    pub(crate) fn describe(&self) -> String {
        match self.code.code().get(..2) {
            Some("22" | "23") => format!("SQLSTATE {}", self.code.code()),
            _ => format!("{} (SQLSTATE {})", self.message, self.code.code()),
        }
    }

    fn says(&self, text: &str) -> bool {
        self.message.contains(text)
    }

    /// The process that holds a slot: the last number of "is active for PID n".
    fn pid(&self) -> i32 {
        let digits = self.message.rsplit(|c: char| !c.is_ascii_digit()).find(|t| !t.is_empty());
        digits.and_then(|d| d.parse().ok()).unwrap_or(0)
    }

    /// What it means. Unknown errors are transient.
    pub(crate) fn explain(&self, asked: Asked<'_>) -> CaptureError {
        if let Some(error) = match asked {
            Asked::Login { host, user, database } => self.explain_login(host, user, database),
            Asked::Stream { slot, publication } => self.explain_stream(slot, publication),
            Asked::Sql => None,
        } {
            return error;
        }
        if self.code == SqlState::CANNOT_CONNECT_NOW {
            return CaptureError::NotAccepting(self.describe());
        }
        if self.code == SqlState::TOO_MANY_CONNECTIONS {
            let knob = if self.says("max_wal_senders") { "max_wal_senders" } else { "max_connections, or the role's CONNECTION LIMIT" };
            return CaptureError::Unavailable(format!("no connection is free: {}; raise {knob}", self.describe()));
        }
        if self.code == SqlState::INSUFFICIENT_PRIVILEGE {
            return definite(
                "capture.not_permitted",
                self.describe(),
                "the role lacks a right that capture needs",
                "run `tillstream setup --dry-run` and apply what it prints; the streaming role needs LOGIN and REPLICATION".to_owned(),
            );
        }
        CaptureError::Unavailable(self.describe())
    }

    fn explain_login(&self, host: &str, user: &str, database: &str) -> Option<CaptureError> {
        if self.code == SqlState::INVALID_PASSWORD {
            return Some(refused(
                format!("{host} refuses the password of \"{user}\""),
                format!("check the password in the source's URL; set one with \\password {user} in psql"),
            ));
        }
        if self.code == SqlState::INVALID_AUTHORIZATION_SPECIFICATION {
            let fix = if self.says("no encryption") || self.says("SSL off") {
                "use sslmode=verify-full in the source's URL, or allow an unencrypted connection in pg_hba.conf".to_owned()
            } else if self.says("pg_hba") {
                format!("add to pg_hba.conf and reload:  hostssl {database} {user} <our address> scram-sha-256")
            } else {
                format!("create the role \"{user}\" with LOGIN and REPLICATION: `tillstream setup --dry-run` prints the statement")
            };
            return Some(refused(format!("{host}: {}", self.describe()), fix));
        }
        if self.code == SqlState::INVALID_CATALOG_NAME {
            return Some(definite(
                "capture.database_missing",
                format!("{host}: {}", self.describe()),
                "the slot and the publication live in one database",
                "name the point-of-sale database at the end of the source's URL".to_owned(),
            ));
        }
        if self.code == SqlState::PROTOCOL_VIOLATION && self.says("unsupported startup parameter") {
            return Some(definite(
                "capture.pooler",
                format!("{host}: {}", self.describe()),
                "a connection pooler answers instead of PostgreSQL; replication and pinned settings do not pass it",
                "point the source's URL at the database server itself, not at the pooler".to_owned(),
            ));
        }
        None
    }

    fn explain_stream(&self, slot: &str, publication: &str) -> Option<CaptureError> {
        if self.code == SqlState::OBJECT_IN_USE {
            return Some(CaptureError::SlotActive { slot: slot.to_owned(), pid: self.pid(), holder: None });
        }
        if self.code == SqlState::UNDEFINED_OBJECT {
            return Some(if self.says("publication") {
                definite(
                    "capture.publication_missing",
                    format!("publication \"{publication}\" did not exist at the point the slot streams from"),
                    "the slot is older than the publication, or the publication was dropped",
                    "create the publication, then drop and create the slot (publication first): `tillstream setup --dry-run`".to_owned(),
                )
            } else {
                slot_missing(slot, None)
            });
        }
        if self.code == SqlState::UNDEFINED_FILE {
            return Some(slot_lost(slot, &self.describe(), None));
        }
        if self.code == SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE {
            return Some(if self.says("wal_level") {
                wal_level(&self.message)
            } else if self.says("can no longer") || self.says("cannot read from logical replication slot") || self.says("invalidated") {
                slot_lost(slot, &self.describe(), None)
            } else {
                slot_unusable(slot, &self.describe(), None)
            });
        }
        if self.code == SqlState::FEATURE_NOT_SUPPORTED || self.code == SqlState::INVALID_PARAMETER_VALUE {
            return Some(slot_unusable(slot, &format!("{} (SQLSTATE {})", self.message, self.code.code()), None));
        }
        None
    }
}

/// A definite error.
pub(crate) fn definite(code: &'static str, what: impl Into<String>, why: impl Into<String>, fix: impl Into<String>) -> CaptureError {
    CaptureError::Definite { code, what: what.into(), why: why.into(), fix: fix.into() }
}

/// Authentication failed for good.
pub(crate) fn refused(what: impl Into<String>, fix: impl Into<String>) -> CaptureError {
    definite("capture.auth_refused", what, "the server lets nobody in without valid credentials", fix)
}

/// What creates the slot: the statement that `setup` runs where the server's version is known, else where to read it.
fn create_slot(slot: &str, major: Option<i32>) -> String {
    major.map_or_else(|| "create it by the last step of `tillstream setup`".to_owned(), |major| sql::create_slot(slot, major))
}

/// The slot is not there. `major` is the server's version, where it is known.
pub(crate) fn slot_missing(slot: &str, major: Option<i32>) -> CaptureError {
    definite(
        "capture.slot_missing",
        format!("replication slot \"{slot}\" does not exist"),
        "what was committed since it was dropped can no longer be streamed",
        format!("{} then, if this pipeline has run before, `tillstream epoch bump`: the tables are loaded again", create_slot(slot, major)),
    )
}

/// The slot's WAL is gone.
pub(crate) fn slot_lost(slot: &str, evidence: &str, major: Option<i32>) -> CaptureError {
    definite(
        "capture.slot_lost",
        format!("replication slot \"{slot}\" was invalidated by the server: {evidence}"),
        "WAL it still needed was removed, usually because max_slot_wal_keep_size was exceeded while capture stood still",
        format!(
            "{} {} raise max_slot_wal_keep_size; then `tillstream epoch bump`: the tables are loaded again",
            sql::drop_slot(slot),
            create_slot(slot, major)
        ),
    )
}

/// The server writes too little WAL.
pub(crate) fn wal_level(found: &str) -> CaptureError {
    definite(
        "capture.wal_level",
        format!("the server does not write WAL for logical decoding: {found}"),
        "changes cannot be decoded from what it writes",
        "ALTER SYSTEM SET wal_level = 'logical'; and restart PostgreSQL",
    )
}

/// The first major version that leaves out what it replicated from elsewhere.
pub(crate) const ORIGIN_MAJOR: u32 = 16;

/// The server cannot tell its own changes from others.
pub(crate) fn origin_unsupported(version: &str) -> CaptureError {
    definite(
        "capture.origin_unsupported",
        format!("source.origin is none, and PostgreSQL {version} does not know that option"),
        "changes that the server replicated from elsewhere would be captured as if they were its own",
        "set source.origin: any, or upgrade the server to PostgreSQL 16 or newer",
    )
}

/// The slot exists and is of no use to us.
pub(crate) fn slot_unusable(slot: &str, evidence: &str, major: Option<i32>) -> CaptureError {
    definite(
        "capture.slot_unusable",
        format!("replication slot \"{slot}\" cannot be used: {evidence}"),
        "capture needs a logical slot with plugin pgoutput in the source's own database",
        format!("name another slot in source.slot; or, if nobody needs this one, {} {}", sql::drop_slot(slot), create_slot(slot, major)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGIN: Asked<'_> = Asked::Login { host: "db:5432", user: "u", database: "pos" };
    const STREAM: Asked<'_> = Asked::Stream { slot: "s", publication: "p" };

    fn error(code: &str, message: &str) -> ServerError {
        let body = format!("SERROR\0VERROR\0C{code}\0M{message}\0Dkey (id)=(secret)\0\0");
        ServerError::parse(body.as_bytes())
    }

    #[test]
    fn refusals_get_their_codes() {
        for (asked, state, message, code) in [
            (LOGIN, "28P01", "password authentication failed for user \"u\"", "capture.auth_refused"),
            (LOGIN, "28000", "no pg_hba.conf entry for replication connection", "capture.auth_refused"),
            (LOGIN, "3D000", "database \"pos\" does not exist", "capture.database_missing"),
            (LOGIN, "08P01", "unsupported startup parameter: replication", "capture.pooler"),
            (LOGIN, "42501", "must be superuser or replication role to start walsender", "capture.not_permitted"),
            (LOGIN, "53300", "sorry, too many clients already", "capture.source_unavailable"),
            (LOGIN, "57P03", "the database system is starting up", "capture.source_unavailable"),
            (STREAM, "55006", "replication slot \"s2\" is active for PID 4711", "capture.slot_active"),
            (STREAM, "42704", "replication slot \"s\" does not exist", "capture.slot_missing"),
            (STREAM, "42704", "publication \"p\" does not exist", "capture.publication_missing"),
            (STREAM, "55000", "logical decoding requires wal_level >= logical", "capture.wal_level"),
            (STREAM, "55000", "can no longer get changes from replication slot \"s\"", "capture.slot_lost"),
            (STREAM, "55000", "cannot read from logical replication slot \"s\"", "capture.slot_lost"),
            (STREAM, "58P01", "requested WAL segment 00000001 has already been removed", "capture.slot_lost"),
            (STREAM, "55000", "replication slot \"s\" was not created in this database", "capture.slot_unusable"),
            (STREAM, "57P01", "terminating connection due to administrator command", "capture.source_unavailable"),
            (Asked::Sql, "XX000", "unknown", "capture.source_unavailable"),
        ] {
            let explained = error(state, message).explain(asked);
            assert_eq!(explained.code(), code, "{message}");
            assert!(!format!("{explained:?}").contains("secret"));
        }
    }

    #[test]
    fn the_holder_of_a_slot_is_named() {
        let CaptureError::SlotActive { slot, pid, .. } = error("55006", "replication slot \"s2\" is active for PID 4711").explain(STREAM)
        else {
            panic!("slot active");
        };
        assert_eq!((slot.as_str(), pid), ("s", 4711));
    }

    #[test]
    fn a_full_walsender_pool_names_the_setting() {
        let explained = error("53300", "number of requested standby connections exceeds max_wal_senders (currently 10)").explain(LOGIN);
        assert!(explained.is_transient() && explained.to_string().contains("raise max_wal_senders"), "{explained}");
    }

    #[test]
    fn data_in_a_message_stays_out() {
        let explained = error("22P02", "invalid input syntax for type integer: \"4111 1111\"").explain(Asked::Sql);
        assert!(!explained.to_string().contains("4111"), "{explained}");
    }

    #[test]
    fn damaged_bodies_are_errors_not_panics() {
        for body in [&b""[..], b"\0", b"C", b"M\xff\xfe\0", b"C\xff\0Mx"] {
            assert!(ServerError::parse(body).explain(Asked::Sql).is_transient());
        }
    }
}
