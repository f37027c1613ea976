//! Filters for what partner systems want in a form of their own: units, identifiers, telephone numbers, references.

use std::collections::BTreeMap;

use hmac::{Hmac, KeyInit, Mac};
use jiff::Timestamp;
use minijinja::{Environment, Error, Value};
use rust_decimal::Decimal;
use sha2::{Digest, Sha256};

use super::filters::{fails, number, unless_null};

/// Units by what they measure, in grams, millilitres and pieces: SI, and the exact definitions of the avoirdupois pound (1959) and the US gallon.
const UNITS: [&[(&str, &str)]; 3] = [
    &[("mg", "0.001"), ("g", "1"), ("kg", "1000"), ("oz", "28.349523125"), ("lb", "453.59237")],
    &[
        ("ml", "1"),
        ("cl", "10"),
        ("dl", "100"),
        ("l", "1000"),
        ("tsp", "4.92892159375"),
        ("tbsp", "14.78676478125"),
        ("fl_oz", "29.5735295625"),
        ("cup", "236.5882365"),
        ("pt", "473.176473"),
        ("qt", "946.352946"),
        ("gal", "3785.411784"),
    ],
    &[("pc", "1"), ("dozen", "12")],
];

/// Names of ours for UUIDs of version 5 when a mapping gives no namespace.
const NAMESPACE: &str = "8c0a3f0e-5d55-4c57-9a3b-1f5b8f6d2e41";

pub(super) fn add(environment: &mut Environment<'_>) {
    environment.add_filter("unit", unit);
    environment.add_filter("uuid5", |value: &Value, namespace: Option<&str>| {
        unless_null(value, |text| uuid5(namespace.unwrap_or(NAMESPACE), text))
    });
    environment.add_filter("ulid", |value: &Value, at: &str| unless_null(value, |text| ulid(text, at)));
    environment.add_filter("hmac", |value: &Value, key: &str| unless_null(value, |text| hmac_sha256(text, key)));
    environment
        .add_filter("phone", |value: &Value, country: &str| Ok::<_, Error>(unless_null(value, |text| phone(text, country))?.flatten()));
    environment.add_filter("reference", |value: &Value| unless_null(value, parse_reference));
    environment.add_function("reference", |model: &str, id: &Value| match id.as_str() {
        Some(id) => format!("{model},{id}"),
        None => format!("{model},{id}"),
    });
}

/// From one unit to another of the same kind, as decimal text: exact where the result has at most 28 digits.
fn unit(value: &Value, from: &str, to: &str) -> Result<Option<String>, Error> {
    let of =
        |kind: &[(&str, &str)], name: &str| kind.iter().find(|(n, _)| *n == name).and_then(|(_, factor)| factor.parse::<Decimal>().ok());
    let factors = UNITS.iter().find_map(|kind| of(kind, from).zip(of(kind, to)));
    let Some((from, to)) = factors else { return Err(fails("not two units of mass, volume or count")) };
    let Some(number) = number(value)? else { return Ok(None) };
    let result = number.checked_mul(from).and_then(|n| n.checked_div(to)).ok_or_else(|| fails("more digits than are exact"))?;
    Ok(Some(result.normalize().to_string()))
}

/// RFC 9562, version 5: the same name in the same namespace is the same UUID.
fn uuid5(namespace: &str, name: &str) -> Result<String, Error> {
    let digits: String = namespace.chars().filter(|c| *c != '-').collect();
    let space = u128::from_str_radix(&digits, 16).ok().filter(|_| digits.len() == 32 && namespace.len() == 36);
    let Some(space) = space else { return Err(fails("the namespace is no UUID")) };
    let mut hash = sha1_smol::Sha1::new();
    hash.update(&space.to_be_bytes());
    hash.update(name.as_bytes());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash.digest().bytes()[..16]);
    let id = u128::from_be_bytes(bytes) & !(0xf << 76) & !(0x3 << 62) | 0x5 << 76 | 0x2 << 62;
    let hex = format!("{id:032x}");
    Ok(format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]))
}

/// A ULID that is the same for the same text and moment: 48 bits of the moment in milliseconds, 80 of the text's SHA-256.
fn ulid(text: &str, at: &str) -> Result<String, Error> {
    const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
    let at: Timestamp = at.parse().map_err(|_| fails("not a moment with a zone, as 2026-11-22T10:00:00Z"))?;
    let at = u128::try_from(at.as_millisecond()).map_err(|_| fails("before 1970"))?;
    let hash = Sha256::digest(text);
    let id = hash[..10].iter().fold(at, |id, byte| id << 8 | u128::from(*byte));
    Ok((0..26).rev().map(|n| char::from(ALPHABET[(id >> (5 * n) & 31) as usize])).collect())
}

fn hmac_sha256(text: &str, key: &str) -> Result<String, Error> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key.as_bytes()).map_err(|_| fails("the key cannot be used"))?;
    mac.update(text.as_bytes());
    Ok(mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// As `+` and at most 15 digits (E.164); `country` is the calling code of numbers that have none. What is no number is nothing. Whether somebody has the
/// number it does not say.
fn phone(text: &str, country: &str) -> Result<Option<String>, Error> {
    if country.is_empty() || country.len() > 3 || country.bytes().any(|b| !b.is_ascii_digit()) {
        return Err(fails("`phone` needs a calling code, as '49' or '1'"));
    }
    let text = text.trim();
    let is_written = |c: char| c.is_ascii_digit() || " -./()\u{a0}".contains(c);
    let (plus, rest) = match text.strip_prefix('+') {
        Some(rest) => (true, rest.replace("(0)", "")),
        None => (false, text.to_owned()),
    };
    if !rest.chars().all(is_written) {
        return Ok(None);
    }
    let digits: String = rest.chars().filter(char::is_ascii_digit).collect();
    let number = match digits.strip_prefix("00") {
        _ if plus => digits,
        Some(international) => international.to_owned(),
        // In Italy the zero is part of the number; North America writes its own code in front.
        None if country == "39" => format!("39{digits}"),
        None if country == "1" && digits.len() == 11 && digits.starts_with('1') => digits,
        None => format!("{country}{}", digits.strip_prefix('0').unwrap_or(&digits)),
    };
    Ok((8..=15).contains(&number.len()).then(|| format!("+{number}")))
}

/// A reference as some systems store it, `model,id`, taken apart.
fn parse_reference(text: &str) -> Result<Value, Error> {
    let (model, id) =
        text.rsplit_once(',').filter(|(model, id)| !model.is_empty() && !id.is_empty()).ok_or_else(|| fails("not `model,id`"))?;
    Ok(Value::from(BTreeMap::from([("model", model.to_owned()), ("id", id.to_owned())])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_exact() {
        let to = |value: &str, from: &str, to: &str| unit(&Value::from(value), from, to).map_err(|e| e.to_string());
        for (value, from, into, is) in [
            ("1.2345", "kg", "g", "1234.5"),
            ("250", "g", "kg", "0.25"),
            ("1", "lb", "g", "453.59237"),
            ("16", "oz", "lb", "1"),
            ("1", "gal", "fl_oz", "128"),
            ("33", "cl", "ml", "330"),
            ("3", "dozen", "pc", "36"),
            ("-0.5", "l", "ml", "-500"),
        ] {
            assert_eq!(to(value, from, into), Ok(Some(is.to_owned())), "{value} {from}");
        }
        assert!(to("1", "g", "ml").is_err() && to("1", "stone", "g").is_err() && to("x", "g", "kg").is_err());
        assert!(matches!(unit(&Value::from(()), "g", "kg"), Ok(None)));
    }

    #[test]
    fn identifiers_are_those_of_their_standards() {
        // RFC 9562, A.4: www.example.com in the namespace of DNS names.
        assert_eq!(
            uuid5("6ba7b810-9dad-11d1-80b4-00c04fd430c8", "www.example.com").expect("a UUID"),
            "2ed6657d-e927-568b-95e1-2665a8aea6a2"
        );
        assert!(uuid5("6ba7b8109dad11d180b400c04fd430c8", "x").is_err());
        let id = ulid("sale:7", "2016-07-30T23:54:10.259Z").expect("a ULID");
        assert_eq!((id.len(), &id[..10]), (26, "01ARZ3NDEK"));
        assert_eq!(id, ulid("sale:7", "2016-07-30T23:54:10.259Z").expect("a ULID"));
        assert_ne!(id[10..], ulid("sale:8", "2016-07-30T23:54:10.259Z").expect("a ULID")[10..]);
        // RFC 4231, case 2.
        assert_eq!(
            hmac_sha256("what do ya want for nothing?", "Jefe").expect("a digest"),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
    }

    #[test]
    fn telephone_numbers_get_one_form() {
        for (text, country, is) in [
            ("+49 (0)30 1234-567", "49", Some("+49301234567")),
            ("0049 30 1234567", "1", Some("+49301234567")),
            ("030/1234567", "49", Some("+49301234567")),
            ("(212) 555-0100", "1", Some("+12125550100")),
            ("1 212 555 0100", "1", Some("+12125550100")),
            ("06 6982 0100", "39", Some("+390669820100")),
            ("12", "49", None),
            ("call me", "49", None),
            ("030 1234567 ext 5", "49", None),
        ] {
            assert_eq!(phone(text, country).expect("a code").as_deref(), is, "{text}");
        }
        assert!(phone("030 1234567", "DE").is_err());
    }

    #[test]
    fn references_are_taken_apart_and_put_together() {
        let parsed = parse_reference("sale.line,42").expect("a reference");
        assert_eq!((parsed.get_attr("model"), parsed.get_attr("id")).0.expect("there").to_string(), "sale.line");
        assert!(parse_reference("sale.line").is_err() && parse_reference(",4").is_err());
    }
}
