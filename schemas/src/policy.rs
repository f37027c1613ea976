//! What becomes of a column's values before they reach the journal.
//!
//! Owns the words for it and how each looks in an event; never decides which column gets which (configuration does).
//! A policy never stands on a key column: a key that is altered names no row.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::value::write_string;

/// What becomes of a column's values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Policy {
    /// They are written as they are.
    #[default]
    Pass,
    /// The column does not appear.
    Drop,
    /// The column appears and is always null.
    Null,
    /// Every value that is not null becomes `***`.
    Mask,
    /// A keyed hash takes each value's place: equal values stay equal, and nobody without the key can try values.
    Hash,
    /// The first characters of PostgreSQL's text, as a string.
    Truncate(u32),
    /// Nobody has classified the column yet: it does not appear.
    Held,
}

impl Policy {
    /// Reads what configuration says: `pass`, `drop`, `null`, `mask`, `hash`, `truncate(8)`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Policy> {
        Some(match text {
            "pass" => Policy::Pass,
            "drop" => Policy::Drop,
            "null" => Policy::Null,
            "mask" => Policy::Mask,
            "hash" => Policy::Hash,
            _ => {
                let digits = text.strip_prefix("truncate(")?.strip_suffix(')')?;
                let plain = !digits.is_empty() && digits.len() <= 9 && digits.bytes().all(|b| b.is_ascii_digit());
                Policy::Truncate(digits.parse().ok().filter(|_| plain)?)
            }
        })
    }

    /// Whether the column appears in events at all.
    #[must_use]
    pub fn appears(self) -> bool {
        !matches!(self, Policy::Drop | Policy::Held)
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Policy::Pass => f.write_str("pass"),
            Policy::Drop => f.write_str("drop"),
            Policy::Null => f.write_str("null"),
            Policy::Mask => f.write_str("mask"),
            Policy::Hash => f.write_str("hash"),
            Policy::Truncate(n) => write!(f, "truncate({n})"),
            Policy::Held => f.write_str("held"),
        }
    }
}

/// The key of [`Policy::Hash`]. Two are equal when their ids are; the key itself is never shown.
#[derive(Clone)]
pub struct HashKey {
    id: String,
    mac: Hmac<Sha256>,
}

impl HashKey {
    /// A key under an id, which stands in every hash so that a later key can be told from this one.
    #[must_use]
    pub fn new(id: &str, secret: &[u8]) -> HashKey {
        HashKey { id: id.to_owned(), mac: Hmac::new_from_slice(secret).expect("HMAC takes keys of every length") }
    }

    /// Writes the hash of a value's text: `"hmac-sha256:<id>:<hex>"`.
    fn write(&self, out: &mut Vec<u8>, text: &[u8]) {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        let mut mac = self.mac.clone();
        mac.update(text);
        let digest = mac.finalize().into_bytes();
        let mut hash = format!("hmac-sha256:{}:", self.id).into_bytes();
        hash.extend(digest.iter().flat_map(|b| [HEX[usize::from(b >> 4)], HEX[usize::from(b & 15)]]));
        write_string(out, &hash);
    }
}

impl PartialEq for HashKey {
    fn eq(&self, other: &HashKey) -> bool {
        self.id == other.id
    }
}

impl Eq for HashKey {}

impl fmt::Debug for HashKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HashKey({})", self.id)
    }
}

/// Writes what a policy makes of a value's text. [`Policy::Pass`] and those that do not appear are the caller's;
/// without a key a hash is a mask.
pub fn write_guarded(out: &mut Vec<u8>, policy: Policy, key: Option<&HashKey>, text: &[u8]) {
    match (policy, key) {
        (Policy::Null, _) => out.extend_from_slice(b"null"),
        (Policy::Hash, Some(key)) => key.write(out, text),
        (Policy::Truncate(n), _) => write_string(out, first_characters(text, n)),
        _ => out.extend_from_slice(b"\"***\""),
    }
}

/// The first `n` characters; a byte that begins none (the text may not be UTF-8) counts with the one before it.
fn first_characters(text: &[u8], n: u32) -> &[u8] {
    let starts = text.iter().enumerate().filter(|(_, b)| **b & 0xc0 != 0x80).map(|(at, _)| at);
    match starts.into_iter().nth(n as usize) {
        Some(end) => &text[..end],
        None if n == 0 => &[],
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(policy: Policy, text: &str) -> String {
        let mut out = Vec::new();
        write_guarded(&mut out, policy, Some(&HashKey::new("k1", b"Jefe")), text.as_bytes());
        String::from_utf8(out).expect("UTF-8")
    }

    #[test]
    fn each_policy_has_its_form() {
        assert_eq!(written(Policy::Null, "x"), "null");
        assert_eq!(written(Policy::Mask, "x"), "\"***\"");
        // RFC 4231, test case 2.
        assert_eq!(
            written(Policy::Hash, "what do ya want for nothing?"),
            "\"hmac-sha256:k1:5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843\""
        );
        for (n, text, first) in [(0, "Zoë", ""), (2, "Zoë", "Zo"), (3, "Zoë!", "Zoë"), (9, "Zoë", "Zoë"), (1, "", "")] {
            assert_eq!(written(Policy::Truncate(n), text), format!("\"{first}\""));
        }
        assert_eq!(first_characters(b"\x80\x80", 0), b"");
    }

    #[test]
    fn words_are_read_as_they_are_printed() {
        for policy in [Policy::Pass, Policy::Drop, Policy::Null, Policy::Mask, Policy::Hash, Policy::Truncate(8)] {
            assert_eq!(Policy::parse(&policy.to_string()), Some(policy));
        }
        for text in ["", "held", "truncate", "truncate()", "truncate(-1)", "truncate(+1)", "truncate(9999999999)", "Drop"] {
            assert_eq!(Policy::parse(text), None, "{text}");
        }
    }

    #[test]
    fn the_key_is_not_shown() {
        assert_eq!(format!("{:?}", HashKey::new("k1", b"secret")), "HashKey(k1)");
    }
}
