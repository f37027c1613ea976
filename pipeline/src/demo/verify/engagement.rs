//! The facts that the pretend engagement API applied against the events that its connector takes: each exactly once.

use std::collections::HashMap;
use std::path::Path;

use crate::config::Connector;
use crate::demo::DemoError;

/// The events that the connector takes, gathered while the journal is read.
#[derive(Debug, Default)]
pub(super) struct Expected {
    tables: Vec<(String, String)>,
    ops: Vec<&'static str>,
    /// Event id to how often it was applied.
    applied: HashMap<String, u32>,
}

/// What the comparison found.
#[derive(Debug, Default)]
pub(super) struct Compared {
    /// Events that the connector takes.
    pub(super) expected: u64,
    /// Never applied.
    pub(super) lost: u64,
    /// Applied more than once, or not in the journal at all.
    pub(super) doubled: u64,
    /// Keys that came with two bodies.
    pub(super) conflicts: u64,
    /// Repeats that the API recognised by their key.
    pub(super) absorbed: u64,
    pub(super) answered_429: u64,
    pub(super) answered_500: u64,
    pub(super) refused: u64,
}

impl Compared {
    pub(super) fn is_once(&self) -> bool {
        self.lost == 0 && self.doubled == 0 && self.conflicts == 0
    }
}

impl Expected {
    pub(super) fn new(connector: Option<&Connector>) -> Self {
        let Some(connector) = connector else { return Expected::default() };
        Expected { tables: connector.tables.clone(), ops: connector.ops.iter().map(|op| op.as_str()).collect(), applied: HashMap::new() }
    }

    pub(super) fn see(&mut self, id: &str, op: &str, schema: &str, table: &str) {
        if self.ops.contains(&op) && self.tables.iter().any(|(s, t)| s == schema && t == table) {
            self.applied.insert(id.to_owned(), 0);
        }
    }

    pub(super) fn compare(mut self, log: &Path) -> Result<Compared, DemoError> {
        let text = std::fs::read_to_string(log).map_err(|error| DemoError::unavailable("read the engagement API's log", error))?;
        let mut found = Compared { expected: self.applied.len() as u64, ..Compared::default() };
        for line in text.lines() {
            let mut words = line.split(' ');
            match words.next().unwrap_or_default() {
                "applied" => {
                    for id in words.nth(2).unwrap_or_default().split(',') {
                        match self.applied.get_mut(id) {
                            Some(times) => *times += 1,
                            None => found.doubled += 1,
                        }
                    }
                }
                "repeat" => found.absorbed += 1,
                "conflict" => found.conflicts += 1,
                "refused" => found.refused += 1,
                "status_429" => found.answered_429 += 1,
                "status_500" => found.answered_500 += 1,
                _ => {}
            }
        }
        for times in self.applied.values() {
            match times {
                0 => found.lost += 1,
                1 => {}
                _ => found.doubled += u64::from(times - 1),
            }
        }
        Ok(found)
    }
}
