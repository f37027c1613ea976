//! What SQLite's errors mean for a batch. Its messages name tables and columns, and no values.

use rusqlite::{Error, ErrorCode, ffi};

use super::super::dialect::Failure;
use crate::sink::{Class, Reason, SinkError};

/// What a statement's error means.
pub(super) fn failure(error: &Error) -> Failure {
    let Some(sqlite) = error.sqlite_error() else {
        // The library's own, about types and names in our statements.
        return Failure::Whole(SinkError {
            code: "sql.connection".into(),
            message: error.to_string(),
            class: Class::Transient,
            after: None,
        });
    };
    let extended = sqlite.extended_code;
    let code = format!("sql.sqlite_{extended}");
    let reason = |code: String| {
        // What a trigger raises is its author's text, and may hold anything.
        let message = if extended == ffi::SQLITE_CONSTRAINT_TRIGGER { "a trigger refused it".to_owned() } else { error.to_string() };
        Reason { code, message }
    };
    let whole = |code: String, class| Failure::Whole(SinkError { code, message: error.to_string(), class, after: None });
    match sqlite.code {
        ErrorCode::ConstraintViolation => match extended {
            ffi::SQLITE_CONSTRAINT_FOREIGNKEY
            | ffi::SQLITE_CONSTRAINT_UNIQUE
            | ffi::SQLITE_CONSTRAINT_PRIMARYKEY
            | ffi::SQLITE_CONSTRAINT_ROWID => Failure::Conflict(reason(code)),
            _ => Failure::Row(reason(code)),
        },
        ErrorCode::TooBig | ErrorCode::TypeMismatch => Failure::Row(reason(code)),
        ErrorCode::PermissionDenied
        | ErrorCode::ReadOnly
        | ErrorCode::DatabaseCorrupt
        | ErrorCode::NotADatabase
        | ErrorCode::AuthorizationForStatementDenied
        | ErrorCode::Unknown => whole(code, Class::Definite),
        // Busy, locked, a full or failing disk, a changed schema.
        _ => whole(code, Class::Transient),
    }
}
