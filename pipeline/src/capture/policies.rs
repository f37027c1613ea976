//! Whether the configured column policies fit the tables, before a row is read.
//!
//! A policy that names no column protects nothing: its name may be misspelt, or the column was renamed and its values would go
//! out under the new name. A former name is fine as long as the control log remembers the column.

use tillstream_schemas::Policy;

use super::CaptureError;
use super::catalog::TableFacts;
use crate::config::Source;
use crate::control::State;

/// Compares policies with the catalogue and with the layouts that tables had.
///
/// # Errors
/// `capture.policy_column_gone`: a policy names a column that the table neither has nor had.
pub fn check(source: &Source, tables: &[TableFacts], state: &State) -> Result<(), CaptureError> {
    if source.columns.hold_new {
        // What no policy names is held back anyway.
        return Ok(());
    }
    for table in tables {
        let name = format!("{}.{}", table.schema, table.table);
        let had = |column: &str| state.layouts().any(|l| l.table == name && l.columns.iter().any(|c| c.name == column));
        let has = |column: &str| table.columns.iter().any(|c| c.name == column);
        let policies = source.columns.of(&table.schema, &table.table).into_iter().flatten();
        for (column, policy) in policies {
            if *policy != Policy::Pass && !has(column) && !had(column) {
                return Err(CaptureError::Definite {
                    code: "capture.policy_column_gone",
                    what: format!("column {column:?} of {name} has the policy {policy}, and {name} has no such column"),
                    why: "if the name is misspelt or the column was renamed, its values would go out unprotected".to_owned(),
                    fix: format!("correct the name in source.columns of {name}"),
                });
            }
        }
    }
    Ok(())
}
