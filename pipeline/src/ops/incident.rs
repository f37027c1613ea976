//! The first message about an incident, filled from the status of the running process: one text for those who are affected, one for
//! those who work on it. What is not known stands as a gap to fill; nothing is made up. Pure.

use std::fmt::Write as _;
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;
use serde_json::Value;

use crate::config::units;

/// How bad it is, by its effect on the business.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(into = "u8")]
pub enum Severity {
    /// The point of sale is at risk, or wrong stock or consent was sent.
    S1,
    /// Delayed by more than 15 minutes at peak, or a target gets nothing.
    S2,
    /// Worse than it should be, without effect on guests or stores.
    S3,
}

impl From<Severity> for u8 {
    fn from(severity: Severity) -> u8 {
        match severity {
            Severity::S1 => 1,
            Severity::S2 => 2,
            Severity::S3 => 3,
        }
    }
}

impl TryFrom<u8> for Severity {
    type Error = String;

    fn try_from(number: u8) -> Result<Severity, String> {
        match number {
            1 => Ok(Severity::S1),
            2 => Ok(Severity::S2),
            3 => Ok(Severity::S3),
            _ => Err("1, 2 or 3".to_owned()),
        }
    }
}

impl Severity {
    /// Until the next message, which the message before it promises.
    #[must_use]
    pub fn next_update(self) -> Duration {
        Duration::from_secs(
            60 * match self {
                Severity::S1 => 15,
                Severity::S2 => 30,
                Severity::S3 => 120,
            },
        )
    }

    fn means(self) -> &'static str {
        match self {
            Severity::S1 => "the point of sale is at risk, or wrong stock or consent was sent",
            Severity::S2 => "delayed by more than 15 minutes at peak, or a target gets nothing",
            Severity::S3 => "worse than it should be; no effect on guests or stores",
        }
    }
}

/// How far the work is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Nobody knows yet why.
    #[default]
    Investigating,
    /// The cause is known.
    Identified,
    /// Mended, and watched.
    Monitoring,
    /// Over.
    Resolved,
}

impl Stage {
    fn word(self) -> &'static str {
        match self {
            Stage::Investigating => "INVESTIGATING",
            Stage::Identified => "IDENTIFIED",
            Stage::Monitoring => "MONITORING",
            Stage::Resolved => "RESOLVED",
        }
    }
}

/// What the message is made from.
#[derive(Clone, Debug)]
pub struct Known<'a> {
    /// Name of the pipeline.
    pub pipeline: &'a str,
    /// The status document of the running process, or why there is none.
    pub status: Result<&'a Value, String>,
    /// Open dead letters by connector, from the control journal; for when no process answers.
    pub dead_letters: Vec<(String, usize)>,
    /// How long the journal keeps what waits; `None` without a limit by age.
    pub retention: Option<Duration>,
    /// The zone in which stores read the time; UTC stands beside it.
    pub zone: TimeZone,
    /// Now.
    pub at: Timestamp,
}

/// The two texts.
#[derive(Clone, Debug, Serialize)]
pub struct Incident {
    /// How bad it is.
    pub severity: Severity,
    /// Whether that was chosen by what the status says.
    pub severity_proposed: bool,
    /// How far the work is.
    pub stage: Stage,
    /// When the next message is due.
    pub next_update: String,
    /// For those who are affected: no names of servers, no codes, no values.
    pub public: String,
    /// For those who work on it: positions, offsets, counts, codes.
    pub internal: String,
}

fn text<'v>(value: &'v Value, key: &str) -> &'v str {
    value[key].as_str().filter(|text| !text.is_empty()).unwrap_or("-")
}

fn number(value: &Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or(0)
}

/// `1234567` as `1,234,567`.
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

fn is_sound(entity: &Value) -> bool {
    matches!(text(entity, "state"), "healthy" | "catching_up")
}

/// Until which delay a connector counts as up to date.
const PROMPT_SECONDS: f64 = 60.0;

impl Known<'_> {
    fn clock(&self, at: Timestamp) -> String {
        let utc = at.strftime("%H:%M UTC").to_string();
        if self.zone == TimeZone::UTC {
            return utc;
        }
        format!("{utc} ({})", at.to_zoned(self.zone.clone()).strftime("%H:%M %Z"))
    }

    fn day(&self, at: Timestamp) -> String {
        format!("{} {}", at.strftime("%Y-%m-%d"), self.clock(at))
    }

    fn before(&self, seconds: f64) -> Timestamp {
        let ms = Duration::from_secs_f64(seconds.clamp(0.0, 1e9)).as_millis();
        Timestamp::from_millisecond(self.at.as_millisecond() - i64::try_from(ms).unwrap_or(0)).unwrap_or(self.at)
    }

    fn after(&self, duration: Duration) -> Timestamp {
        Timestamp::from_millisecond(self.at.as_millisecond().saturating_add(i64::try_from(duration.as_millis()).unwrap_or(0)))
            .unwrap_or(self.at)
    }

    fn connectors(&self) -> Vec<&Value> {
        self.status.as_ref().ok().and_then(|s| s["connectors"].as_array()).into_iter().flatten().collect()
    }

    fn affected(&self) -> Vec<&Value> {
        let late = |c: &Value| c["lag_seconds"].as_f64().unwrap_or(0.0) > PROMPT_SECONDS;
        self.connectors().into_iter().filter(|c| !is_sound(c) || late(c)).collect()
    }

    fn source(&self) -> Option<&Value> {
        self.status.as_ref().ok().map(|s| &s["source"]).filter(|s| s.is_object())
    }

    /// What the status speaks for; a person may know better.
    fn proposed(&self) -> Severity {
        let source_lost = self.source().is_some_and(|s| text(s, "state") == "failed");
        let near = |s: &Value| matches!(text(&s["slot"], "pressure"), "page" | "shed");
        if self.source().is_some_and(near) {
            return Severity::S1;
        }
        let late = self
            .affected()
            .iter()
            .any(|c| c["lag_seconds"].as_f64().unwrap_or(0.0) > 900.0 || matches!(text(c, "state"), "failed" | "blocked"));
        let silent = self.status.is_err();
        if source_lost || late || silent { Severity::S2 } else { Severity::S3 }
    }
}

/// Fills the template. `severity` is what was asked for; without it the status decides.
#[must_use]
pub fn template(known: &Known<'_>, severity: Option<Severity>, stage: Stage) -> Incident {
    let chosen = severity.unwrap_or_else(|| known.proposed());
    let next = known.after(chosen.next_update());
    Incident {
        severity: chosen,
        severity_proposed: severity.is_none(),
        stage,
        next_update: next.to_string(),
        public: public(known, stage, next),
        internal: internal(known, chosen, stage, next),
    }
}

fn public(known: &Known<'_>, stage: Stage, next: Timestamp) -> String {
    let affected = known.affected();
    let names = affected.iter().map(|c| text(c, "name")).collect::<Vec<_>>().join(", ");
    let headline = match (&known.status, known.source().filter(|s| !is_sound(s)), affected.is_empty()) {
        (Err(_), _, _) => "Updates from the point of sale may be delayed".to_owned(),
        (Ok(_), Some(_), _) => "New changes of the point of sale are not picked up".to_owned(),
        (Ok(_), None, false) => format!("Updates to {names} delayed"),
        (Ok(_), None, true) => "________".to_owned(),
    };
    let mut out = format!("[{}] {headline} - {}\n", stage.word(), known.day(known.at));
    out.push_str(&format!("Impact: {}\n", impact(known, &affected)));
    let prompt: Vec<&str> = known.connectors().into_iter().filter(|c| !affected.contains(c)).map(|c| text(c, "name")).collect();
    let mut sound = "ordering at the till and payments do not pass through here and go on".to_owned();
    if !prompt.is_empty() && known.source().is_none_or(is_sound) {
        let _ = write!(sound, "; {} up to date", prompt.join(", "));
    }
    out.push_str(&format!("Not affected: {sound}.\n"));
    out.push_str(&format!("Known: {}   Unknown: ________\n", reasons(known, &affected)));
    out.push_str(&format!("Next: {}\n", next_step(known, &affected)));
    out.push_str(&format!("Next update: {}.   Owner: ________   Communicator: ________\n", known.clock(next)));
    out
}

fn impact(known: &Known<'_>, affected: &[&Value]) -> String {
    if known.status.is_err() {
        return "how far systems are behind is not known yet; what was stored before waits in the journal".to_owned();
    }
    let mut parts = Vec::new();
    if let Some(source) = known.source().filter(|s| !is_sound(s)) {
        let since = source["last_commit"].as_str().and_then(|s| s.parse::<Timestamp>().ok());
        let since = since.map_or_else(|| "________".to_owned(), |at| known.clock(at));
        parts.push(format!("changes made after {since} reach no system yet; the database keeps them"));
    }
    for connector in affected {
        let (waiting, lag) = (number(connector, "lag_entries"), connector["lag_seconds"].as_f64().unwrap_or(0.0));
        let since = known.clock(known.before(lag));
        let mut part = if waiting == 0 {
            format!("{} is {}", text(connector, "name"), text(connector, "state").replace('_', " "))
        } else {
            format!(
                "changes since {since} reach {} late; the oldest has waited {}; {} wait in the journal",
                text(connector, "name"),
                units::show_duration(Duration::from_secs_f64(lag.max(0.0))),
                grouped(waiting)
            )
        };
        match number(connector, "dead_letters") {
            0 => {}
            letters => {
                let _ = write!(part, "; {} were refused and are kept for a decision", grouped(letters));
            }
        }
        parts.push(part);
    }
    if parts.is_empty() { "________".to_owned() } else { format!("{}.", parts.join(". ")) }
}

fn reasons(known: &Known<'_>, affected: &[&Value]) -> String {
    if known.status.is_err() {
        return "the pipeline gives no answer.".to_owned();
    }
    let source = known
        .source()
        .filter(|s| !is_sound(s))
        .map(|_| "the connection to the point of sale's database does not work as it should".to_owned());
    let targets = affected.iter().map(|c| {
        let away = c["breaker"].as_str().is_some_and(|b| b != "closed");
        let what = match text(c, "state") {
            "paused" => "delivery is paused",
            _ if away => "does not answer; it is tried again until it does",
            "failed" => "delivery has stopped and waits for us",
            "blocked" => "cannot be reached",
            "degraded" => "answers, but not as it should",
            _ => "is behind and catching up",
        };
        format!("{}: {what}", text(c, "name"))
    });
    let all: Vec<String> = source.into_iter().chain(targets).collect();
    if all.is_empty() { "________".to_owned() } else { format!("{}.", all.join("; ")) }
}

fn next_step(known: &Known<'_>, affected: &[&Value]) -> String {
    let mut step = if known.status.is_err() {
        "the pipeline is being brought back; it goes on where it was".to_owned()
    } else if affected.iter().any(|c| text(c, "state") == "failed") {
        "________".to_owned()
    } else if affected.iter().any(|c| c["paused"].is_object()) {
        "delivery goes on where it was when we let it; order is kept".to_owned()
    } else {
        "delivery is tried again by itself until it works; order is kept".to_owned()
    };
    let oldest = affected.iter().filter_map(|c| c["lag_seconds"].as_f64()).fold(0.0, f64::max);
    if let Some(retention) = known.retention.filter(|_| !affected.is_empty()) {
        let until = known.after(retention.saturating_sub(Duration::from_secs_f64(oldest.max(0.0))));
        let _ = write!(step, "; safe to wait until {}, as long as changes are kept", known.day(until));
    }
    format!("{step}.")
}

fn internal(known: &Known<'_>, severity: Severity, stage: Stage, next: Timestamp) -> String {
    let mut out = format!(
        "INTERNAL   S{} ({})   {}   pipeline {}   {}\n",
        u8::from(severity),
        severity.means(),
        stage.word(),
        known.pipeline,
        known.day(known.at)
    );
    match &known.status {
        Err(why) => {
            let _ = writeln!(out, "status       no process answers: {why}");
            for (connector, letters) in &known.dead_letters {
                let _ = writeln!(out, "letters      {connector}: {letters} open (from the control journal)");
            }
        }
        Ok(status) => facts(&mut out, status),
    }
    out.push_str("\nTimeline (UTC)\n");
    let _ = writeln!(out, "- {} this text was made", known.at.strftime("%H:%M:%S"));
    out.push_str("- ________ first sign; ________ noticed by; ________ owner took over\n");
    out.push_str("\nDecisions (who, what, why; the control journal has those made by commands)\n- \n");
    out.push_str("\nTell\n- store operations and the franchise help desk: what they see, since when, what goes on\n- owner of each affected target (vendor and ticket): ________\n- DBA on call, if the source or its WAL is concerned: ________\n");
    if severity == Severity::S1 {
        out.push_str("- privacy officer, if personal data reached a wrong place: note the time, a legal period (72 h under the GDPR) begins when it is known\n");
    }
    out.push_str("\nCommands\n    tillstream status\n    tillstream doctor\n    tillstream slot show\n    tillstream dead-letters list\n");
    let _ = writeln!(
        out,
        "\nNext update {}. Afterwards: timeline from the audit records; lost, doubled and late counts by `tillstream diff`; causes; actions with owners; published within five working days.",
        known.clock(next)
    );
    out
}

fn facts(out: &mut String, status: &Value) {
    let source = &status["source"];
    if source.is_object() {
        let _ = writeln!(
            out,
            "source       {}: {} since {}: {}",
            text(source, "name"),
            text(source, "state"),
            text(source, "since"),
            text(source, "why")
        );
        let _ = writeln!(
            out,
            "positions    received {}, confirmed {}, acknowledged {}, server {}; last commit {}",
            text(source, "received_lsn"),
            text(source, "confirmed_lsn"),
            text(source, "acknowledged_lsn"),
            text(source, "server_lsn"),
            text(source, "last_commit"),
        );
        let slot = &source["slot"];
        if slot.is_object() {
            let left = slot["seconds_to_ceiling"]
                .as_u64()
                .map_or_else(|| "not growing".to_owned(), |s| units::show_duration(Duration::from_secs(s)));
            let _ = writeln!(
                out,
                "WAL kept     {} of {} ({}), pressure {}, to the ceiling {left}",
                units::show_size(number(source, "retained_wal_bytes")),
                units::show_size(number(slot, "ceiling_bytes")),
                text(slot, "wal_status"),
                text(slot, "pressure"),
            );
        }
        last_error(out, source);
    }
    let journal = &status["journal"];
    let _ = writeln!(
        out,
        "journal      {}: {} since {}: {}; {} bytes unconfirmed",
        text(journal, "kind"),
        text(journal, "state"),
        text(journal, "since"),
        text(journal, "why"),
        number(journal, "unconfirmed_bytes")
    );
    let ends: Vec<String> = journal["partitions"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|p| p["last_offset"].is_u64())
        .map(|p| format!("p{}@{}", p["partition"], p["last_offset"]))
        .collect();
    let _ = writeln!(out, "ends         {}", if ends.is_empty() { "nothing stored yet".to_owned() } else { ends.join(" ") });
    for connector in status["connectors"].as_array().into_iter().flatten() {
        let _ = writeln!(
            out,
            "connector    {}: {} since {}: {}\n             {} behind ({} s), {} in flight, {} delivered, {} repeats absorbed, {} dead letters, breaker {}",
            text(connector, "name"),
            text(connector, "state"),
            text(connector, "since"),
            text(connector, "why"),
            number(connector, "lag_entries"),
            connector["lag_seconds"],
            number(connector, "in_flight"),
            number(connector, "delivered"),
            number(connector, "absorbed"),
            number(connector, "dead_letters"),
            text(connector, "breaker"),
        );
        let places: Vec<String> =
            connector["partitions"].as_array().into_iter().flatten().map(|p| format!("p{}@{}", p["partition"], p["settled"])).collect();
        if !places.is_empty() {
            let _ = writeln!(out, "             settled up to {}", places.join(" "));
        }
        last_error(out, connector);
    }
}

fn last_error(out: &mut String, entity: &Value) {
    let error = &entity["last_error"];
    if error.is_object() {
        let _ = writeln!(out, "             last error {} at {}: {}", text(error, "code"), text(error, "at"), text(error, "message"));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn status() -> Value {
        json!({
            "pipeline": "shop",
            "source": {"name": "pos", "state": "healthy", "since": "2026-11-23T08:00:00Z", "why": "bytes are moving, or could", "received_lsn": "0/5A",
                "confirmed_lsn": "0/5A", "acknowledged_lsn": "0/50", "server_lsn": "0/5B", "last_commit": "2026-11-23T12:19:59Z", "retained_wal_bytes": 1048576,
                "slot": {"ceiling_bytes": 1073741824, "wal_status": "reserved", "pressure": "calm", "seconds_to_ceiling": 7800}},
            "journal": {"kind": "rabbitmq 4.0.5", "state": "healthy", "since": "-", "why": "it confirms what it is given", "unconfirmed_bytes": 0,
                "partitions": [{"partition": 0, "last_offset": 812_345}]},
            "connectors": [
                {"name": "crm", "state": "blocked", "since": "2026-11-23T12:01:00Z", "why": "http.status_503", "lag_entries": 4312, "lag_seconds": 1140.0,
                 "dead_letters": 0, "breaker": "open", "delivered": 9, "last_error": {"code": "http.status_503", "message": "the target answers 503", "at": "2026-11-23T12:19:00Z"},
                 "partitions": [{"partition": 0, "settled": 808_033}]},
                {"name": "stock", "state": "healthy", "lag_entries": 3, "lag_seconds": 0.2},
            ],
        })
    }

    fn known(status: Result<&Value, String>) -> Known<'_> {
        Known {
            pipeline: "shop",
            status,
            dead_letters: vec![("crm".to_owned(), 7)],
            retention: Some(Duration::from_secs(86_400)),
            zone: TimeZone::get("America/Chicago").expect("the zone is built in"),
            at: "2026-11-23T12:20:00Z".parse().expect("a moment"),
        }
    }

    #[test]
    fn who_is_affected_reads_what_they_see_and_nothing_else() {
        let status = status();
        let made = template(&known(Ok(&status)), Some(Severity::S2), Stage::Investigating);
        let expected = "\
[INVESTIGATING] Updates to crm delayed - 2026-11-23 12:20 UTC (06:20 CST)
Impact: changes since 12:01 UTC (06:01 CST) reach crm late; the oldest has waited 19 m 0 s; 4,312 wait in the journal.
Not affected: ordering at the till and payments do not pass through here and go on; stock up to date.
Known: crm: does not answer; it is tried again until it does.   Unknown: ________
Next: delivery is tried again by itself until it works; order is kept; safe to wait until 2026-11-24 12:01 UTC (06:01 CST), as long as changes are kept.
Next update: 12:50 UTC (06:50 CST).   Owner: ________   Communicator: ________
";
        assert_eq!(made.public, expected);
        for inside in ["p0@808033", "p0@812345", "0/50", "http.status_503", "1.0 MiB of 1.0 GiB", "2 h 10 m"] {
            assert!(made.internal.contains(inside), "{inside} in {}", made.internal);
            assert!(!made.public.contains(inside));
        }
    }

    #[test]
    fn the_severity_follows_from_what_is_seen_unless_somebody_says_it() {
        let mut status = status();
        assert_eq!(template(&known(Ok(&status)), None, Stage::default()).severity, Severity::S2);
        status["source"]["slot"]["pressure"] = "page".into();
        let made = template(&known(Ok(&status)), None, Stage::default());
        assert!(made.severity == Severity::S1 && made.severity_proposed && made.internal.contains("privacy officer"));
        status["source"]["slot"]["pressure"] = "calm".into();
        status["connectors"][0] = json!({"name": "crm", "state": "healthy", "lag_seconds": 1.0});
        assert_eq!(template(&known(Ok(&status)), None, Stage::default()).severity, Severity::S3);
    }

    #[test]
    fn a_process_that_does_not_answer_is_said_to_be_silent_not_fine() {
        let made = template(&known(Err("connection refused".to_owned())), None, Stage::Investigating);
        assert_eq!(made.severity, Severity::S2);
        assert!(
            made.public.contains("may be delayed") && made.public.contains("not known yet") && !made.public.contains("up to date"),
            "{}",
            made.public
        );
        assert!(made.internal.contains("connection refused") && made.internal.contains("crm: 7 open"), "{}", made.internal);
    }

    #[test]
    fn thousands_are_told_apart() {
        assert_eq!([grouped(7), grouped(999), grouped(4312), grouped(1_234_567)], ["7", "999", "4,312", "1,234,567"]);
    }
}
