//! What a peak needs: the queues of the pipeline over a profile of arrivals, simulated with the service times that a running
//! pipeline measured. Pure; the clock is the profile's own.
//!
//! ```text
//! profile ─▶ one queue for each partition of each connector ─▶ capacity of so many processes ─▶ worst lag, when it is drained
//! ```
//!
//! What is simulated is fluid: events are as small as time's steps, and a process that starts takes a while before it serves.

use serde::{Deserialize, Serialize};

use super::figures::{ConnectorFigures, Figures, StageName};
use super::scale::{self, Bound, Layout};

/// Shortest and longest step of the simulated clock, seconds: short against every lag that is worth a limit.
const STEP_MIN: f64 = 0.1;
const STEP_MAX: f64 = 30.0;
/// Steps of a whole profile.
const STEPS: f64 = 50_000.0;
/// A profile and the time until it is drained are simulated no longer than this.
const SIMULATED_MAX: f64 = 14.0 * 86_400.0;

/// Why a profile cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct ProfileError {
    /// From 1.
    pub line: usize,
    /// What is wrong.
    pub what: String,
}

/// What comes: from each second on so many events, or orders, a second.
#[derive(Clone, Debug, PartialEq)]
pub struct Profile {
    /// Start in seconds, and arrivals a second from there on; the last one is where it ends.
    pub steps: Vec<(f64, f64)>,
    /// Whether the arrivals are orders and not events.
    pub orders: bool,
}

impl Profile {
    /// Reads a profile: a heading `seconds,events` or `seconds,orders`, then rows that rise in time. The last row's arrivals do not
    /// count: it is the end.
    ///
    /// # Errors
    /// With the line that cannot be read.
    pub fn parse(text: &str) -> Result<Profile, ProfileError> {
        let refuse = |line: usize, what: &str| ProfileError { line, what: what.to_owned() };
        let mut rows =
            text.lines().enumerate().map(|(n, line)| (n + 1, line.trim())).filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
        let orders = match rows.next() {
            Some((_, "seconds,events")) => false,
            Some((_, "seconds,orders")) => true,
            Some((line, _)) => return Err(refuse(line, "the heading is `seconds,events` or `seconds,orders`")),
            None => return Err(refuse(1, "there is no heading `seconds,events` or `seconds,orders`")),
        };
        let mut steps: Vec<(f64, f64)> = Vec::new();
        for (line, row) in rows {
            let number = |text: &str| text.trim().parse::<f64>().ok().filter(|n| n.is_finite() && *n >= 0.0);
            let step = row.split_once(',').and_then(|(at, rate)| Some((number(at)?, number(rate)?)));
            let step = step.ok_or_else(|| refuse(line, "two numbers of at least 0 are expected, as `60,250`"))?;
            if steps.last().is_some_and(|last| step.0 <= last.0) {
                return Err(refuse(line, "the seconds do not rise"));
            }
            if step.0 > SIMULATED_MAX {
                return Err(refuse(line, "a profile is at most 14 days long"));
            }
            steps.push(step);
        }
        if steps.len() < 2 {
            return Err(refuse(text.lines().count().max(1), "a profile has two rows at least: a beginning and an end"));
        }
        Ok(Profile { steps, orders })
    }

    /// The same for an even hour.
    #[must_use]
    pub fn even(per_hour: f64) -> Profile {
        Profile { steps: vec![(0.0, per_hour / 3600.0), (3600.0, 0.0)], orders: true }
    }

    /// Arrivals a second at a moment, counted from its beginning.
    #[must_use]
    pub fn at(&self, seconds: f64) -> f64 {
        let moment = seconds + self.steps.first().map_or(0.0, |first| first.0);
        let after = self.steps.partition_point(|(start, _)| *start <= moment);
        if after >= self.steps.len() { 0.0 } else { after.checked_sub(1).map_or(0.0, |n| self.steps[n].1) }
    }

    /// How long it is, in seconds.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        self.steps.last().zip(self.steps.first()).map_or(0.0, |(last, first)| last.0 - first.0)
    }

    /// The most that comes in a second.
    #[must_use]
    pub fn peak(&self) -> f64 {
        self.steps.iter().rev().skip(1).map(|(_, rate)| *rate).fold(0.0, f64::max)
    }

    /// All that comes.
    #[must_use]
    pub fn total(&self) -> f64 {
        self.steps.windows(2).map(|w| (w[1].0 - w[0].0) * w[0].1).sum()
    }
}

/// How a queue fared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Course {
    /// The most events that waited.
    pub backlog_max: f64,
    /// The longest that an event waited, seconds.
    pub lag_max_seconds: f64,
    /// From the profile's beginning until nothing waited; `None` when that never was.
    pub drained_seconds: Option<f64>,
}

/// A queue over a profile, at a capacity that may change in time. `capacity` and `arrivals` are events a second.
#[must_use]
pub fn simulate(arrivals: impl Fn(f64) -> f64, seconds: f64, capacity: impl Fn(f64) -> f64) -> Course {
    let (mut came, mut served) = (0.0, 0.0);
    let mut course = Course::default();
    // When each so many-th event came: the age of what is served is told by it.
    let mut history = std::collections::VecDeque::from([(0.0, 0.0)]);
    let step = (seconds / STEPS).clamp(STEP_MIN, STEP_MAX);
    let mut steps = 0u64;
    loop {
        let now = steps as f64 * step;
        if now >= seconds && came - served < 0.5 {
            course.drained_seconds = Some(now);
            return course;
        }
        if now > seconds && (capacity(now) <= 0.0 || now > SIMULATED_MAX) {
            return course;
        }
        let arriving = if now < seconds { arrivals(now) * step } else { 0.0 };
        came += arriving;
        steps += 1;
        let now = steps as f64 * step;
        history.push_back((now, came));
        served = (served + capacity(now) * step).min(came);
        while history.len() > 1 && history[1].1 <= served {
            history.pop_front();
        }
        let waiting = came - served;
        course.backlog_max = f64::max(course.backlog_max, waiting);
        if waiting > 0.5 {
            course.lag_max_seconds = f64::max(course.lag_max_seconds, now - history[0].0);
        }
    }
}

/// What one connector needs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Need {
    /// The connector.
    pub connector: String,
    /// The least processes that keep the objective; `None` when none do.
    pub replicas: Option<u16>,
    /// Events a second that so many (or all that are useful) settle.
    pub capacity_per_second: f64,
    /// What lets no more through.
    pub bound: Bound,
    /// How it would go.
    pub course: Course,
    /// What would do where processes do not.
    pub instead: Option<String>,
    /// Who paused it, since when and why: the need is what it has once it goes on.
    pub paused: Option<String>,
}

/// What a whole pipeline needs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Needs {
    /// Events that come in all.
    pub events: f64,
    /// Events a second at the peak.
    pub peak_events_per_second: f64,
    /// Part of the time that capture would be at work at the peak, above 1 when it cannot; `None` where nothing was measured.
    pub capture_utilisation: Option<f64>,
    /// The longest lag that is allowed, seconds.
    pub lag_within_seconds: f64,
    /// Processes that deliver, for all connectors; `None` when some connector cannot.
    pub replicas: Option<u16>,
    /// By connector.
    pub connectors: Vec<Need>,
}

/// What a profile needs, by what was measured. `events_per_arrival` turns orders into events.
#[must_use]
pub fn needs(figures: &Figures, profile: &Profile, events_per_arrival: f64, lag_within_seconds: f64) -> Needs {
    let peak = profile.peak() * events_per_arrival;
    let capture = figures.capture.as_ref().and_then(|capture| {
        let at_work =
            capture.utilisation(StageName::Decode) + capture.utilisation(StageName::Encode) + capture.utilisation(StageName::Publish);
        (capture.events_per_second >= 1.0).then(|| peak * at_work / capture.events_per_second)
    });
    let connectors: Vec<Need> =
        figures.connectors.iter().filter_map(|c| need(c, profile, events_per_arrival, lag_within_seconds)).collect();
    let all = connectors.iter().map(|need| need.replicas).collect::<Option<Vec<u16>>>();
    Needs {
        events: profile.total() * events_per_arrival,
        peak_events_per_second: peak,
        capture_utilisation: capture,
        lag_within_seconds,
        replicas: all.and_then(|all| all.into_iter().max()),
        connectors,
    }
}

fn need(connector: &ConnectorFigures, profile: &Profile, events_per_arrival: f64, lag_within: f64) -> Option<Need> {
    let partitions = Layout::of(connector, 1).partitions;
    let of = |layout: &Layout| {
        let (capacity, bound) = scale::capacity(connector, layout)?;
        let course = simulate(|at| profile.at(at) * events_per_arrival, profile.seconds(), |_| capacity);
        Some((capacity, bound, course))
    };
    let mut last = None;
    for replicas in 1..=partitions {
        let (capacity_per_second, bound, course) = of(&Layout::of(connector, replicas))?;
        let keeps = course.lag_max_seconds <= lag_within;
        let need = Need {
            connector: connector.name.clone(),
            replicas: keeps.then_some(replicas),
            capacity_per_second,
            bound,
            course,
            instead: None,
            paused: connector.paused.clone(),
        };
        if keeps {
            return Some(need);
        }
        last = Some(need);
    }
    let mut need = last?;
    need.instead = Some(match need.bound {
        Bound::Quota => format!("a quota of {:.0} events/s", (profile.peak() * events_per_arrival).ceil()),
        Bound::Target => "a target that bears more calls at once".to_owned(),
        Bound::Processors => "a simpler mapping, or more partitions in a new journal".to_owned(),
        Bound::Calls => {
            let wider = |lanes: u64| {
                let now = Layout::of(connector, partitions);
                of(&Layout { lanes, calls_max: now.calls_max.max(lanes * u64::from(partitions)), ..now })
            };
            let enough = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256]
                .into_iter()
                .find(|lanes| wider(*lanes).is_some_and(|(_, _, course)| course.lag_max_seconds <= lag_within));
            enough.map_or_else(
                || "larger batches or a faster target".to_owned(),
                |lanes| format!("{lanes} lanes in each partition, or larger batches"),
            )
        }
    });
    Some(need)
}

/// As one screen.
#[must_use]
pub fn screen(needs: &Needs) -> String {
    use super::bottleneck::count;
    let time = |seconds: f64| crate::config::units::show_duration(std::time::Duration::try_from_secs_f64(seconds).unwrap_or_default());
    let mut out = format!(
        "{} events come, {}/s at the peak; no event shall wait longer than {}\n",
        count(needs.events),
        count(needs.peak_events_per_second),
        time(needs.lag_within_seconds)
    );
    match needs.capture_utilisation {
        Some(part) if part > 1.0 => out.push_str(&format!(
            "capture: cannot: at the peak it would be at work {:.0} % of the time; a faster processor, or two pipelines\n",
            part * 100.0
        )),
        Some(part) => out.push_str(&format!("capture: one process, at work {:.0} % of the time at the peak\n", part * 100.0)),
        None => out.push_str("capture: nothing was measured yet\n"),
    }
    for need in &needs.connectors {
        let course = format!(
            "{}/s, at most {} events wait, for {}",
            count(need.capacity_per_second),
            count(need.course.backlog_max),
            time(need.course.lag_max_seconds)
        );
        if let Some(by) = &need.paused {
            out.push_str(&format!("{}: paused by {by}; once it is resumed:\n", need.connector));
        }
        match (need.replicas, &need.instead) {
            (Some(replicas), _) => out.push_str(&format!("{}: {replicas} replicas: {course}\n", need.connector)),
            (None, instead) => {
                let instead = instead.as_deref().unwrap_or("-");
                out.push_str(&format!("{}: replicas do not suffice: {course}; it needs {instead}\n", need.connector));
            }
        }
    }
    if needs.connectors.is_empty() {
        out.push_str("connectors: nothing was delivered yet, so nothing is known of what an event costs\n");
    }
    if let Some(replicas) = needs.replicas.filter(|_| !needs.connectors.is_empty()) {
        out.push_str(&format!("in all: {replicas} processes that deliver\n"));
    }
    out
}

#[cfg(test)]
mod tests;
