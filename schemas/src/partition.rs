//! Which partition a row belongs to.
//!
//! murmur3 (x86, 32 bit, seed 104729) over the bytes of the column texts joined by U+001F, modulo the number of
//! partitions, both unsigned. A NULL contributes nothing between its separators. Readers in other languages find
//! golden vectors in `schemas/examples/partition.json`.

use std::io::Read;

/// The hash's seed: that of RabbitMQ's own hash routing of super streams.
pub const SEED: u32 = 104_729;

/// Joins the texts of several columns.
pub const SEPARATOR: u8 = 0x1f;

/// The partition, from 0, of the row whose partitioning columns have these texts.
///
/// With one partition nothing is hashed. `count` 0 counts as 1.
#[inline]
pub fn partition_of<'a>(values: impl Iterator<Item = Option<&'a [u8]>>, count: u16) -> u16 {
    if count <= 1 {
        return 0;
    }
    (hash(values) % u32::from(count)) as u16
}

/// The hash that [`partition_of`] reduces.
pub fn hash<'a>(values: impl Iterator<Item = Option<&'a [u8]>>) -> u32 {
    let mut joined = Joined { values, current: &[], started: false };
    murmur3::murmur3_32(&mut joined, SEED).expect("reading from memory can not fail")
}

/// Reads values one after another with a separator between them.
struct Joined<'a, I> {
    values: I,
    current: &'a [u8],
    started: bool,
}

impl<'a, I: Iterator<Item = Option<&'a [u8]>>> Read for Joined<'a, I> {
    fn read(&mut self, to: &mut [u8]) -> std::io::Result<usize> {
        let mut written = 0;
        while written < to.len() {
            if self.current.is_empty() {
                let Some(next) = self.values.next() else { break };
                self.current = next.unwrap_or_default();
                if std::mem::replace(&mut self.started, true) {
                    to[written] = SEPARATOR;
                    written += 1;
                }
                continue;
            }
            let n = self.current.len().min(to.len() - written);
            let (now, later) = self.current.split_at(n);
            to[written..written + n].copy_from_slice(now);
            (self.current, written) = (later, written + n);
        }
        Ok(written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(values: &[Option<&str>], joined: &str) {
        let expected = murmur3::murmur3_32(&mut joined.as_bytes(), SEED).expect("reads");
        assert_eq!(hash(values.iter().map(|v| v.map(str::as_bytes))), expected, "{values:?}");
    }

    #[test]
    fn columns_are_hashed_as_one_joined_text() {
        check(&[], "");
        check(&[Some("")], "");
        check(&[None], "");
        check(&[Some("1")], "1");
        check(&[Some("north"), Some("42")], "north\u{1f}42");
        check(&[None, None], "\u{1f}");
        check(&[Some("a"), None, Some("bcdefgh")], "a\u{1f}\u{1f}bcdefgh");
        check(&[Some("Straße 7"), Some("日本")], "Straße 7\u{1f}日本");
    }

    #[test]
    fn the_partition_is_the_unsigned_remainder() {
        // Of 200 keys some have a hash with the top bit set, so a signed remainder would show.
        let mut seen = [0u32; 7];
        for n in 0..200 {
            let text = n.to_string();
            let one = || std::iter::once(Some(text.as_bytes()));
            let partition = partition_of(one(), 7);
            assert_eq!(u32::from(partition), hash(one()) % 7);
            seen[usize::from(partition)] += 1;
        }
        assert!(seen.iter().all(|n| *n > 10), "{seen:?}");
        assert_eq!(partition_of(std::iter::once(Some(b"x".as_slice())), 1), 0);
        assert_eq!(partition_of(std::iter::once(Some(b"x".as_slice())), 0), 0);
    }
}
