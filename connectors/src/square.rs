//! The sink `square-inventory`: counts, adjustments and transfers of stock.
//!
//! Facts stand in Square's own OpenAPI document (square/connect-api-specification, `BatchChangeInventory`): a request names itself by
//! `idempotency_key` and is taken or refused whole; quantities are decimal texts of up to five places; changes are applied by `occurred_at`, which is
//! at most 24 hours old and never in the future.
//!
//! There is no budget of its own: Square publishes no rates, and asks for pauses (`RATE_LIMITED`), which delivery keeps.
//!
//! Square knows requests, not the changes in them. A process that is killed may cut other lists afterwards, whose keys Square has never seen; so a
//! request holds one change, named by the event, unless the file accepts that an adjustment may then count twice (a count cannot: it is absolute).

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use jiff::{SignedDuration, Timestamp};
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, Url};
use serde_json::{Value, json};

use crate::block::{Block, mapped_only, problem};
use crate::fields::Fields;
use crate::http::answer::{Answer, Meaning, again, reason};
use crate::http::auth::Auth;
use crate::http::client::{self, Request, Wire, vendor_url};
use crate::http::config::ApiTarget;
use crate::http::egress::Egress;
use crate::http::sink::{Api, Limits, Member, Unsendable, refuse};
use crate::registry::{Kind, Problem, Target};
use crate::shape::{Of, Shape, may, must};
use crate::sink::{Idempotency, Item, SinkError};

#[derive(Debug)]
struct SquareApi {
    wire: Wire,
    url: Url,
    headers: HeaderMap,
    changes_max: usize,
    ignore_unchanged: bool,
    age_max: SignedDuration,
}

/// The kind `square-inventory`.
#[derive(Debug, Default)]
pub struct SquareKind;

const KEYS: [&str; 10] = [
    "access_token",
    "version",
    "url",
    "changes",
    "i_accept_duplicates",
    "ignore_unchanged_counts",
    "occurred_within",
    "timeout",
    "tls",
    "allow_private",
];

const URL: &str = "https://connect.squareup.com";

/// The version of the API that this sink was written against.
const VERSION: &str = "2025-08-20";

/// Changes of one request, by the documentation of their libraries.
const CHANGES_MAX: usize = 100;

/// How old a change may be.
const AGE_MAX: Duration = Duration::from_secs(24 * 3600);

/// Clocks differ by so much: what lies further ahead than this is in the future.
const CLOCKS_DIFFER: SignedDuration = SignedDuration::from_secs(60);

impl Kind for SquareKind {
    fn name(&self) -> &'static str {
        "square-inventory"
    }

    fn keys(&self) -> &'static [&'static str] {
        &KEYS
    }

    fn scaffold(&self) -> Option<crate::scaffold::Scaffold> {
        Some(crate::scaffold::SQUARE)
    }

    fn check_map(&self, _block: &Value, map: &Value) -> Vec<Problem> {
        shape(map.get("type")).of_map(map)
    }

    fn validate(&self, block: &Value, mapped: bool) -> Result<Arc<dyn Target>, Vec<Problem>> {
        let mut problems = Vec::new();
        match read(block, mapped, &mut problems) {
            Some(api) if problems.is_empty() => {
                // Square does not say for how long it knows a key.
                let idempotency = if api.changes_max == 1 { Idempotency::Key } else { Idempotency::None };
                Ok(Arc::new(ApiTarget::new(api, idempotency, None, Vec::new())))
            }
            _ => Err(problems),
        }
    }
}

fn read(value: &Value, mapped: bool, problems: &mut Vec<Problem>) -> Option<SquareApi> {
    let block = Block::new(value, "", &KEYS, problems)?;
    mapped_only(mapped, "type: PHYSICAL_COUNT, catalog_object_id: \"{{ after.square_id }}\", quantity: \"{{ after.on_hand }}\"", problems);
    let egress = Egress::read(&block, problems);
    let url = vendor_url(&block, URL, &egress, problems);
    let token = block.text("access_token", Some("access_token: ${env:SQUARE_ACCESS_TOKEN}"), problems);
    let auth = token.map(|token| Auth::fixed(AUTHORIZATION, &format!("Bearer {token}"), "access_token", problems));
    let mut headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
    match HeaderValue::from_str(block.text("version", None, problems).unwrap_or(VERSION)) {
        Ok(version) => drop(headers.insert(HeaderName::from_static("square-version"), version)),
        Err(_) => problems.push(problem("version", "cannot be written into a header", Some(format!("write `version: \"{VERSION}\"`")))),
    }
    let changes_max = block.count("changes", 1, 1..=CHANGES_MAX, problems);
    crate::block::accepts_duplicates(&block, changes_max == 1, "changes", problems);
    let age = block.duration("occurred_within", AGE_MAX, (Duration::from_secs(60), AGE_MAX), problems);
    let wire = Wire::read(&block, url.as_ref(), auth.unwrap_or(Auth::None), egress, Duration::from_secs(10), problems);
    Some(SquareApi {
        wire: wire?,
        url: client::below(url?, "v2/inventory/changes/batch-create"),
        headers,
        changes_max,
        ignore_unchanged: block.flag("ignore_unchanged_counts", true, problems),
        age_max: SignedDuration::try_from(age).unwrap_or(SignedDuration::from_hours(24)),
    })
}

/// What every change says.
macro_rules! change {
    ($($more:expr),*) => {
        Shape {
            fields: &[
                must("type", Of::Choice(&TYPES)),
                must("catalog_object_id", Of::Text),
                must("quantity", Of::Checked(|text| plain(text).err())),
                may("occurred_at", Of::Text),
                may("reference_id", Of::Checked(|id| (id.len() > 255).then_some("must be up to 255 characters"))),
                may("team_member_id", Of::Words),
                may("employee_id", Of::Words),
                $($more),*
            ],
            any_of: &[],
            never: None,
        }
    };
}

const TYPES: [&str; 3] = ["PHYSICAL_COUNT", "ADJUSTMENT", "TRANSFER"];

/// What was counted.
const COUNT: Shape = change!(may("state", Of::Text), must("location_id", Of::Text));
/// What went from one state to another.
const ADJUSTMENT: Shape = change!(must("from_state", Of::Text), must("to_state", Of::Text), must("location_id", Of::Text));
/// What went from one place to another.
const TRANSFER: Shape = change!(may("state", Of::Text), must("from_location_id", Of::Text), must("to_location_id", Of::Text));
/// A change whose type an expression tells: whatever any of them says.
const ANY: Shape = change!(
    may("state", Of::Text),
    may("from_state", Of::Text),
    may("to_state", Of::Text),
    may("location_id", Of::Text),
    may("from_location_id", Of::Text),
    may("to_location_id", Of::Text)
);

fn shape(kind: Option<&Value>) -> &'static Shape {
    match kind.and_then(Value::as_str) {
        Some("PHYSICAL_COUNT") => &COUNT,
        Some("ADJUSTMENT") => &ADJUSTMENT,
        Some("TRANSFER") => &TRANSFER,
        _ => &ANY,
    }
}

/// A quantity as Square takes it: digits, and up to five behind a point.
fn plain(text: &str) -> Result<String, &'static str> {
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    // Databases write what is left of the scale: 2.5000000 is 2.5.
    let part = part.trim_end_matches('0');
    if !digits(whole) || !(part.is_empty() || digits(part)) {
        return Err("must be a decimal that is not negative; the direction stands in `from_state` and `to_state`");
    }
    if part.len() > 5 || whole.len() + part.len() > 25 {
        return Err("must have up to five decimal places and 26 characters in all");
    }
    Ok(if part.is_empty() { whole.to_owned() } else { format!("{whole}.{part}") })
}

impl SquareApi {
    /// One entry of `changes`.
    fn change(&self, item: &Item, now: Timestamp) -> Result<Value, Unsendable> {
        let mut fields = Fields::of(item, "square.field")?;
        fields.fit(shape(fields.all().get("type")))?;
        let kind = fields.required("type")?;
        let (name, states): (&str, &[&str]) = match kind.as_str() {
            "PHYSICAL_COUNT" => ("physical_count", &["state", "location_id"]),
            "ADJUSTMENT" => ("adjustment", &["from_state", "to_state", "location_id"]),
            _ => ("transfer", &["state", "from_location_id", "to_location_id"]),
        };
        let quantity = plain(&fields.required("quantity")?).map_err(|why| fields.refuse("quantity", why))?;
        let mut change = json!({"catalog_object_id": fields.required("catalog_object_id")?, "quantity": quantity});
        for state in states {
            let given = fields.text(state)?.or_else(|| (*state == "state").then(|| "IN_STOCK".to_owned()));
            change[*state] = given.ok_or_else(|| fields.refuse(state, "is missing"))?.into();
        }
        let occurred = fields.text("occurred_at")?.or_else(|| item.event.committed_at().map(str::to_owned));
        let occurred =
            occurred.ok_or_else(|| fields.refuse("occurred_at", "is missing, and a row that was loaded has no time of its own"))?;
        self.check_time(&fields, &occurred, now)?;
        change["occurred_at"] = occurred.into();
        let reference = fields.text("reference_id")?.unwrap_or_else(|| item.idempotency_key.clone());
        change["reference_id"] = reference.into();
        for (field, value) in fields.rest() {
            change[field.as_str()] = value;
        }
        Ok(json!({"type": kind, name: change}))
    }

    fn check_time(&self, fields: &Fields, occurred: &str, now: Timestamp) -> Result<(), Unsendable> {
        let Ok(occurred) = occurred.parse::<Timestamp>() else {
            return Err(fields.refuse("occurred_at", "must be a moment as 2026-11-22T10:00:00Z"));
        };
        let age = now.duration_since(occurred);
        if age > self.age_max {
            return Err(refuse(
                "square.too_old",
                "`occurred_at` is older than Square takes: send the stock as it is now as one PHYSICAL_COUNT an item and place, and discard what is older",
            ));
        }
        if -age > CLOCKS_DIFFER {
            return Err(refuse("square.in_future", "`occurred_at` lies in the future"));
        }
        Ok(())
    }
}

impl Api for SquareApi {
    fn wire(&self) -> &Wire {
        &self.wire
    }

    fn url(&self) -> &Url {
        &self.url
    }

    fn limits(&self) -> Limits {
        Limits { items: self.changes_max, ..Limits::SINGLE }
    }

    fn member(&self, item: &Item) -> Result<Member, Unsendable> {
        Ok(Member { text: self.change(item, Timestamp::now())?.to_string(), ..Member::default() })
    }

    fn is_of_map(&self) -> bool {
        true
    }

    fn request(&self, members: &[&Member], key: &str, _now: SystemTime) -> Result<Request, SinkError> {
        let texts: Vec<&str> = members.iter().map(|member| member.text.as_str()).collect();
        let (changes, ignore) = (texts.join(","), self.ignore_unchanged);
        let body = format!("{{\"idempotency_key\":\"{key}\",\"changes\":[{changes}],\"ignore_unchanged_counts\":{ignore}}}");
        Ok(Request { method: Method::POST, url: self.url.clone(), headers: self.headers.clone(), body: body.into() })
    }

    /// By the status, and by the category of the first error where the status is 200.
    fn read(&self, answer: &Answer, _keys: &[&str]) -> Meaning {
        let error = answer.body.as_ref().and_then(|body| body.pointer("/errors/0"));
        let Some(error) = error.filter(|_| (200..300).contains(&answer.status)) else { return answer.meaning() };
        // The same table, by the status that such an error has.
        let status = match error.get("category").and_then(Value::as_str) {
            Some("AUTHENTICATION_ERROR") => 401,
            Some("RATE_LIMIT_ERROR") => 429,
            Some("INVALID_REQUEST_ERROR") => 400,
            Some("API_ERROR" | "EXTERNAL_VENDOR_ERROR") | None => {
                return Meaning::Item(again(reason(answer.status, answer.body.as_ref()), None));
            }
            Some(_) => 400,
        };
        Answer { status, retry_after: answer.retry_after.clone(), body: answer.body.clone() }.meaning()
    }

    fn knows_lists_only(&self) -> bool {
        self.changes_max > 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Kind;

    #[test]
    fn lists_of_changes_want_a_word() {
        let block = |more: Value| {
            let mut block = json!({"access_token": "t"});
            block.as_object_mut().expect("a block").extend(more.as_object().expect("a block").clone());
            SquareKind.validate(&block, true)
        };
        assert_eq!(block(json!({})).expect("valid").plan().idempotency, Idempotency::Key);
        assert_eq!(block(json!({"changes": 100})).expect_err("no word")[0].path, "changes");
        let lists = block(json!({"changes": 100, "i_accept_duplicates": true})).expect("valid");
        assert_eq!(lists.plan().idempotency, Idempotency::None);
        assert_eq!(block(json!({"changes": 101})).expect_err("too many")[0].path, "changes");
    }
}
