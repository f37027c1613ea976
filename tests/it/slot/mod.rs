//! The slot and whose it is: identity and epochs, promotions and restores, two readers, what is acknowledged and when, a journal that
//! stands still, a server that wants to go.

mod history;
mod idle;
mod pooler;
mod promotion;
mod readers;
mod refill;
mod spill;
mod stall;

use std::sync::Arc;

use tillstream::capture::wire::PgSource;
use tillstream::capture::{self, CaptureError, Settings, Standing};
use tillstream::ops::epoch::{self, Decision};

use crate::matrix::Bench;

/// The code that a run of this bench ends with.
async fn code_of_run(bench: &Bench) -> &'static str {
    code(bench.try_catch_up().await)
}

/// An error's code; its recovery has to name the command that makes a new beginning where that is the way out.
fn code(result: Result<(), CaptureError>) -> &'static str {
    match result {
        Ok(()) => "continue",
        Err(error) => {
            if let CaptureError::Definite { code, fix, .. } = &error
                && (code.starts_with("capture.source_") || code.starts_with("capture.slot_adv"))
            {
                assert!(fix.contains("tillstream epoch bump"), "{error:?}");
            }
            error.code()
        }
    }
}

async fn standing(bench: &Bench) -> Standing {
    let settings = Settings {
        pipeline: "test".to_owned(),
        source: bench.source.clone(),
        primary_keys: std::collections::HashMap::new(),
        oids: Default::default(),
        row_bytes_max: capture::ROW_BYTES_MAX,
        owner: "test".to_owned(),
        seed: None,
    };
    capture::stand(&PgSource::new(&bench.source, "test"), bench.journal.as_ref(), &settings).await.expect("the journal answers")
}

/// Begins the next epoch, as an operator would.
async fn bump(bench: &Bench, reload: bool) {
    let now = standing(bench).await;
    let decision =
        Decision { epoch: now.epoch + 1, after: now.stored.commit_lsn, reload, why: "a test of it".to_owned(), by: "tester".to_owned() };
    epoch::begin(Arc::clone(&bench.journal), "test", "pos", decision).await.expect("written");
}

/// Ids of rows inserted into `t`, in the order of the stream.
async fn inserted(bench: &Bench) -> Vec<i64> {
    let ids = bench.read().await;
    ids.iter().filter(|e| e.op() == "insert").map(|e| e.after()["id"].as_i64().expect("a number")).collect()
}
