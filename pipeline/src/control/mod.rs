//! The control journal: the small log beside the data that holds tokens, checkpoints, dead letters and cursors.

/// One record.
#[derive(Clone, Debug)]
pub enum Record {}
