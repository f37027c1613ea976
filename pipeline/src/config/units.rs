//! Values with units: `30s`, `1h30m`, `8MiB`. Pure.

use std::time::Duration;

/// Reads a duration: one or more of `<whole number><unit>`, units `ms`, `s`, `m`, `h`, `d`, largest first.
/// `None` for anything else, for a repeated or rising unit and for more than a hundred years.
#[must_use]
pub fn duration(text: &str) -> Option<Duration> {
    const UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];
    let mut rest = text.trim();
    let (mut total, mut below) = (0u64, u64::MAX);
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let letters = rest.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (_, factor) = UNITS.iter().find(|(name, _)| *name == &rest[..letters])?;
        rest = &rest[letters..];
        if *factor >= below {
            return None;
        }
        below = *factor;
        total = total.checked_add(number.checked_mul(*factor)?)?;
    }
    (below != u64::MAX && total <= 100 * 366 * 86_400_000).then(|| Duration::from_millis(total))
}

/// Reads a rate: `<whole number>/<time>`, the time as a duration or its unit alone, as `20/s`, `750/m`, `5/10s`. `None` for
/// anything else, for nothing at all and for a time of more than a day.
#[must_use]
pub fn rate(text: &str) -> Option<super::Rate> {
    let (events, per) = text.trim().split_once('/')?;
    let events: u64 = events.trim_end().parse().ok()?;
    let per = per.trim_start();
    let per = if per.starts_with(|c: char| c.is_ascii_digit()) { duration(per)? } else { duration(&format!("1{per}"))? };
    let sound = (1..=100_000_000).contains(&events) && !per.is_zero() && per <= Duration::from_secs(86_400);
    sound.then_some(super::Rate { events, per })
}

/// Reads a size in bytes: a whole number and `B`, `kB`/`KB`, `MB`, `GB`, `TB` (powers of 1000) or `KiB`, `MiB`, `GiB`, `TiB`.
#[must_use]
pub fn size(text: &str) -> Option<u64> {
    const UNITS: [(&str, u64); 10] = [
        ("B", 1),
        ("kB", 1000),
        ("KB", 1000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("TB", 1_000_000_000_000),
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("TiB", 1 << 40),
    ];
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let number: u64 = text[..digits].parse().ok()?;
    let unit = text[digits..].trim_start();
    let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit)?;
    number.checked_mul(*factor)
}

/// Prints bytes for people: `1.4 GiB`.
#[must_use]
pub fn show_size(bytes: u64) -> String {
    const NAMES: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < NAMES.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", NAMES[unit]) }
}

/// Prints a duration for people in at most two units: `2 h 10 m`, `850 ms`.
#[must_use]
pub fn show_duration(duration: Duration) -> String {
    let ms = duration.as_millis();
    let s = duration.as_secs();
    match s {
        0 => format!("{ms} ms"),
        1..=9 => format!("{}.{} s", s, ms % 1000 / 100),
        10..=59 => format!("{s} s"),
        60..=3599 => format!("{} m {} s", s / 60, s % 60),
        3600..=86_399 => format!("{} h {} m", s / 3600, s % 3600 / 60),
        _ => format!("{} d {} h", s / 86_400, s % 86_400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates() {
        for (text, events, seconds) in [("20/s", 20, 1), ("750 / m", 750, 60), ("5/10s", 5, 10), ("1000/h", 1000, 3600)] {
            assert_eq!(rate(text), Some(crate::config::Rate { events, per: Duration::from_secs(seconds) }), "{text}");
        }
        for text in ["20", "20/", "/s", "0/s", "-1/s", "1.5/s", "20/0s", "20/2d", "20/x", "20/s/s", "20s"] {
            assert_eq!(rate(text), None, "{text}");
        }
    }

    #[test]
    fn durations_need_units_and_fall() {
        for (text, ms) in [("30s", 30_000), ("1h30m", 5_400_000), ("250ms", 250), ("1d", 86_400_000), ("0s", 0), ("1m5ms", 60_005)] {
            assert_eq!(duration(text), Some(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "30", "s", "1.5s", "-1s", "30 s", "5s5s", "5s1m", "99999999999999999999s", "200000d", "3y", "1ſ", "１s"] {
            assert_eq!(duration(text), None, "{text}");
        }
    }

    #[test]
    fn sizes_need_units() {
        for (text, bytes) in [("8MiB", 8 << 20), ("8 MiB", 8 << 20), ("1kB", 1000), ("0B", 0), ("2GB", 2_000_000_000)] {
            assert_eq!(size(text), Some(bytes), "{text}");
        }
        for text in ["", "8", "MiB", "8 mib", "1.5GiB", "-1B", "99999999999TiB", "8MiBB"] {
            assert_eq!(size(text), None, "{text}");
        }
    }
}
