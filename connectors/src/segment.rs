//! The sink `segment`: calls of the Segment spec in lists, for Segment itself and for whoever speaks the same (`RudderStack` with `url`).
//!
//! `messageId` names the event and is the same on every attempt; Segment tells repeats by it for about a day, `RudderStack` where its source is set to.
//! An answer of 200 says that the list was well formed and nothing of any one event: what is malformed is dropped there without a word. So what can be
//! known before (a type, somebody it is about, a name, a size) is looked at here.
//!
//! There is no budget of its own: Segment refuses nothing for its rate, and puts off what a workspace sends beyond 100,000 events a second over ten
//! minutes (their page on product limits); `RudderStack` takes what its owner's data plane takes.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Method, Url};
use serde_json::{Map, Value};

use crate::block::{Block, mapped_only, problem};
use crate::fields::Fields;
use crate::http::auth::Auth;
use crate::http::client::{self, Request, Wire, vendor_url};
use crate::http::config::ApiTarget;
use crate::http::egress::Egress;
use crate::http::signature::base64;
use crate::http::sink::{Api, Limits, Member, Unsendable};
use crate::registry::{Kind, Problem, Target};
use crate::shape::{Of, Shape, may, must};
use crate::sink::{Idempotency, Item, SinkError};

#[derive(Debug)]
struct SegmentApi {
    wire: Wire,
    url: Url,
    prefix: String,
    limits: Limits,
}

/// The kind `segment`.
#[derive(Debug, Default)]
pub struct SegmentKind;

const KEYS: [&str; 9] = ["write_key", "url", "message_prefix", "events", "bytes", "event_bytes", "timeout", "tls", "allow_private"];

const URL: &str = "https://api.segment.io";

/// By Segment's reference: 500 kB and 2500 events a list, 32 kB an event.
const LIMITS: Limits = Limits { items: 2500, bytes: 500_000, item_bytes: 32_000 };

/// How long Segment knows a `messageId` again.
const REMEMBERS: Duration = Duration::from_secs(24 * 3600);

const TYPES: [&str; 6] = ["identify", "track", "page", "screen", "group", "alias"];

/// A call of their spec.
const CALL: Shape = Shape {
    fields: &[
        must("type", Of::Choice(&TYPES)),
        may("userId", Of::Text),
        may("anonymousId", Of::Text),
        may("messageId", Of::Text),
        may("timestamp", Of::Text),
        may("event", Of::Text),
        may("name", Of::Words),
        may("properties", Of::Free),
        may("traits", Of::Free),
        may("context", Of::Free),
        may("integrations", Of::Free),
        may("groupId", Of::Text),
        may("previousId", Of::Text),
    ],
    any_of: &["userId", "anonymousId"],
    never: None,
};

/// A name that a call of this type is nothing without, and that is not there. Of a call whose type an expression tells nothing is known.
fn lacks(call: &Map<String, Value>) -> Option<(&'static str, String)> {
    let kind = call.get("type").and_then(Value::as_str);
    let is_there = |name: &str| call.get(name).is_some_and(|value| !value.is_null());
    let needs = [("track", "event"), ("group", "groupId"), ("alias", "previousId")];
    let (of, name) = needs.into_iter().find(|(of, name)| kind == Some(of) && !is_there(name))?;
    Some((name, format!("is missing, and `{of}` is nothing without")))
}

impl Kind for SegmentKind {
    fn name(&self) -> &'static str {
        "segment"
    }

    fn keys(&self) -> &'static [&'static str] {
        &KEYS
    }

    fn scaffold(&self) -> Option<crate::scaffold::Scaffold> {
        Some(crate::scaffold::SEGMENT)
    }

    fn check_map(&self, _block: &Value, map: &Value) -> Vec<Problem> {
        let mut problems = CALL.of_map(map);
        let lacks = map.as_object().and_then(lacks);
        problems.extend(lacks.map(|(name, what)| problem(&format!("map.{name}"), &what, Some(format!("add `{name}` to the map")))));
        problems
    }

    fn validate(&self, block: &Value, mapped: bool) -> Result<Arc<dyn Target>, Vec<Problem>> {
        let mut problems = Vec::new();
        match read(block, mapped, &mut problems) {
            Some(api) if problems.is_empty() => Ok(Arc::new(ApiTarget::new(api, Idempotency::Key, Some(REMEMBERS), Vec::new()))),
            _ => Err(problems),
        }
    }
}

fn read(value: &Value, mapped: bool, problems: &mut Vec<Problem>) -> Option<SegmentApi> {
    let block = Block::new(value, "", &KEYS, problems)?;
    mapped_only(mapped, "type: track, userId: \"{{ after.customer }}\", event: Paid", problems);
    let egress = Egress::read(&block, problems);
    let url = vendor_url(&block, URL, &egress, problems);
    let key = block.text("write_key", Some("write_key: ${env:SEGMENT_WRITE_KEY}"), problems);
    let auth = key.map(|key| Auth::fixed(AUTHORIZATION, &format!("Basic {}", base64(format!("{key}:").as_bytes())), "write_key", problems));
    let prefix = block.text("message_prefix", None, problems).unwrap_or("tillstream");
    if prefix.len() > 40 || !prefix.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b)) {
        problems.push(problem("message_prefix", "must be up to 40 letters, digits, - and _", None));
    }
    let limits = Limits {
        items: block.count("events", LIMITS.items, 1..=100_000, problems),
        bytes: block.count("bytes", LIMITS.bytes, 1024..=1 << 30, problems),
        item_bytes: block.count("event_bytes", LIMITS.item_bytes, 256..=1 << 30, problems),
    };
    let wire = Wire::read(&block, url.as_ref(), auth.unwrap_or(Auth::None), egress, Duration::from_secs(10), problems);
    Some(SegmentApi { wire: wire?, url: client::below(url?, "v1/batch"), prefix: prefix.to_owned(), limits })
}

impl Api for SegmentApi {
    fn wire(&self) -> &Wire {
        &self.wire
    }

    fn url(&self) -> &Url {
        &self.url
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    fn member(&self, item: &Item) -> Result<Member, Unsendable> {
        let mut fields = Fields::of(item, "segment.field")?;
        fields.fit(&CALL)?;
        if let Some((name, what)) = lacks(fields.all()) {
            return Err(fields.refuse(name, &what));
        }
        let kind = fields.required("type")?;
        let (user, anonymous) = (fields.text("userId")?, fields.text("anonymousId")?);
        let message = fields.text("messageId")?.unwrap_or_else(|| format!("{}-{}", self.prefix, item.idempotency_key));
        // Without a time it would be that of arrival, which is another one on every attempt.
        let time = fields.text("timestamp")?.or_else(|| item.event.committed_at().map(str::to_owned));
        let mut call = fields.rest();
        let texts = [("type", Some(kind)), ("messageId", Some(message)), ("userId", user), ("anonymousId", anonymous), ("timestamp", time)];
        call.extend(texts.into_iter().filter_map(|(name, text)| Some((name.to_owned(), Value::from(text?)))));
        Ok(Member { text: Value::Object(call).to_string(), ..Member::default() })
    }

    fn is_of_map(&self) -> bool {
        true
    }

    fn request(&self, members: &[&Member], _key: &str, _now: SystemTime) -> Result<Request, SinkError> {
        let texts: Vec<&str> = members.iter().map(|member| member.text.as_str()).collect();
        // No `sentAt`: it would make another body of every attempt.
        let body = format!("{{\"batch\":[{}]}}", texts.join(","));
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
        Ok(Request { method: Method::POST, url: self.url.clone(), headers, body: body.into() })
    }
}
