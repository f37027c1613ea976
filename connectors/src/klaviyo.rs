//! The sink `klaviyo`: events of guests, and their profiles.
//!
//! Facts stand in Klaviyo's own OpenAPI document (`openapi/stable.json`, revision 2026-07-15): 202 says that an event was taken, not that it is there;
//! of an event repeated with the same `unique_id` for the same profile and metric only the first is recorded; `null` clears a profile's field, an absent
//! one stays. Only the endpoints for one event or profile are used: the bulk job for events *fails* where a `unique_id` is repeated, so that a retry
//! would poison itself. Consent is another endpoint of theirs, which this sink never calls, and fields of consent are refused.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, Url};
use serde_json::{Value, json};
use tillstream_schemas::Op;

use crate::block::{Block, mapped_only, problem};
use crate::fields::Fields;
use crate::http::answer::{Answer, Meaning, reason};
use crate::http::auth::Auth;
use crate::http::client::{self, Request, Wire, vendor_url};
use crate::http::config::ApiTarget;
use crate::http::egress::Egress;
use crate::http::sink::{Api, Limits, Member, Unsendable, refuse};
use crate::registry::{Kind, Problem, Target};
use crate::sink::{Idempotency, Item, SinkError};

/// What an event becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Resource {
    Event,
    Profile,
}

#[derive(Debug)]
struct KlaviyoApi {
    wire: Wire,
    url: Url,
    resource: Resource,
    headers: HeaderMap,
    item_bytes: usize,
}

/// The kind `klaviyo`.
#[derive(Debug, Default)]
pub struct KlaviyoKind;

const KEYS: [&str; 8] = ["api_key", "resource", "revision", "url", "event_bytes", "timeout", "tls", "allow_private"];

const URL: &str = "https://a.klaviyo.com";

/// The revision that this sink was written against.
const REVISION: &str = "2026-07-15";

const JSON_API: &str = "application/vnd.api+json";

/// Bytes of one request: 100 kB for a profile and 5 MB for an event, by their reference.
const PROFILE_BYTES: usize = 100_000;
const EVENT_BYTES: usize = 5_000_000;

/// What names a guest, one of which has to be there.
const IDENTIFIERS: [&str; 6] = ["id", "external_id", "email", "phone_number", "anonymous_id", "_kx"];

/// What may be said of a guest. Consent and subscriptions are not among it.
const ATTRIBUTES: [&str; 13] = [
    "external_id",
    "email",
    "phone_number",
    "anonymous_id",
    "_kx",
    "first_name",
    "last_name",
    "organization",
    "locale",
    "title",
    "image",
    "location",
    "properties",
];

impl Kind for KlaviyoKind {
    fn name(&self) -> &'static str {
        "klaviyo"
    }

    fn keys(&self) -> &'static [&'static str] {
        &KEYS
    }

    fn scaffold(&self) -> Option<crate::scaffold::Scaffold> {
        Some(crate::scaffold::KLAVIYO)
    }

    fn validate(&self, block: &Value, mapped: bool) -> Result<Arc<dyn Target>, Vec<Problem>> {
        let mut problems = Vec::new();
        match read(block, mapped, &mut problems) {
            // For how long a `unique_id` is known, Klaviyo does not say.
            Some(api) if problems.is_empty() => Ok(Arc::new(ApiTarget::new(api, Idempotency::Key, None, Vec::new()))),
            _ => Err(problems),
        }
    }
}

fn read(value: &Value, mapped: bool, problems: &mut Vec<Problem>) -> Option<KlaviyoApi> {
    let block = Block::new(value, "", &KEYS, problems)?;
    mapped_only(mapped, "metric: Paid, profile: {external_id: \"{{ after.customer }}\"}", problems);
    let egress = Egress::read(&block, problems);
    let url = vendor_url(&block, URL, &egress, problems);
    let resource = match block.choice("resource", &["event", "profile"], problems) {
        Some("event") => Some(Resource::Event),
        Some(_) => Some(Resource::Profile),
        None => {
            if block.get("resource").is_none() {
                let help = "write `resource: event` for what guests do, `resource: profile` for who they are".to_owned();
                problems.push(problem("resource", "is missing", Some(help)));
            }
            None
        }
    };
    let key = block.text("api_key", Some("api_key: ${env:KLAVIYO_API_KEY}"), problems);
    let auth = key.map(|key| Auth::fixed(AUTHORIZATION, &format!("Klaviyo-API-Key {key}"), "api_key", problems));
    let mut headers =
        HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(JSON_API)), (CONTENT_TYPE, HeaderValue::from_static(JSON_API))]);
    match HeaderValue::from_str(block.text("revision", None, problems).unwrap_or(REVISION)) {
        Ok(revision) => drop(headers.insert(HeaderName::from_static("revision"), revision)),
        Err(_) => problems.push(problem("revision", "cannot be written into a header", Some(format!("write `revision: {REVISION}`")))),
    }
    let most = if resource == Some(Resource::Profile) { PROFILE_BYTES } else { EVENT_BYTES };
    let item_bytes = block.count("event_bytes", most, 1..=1 << 30, problems);
    let wire = Wire::read(&block, url.as_ref(), auth.unwrap_or(Auth::None), egress, Duration::from_secs(10), problems);
    let path = if resource == Some(Resource::Profile) { "api/profile-import" } else { "api/events" };
    let url = client::below(url?, path);
    Some(KlaviyoApi { wire: wire?, url, resource: resource?, headers, item_bytes })
}

/// A guest as JSON:API has it.
fn profile(mut fields: Fields) -> Result<Value, Unsendable> {
    if !IDENTIFIERS.iter().any(|name| fields.has(name)) {
        return Err(fields.refuse("profile", "names nobody: it needs external_id, email or phone_number"));
    }
    let id = fields.text("id")?;
    let mut profile = json!({"type": "profile", "attributes": fields.rest(&ATTRIBUTES)?});
    if let Some(id) = id {
        profile["id"] = id.into();
    }
    Ok(profile)
}

fn event(item: &Item, mut fields: Fields) -> Result<Value, Unsendable> {
    let metric = fields.required("metric")?;
    if metric.len() >= 128 {
        return Err(fields.refuse("metric", "must be shorter than 128 characters"));
    }
    let guest = profile(fields.within("profile")?)?;
    let unique = fields.text("unique_id")?.unwrap_or_else(|| item.idempotency_key.clone());
    // Without a time it would be that of arrival, which is another one on every attempt.
    let time = fields.text("time")?.or_else(|| item.event.committed_at().map(str::to_owned));
    let mut attributes = fields.rest(&["properties", "value", "value_currency"])?;
    attributes.entry("properties").or_insert_with(|| json!({}));
    attributes.insert("metric".into(), json!({"data": {"type": "metric", "attributes": {"name": metric}}}));
    attributes.insert("profile".into(), json!({ "data": guest }));
    attributes.insert("unique_id".into(), unique.into());
    attributes.extend(time.map(|time| ("time".to_owned(), time.into())));
    if item.event.op() == Op::Read {
        // What a table held when it was loaded is history: recorded, and nobody gets a message because of it.
        attributes.insert("backfill".into(), true.into());
    }
    Ok(json!({"data": {"type": "event", "attributes": attributes}}))
}

impl Api for KlaviyoApi {
    fn wire(&self) -> &Wire {
        &self.wire
    }

    fn url(&self) -> &Url {
        &self.url
    }

    fn limits(&self) -> Limits {
        Limits { item_bytes: self.item_bytes, ..Limits::SINGLE }
    }

    fn member(&self, item: &Item) -> Result<Member, Unsendable> {
        let fields = Fields::of(item, "klaviyo.field")?;
        let body = match self.resource {
            Resource::Event => event(item, fields)?,
            Resource::Profile if item.event.op() == Op::Delete => {
                return Err(refuse("klaviyo.delete", "a profile is not deleted because a row is: that is a request of the guest"));
            }
            Resource::Profile => json!({ "data": profile(fields)? }),
        };
        Ok(Member { text: body.to_string(), ..Member::default() })
    }

    fn request(&self, members: &[&Member], _key: &str, _now: SystemTime) -> Result<Request, SinkError> {
        let body: String = members.iter().map(|member| member.text.as_str()).collect();
        Ok(Request { method: Method::POST, url: self.url.clone(), headers: self.headers.clone(), body: body.into() })
    }

    /// A duplicate *profile* is no repeat: the identifiers belong to two guests, and nothing was changed.
    fn read(&self, answer: &Answer, _keys: &[&str]) -> Meaning {
        match (self.resource, answer.status) {
            (Resource::Profile, 409) => Meaning::Refused(reason(409, answer.body.as_ref())),
            _ => answer.meaning(),
        }
    }
}
