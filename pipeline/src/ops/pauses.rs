//! What pausing a connector and having it go on answer, alike on the command line and over the API.

use serde_json::{Value, json};

use super::desk::Resumed;
use super::kept::{self, Kept};
use crate::config::Retention;
use crate::control::Pause;

fn of(pause: &Pause) -> Value {
    let since = jiff::Timestamp::from_millisecond(pause.at_ms).map(|at| at.to_string()).ok();
    json!({"by": pause.by, "since": since, "reason": pause.reason})
}

/// A pause. `already`: somebody had paused it before, and nothing was changed.
#[must_use]
pub fn paused(connector: &str, already: Option<&Pause>, waits: Kept, retention: Retention) -> Value {
    json!({
        "connector": connector,
        "result": if already.is_some() { "already_paused" } else { "paused" },
        "pause": already.map(of),
        "entries": waits.entries,
        "kept": kept::until(waits.left, retention),
        "kept_seconds": waits.left.map(|left| left.as_secs()),
    })
}

/// The end of a pause, or the decision that it goes on with its tables.
#[must_use]
pub fn resumed(connector: &str, resumed: &Resumed) -> Value {
    let (result, pause, tables) = match resumed {
        Resumed::Pause(pause) => ("resumed", Some(of(pause)), &[][..]),
        Resumed::Tables(tables) => ("accepted", None, &tables[..]),
        Resumed::Nothing => ("not_paused", None, &[][..]),
    };
    let accepted: Vec<Value> = tables.iter().map(|(table, layout)| json!({"table": table, "layout": layout})).collect();
    json!({"connector": connector, "result": result, "pause": pause, "accepted": accepted})
}
