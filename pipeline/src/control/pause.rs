//! A connector that somebody paused.

use serde::{Deserialize, Serialize};

/// Somebody paused a connector, or had it go on. While it is paused nobody delivers it: what comes for it waits in the journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pause {
    /// The connector.
    pub connector: String,
    /// It goes on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub over: bool,
    /// Why.
    pub reason: String,
    /// Who.
    pub by: String,
    /// When.
    pub at_ms: i64,
}

impl Pause {
    /// Who, for people: a command says its process too.
    #[must_use]
    pub fn who(&self) -> &str {
        self.by.split(" pid ").next().unwrap_or(&self.by)
    }

    /// Since when, to the second, in UTC.
    #[must_use]
    pub fn since(&self) -> String {
        let moment = jiff::Timestamp::from_millisecond(self.at_ms).unwrap_or_default();
        moment.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
    }
}
