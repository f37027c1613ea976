//! Parts of the day and the week: when the point of sale is busy, and when a job may read. Pure but for the zone's rules.

use jiff::civil::{Date, Weekday};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan, Zoned};

/// A part of the day, on some days of the week. One that ends before it begins runs over midnight and belongs to the day
/// on which it begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hours {
    /// By day, Monday first.
    days: [bool; 7],
    /// Minutes since midnight.
    from: u16,
    /// Likewise; 1440 at most.
    to: u16,
}

/// Parts of the week in a time zone.
#[derive(Clone, Debug, PartialEq)]
pub struct Calendar {
    zone: TimeZone,
    hours: Vec<Hours>,
}

const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

impl Hours {
    /// Reads `Mon-Fri 11:00-14:00`, `Sat,Sun 10:00-15:30`, `daily 17:00-21:30` or `02:00-05:00`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Hours> {
        let text = text.trim();
        let (days, time) = text.rsplit_once(' ').unwrap_or(("daily", text));
        let mut on = [false; 7];
        let day = |name: &str| DAYS.iter().position(|d| d.eq_ignore_ascii_case(name.trim()));
        if days.trim().eq_ignore_ascii_case("daily") {
            on = [true; 7];
        } else {
            for piece in days.split(',') {
                let (first, last) = piece.split_once('-').unwrap_or((piece, piece));
                let (mut at, last) = (day(first)?, day(last)?);
                on[at] = true;
                while at != last {
                    at = (at + 1) % 7;
                    on[at] = true;
                }
            }
        }
        let (from, to) = time.split_once('-')?;
        let (from, to) = (minutes(from)?, minutes(to)?);
        (from != to && from < 1440).then_some(Hours { days: on, from, to })
    }

    /// Minutes from `now` to the end, when `now` lies inside. `day` is the day of the week from Monday.
    fn left(&self, day: usize, minute: u16) -> Option<u16> {
        let yesterday = (day + 6) % 7;
        if self.from < self.to {
            return (self.days[day] && (self.from..self.to).contains(&minute)).then(|| self.to - minute);
        }
        if self.days[day] && minute >= self.from {
            return Some(1440 - minute + self.to);
        }
        (self.days[yesterday] && minute < self.to).then(|| self.to - minute)
    }

    /// Minutes from `now` to the next begin, within a week.
    fn next(&self, day: usize, minute: u16) -> Option<u32> {
        (0..=7)
            .filter_map(|ahead: usize| {
                let begin = ahead as u32 * 1440 + u32::from(self.from);
                (self.days[(day + ahead) % 7] && begin > u32::from(minute)).then(|| begin - u32::from(minute))
            })
            .min()
    }
}

/// `11:00` as minutes since midnight; `24:00` is the day's end.
fn minutes(text: &str) -> Option<u16> {
    let (hour, minute) = text.trim().split_once(':')?;
    let number =
        |t: &str| (t.len() <= 2 && !t.is_empty() && t.bytes().all(|b| b.is_ascii_digit())).then(|| t.parse::<u16>().ok()).flatten();
    let (hour, minute) = (number(hour)?, number(minute)?);
    (minute < 60 && hour * 60 + minute <= 1440).then_some(hour * 60 + minute)
}

impl Calendar {
    /// Parts of the week in a zone by its IANA name. `None` when nobody knows that zone.
    #[must_use]
    pub fn new(zone: &str, hours: Vec<Hours>) -> Option<Calendar> {
        Some(Calendar { zone: TimeZone::get(zone).ok()?, hours })
    }

    /// The zone.
    #[must_use]
    pub fn zone(&self) -> &TimeZone {
        &self.zone
    }

    /// Whether it names any part at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.hours.is_empty()
    }

    fn local(&self, now: Timestamp) -> (Zoned, usize, u16) {
        let now = now.to_zoned(self.zone.clone());
        let day = usize::try_from(now.weekday().since(Weekday::Monday)).unwrap_or(0);
        let minute = u16::try_from(i32::from(now.hour()) * 60 + i32::from(now.minute())).unwrap_or(0);
        (now, day, minute)
    }

    /// The end of the part that `now` lies in, as people there read it (`14:00`); `None` outside of all.
    #[must_use]
    pub fn inside_until(&self, now: Timestamp) -> Option<String> {
        let (local, day, minute) = self.local(now);
        let left = self.hours.iter().filter_map(|h| h.left(day, minute)).max()?;
        Some(shown(&local, u32::from(left)))
    }

    /// Every part that lies between two moments, cut to them, in the order in which they begin.
    #[must_use]
    pub fn between(&self, from: Timestamp, to: Timestamp) -> Vec<(Timestamp, Timestamp)> {
        let mut found = Vec::new();
        let first = from.to_zoned(self.zone.clone()).date();
        let last = to.to_zoned(self.zone.clone()).date();
        // One that began the day before may run over midnight.
        let mut date = first.yesterday().unwrap_or(first);
        while date <= last {
            let day = usize::try_from(date.weekday().since(Weekday::Monday)).unwrap_or(0);
            let Ok(next) = date.tomorrow() else { break };
            for hours in self.hours.iter().filter(|hours| hours.days[day]) {
                let ends = if hours.from < hours.to { date } else { next };
                let (Some(begin), Some(end)) = (self.moment(date, hours.from), self.moment(ends, hours.to)) else { continue };
                let (begin, end) = (begin.max(from), end.min(to));
                if begin < end {
                    found.push((begin, end));
                }
            }
            date = next;
        }
        found.sort_unstable();
        found
    }

    fn moment(&self, date: Date, minute: u16) -> Option<Timestamp> {
        let civil = date.at(0, 0, 0, 0).checked_add(i64::from(minute).minutes()).ok()?;
        civil.to_zoned(self.zone.clone()).ok().map(|zoned| zoned.timestamp())
    }

    /// When the next part begins, as people there read it; `None` inside of one.
    #[must_use]
    pub fn outside_until(&self, now: Timestamp) -> Option<String> {
        if self.inside_until(now).is_some() {
            return None;
        }
        let (local, day, minute) = self.local(now);
        let next = self.hours.iter().filter_map(|h| h.next(day, minute)).min()?;
        Some(shown(&local, next))
    }
}

fn shown(now: &Zoned, minutes: u32) -> String {
    let Ok(then) = now.checked_add(i64::from(minutes).minutes()) else { return "later".to_owned() };
    if then.date() == now.date() { then.strftime("%H:%M").to_string() } else { then.strftime("%a %H:%M").to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a moment")
    }

    #[test]
    fn hours_are_read_or_refused() {
        for text in
            ["Mon-Fri 11:00-14:00", "daily 17:00-21:30", "Sat,Sun 10:00-15:30", "02:00-05:00", "fri-mon 22:00-02:00", "Sun 00:00-24:00"]
        {
            assert!(Hours::parse(text).is_some(), "{text}");
        }
        for text in [
            "",
            "Mon",
            "Mon 11-14",
            "Mon 11:00",
            "Mun 11:00-12:00",
            "11:00-11:00",
            "11:60-12:00",
            "24:00-01:00",
            "25:00-26:00",
            "-1:00-2:00",
        ] {
            assert_eq!(Hours::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_calendar_follows_its_zone() {
        let hours = ["Mon-Fri 11:00-14:00", "daily 17:00-21:30", "Sat 22:00-02:00"];
        let calendar = Calendar::new("America/Chicago", hours.iter().filter_map(|h| Hours::parse(h)).collect()).expect("a zone");
        // Winter: six hours behind UTC. 2026-11-23 is a Monday.
        assert_eq!(calendar.inside_until(at("2026-11-23T18:30:00Z")).as_deref(), Some("14:00"));
        assert_eq!(calendar.inside_until(at("2026-11-23T20:00:00Z")), None);
        assert_eq!(calendar.outside_until(at("2026-11-23T20:00:00Z")).as_deref(), Some("17:00"));
        assert_eq!(calendar.outside_until(at("2026-11-23T18:30:00Z")), None);
        // Over midnight, from Saturday into Sunday.
        assert_eq!(calendar.inside_until(at("2026-11-22T07:00:00Z")).as_deref(), Some("02:00"));
        assert_eq!(calendar.inside_until(at("2026-11-22T05:00:00Z")).as_deref(), Some("Sun 02:00"));
        // Summer: five hours behind.
        assert_eq!(calendar.inside_until(at("2026-07-01T17:00:00Z")).as_deref(), Some("14:00"));
        assert_eq!(Calendar::new("Mars/Olympus", Vec::new()), None);
    }

    #[test]
    fn the_parts_between_two_moments_are_cut_to_them() {
        let hours = ["Mon-Fri 11:00-14:00", "Sat 22:00-02:00"];
        let calendar = Calendar::new("America/Chicago", hours.iter().filter_map(|h| Hours::parse(h)).collect()).expect("a zone");
        let between = |from: &str, to: &str| -> Vec<(String, String)> {
            calendar.between(at(from), at(to)).into_iter().map(|(from, to)| (from.to_string(), to.to_string())).collect()
        };
        let pair = |from: &str, to: &str| (from.to_owned(), to.to_owned());
        // From the night of Sunday, inside the part that began on Saturday, to the middle of Monday's.
        assert_eq!(
            between("2026-11-22T07:00:00Z", "2026-11-23T18:30:00Z"),
            [pair("2026-11-22T07:00:00Z", "2026-11-22T08:00:00Z"), pair("2026-11-23T17:00:00Z", "2026-11-23T18:30:00Z")]
        );
        assert!(between("2026-11-23T20:00:00Z", "2026-11-23T21:00:00Z").is_empty());
        assert_eq!(between("2026-11-16T00:00:00Z", "2026-11-23T00:00:00Z").len(), 6);
    }
}
