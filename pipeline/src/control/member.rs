//! Who delivers: one record for each process that does, and how another one tells whether it still lives.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

/// A process that delivers. Written when it joins, while others have to know that it lives, and when it leaves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Which of the few producer names for members it writes under; a broker remembers 255 names a stream.
    pub slot: u16,
    /// Its lease of the slot: one above the highest that was seen there, from 1.
    pub lease: u32,
    /// Random, hexadecimal, the same for as long as the process lives: leases of partitions name it.
    pub nonce: String,
    /// Counts its signs of life.
    pub beat: u64,
    /// It has ended, or another one found that it does not live any more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub left: bool,
    /// Host and process, for people.
    pub owner: String,
    /// Where it runs; `None` where nobody can tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<Place>,
    /// The connectors that its configuration has.
    pub connectors: Vec<String>,
    /// When.
    pub at_ms: i64,
}

/// A process on a machine, such that another one there can tell whether it lives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The running kernel and the process namespace: process ids mean something within.
    pub machine: String,
    /// The process.
    pub pid: u32,
    /// When it started, in clock ticks since the kernel did: tells it from a later one with its number.
    pub started: u64,
}

impl Place {
    /// Where this process runs; `None` on systems without `/proc`.
    #[must_use]
    pub fn here() -> Option<Place> {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        let namespace = std::fs::read_link("/proc/self/ns/pid").ok()?;
        let pid = std::process::id();
        Some(Place { machine: format!("{}/{}", boot.trim(), namespace.display()), pid, started: started(pid)? })
    }

    /// Whether the process lives that this names; `None` when it cannot be told from `here`. `nonce` tells deliveries of
    /// this very process apart.
    #[must_use]
    pub fn lives(&self, here: Option<&Place>, nonce: &str) -> Option<bool> {
        let here = here.filter(|here| here.machine == self.machine)?;
        if (self.pid, self.started) == (here.pid, here.started) {
            return Some(present().contains(nonce));
        }
        Some(started(self.pid) == Some(self.started))
    }
}

/// The 22nd field of `/proc/PID/stat` (proc(5)); the second may hold spaces and parentheses. `None` also for a process
/// that has ended and was not waited for.
fn started(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// Deliveries that run within this process, by nonce.
static PRESENT: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

fn present() -> std::sync::MutexGuard<'static, BTreeSet<String>> {
    PRESENT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A delivery that runs within this process, until it is dropped.
#[derive(Debug)]
pub struct Presence(String);

impl Presence {
    /// A new one, under a name that nobody else has.
    #[must_use]
    pub fn begin() -> Presence {
        let nonce = super::writer::nonce();
        present().insert(nonce.clone());
        Presence(nonce)
    }

    /// Its name.
    #[must_use]
    pub fn nonce(&self) -> &str {
        &self.0
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        present().remove(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_here_is_told_from_one_that_ended() {
        let Some(here) = Place::here() else { return };
        let presence = Presence::begin();
        assert_eq!(here.lives(Some(&here), presence.nonce()), Some(true));
        let nonce = presence.nonce().to_owned();
        drop(presence);
        assert_eq!(here.lives(Some(&here), &nonce), Some(false));
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("sleep runs");
        let place = Place { pid: child.id(), started: started(child.id()).expect("it runs"), ..here.clone() };
        assert_eq!(place.lives(Some(&here), "x"), Some(true));
        assert_eq!(Place { started: place.started + 1, ..place.clone() }.lives(Some(&here), "x"), Some(false));
        child.kill().expect("it can be killed");
        // It is gone before anybody waits for it.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while place.lives(Some(&here), "x") == Some(true) {
            assert!(std::time::Instant::now() < deadline);
            std::thread::yield_now();
        }
        child.wait().expect("it ended");
        assert_eq!(place.lives(Some(&here), "x"), Some(false));
        let elsewhere = Place { machine: "another".into(), ..place };
        assert_eq!(elsewhere.lives(Some(&here), "x"), None);
        assert_eq!(here.lives(None, "x"), None);
    }
}
