//! What PostgreSQL's errors mean for a batch. Messages of data errors quote rows, so of these only names are kept.

use tokio_postgres::Error;
use tokio_postgres::error::{DbError, SqlState};

use super::super::dialect::Failure;
use crate::sink::{Class, Reason, SinkError};

/// An error that is no row's fault.
pub(super) fn classify(error: &Error) -> SinkError {
    failure(error).whole()
}

/// What a statement's error means.
pub(super) fn failure(error: &Error) -> Failure {
    let Some(db) = error.as_db_error() else {
        // Without a server's error these are about sockets, certificates and types, never about a row.
        let message = error.to_string();
        return Failure::Whole(SinkError { code: "sql.connection".into(), message, class: Class::Transient, after: None });
    };
    let code = db.code();
    match *code {
        SqlState::FOREIGN_KEY_VIOLATION | SqlState::UNIQUE_VIOLATION | SqlState::EXCLUSION_VIOLATION => {
            return Failure::Conflict(reason(db));
        }
        SqlState::READ_ONLY_SQL_TRANSACTION => return Failure::Whole(whole(db, Class::Transient)),
        _ => {}
    }
    match code.code().get(..2).unwrap_or_default() {
        // Data exceptions, constraints, a trigger's own refusal, an index row or array too large.
        "22" | "23" | "P0" | "54" => Failure::Row(reason(db)),
        // Credentials, missing database, permissions and names, features: someone has to act.
        "28" | "3D" | "3F" | "42" | "0A" | "0L" | "0P" => Failure::Whole(whole(db, Class::Definite)),
        _ => Failure::Whole(whole(db, Class::Transient)),
    }
}

fn whole(db: &DbError, class: Class) -> SinkError {
    let code = format!("sql.state_{}", db.code().code().to_lowercase());
    // Outside the data classes a message names objects, roles and settings.
    SinkError { code, message: db.message().to_owned(), class, after: None }
}

fn reason(db: &DbError) -> Reason {
    let mut message = format!("SQLSTATE {}", db.code().code());
    for (what, name) in [("table", db.table()), ("column", db.column()), ("constraint", db.constraint()), ("type", db.datatype())] {
        if let Some(name) = name {
            message.push_str(&format!(", {what} {name}"));
        }
    }
    Reason { code: format!("sql.state_{}", db.code().code().to_lowercase()), message }
}
