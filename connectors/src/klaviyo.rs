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
use crate::registry::{Budget, Kind, Problem, Target};
use crate::shape::{Of, Shape, may, must};
use crate::sink::{Idempotency, Item, SinkError};

/// What an event becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Resource {
    Event,
    Profile,
}

impl Resource {
    fn shape(self) -> &'static Shape {
        match self {
            Resource::Event => &EVENT,
            Resource::Profile => &PROFILE,
        }
    }
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

/// What Klaviyo takes of an account in a minute, by `x-klaviyo-ratelimit` (`steady`) of their OpenAPI document, revision 2026-07-15: 3500 calls of
/// `POST /api/events`, 750 of `POST /api/profile-import`. In a second it takes 350 and 75, which an even pace never comes to.
const BUDGETS: [(Resource, u64); 2] = [(Resource::Event, 3500), (Resource::Profile, 750)];

impl KlaviyoApi {
    /// That of Klaviyo itself; whoever stands elsewhere and speaks the same has limits of its own.
    fn budget(&self) -> Option<Budget> {
        let is_theirs = URL.strip_prefix("https://") == self.url.host_str();
        let events = BUDGETS.iter().find(|(resource, _)| *resource == self.resource && is_theirs)?.1;
        Some(Budget { events, per: Duration::from_secs(60) })
    }
}

/// What may be said of where a guest lives.
const LOCATION: Shape = Shape {
    fields: &[
        may("address1", Of::Words),
        may("address2", Of::Words),
        may("city", Of::Words),
        may("country", Of::Words),
        may("latitude", Of::Words),
        may("longitude", Of::Words),
        may("region", Of::Words),
        may("zip", Of::Words),
        may("timezone", Of::Words),
        may("ip", Of::Words),
    ],
    any_of: &[],
    never: None,
};

/// What may be said of a guest, who is named by one thing at least. Consent and subscriptions are not among it.
const PROFILE: Shape = Shape {
    fields: &[
        may("id", Of::Text),
        may("external_id", Of::Words),
        may("email", Of::Words),
        may("phone_number", Of::Words),
        may("anonymous_id", Of::Words),
        may("_kx", Of::Words),
        may("first_name", Of::Words),
        may("last_name", Of::Words),
        may("organization", Of::Words),
        may("locale", Of::Words),
        may("title", Of::Words),
        may("image", Of::Words),
        may("location", Of::Object(&LOCATION)),
        may("properties", Of::Free),
    ],
    any_of: &["external_id", "email", "phone_number", "id", "anonymous_id", "_kx"],
    never: Some((&CONSENT, "says something of consent, which only the guest gives and this sink never sends")),
};

/// Words of consent in Klaviyo's documents, and what is likely to be written for them.
const CONSENT: [&str; 10] = [
    "subscriptions",
    "subscribed",
    "subscribe",
    "consent",
    "consented_at",
    "consent_timestamp",
    "marketing",
    "email_marketing",
    "sms_marketing",
    "marketing_consent",
];

/// What may be said of an event.
const EVENT: Shape = Shape {
    fields: &[
        must("metric", Of::Checked(metric)),
        must("profile", Of::Object(&PROFILE)),
        may("unique_id", Of::Text),
        may("time", Of::Text),
        may("properties", Of::Free),
        may("value", Of::Number),
        may("value_currency", Of::Words),
    ],
    any_of: &[],
    never: Some((&CONSENT, "says something of consent, which only the guest gives and this sink never sends")),
};

fn metric(name: &str) -> Option<&'static str> {
    match name.len() {
        0 => Some("must be a text that is not empty"),
        1..128 => None,
        _ => Some("must be shorter than 128 characters"),
    }
}

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

    fn check_map(&self, block: &Value, map: &Value) -> Vec<Problem> {
        match block.get("resource").and_then(Value::as_str) {
            Some("event") => EVENT.of_map(map),
            Some("profile") => PROFILE.of_map(map),
            // Said of the block already.
            _ => Vec::new(),
        }
    }

    fn validate(&self, block: &Value, mapped: bool) -> Result<Arc<dyn Target>, Vec<Problem>> {
        let mut problems = Vec::new();
        match read(block, mapped, &mut problems) {
            // For how long a `unique_id` is known, Klaviyo does not say.
            Some(api) if problems.is_empty() => {
                let budget = api.budget();
                Ok(Arc::new(ApiTarget::new(api, Idempotency::Key, None, Vec::new()).within(budget)))
            }
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
    let id = fields.text("id")?;
    let mut profile = json!({"type": "profile", "attributes": fields.rest()});
    if let Some(id) = id {
        profile["id"] = id.into();
    }
    Ok(profile)
}

fn event(item: &Item, mut fields: Fields) -> Result<Value, Unsendable> {
    let metric = fields.required("metric")?;
    let guest = profile(fields.within("profile")?)?;
    let unique = fields.text("unique_id")?.unwrap_or_else(|| item.idempotency_key.clone());
    // Without a time it would be that of arrival, which is another one on every attempt.
    let time = fields.text("time")?.or_else(|| item.event.committed_at().map(str::to_owned));
    let mut attributes = fields.rest();
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
        if self.resource == Resource::Profile && item.event.op() == Op::Delete {
            return Err(refuse("klaviyo.delete", "a profile is not deleted because a row is: that is a request of the guest"));
        }
        fields.fit(self.resource.shape())?;
        let body = match self.resource {
            Resource::Event => event(item, fields)?,
            Resource::Profile => json!({ "data": profile(fields)? }),
        };
        Ok(Member { text: body.to_string(), ..Member::default() })
    }

    fn is_of_map(&self) -> bool {
        true
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
