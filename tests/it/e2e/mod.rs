//! From the POS database to the target systems, with real servers: what a user sees when nothing goes wrong, and when
//! something ordinary does.

mod big_row;
mod dead_letter;
mod replay;
mod sale;
mod shutdown;

use serde_json::Value;

/// What the comparison has to say of every run.
#[track_caller]
pub(crate) fn assert_sound(line: &Value) {
    for count in ["lost", "duplicated", "reordered", "differing", "initial_rows_missing", "engagement_lost", "engagement_doubled"] {
        assert_eq!(line[count], 0, "{count}: {line}");
    }
    assert_eq!(line["inventory_equal"], true, "{line}");
    assert_eq!(line["engagement_once"], true, "{line}");
    assert!(line["pos_changes"].as_u64() > Some(0), "{line}");
}
