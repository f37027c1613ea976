//! Filters and functions beside the template language's own: exact decimals, times in a zone, hashes, what changed.
//!
//! As in SQL, null stays null through each of these filters; a column that is not there is an error.

use jiff::civil::Time;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use minijinja::value::Kwargs;
use minijinja::{Environment, Error, ErrorKind, State, Value};
use rust_decimal::{Decimal, RoundingStrategy};
use sha2::{Digest, Sha256};

/// Filters, for suggestions: those of the language that integrations use, and ours.
pub(super) const FILTERS: [&str; 44] = [
    "chain",
    "abs",
    "default",
    "first",
    "float",
    "int",
    "items",
    "join",
    "last",
    "length",
    "list",
    "lower",
    "map",
    "max",
    "min",
    "replace",
    "round",
    "select",
    "selectattr",
    "sort",
    "split",
    "string",
    "sum",
    "trim",
    "unique",
    "upper",
    "decimal",
    "minor",
    "plus",
    "minus",
    "times",
    "date_in",
    "time_in",
    "business_date",
    "sha256",
    "email",
    "hmac",
    "phone",
    "reference",
    "ulid",
    "unit",
    "uuid5",
    "with",
    "valid_at",
];

/// Tests, for suggestions.
pub(super) const TESTS: [&str; 10] =
    ["boolean", "defined", "in", "mapping", "none", "number", "sequence", "startingwith", "string", "undefined"];

/// Every function.
pub(super) const FUNCTIONS: [&str; 4] = ["changed", "lookup", "range", "reference"];

/// Adds what is ours and takes away what has no place in a mapping.
pub(super) fn add(environment: &mut Environment<'_>) {
    for name in ["debug", "dict", "namespace"] {
        environment.remove_global(name);
    }
    environment.add_filter("decimal", decimal);
    environment.add_filter("minor", minor);
    environment.add_filter("plus", |a: &Value, b: &Value| exact(a, b, Decimal::checked_add));
    environment.add_filter("minus", |a: &Value, b: &Value| exact(a, b, Decimal::checked_sub));
    environment.add_filter("times", |a: &Value, b: &Value| exact(a, b, Decimal::checked_mul));
    environment.add_filter("date_in", |value: &Value, zone: &str| unless_null(value, |text| date_in(text, zone)));
    environment.add_filter("time_in", |value: &Value, zone: &str| unless_null(value, |text| time_in(text, zone)));
    environment.add_filter("business_date", |value: &Value, zone: &str, options: Kwargs| {
        unless_null(value, |text| business_date(text, zone, options))
    });
    environment.add_filter("sha256", |value: &Value| {
        unless_null(value, |text| Ok(Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect::<String>()))
    });
    environment.add_filter("email", |value: &Value| Ok::<_, Error>(unless_null(value, |text| Ok(email(text)))?.flatten()));
    environment.add_function("changed", changed);
}

/// A message that names no value: it stands in dead letters.
pub(super) fn fails(what: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, what)
}

pub(super) fn unless_null<T>(value: &Value, of: impl FnOnce(&str) -> Result<T, Error>) -> Result<Option<T>, Error> {
    match value.as_str() {
        _ if value.is_undefined() => Err(ErrorKind::UndefinedError.into()),
        _ if value.is_none() => Ok(None),
        Some(text) => of(text).map(Some),
        None => Err(fails("not a text")),
    }
}

/// A number, or a text that is one: PostgreSQL's `numeric` comes as text, because JSON's numbers are not exact everywhere.
pub(super) fn number(value: &Value) -> Result<Option<Decimal>, Error> {
    let text = match value.as_str() {
        Some(text) => text.trim().to_owned(),
        None if value.is_number() => value.to_string(),
        None if value.is_undefined() => return Err(ErrorKind::UndefinedError.into()),
        None if value.is_none() => return Ok(None),
        None => return Err(fails("neither a number nor a text that is one")),
    };
    let number = Decimal::from_str_exact(&text).or_else(|_| Decimal::from_scientific(&text));
    number.map(Some).map_err(|_| fails("not a decimal number of at most 28 digits"))
}

/// With exactly so many places, rounded half away from zero as on a receipt.
fn decimal(value: &Value, places: Option<u32>) -> Result<Option<String>, Error> {
    let places = places.unwrap_or(2);
    let Some(number) = number(value)? else { return Ok(None) };
    let rounded = number.round_dp_with_strategy(places, RoundingStrategy::MidpointAwayFromZero);
    Ok(Some(format!("{rounded:.*}", places as usize)))
}

/// In the currency's smallest unit: 12.34 is 1234. What would have to be rounded is an error.
fn minor(value: &Value, places: Option<u32>) -> Result<Option<i64>, Error> {
    let scale = Decimal::from(10_u64.checked_pow(places.unwrap_or(2)).ok_or_else(|| fails("too many places"))?);
    let Some(number) = number(value)? else { return Ok(None) };
    let whole = number.checked_mul(scale).ok_or_else(|| fails("too large a number"))?;
    if !whole.fract().is_zero() {
        return Err(fails("has more places"));
    }
    i64::try_from(whole).map(Some).map_err(|_| fails("too large a number"))
}

/// Exact, as text.
fn exact(a: &Value, b: &Value, of: fn(Decimal, Decimal) -> Option<Decimal>) -> Result<Option<String>, Error> {
    let (Some(a), Some(b)) = (number(a)?, number(b)?) else { return Ok(None) };
    let result = of(a, b).ok_or_else(|| fails("more digits than are exact"))?;
    Ok(Some(result.normalize().to_string()))
}

fn instant(text: &str) -> Result<Timestamp, Error> {
    text.parse().map_err(|_| fails("not a moment with a zone, as 2026-11-22T10:00:00Z"))
}

fn zone(name: &str) -> Result<TimeZone, Error> {
    TimeZone::get(name).map_err(|_| fails("unknown time zone"))
}

/// The calendar day of a moment in a zone.
fn date_in(text: &str, name: &str) -> Result<String, Error> {
    Ok(instant(text)?.to_zoned(zone(name)?).date().to_string())
}

/// A moment as it reads in a zone, with its offset.
fn time_in(text: &str, name: &str) -> Result<String, Error> {
    let local = instant(text)?.to_zoned(zone(name)?);
    Ok(local.timestamp().display_with_offset(local.offset()).to_string())
}

/// The day a sale counts for: `begins` (default 04:00) is when the restaurant's day changes, so that a sale at 01:30 is yesterday's.
fn business_date(text: &str, name: &str, options: Kwargs) -> Result<String, Error> {
    let begins: Option<String> = options.get("begins")?;
    options.assert_all_used()?;
    let begins: Time = begins.as_deref().unwrap_or("04:00").parse().map_err(|_| fails("`begins` is not a time as 04:00"))?;
    let local = instant(text)?.to_zoned(zone(name)?).datetime();
    // By the wall clock: on the day the clocks change, four in the morning is four in the morning.
    let day = local.checked_sub(SignedDuration::from_secs(i64::from(begins.hour()) * 3_600 + i64::from(begins.minute()) * 60));
    Ok(day.map_err(|_| fails("before the calendar"))?.date().to_string())
}

/// As matching services want it: trimmed, in lower case. What is no address is nothing.
fn email(text: &str) -> Option<String> {
    let text = text.trim().to_lowercase();
    let (user, host) = text.rsplit_once('@')?;
    (!user.is_empty() && host.contains('.') && !text.contains(char::is_whitespace)).then_some(text)
}

/// Whether the change gave a column another value. A new row's columns all changed.
fn changed(state: &State<'_, '_>, column: &str) -> Result<bool, Error> {
    let of = |name: &str| state.lookup(name).unwrap_or_default();
    if of("op").as_str() != Some("update") {
        return Ok(true);
    }
    if of("unchanged").try_iter().is_ok_and(|mut names| names.any(|name| name.as_str() == Some(column))) {
        return Ok(false);
    }
    let after = of("after").get_attr(column)?;
    if after.is_undefined() {
        return Err(fails("`changed` names a column that the event does not have"));
    }
    let before = of("before").get_attr(column).unwrap_or_default();
    if !before.is_undefined() {
        return Ok(before != after);
    }
    // Without an image from before, the key at least is known to be what it was.
    if of("key").get_attr(column).is_ok_and(|key| !key.is_undefined()) {
        return Ok(false);
    }
    Err(fails("the server sends no value from before the change: ALTER TABLE … REPLICA IDENTITY FULL"))
}
