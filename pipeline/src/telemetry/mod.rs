//! Telemetry: how the process logs, how times are counted, and the name, type and meaning of every metric, once. Knows nothing of capture or
//! delivery; `ops` fills the names with their numbers.

pub mod canary;
pub mod log;
pub mod names;
pub mod times;
pub mod traces;
