//! What an answer means: one table for every sink that speaks HTTP. Pure.
//!
//! | answer | meaning |
//! | --- | --- |
//! | 2xx | applied |
//! | 400 409 422 | refused when the body says that the key came with another body; never cut into other lists, which would have other keys |
//! | 409 | applied before when the body says so, else a concurrent attempt: repeat |
//! | 408 425 500 and other 5xx | repeat this item |
//! | 429 503 with Retry-After | pause the target, then repeat; no attempt is counted |
//! | 429 502 503 504 without | the target is away or busy: repeat the whole call |
//! | 401 402 403 405 407 3xx | someone has to act |
//! | other 4xx | refused for good |

use std::time::{Duration, SystemTime};

use serde_json::Value;

use crate::sink::{Class, Outcome, Reason, Retry, SinkError};

/// The target knows the key of a request, and with another body. Keys are made of what an event is, so this is a fault of ours (or a connector whose
/// map was changed between two attempts), never the row's.
pub(crate) const KEY_REUSED: &str = "http.key_reused";

/// The longest pause taken from a header: what lies further ahead is asked again by then.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);

/// What an answer's status means.
#[derive(Debug)]
pub(crate) enum Meaning {
    /// Applied.
    Applied,
    /// It says so for this item (or for all of a list alike).
    Item(Outcome),
    /// The target asks for a pause.
    Pause(Outcome),
    /// Refused for good; of a list at least one item is.
    Refused(Reason),
    /// Says so item by item, in their order.
    Each(Vec<Outcome>),
    /// Nothing to do with the items.
    Whole(SinkError),
}

/// An answer, read up to its bounds.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) retry_after: Option<String>,
    /// Its JSON, if it was any.
    pub(crate) body: Option<Value>,
}

impl Answer {
    /// What it means where an API has nothing of its own to say.
    pub(crate) fn meaning(&self) -> Meaning {
        meaning(self.status, self.retry_after.as_deref(), self.body.as_ref(), SystemTime::now())
    }
}

/// What a status means. `retry_after` is the header's text, `body` the answer's JSON if it was any.
pub(crate) fn meaning(status: u16, retry_after: Option<&str>, body: Option<&Value>, now: SystemTime) -> Meaning {
    let reason = || reason(status, body);
    let whole = |class| {
        let Reason { code, message } = reason();
        Meaning::Whole(SinkError { code, message, class, after: None })
    };
    let after = retry_after.and_then(|text| parse_retry_after(text, now));
    match status {
        200..=299 => Meaning::Applied,
        400 | 409 | 422 if says_key_reused(body) => Meaning::Item(Outcome::Rejected(Reason { code: KEY_REUSED.to_owned(), ..reason() })),
        409 if says_duplicate(body) => Meaning::Item(Outcome::Absorbed),
        408 | 409 | 425 => Meaning::Item(again(reason(), None)),
        429 | 503 if after.is_some() => Meaning::Pause(again(reason(), after)),
        429 | 502 | 503 | 504 => whole(Class::Transient),
        300..=399 | 401 | 402 | 403 | 405 | 407 => whole(Class::Definite),
        400..=499 => Meaning::Refused(reason()),
        500..=599 => Meaning::Item(again(reason(), None)),
        _ => whole(Class::Transient),
    }
}

/// What one entry of a list of results means.
pub(crate) fn item(status: u16, code: Option<&Value>) -> Outcome {
    let body = code.map(|code| serde_json::json!({ "code": code }));
    match meaning(status, None, body.as_ref(), SystemTime::UNIX_EPOCH) {
        Meaning::Applied => Outcome::Delivered,
        Meaning::Item(outcome) | Meaning::Pause(outcome) => outcome,
        Meaning::Refused(reason) => Outcome::Rejected(reason),
        Meaning::Whole(error) => again(Reason { code: error.code, message: error.message }, None),
        // One status says nothing of several items.
        Meaning::Each(_) => Outcome::Delivered,
    }
}

pub(crate) fn again(reason: Reason, after: Option<Duration>) -> Outcome {
    Outcome::Retry(Retry { reason, after })
}

/// The status in words, with the target's own code and the field that it names.
pub(crate) fn reason(status: u16, body: Option<&Value>) -> Reason {
    let mut message = format!("status {status}");
    if let Some(code) = body.and_then(error_code) {
        message.push_str(&format!(", code {code}"));
    }
    if let Some(field) = body.and_then(error_field) {
        message.push_str(&format!(", at {field}"));
    }
    Reason { code: format!("http.status_{status}"), message }
}

/// The field that the target names, as JSON:API's pointer or Square's path. Such a text is the shape of what was sent and no value of it.
fn error_field(body: &Value) -> Option<&str> {
    let places = ["/errors/0/source/pointer", "/errors/0/field"];
    let is_path = |f: &&str| (2..=128).contains(&f.len()) && f.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-./[]".contains(&b));
    places.iter().find_map(|place| body.pointer(place).and_then(Value::as_str).filter(is_path)).filter(|f| f.contains(['/', '.']))
}

/// The target's own code, when it looks like a name: anything else might repeat what was sent.
fn error_code(body: &Value) -> Option<&str> {
    let places = ["/code", "/error/code", "/errors/0/code", "/error", "/type"];
    let is_name = |c: &&str| {
        let named = c.len() <= 64 && c.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b));
        // Digits alone are more likely an id than a code.
        named && c.bytes().any(|b| b.is_ascii_alphabetic())
    };
    places.iter().find_map(|place| body.pointer(place).and_then(Value::as_str).filter(is_name))
}

/// As `IDEMPOTENCY_KEY_REUSED` (Square) or `idempotency_error` (Stripe), and not as a key that is missing or worked on.
fn says_key_reused(body: Option<&Value>) -> bool {
    let words = ["reuse", "mismatch", "differ", "another", "idempotency_error"];
    body.and_then(error_code).is_some_and(|code| {
        let code = code.to_ascii_lowercase();
        code.contains("idempotency") && words.iter().any(|w| code.contains(w))
    })
}

fn says_duplicate(body: Option<&Value>) -> bool {
    let words = ["duplicate", "already"];
    let texts = ["/code", "/error/code", "/errors/0/code", "/error", "/status", "/type", "/message", "/error/message"];
    body.is_some_and(|body| {
        texts.iter().filter_map(|place| body.pointer(place).and_then(Value::as_str)).any(|text| {
            let text = text.to_ascii_lowercase();
            words.iter().any(|w| text.contains(w))
        })
    })
}

/// Seconds, or an HTTP date; a moment in the past is no pause at all.
pub(crate) fn parse_retry_after(text: &str, now: SystemTime) -> Option<Duration> {
    let text = text.trim();
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        let seconds = text.parse::<u64>().unwrap_or(u64::MAX);
        return Some(Duration::from_secs(seconds).min(RETRY_AFTER_MAX));
    }
    let moment = httpdate::parse_http_date(text).ok()?;
    Some(moment.duration_since(now).unwrap_or_default().min(RETRY_AFTER_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// The meaning in a word.
    fn check(status: u16, retry_after: Option<&str>, body: Option<Value>, expected: &str) {
        let meaning = meaning(status, retry_after, body.as_ref(), SystemTime::UNIX_EPOCH);
        let said = match &meaning {
            Meaning::Applied => "applied".to_owned(),
            Meaning::Item(Outcome::Absorbed) => "absorbed".into(),
            Meaning::Item(Outcome::Retry(_)) => "again".into(),
            Meaning::Item(Outcome::Rejected(reason)) => reason.code.clone(),
            Meaning::Item(other) => format!("{other:?}"),
            Meaning::Pause(Outcome::Retry(r)) => format!("pause {:?}", r.after.unwrap_or_default()),
            Meaning::Pause(other) => format!("{other:?}"),
            Meaning::Refused(reason) => format!("refused: {}", reason.message),
            Meaning::Whole(error) => format!("{:?}", error.class).to_lowercase(),
            Meaning::Each(_) => "each".into(),
        };
        assert_eq!(said, expected, "{status} {retry_after:?}");
    }

    #[test]
    fn each_status_has_one_meaning() {
        for status in [200, 201, 202, 204, 207] {
            check(status, None, None, "applied");
        }
        for status in [408, 425, 500, 501, 599] {
            check(status, None, None, "again");
        }
        for status in [429, 502, 503, 504] {
            check(status, None, None, "transient");
        }
        for status in [301, 302, 304, 401, 402, 403, 405, 407] {
            check(status, None, None, "definite");
        }
        for status in [400, 404, 410, 413, 415, 417, 422] {
            check(status, None, None, &format!("refused: status {status}"));
        }
        check(429, Some("7"), None, "pause 7s");
        check(503, Some("0"), None, "pause 0ns");
        check(502, Some("7"), None, "transient");
        for code in ["IDEMPOTENCY_KEY_REUSED", "idempotency_key_mismatch", "idempotency_error"] {
            for status in [400, 409, 422] {
                check(status, None, Some(json!({"errors": [{"code": code}]})), KEY_REUSED);
            }
        }
        check(409, None, Some(json!({"code": "idempotency_in_flight"})), "again");
        check(409, None, None, "again");
        check(409, None, Some(json!({"error": "concurrent_write_conflict"})), "again");
        check(409, None, Some(json!({"error": {"code": "DUPLICATE_KEY"}})), "absorbed");
        check(409, None, Some(json!({"message": "Already applied"})), "absorbed");
    }

    #[test]
    fn a_targets_code_is_kept_and_its_words_are_not() {
        check(422, None, Some(json!({"code": "INVALID_TIER"})), "refused: status 422, code INVALID_TIER");
        check(422, None, Some(json!({"error": "Ada Lovelace is unknown"})), "refused: status 422");
        check(422, None, Some(json!({"error": "5551234"})), "refused: status 422");
        let field = |field: &str| Some(json!({"errors": [{"code": "INVALID_VALUE", "field": field}]}));
        check(
            400,
            None,
            field("changes[3].adjustment.quantity"),
            "refused: status 400, code INVALID_VALUE, at changes[3].adjustment.quantity",
        );
        check(400, None, field("Ada Lovelace"), "refused: status 400, code INVALID_VALUE");
        let pointer = json!({"errors": [{"code": "invalid", "source": {"pointer": "/data/attributes/email"}}]});
        check(400, None, Some(pointer), "refused: status 400, code invalid, at /data/attributes/email");
    }

    #[test]
    fn a_key_with_another_body_is_named() {
        for (status, code, expected) in [
            (400, "IDEMPOTENCY_KEY_REUSED", KEY_REUSED),
            (422, "idempotency_error", KEY_REUSED),
            (409, "IDEMPOTENCY_CONCURRENT_REQUEST", "again"),
            (422, "INVALID_TIER", "refused: status 422, code INVALID_TIER"),
        ] {
            check(status, None, Some(json!({"errors": [{"code": code}]})), expected);
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        for (text, seconds) in [
            ("120", Some(120)),
            (" 3 ", Some(3)),
            ("99999999999999999999999", Some(3600)),
            ("Sun, 06 Nov 1994 08:49:47 GMT", Some(10)),
            ("Sun, 06 Nov 1994 08:49:00 GMT", Some(0)),
            ("Sat, 06 Nov 2094 08:49:37 GMT", Some(3600)),
            ("-1", None),
            ("soon", None),
            ("", None),
        ] {
            assert_eq!(parse_retry_after(text, now), seconds.map(Duration::from_secs), "{text}");
        }
    }
}
