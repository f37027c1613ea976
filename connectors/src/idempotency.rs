//! Keys that name an effect, in the form every target takes: 52 characters `[a-z2-7]`.

use sha2::{Digest, Sha256};

/// Names what the parts name together: lower-case base32 of their SHA-256, each part behind its length so that no two
/// lists read the same. Stored in targets for as long as they remember, so it never changes.
#[must_use]
pub fn key<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    base32(&hash.finalize())
}

/// RFC 4648 base32, lower case, without padding.
fn base32(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let mut text = String::with_capacity(bytes.len().div_ceil(5) * 8);
    for five in bytes.chunks(5) {
        let held = five.iter().fold(0u64, |held, byte| held << 8 | u64::from(*byte)) << (8 * (5 - five.len()));
        text.extend((0..(five.len() * 8).div_ceil(5)).map(|n| char::from(ALPHABET[(held >> (35 - 5 * n) & 31) as usize])));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base32_is_the_usual_one_in_lower_case() {
        for (bytes, text) in [("", ""), ("f", "my"), ("fo", "mzxq"), ("foo", "mzxw6"), ("foob", "mzxw6yq"), ("foobar", "mzxw6ytboi")] {
            assert_eq!(base32(bytes.as_bytes()), text);
        }
    }

    #[test]
    fn lists_that_read_alike_have_other_keys() {
        let key = |parts: &[&str]| key(parts.iter().map(|p| p.as_bytes()));
        assert_eq!(key(&["ab", "c"]).len(), 52);
        assert_ne!(key(&["ab", "c"]), key(&["a", "bc"]));
        assert_eq!(key(&["ab", "c"]), key(&["ab", "c"]));
    }
}
