//! The sink `segment`: calls of the Segment spec in lists, for Segment itself and for whoever speaks the same (`RudderStack` with `url`).
//!
//! `messageId` names the event and is the same on every attempt; Segment tells repeats by it for about a day, `RudderStack` where its source is set to.
//! An answer of 200 says that the list was well formed and nothing of any one event: what is malformed is dropped there without a word. So what can be
//! known before (a type, somebody it is about, a name, a size) is looked at here.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Method, Url};
use serde_json::Value;

use crate::block::{Block, mapped_only, problem};
use crate::fields::Fields;
use crate::http::auth::Auth;
use crate::http::client::{self, Request, Wire, vendor_url};
use crate::http::config::ApiTarget;
use crate::http::egress::Egress;
use crate::http::signature::base64;
use crate::http::sink::{Api, Limits, Member, Unsendable};
use crate::registry::{Kind, Problem, Target};
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
        let kind = fields.required("type")?;
        if !TYPES.contains(&kind.as_str()) {
            return Err(fields.refuse("type", &format!("is not among {}", TYPES.join(", "))));
        }
        for (of, name) in [("track", "event"), ("group", "groupId"), ("alias", "previousId")] {
            if kind == of && !fields.has(name) {
                return Err(fields.refuse(name, &format!("is missing, and `{of}` is nothing without")));
            }
        }
        let (user, anonymous) = (fields.text("userId")?, fields.text("anonymousId")?);
        if user.is_none() && anonymous.is_none() {
            return Err(fields.refuse("userId", "is missing, and so is `anonymousId`: one of them says who it is about"));
        }
        let message = fields.text("messageId")?.unwrap_or_else(|| format!("{}-{}", self.prefix, item.idempotency_key));
        // Without a time it would be that of arrival, which is another one on every attempt.
        let time = fields.text("timestamp")?.or_else(|| item.event.committed_at().map(str::to_owned));
        let mut call = fields.rest(&["event", "name", "properties", "traits", "context", "integrations", "groupId", "previousId"])?;
        let texts = [("type", Some(kind)), ("messageId", Some(message)), ("userId", user), ("anonymousId", anonymous), ("timestamp", time)];
        call.extend(texts.into_iter().filter_map(|(name, text)| Some((name.to_owned(), Value::from(text?)))));
        Ok(Member { text: Value::Object(call).to_string(), ..Member::default() })
    }

    fn request(&self, members: &[&Member], _key: &str, _now: SystemTime) -> Result<Request, SinkError> {
        let texts: Vec<&str> = members.iter().map(|member| member.text.as_str()).collect();
        // No `sentAt`: it would make another body of every attempt.
        let body = format!("{{\"batch\":[{}]}}", texts.join(","));
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
        Ok(Request { method: Method::POST, url: self.url.clone(), headers, body: body.into() })
    }
}
