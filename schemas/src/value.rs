//! PostgreSQL's text of a value, written as JSON.
//!
//! Owns how each [`ValueClass`] looks in an event; never parses a number into a float, never allocates and never
//! fails: a text that is not what its class promises is written as a JSON string of that text. Bytes that are not
//! UTF-8 (a `SQL_ASCII` database can send them) become U+FFFD, one for each malformed sequence.

use crate::table::ValueClass;

/// Writes a column's text as JSON.
///
/// `class` is that of the element when `array` is set. Arrays whose bounds do not start at 1 (`[2:3]={…}`) and arrays
/// that can not be read stay PostgreSQL's text.
#[inline]
pub fn write_value(out: &mut Vec<u8>, class: ValueClass, array: bool, delimiter: u8, text: &[u8]) {
    if !array {
        return write_scalar(out, class, text);
    }
    let start = out.len();
    if write_array(out, class, delimiter, text).is_none() {
        out.truncate(start);
        write_string(out, text);
    }
}

/// Writes one value that is not an array.
#[inline]
pub fn write_scalar(out: &mut Vec<u8>, class: ValueClass, text: &[u8]) {
    match class {
        ValueClass::Integer if is_integer(text) => out.extend_from_slice(text),
        ValueClass::Float if is_number(text) => out.extend_from_slice(text),
        ValueClass::Boolean if text == b"t" => out.extend_from_slice(b"true"),
        ValueClass::Boolean if text == b"f" => out.extend_from_slice(b"false"),
        ValueClass::Json => write_json(out, text),
        ValueClass::Bytes => write_bytes(out, text),
        ValueClass::TimestampTz => write_timestamp(out, text, true),
        ValueClass::Timestamp => write_timestamp(out, text, false),
        ValueClass::Integer | ValueClass::Float | ValueClass::Boolean | ValueClass::Numeric | ValueClass::Text => write_string(out, text),
    }
}

/// What a byte needs inside a JSON string: nothing (0), a letter behind a backslash, or `u` for `\u00XX`.
const ESCAPES: [u8; 128] = {
    let mut table = [0u8; 128];
    let mut n = 0;
    while n < 0x20 {
        table[n] = b'u';
        n += 1;
    }
    table[0x08] = b'b';
    table[0x09] = b't';
    table[0x0a] = b'n';
    table[0x0c] = b'f';
    table[0x0d] = b'r';
    table[b'"' as usize] = b'"';
    table[b'\\' as usize] = b'\\';
    table
};

const HEX: &[u8; 16] = b"0123456789abcdef";

/// Writes a JSON string, quotes included.
#[inline]
pub fn write_string(out: &mut Vec<u8>, text: &[u8]) {
    out.reserve(text.len() + 2);
    out.push(b'"');
    write_string_content(out, text);
    out.push(b'"');
}

/// Writes what stands between the quotes of a JSON string.
#[inline]
pub fn write_string_content(out: &mut Vec<u8>, text: &[u8]) {
    if is_plain(text) { out.extend_from_slice(text) } else { write_escaped(out, text) }
}

/// Whether every byte is ASCII that a JSON string takes as it is: eight bytes at a time.
#[inline]
fn is_plain(text: &[u8]) -> bool {
    const LOW: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = LOW << 7;
    // A byte's high bit rises where `x - n` borrows (x < n) or where `x ^ c` is zero and 1 is taken from it. Borrows
    // may spread to the next byte: then a plain text is only taken for one that is not, and the careful path runs.
    let suspicious = |w: u64| {
        let quote = w ^ (LOW * b'"' as u64);
        let backslash = w ^ (LOW * b'\\' as u64);
        (w | w.wrapping_sub(LOW * 0x20) | quote.wrapping_sub(LOW) | backslash.wrapping_sub(LOW)) & HIGH
    };
    let (words, rest) = text.as_chunks::<8>();
    let mut found = 0;
    for word in words {
        found |= suspicious(u64::from_le_bytes(*word));
    }
    let mut last = [b' '; 8];
    last[..rest.len()].copy_from_slice(rest);
    (found | suspicious(u64::from_le_bytes(last))) == 0
}

/// The careful path: escapes what JSON wants escaped, replaces what is not UTF-8.
fn write_escaped(out: &mut Vec<u8>, text: &[u8]) {
    for chunk in text.utf8_chunks() {
        let valid = chunk.valid().as_bytes();
        let mut from = 0;
        for (at, &byte) in valid.iter().enumerate() {
            let escape = ESCAPES.get(usize::from(byte)).copied().unwrap_or(0);
            if escape == 0 {
                continue;
            }
            out.extend_from_slice(&valid[from..at]);
            from = at + 1;
            if escape == b'u' {
                let (high, low) = (HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]);
                out.extend_from_slice(&[b'\\', b'u', b'0', b'0', high, low]);
            } else {
                out.extend_from_slice(&[b'\\', escape]);
            }
        }
        out.extend_from_slice(&valid[from..]);
        if !chunk.invalid().is_empty() {
            out.extend_from_slice("\u{FFFD}".as_bytes());
        }
    }
}

/// json and jsonb as they came. PostgreSQL checked them; only what is not UTF-8 is replaced.
fn write_json(out: &mut Vec<u8>, text: &[u8]) {
    if text.is_empty() {
        return out.extend_from_slice(b"\"\"");
    }
    if text.is_ascii() {
        return out.extend_from_slice(text);
    }
    for chunk in text.utf8_chunks() {
        out.extend_from_slice(chunk.valid().as_bytes());
        if !chunk.invalid().is_empty() {
            out.extend_from_slice("\u{FFFD}".as_bytes());
        }
    }
}

fn digits(text: &[u8]) -> usize {
    text.iter().take_while(|b| b.is_ascii_digit()).count()
}

/// `-?(0|[1-9][0-9]*)`.
#[inline]
fn is_integer(text: &[u8]) -> bool {
    let unsigned = text.strip_prefix(b"-").unwrap_or(text);
    match unsigned {
        [] => false,
        [b'0', rest @ ..] => rest.is_empty(),
        _ => unsigned.iter().all(u8::is_ascii_digit),
    }
}

/// JSON's grammar of a number.
fn is_number(text: &[u8]) -> bool {
    let unsigned = text.strip_prefix(b"-").unwrap_or(text);
    let whole = digits(unsigned);
    if whole == 0 || (whole > 1 && unsigned[0] == b'0') {
        return false;
    }
    let mut rest = &unsigned[whole..];
    if let Some(fraction) = rest.strip_prefix(b".") {
        let n = digits(fraction);
        if n == 0 {
            return false;
        }
        rest = &fraction[n..];
    }
    match rest {
        [] => true,
        [b'e' | b'E', exponent @ ..] => {
            let exponent = exponent.strip_prefix(b"+").or(exponent.strip_prefix(b"-")).unwrap_or(exponent);
            !exponent.is_empty() && digits(exponent) == exponent.len()
        }
        _ => false,
    }
}

/// `2026-11-22 10:00:00.5+00` becomes `2026-11-22T10:00:00.5Z`, and without a zone `2026-11-22T10:00:00.5`. An offset
/// other than +00 is kept, as `+02:00`. What RFC 3339 can not say (infinity, BC, years above 9999, offsets with
/// seconds) stays as PostgreSQL prints it.
fn write_timestamp(out: &mut Vec<u8>, text: &[u8], zoned: bool) {
    match iso_timestamp(text, zoned) {
        Some((date, time, offset)) => {
            out.push(b'"');
            out.extend_from_slice(date);
            out.push(b'T');
            out.extend_from_slice(time);
            match offset {
                [] => {}
                b"+00" | b"+00:00" | b"-00" => out.push(b'Z'),
                [_, _, _] => {
                    out.extend_from_slice(offset);
                    out.extend_from_slice(b":00");
                }
                _ => out.extend_from_slice(offset),
            }
            out.push(b'"');
        }
        None => write_string(out, text),
    }
}

/// Date, time and offset (empty without a zone), all checked to be plain ASCII of the expected form.
fn iso_timestamp(text: &[u8], zoned: bool) -> Option<(&[u8], &[u8], &[u8])> {
    let (head, tail) = text.split_first_chunk::<19>()?;
    let form = b"0000-00-00 00:00:00";
    let fits = head.iter().zip(form).all(|(b, f)| if *f == b'0' { b.is_ascii_digit() } else { b == f });
    if !fits {
        return None;
    }
    let fraction = match tail {
        [b'.', rest @ ..] => match digits(rest) {
            0 => return None,
            n => 1 + n,
        },
        _ => 0,
    };
    let offset = &tail[fraction..];
    let known = match offset {
        [] => !zoned,
        [b'+' | b'-', h1, h2] => zoned && [h1, h2].iter().all(|b| b.is_ascii_digit()),
        [b'+' | b'-', h1, h2, b':', m1, m2] => zoned && [h1, h2, m1, m2].iter().all(|b| b.is_ascii_digit()),
        _ => false,
    };
    known.then(|| (&text[..10], &text[11..19 + fraction], offset))
}

const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// `\x` and hexadecimal digits become base64 with padding; any other form (`bytea_output = escape`) stays text.
fn write_bytes(out: &mut Vec<u8>, text: &[u8]) {
    let start = out.len();
    let done = text.strip_prefix(b"\\x").and_then(|hex| {
        out.reserve(hex.len() * 2 / 3 + 6);
        out.push(b'"');
        write_base64_of_hex(out, hex)?;
        out.push(b'"');
        Some(())
    });
    if done.is_none() {
        out.truncate(start);
        write_string(out, text);
    }
}

fn write_base64_of_hex(out: &mut Vec<u8>, hex: &[u8]) -> Option<()> {
    let nibble = |b: u8| (b as char).to_digit(16);
    let symbol = |n: u32| BASE64[(n & 63) as usize];
    let (groups, rest) = hex.as_chunks::<6>();
    for group in groups {
        let mut n = 0;
        for &b in group {
            n = n << 4 | nibble(b)?;
        }
        out.extend_from_slice(&[symbol(n >> 18), symbol(n >> 12), symbol(n >> 6), symbol(n)]);
    }
    match rest {
        [] => {}
        [a, b] => {
            let n = nibble(*a)? << 4 | nibble(*b)?;
            out.extend_from_slice(&[symbol(n >> 2), symbol(n << 4), b'=', b'=']);
        }
        [a, b, c, d] => {
            let n = nibble(*a)? << 12 | nibble(*b)? << 8 | nibble(*c)? << 4 | nibble(*d)?;
            out.extend_from_slice(&[symbol(n >> 10), symbol(n >> 4), symbol(n << 2), b'=']);
        }
        _ => return None,
    }
    Some(())
}

/// PostgreSQL's limit on array dimensions.
const DIMENSIONS_MAX: usize = 6;

/// Writes an array in `{…}` form; `None` (with a half-written `out`) when the text is not one.
fn write_array(out: &mut Vec<u8>, class: ValueClass, delimiter: u8, text: &[u8]) -> Option<()> {
    let mut rest = text;
    let mut depth = 0usize;
    // Where a value may stand, and where a delimiter or a closing brace must.
    let mut value_next = true;
    let mut just_opened = false;
    loop {
        let (&byte, after) = rest.split_first()?;
        if value_next && byte == b'{' {
            depth += 1;
            if depth > DIMENSIONS_MAX {
                return None;
            }
            out.push(b'[');
            just_opened = true;
            rest = after;
            continue;
        }
        if depth == 0 {
            return None;
        }
        if byte == b'}' && (!value_next || just_opened) {
            out.push(b']');
            depth -= 1;
            rest = after;
            if depth == 0 {
                return rest.is_empty().then_some(());
            }
            (value_next, just_opened) = (false, false);
        } else if !value_next {
            if byte != delimiter {
                return None;
            }
            out.push(b',');
            rest = after;
            value_next = true;
        } else {
            rest = if byte == b'"' { write_quoted_element(out, class, after)? } else { write_bare_element(out, class, delimiter, rest)? };
            (value_next, just_opened) = (false, false);
        }
    }
}

/// An element without quotes: it holds no delimiter, brace, quote or backslash. Returns what follows it.
fn write_bare_element<'a>(out: &mut Vec<u8>, class: ValueClass, delimiter: u8, text: &'a [u8]) -> Option<&'a [u8]> {
    let end = text.iter().position(|b| *b == delimiter || *b == b'}')?;
    let (element, rest) = text.split_at(end);
    if element.is_empty() || element.iter().any(|b| matches!(b, b'{' | b'"' | b'\\')) {
        return None;
    }
    if element == b"NULL" {
        out.extend_from_slice(b"null")
    } else {
        write_scalar(out, class, element)
    }
    Some(rest)
}

/// An element behind its opening quote. Returns what follows its closing one.
fn write_quoted_element<'a>(out: &mut Vec<u8>, class: ValueClass, text: &'a [u8]) -> Option<&'a [u8]> {
    let mut end = 0;
    let mut escaped = false;
    loop {
        match text.get(end)? {
            b'"' => break,
            b'\\' => {
                escaped = true;
                end += 2;
            }
            _ => end += 1,
        }
    }
    let (element, rest) = (text.get(..end)?, text.get(end + 1..)?);
    if !escaped {
        write_scalar(out, class, element);
    } else if class == ValueClass::Json {
        let start = out.len();
        for piece in Unescaped(element) {
            out.extend_from_slice(piece);
        }
        // As `write_json`: what is not UTF-8 goes the careful way, as a string.
        if std::str::from_utf8(&out[start..]).is_err() {
            out.truncate(start);
            write_pieces(out, element);
        }
    } else if class == ValueClass::Bytes && element.starts_with(b"\\\\x") {
        write_bytes(out, &element[1..]);
    } else {
        write_pieces(out, element);
    }
    Some(rest)
}

/// An element with escapes as one JSON string. Pieces end before a backslash, so no character is cut.
fn write_pieces(out: &mut Vec<u8>, element: &[u8]) {
    out.push(b'"');
    for piece in Unescaped(element) {
        write_string_content(out, piece);
    }
    out.push(b'"');
}

/// The pieces of a quoted element between its backslashes; each escaped byte begins the next piece.
struct Unescaped<'a>(&'a [u8]);

impl<'a> Iterator for Unescaped<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        if let [b'\\', rest @ ..] = self.0 {
            self.0 = rest;
            // The escaped byte may be a backslash itself, so the next search begins behind it.
            let end = rest.iter().skip(1).position(|b| *b == b'\\').map_or(rest.len(), |n| n + 1);
            let (piece, rest) = rest.split_at(end);
            self.0 = rest;
            return (!piece.is_empty()).then_some(piece);
        }
        if self.0.is_empty() {
            return None;
        }
        let end = self.0.iter().position(|b| *b == b'\\').unwrap_or(self.0.len());
        let (piece, rest) = self.0.split_at(end);
        self.0 = rest;
        Some(piece)
    }
}

/// Seconds from the Unix epoch to PostgreSQL's, 2000-01-01 00:00 UTC.
const POSTGRES_EPOCH_SECONDS: i64 = 946_684_800;

/// Writes an instant (microseconds since 2000-01-01 00:00 UTC) as RFC 3339 in UTC with microseconds, without quotes.
pub fn write_instant(out: &mut Vec<u8>, micros: i64) {
    if let Some(text) = instant(micros) {
        return out.extend_from_slice(&text);
    }
    // Years outside four digits do not occur in a commit; they print wider rather than wrong.
    let (year, month, day, second, fraction) = civil(micros);
    let (h, m, s) = (second / 3600, second / 60 % 60, second % 60);
    out.extend_from_slice(format!("{year:05}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}.{fraction:06}Z").as_bytes());
}

/// The text that [`write_instant`] writes for years 0 to 9999, without allocating; `None` for others.
#[must_use]
pub fn instant(micros: i64) -> Option<[u8; 27]> {
    let (year, month, day, second, fraction) = civil(micros);
    if !(0..10_000).contains(&year) {
        return None;
    }
    let mut text = *b"0000-00-00T00:00:00.000000Z";
    let mut put = |at: usize, width: usize, mut n: i64| {
        for digit in text[at..at + width].iter_mut().rev() {
            *digit = b'0' + (n % 10) as u8;
            n /= 10;
        }
    };
    put(0, 4, year);
    put(5, 2, month);
    put(8, 2, day);
    put(11, 2, second / 3600);
    put(14, 2, second / 60 % 60);
    put(17, 2, second % 60);
    put(20, 6, fraction);
    Some(text)
}

/// Year, month, day, second of the day, microsecond.
fn civil(micros: i64) -> (i64, i64, i64, i64, i64) {
    let (seconds, fraction) = (micros.div_euclid(1_000_000) + POSTGRES_EPOCH_SECONDS, micros.rem_euclid(1_000_000));
    let (year, month, day) = civil_from_days(seconds.div_euclid(86_400));
    (year, month, day, seconds.rem_euclid(86_400), fraction)
}

/// The proleptic Gregorian date of a day counted from 1970-01-01 (Howard Hinnant's `civil_from_days`).
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests;
