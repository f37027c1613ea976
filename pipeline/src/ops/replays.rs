//! A replay as it is looked at before it is asked for: what it holds, what the target makes of it, what somebody has to accept.

use std::time::Duration;

use serde_json::{Value, json};
use tillstream_connectors::registry::{Repeats, SinkPlan};
use tillstream_connectors::sink::OnDelete;

use super::failure::Failure;
use crate::config::{Connector, units};
use crate::control::{State, now_ms};
use crate::delivery::replay::{self, Edge, Part, RowKey, Wanted};
use crate::journal::Journal;

/// What the target makes of events that come again.
#[derive(Debug)]
pub struct Effect {
    /// For machines: `compared`, `remembered` or `applied`.
    pub word: &'static str,
    /// In words.
    pub text: String,
    /// What to know before.
    pub warnings: Vec<String>,
    /// Code and words of what has to be accepted.
    refusals: Vec<(&'static str, String)>,
}

/// What somebody accepts.
#[derive(Clone, Copy, Debug, Default)]
pub struct Accepts {
    /// That events have a second effect.
    pub duplicates: bool,
    /// That rows may be left older than they are.
    pub older: bool,
    /// That events are left out.
    pub loss: bool,
}

/// A replay that could be asked for.
#[derive(Debug)]
pub struct Proposal {
    /// The connector.
    pub connector: String,
    /// What it is, partition by partition.
    pub parts: Vec<Part>,
    /// What the target makes of it.
    pub effect: Effect,
    /// Code and words of what would have to be accepted and is not.
    pub refused: Option<(&'static str, String)>,
    /// What is written down; no value of a row.
    pub what: String,
}

/// The row that is meant, where one is.
///
/// # Errors
/// The connector takes several tables, and none is named.
pub fn row(connector: &Connector, key: Option<&str>, table: Option<&str>) -> Result<Option<RowKey>, Failure> {
    let Some(key) = key.map(str::to_owned) else { return Ok(None) };
    let tables: Vec<String> = connector.tables.iter().map(|(schema, table)| format!("{schema}.{table}")).collect();
    let table = match (table, tables.as_slice()) {
        (Some(table), tables) if tables.iter().any(|t| t == table) => table.to_owned(),
        (None, [table]) => table.clone(),
        _ => return Err(Failure::new("usage.arguments", format!("name the row's table with --table: {}", tables.join(", ")))),
    };
    Ok(Some(RowKey { table, key }))
}

/// Nothing to end.
#[must_use]
pub fn none_under_way(connector: &str) -> Failure {
    Failure::new("replay.nothing", format!("no replay of connector {connector} waits or is under way"))
}

/// What a replay would be.
///
/// # Errors
/// It holds nothing, its places are not to be had, and those of reading.
pub async fn propose(
    journal: &dyn Journal,
    state: &State,
    connector: &Connector,
    source: &str,
    wanted: &Wanted,
    accepts: Accepts,
) -> Result<Proposal, Failure> {
    let under_way = replay::under_way(state, &connector.name, journal.partitions());
    let parts = replay::plan(journal, state, connector, source, wanted).await.map_err(Failure::from)?;
    if parts.is_empty() {
        let what = format!("connector {} has delivered nothing there that it could deliver again", connector.name);
        return Err(Failure::new("replay.nothing", what));
    }
    let mut effect = effect(connector, &parts, wanted);
    if !under_way.is_empty() {
        effect.warnings.push("this takes the place of the replay that is under way".to_owned());
    }
    let accepted = |code: &str| match code {
        "replay.would_duplicate" => accepts.duplicates,
        "replay.older_states" => accepts.older,
        _ => accepts.loss,
    };
    let refused = effect.refusals.iter().find(|(code, _)| !accepted(code)).cloned();
    let what = decision(connector, wanted, &parts);
    Ok(Proposal { connector: connector.name.clone(), parts, effect, refused, what })
}

impl Proposal {
    /// # Errors
    /// What nobody accepted.
    pub fn admissible(&self) -> Result<(), Failure> {
        match &self.refused {
            Some((code, what)) => Err(Failure::new(code, format!("connector {}: {what}", self.connector))),
            None => Ok(()),
        }
    }

    /// Events, those of them that are filtered now, that cannot be mapped, and that are dead letters.
    #[must_use]
    pub fn sums(&self) -> [u64; 4] {
        let sum = |count: fn(&Part) -> u64| self.parts.iter().filter(|part| !part.skips()).map(count).sum::<u64>();
        [sum(|p| p.events), sum(|p| p.filtered), sum(|p| p.failing), sum(|p| p.parked)]
    }

    /// For machines. `number` is that of the request, where one was made; `mapped` says whether the connector's map was tried.
    #[must_use]
    pub fn document(&self, number: Option<u32>, mapped: bool) -> Value {
        let [events, filtered, failing, parked] = self.sums();
        let edge = |edge: Option<Edge>| edge.map(|e| json!({"offset": e.offset.0, "committed_at": moment(e.committed_at_ms)}));
        let part = |p: &Part| {
            json!({
                "partition": p.partition, "from": p.from().0, "to": p.to.map(|to| to.0), "stands": p.stands.0, "skips": p.skips(),
                "events": p.events, "filtered": p.filtered, "failing": p.failing, "dead_letters": p.parked,
                "changed_later": p.changed_later, "first": edge(p.first), "last": edge(p.last),
            })
        };
        json!({
            "connector": self.connector, "requested": number.is_some(), "number": number, "events": events,
            "filtered": mapped.then_some(filtered), "failing": mapped.then_some(failing), "dead_letters": parked,
            "partitions": self.parts.iter().map(part).collect::<Vec<_>>(), "repeats": self.effect.word, "effect": self.effect.text,
            "warnings": self.effect.warnings, "refused": self.refused.as_ref().map(|(code, what)| json!({"code": code, "what": what})),
        })
    }
}

/// What is written down: no value of a row.
fn decision(connector: &Connector, wanted: &Wanted, parts: &[Part]) -> String {
    let row = wanted.row.as_ref().map_or_else(String::new, |row| format!(", one row of {}", row.table));
    let part = |part: &Part| {
        let to = part.to.map_or_else(|| "on".to_owned(), |to| format!("to {}", to.0));
        format!("p{} from {} {to} (stood at {})", part.partition, part.from().0, part.stands.0)
    };
    let parts: Vec<String> = parts.iter().map(part).collect();
    format!("connector {}: replay of {}{row}", connector.name, parts.join(", "))
}

/// What the target makes of the stretch when it comes again, and what has to be accepted for it.
fn effect(connector: &Connector, parts: &[Part], wanted: &Wanted) -> Effect {
    let SinkPlan { repeats, remembers, .. } = connector.target.plan();
    let (mut warnings, mut refusals) = (Vec::new(), Vec::new());
    let (word, text) = match repeats {
        Repeats::Compared => {
            ("compared", "what the target holds of a row stays when it is as new or newer; rows that it lost come back".to_owned())
        }
        Repeats::Remembered => {
            let window = remembers.map_or_else(
                || "its keys (how long, the connector says nowhere)".to_owned(),
                |w| format!("its keys, {}", units::show_duration(w)),
            );
            ("remembered", format!("an event has no second effect while the target remembers {window}; what it forgot is applied again"))
        }
        Repeats::Applied => {
            refusals.push(("replay.would_duplicate", "every event of the stretch has another effect at its target".to_owned()));
            ("applied", "every event is applied again".to_owned())
        }
    };
    let oldest = parts.iter().filter_map(|part| part.first).map(|edge| edge.committed_at_ms).min();
    if *repeats == Repeats::Remembered {
        warnings.extend(remembers.zip(oldest).and_then(|(window, oldest)| forgotten(window, oldest, now_ms())));
    }
    let later: u64 = parts.iter().map(|part| part.changed_later).sum();
    if later > 0 {
        let what = format!("{later} rows of the stretch changed again behind it");
        // A row that is not there any more tells no version.
        if *repeats == Repeats::Compared && connector.on_delete != OnDelete::Delete {
            warnings.push(format!(
                "{what}: one that the target lost comes back as it was at the end of the stretch; without --to it would be as it is"
            ));
        } else {
            refusals.push(("replay.older_states", format!("{what}, and the target may be left with what they were at its end")));
        }
    }
    if wanted.to.is_none() && *repeats == Repeats::Remembered && parts.iter().any(|part| !part.skips()) {
        warnings.push("where the target forgot a row's keys it shows its older states again, until the newest one has come".to_owned());
    }
    let skipped: u64 = parts.iter().filter(|part| part.skips()).map(|part| part.events).sum();
    if skipped > 0 {
        refusals.push(("replay.would_skip", format!("{skipped} events that were not delivered yet would be left out")));
    }
    Effect { word, text, warnings, refusals }
}

/// What a target has forgotten of a stretch that began at this moment.
fn forgotten(window: Duration, oldest_ms: i64, now_ms: i64) -> Option<String> {
    let age = Duration::from_millis(u64::try_from(now_ms - oldest_ms).unwrap_or(0));
    let (shown, window_shown) = (units::show_duration(age), units::show_duration(window));
    (age > window).then(|| {
        format!("the oldest event is {shown} old, and the target remembers keys for {window_shown}: what is older is applied again")
    })
}

fn moment(ms: i64) -> String {
    jiff::Timestamp::from_millisecond(ms).map_or_else(|_| "-".to_owned(), |t| t.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_older_than_the_targets_window_is_told() {
        let day = Duration::from_secs(24 * 3600);
        assert_eq!(forgotten(day, 0, 24 * 3600 * 1000), None);
        assert!(forgotten(day, 0, 25 * 3600 * 1000).is_some_and(|said| said.contains("remembers keys for 1 d 0 h")));
        assert_eq!(forgotten(day, 1000, 0), None);
    }
}
