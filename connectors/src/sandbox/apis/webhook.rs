//! A receiver of webhooks: Standard Webhooks 1.0.0 (standard-webhooks/standard-webhooks, spec/standard-webhooks.md), with CloudEvents as they may
//! come in it.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::Value;
use sha2::Sha256;

use super::{Answer, Api, Call, plain_error, text};
use crate::sandbox::WEBHOOK_SECRET;
use crate::sandbox::book::{Book, Fate, Known, Part, Wish, digest};

/// How far a request's time may lie from ours, in seconds: what the libraries of the specification allow.
const TOLERANCE: u64 = 300;

/// Verifies the signature; `webhook-id` names the request. Of the events of a CloudEvents batch the first with a `source` and an `id` counts: others may
/// be taken for repeats.
pub(super) struct Webhook;

impl Api for Webhook {
    fn name(&self) -> &'static str {
        "webhook"
    }

    fn read(&self, call: &Call<'_>) -> Result<Wish, Answer> {
        let refused = |detail: &str| plain_error(401, "signature", detail);
        let id = call.header("webhook-id").ok_or_else(|| plain_error(400, "webhook_id_missing", "webhook-id is missing"))?;
        let sent = call.header("webhook-timestamp").and_then(|text| text.parse::<u64>().ok());
        let sent = sent.ok_or_else(|| refused("webhook-timestamp is missing"))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        if now.abs_diff(sent) > TOLERANCE {
            return Err(refused("webhook-timestamp is too far from now"));
        }
        let signed = [id.as_bytes(), b".", sent.to_string().as_bytes(), b".", call.body].concat();
        let signatures = call.header("webhook-signature").unwrap_or_default().split(' ');
        if !signatures.filter_map(|s| s.strip_prefix("v1,")).any(|signature| is_signed(&signed, signature)) {
            return Err(refused("no signature fits"));
        }
        let media = call.header("content-type").unwrap_or_default();
        let value = call.json().unwrap_or(Value::Null);
        let digest = digest(call.body);
        if media.starts_with("application/cloudevents-batch+json") {
            let events = value.as_array().ok_or_else(|| plain_error(400, "not_a_batch", "a batch is a list"))?;
            let key = |event: &Value| Some(format!("{} {}", text(event, "/source")?, text(event, "/id")?));
            let parts = events.iter().map(|event| Part { key: key(event), row: None, state: None, body: event.clone() }).collect();
            return Ok(Wish { key: None, digest, parts, atomic: true, known: Known::FirstCounts });
        }
        let part = Part { key: None, row: None, state: None, body: value };
        Ok(Wish { key: Some(id.to_owned()), digest, parts: vec![part], atomic: true, known: Known::Compared })
    }

    fn done(&self, _wish: &Wish, fates: &[Fate], _book: &mut Book) -> Answer {
        match super::first(fates, &[Fate::Conflict, Fate::Refused, Fate::Failed]) {
            Some(Fate::Conflict) => self.error(422, "idempotency_key_reused", "this webhook-id came with another body"),
            Some(Fate::Refused) => self.error(422, "refused", ""),
            Some(_) => self.error(503, "try_again", ""),
            None => Answer::empty(204),
        }
    }

    fn error(&self, status: u16, code: &str, detail: &str) -> Answer {
        plain_error(status, code, detail)
    }
}

fn is_signed(signed: &[u8], signature: &str) -> bool {
    let key = BASE64.decode(WEBHOOK_SECRET.trim_start_matches("whsec_")).unwrap_or_default();
    let (Ok(mut mac), Ok(signature)) = (Hmac::<Sha256>::new_from_slice(&key), BASE64.decode(signature)) else { return false };
    mac.update(signed);
    mac.verify_slice(&signature).is_ok()
}
