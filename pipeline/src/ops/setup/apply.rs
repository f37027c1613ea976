//! Runs a plan, statement by statement.

use tokio_postgres::error::SqlState;

use super::plan::{Plan, Statement};
use crate::capture::CaptureError;
use crate::capture::catalog::{Catalog, sql_error};
use crate::capture::wire::wal_level;

/// How long a statement waits for another one that changes the same role: longer than such a statement takes.
const AGAIN_AFTER: std::time::Duration = std::time::Duration::from_millis(200);

/// Whoever writes to a table meanwhile waits behind a statement that waits for it: not long.
const LOCKS_WITHIN: &str = "SET lock_timeout = '5s'";

/// What became of a statement.
#[derive(Clone, Copy, Debug)]
pub struct Applied<'a> {
    /// The step it belongs to, from 1.
    pub step: usize,
    /// What the step is for.
    pub title: &'a str,
    /// The statement.
    pub sql: &'a str,
}

impl<'a> Applied<'a> {
    /// The line of the statement that says what it does.
    #[must_use]
    pub fn summary(&self) -> &'a str {
        summary(self.sql)
    }
}

/// The telling line: of a guarded block, what is inside the guard.
fn summary(sql: &str) -> &str {
    let telling = |l: &&str| ["CREATE ", "ALTER ", "GRANT ", "SELECT pg_", "REVOKE ", "DROP "].iter().any(|word| l.starts_with(word));
    sql.lines().map(str::trim).find(telling).unwrap_or_default()
}

/// Runs the plan over the connection that [`super::prepare`] opened, and reports each statement once it is done.
///
/// # Errors
/// The first statement that fails ends it; what was done stays and is found done the next time. `capture.wal_level`
/// before the slot when the server cannot decode; `setup.slot_waits` when open transactions hold the slot up; `setup.slot_in_use` when
/// the slot is to be dropped and somebody streams from it.
pub async fn apply(plan: &Plan, catalog: &Catalog, mut report: impl FnMut(Applied<'_>)) -> Result<(), CaptureError> {
    // Adding a table to a publication waits for maintenance on it, a slot for open transactions: neither for ever.
    run(catalog, LOCKS_WITHIN).await?;
    run(catalog, "SET statement_timeout = '60s'").await?;
    for (n, step) in plan.steps.iter().enumerate() {
        for Statement(sql) in &step.statements {
            let is_slot = sql.contains("pg_create_logical_replication_slot");
            if is_slot && catalog.server().wal_level != "logical" {
                return Err(wal_level(&format!("wal_level = {}", catalog.server().wal_level)));
            }
            if is_slot {
                // It waits for a transaction by the lock on its number.
                run(catalog, "SET lock_timeout = 0").await?;
            }
            match execute(catalog, sql).await {
                Ok(()) => report(Applied { step: n + 1, title: &step.title, sql }),
                Err(error) if is_slot && error.code() == Some(&SqlState::QUERY_CANCELED) => return Err(slot_waits(catalog).await),
                Err(error) if error.code() == Some(&SqlState::OBJECT_IN_USE) => return Err(slot_in_use(n + 1, error)),
                Err(error) => return Err(failed(n + 1, sql, error)),
            }
            if is_slot {
                run(catalog, LOCKS_WITHIN).await?;
            }
        }
    }
    Ok(())
}

fn slot_in_use(step: usize, error: tokio_postgres::Error) -> CaptureError {
    CaptureError::Definite {
        code: "setup.slot_in_use",
        what: format!("step {step}: somebody streams from the slot"),
        why: error.as_db_error().map_or_else(String::new, |db| db.message().to_owned()),
        fix: "end the pipeline and its standbys, then run it again; `tillstream slot show` names who reads".to_owned(),
    }
}

/// Runs a statement; again when somebody who sets up another pipeline on the same server changed the same role in the same moment.
async fn execute(catalog: &Catalog, sql: &str) -> Result<(), tokio_postgres::Error> {
    let mut patience = 5;
    loop {
        match catalog.client().batch_execute(sql).await {
            Err(error) if patience > 0 && is_concurrent(&error) => {
                patience -= 1;
                tokio::time::sleep(AGAIN_AFTER).await;
            }
            ended => return ended,
        }
    }
}

/// A catalogue row was changed by two at once ("tuple concurrently updated" has no code of its own), or made by the other first.
fn is_concurrent(error: &tokio_postgres::Error) -> bool {
    let Some(error) = error.as_db_error() else { return false };
    let code = error.code();
    (*code == SqlState::INTERNAL_ERROR && error.message().contains("concurrently"))
        || *code == SqlState::UNIQUE_VIOLATION
        || *code == SqlState::DUPLICATE_OBJECT
}

async fn run(catalog: &Catalog, sql: &str) -> Result<(), CaptureError> {
    catalog.client().batch_execute(sql).await.map_err(sql_error)
}

fn failed(step: usize, sql: &str, error: tokio_postgres::Error) -> CaptureError {
    let first_line = summary(sql);
    if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) {
        return CaptureError::Definite {
            code: "setup.not_permitted",
            what: format!("step {step} is not permitted: {first_line}"),
            why: sql_error(error).to_string(),
            fix: "run it as a superuser (or the host's admin role) by --admin-url, or give the printed SQL to somebody who may".to_owned(),
        };
    }
    match sql_error(error) {
        CaptureError::Unavailable(why) => CaptureError::Definite {
            code: "setup.failed",
            what: format!("step {step} failed: {first_line}"),
            why,
            fix: "mend what it says and run setup again; what was done is found done".to_owned(),
        },
        definite => definite,
    }
}

async fn slot_waits(catalog: &Catalog) -> CaptureError {
    let sql = "SELECT string_agg(format('pid %s (%s, since %s)', pid, coalesce(nullif(application_name, ''), usename), xact_start::timestamptz(0)), '; ') \
               FROM (SELECT * FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid() ORDER BY xact_start LIMIT 5) t";
    let open: Option<String> = catalog.client().query_one(sql, &[]).await.ok().and_then(|row| row.get(0));
    CaptureError::Definite {
        code: "setup.slot_waits",
        what: "creating the slot waited a minute for open transactions and gave up".to_owned(),
        why: open.unwrap_or_else(|| "they are not visible to this role".to_owned()),
        fix: "wait until they end, or end them, and run setup again".to_owned(),
    }
}
