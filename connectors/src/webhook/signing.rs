//! Signatures as Standard Webhooks 1.0.0 writes them (<https://github.com/standard-webhooks/standard-webhooks>, `spec/standard-webhooks.md`).

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde_json::Value;

use crate::block::{Block, problem};
use crate::http::signature::{Signer, base64};
use crate::registry::Problem;

pub(super) const ID: HeaderName = HeaderName::from_static("webhook-id");
const TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
const SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");

/// Bytes of a secret, by the specification.
const SECRET_BYTES: std::ops::RangeInclusive<usize> = 24..=64;

/// The secrets, newest first: while one is being replaced, requests are signed with both.
#[derive(Debug)]
pub(super) struct Secrets(Vec<Signer>);

impl Secrets {
    /// Reads `secrets`: one `whsec_…` or a list of them.
    pub(super) fn read(block: &Block<'_>, problems: &mut Vec<Problem>) -> Secrets {
        let mut signers = Vec::new();
        let one = |value: &Value, path: &str, problems: &mut Vec<Problem>| {
            let bytes = value.as_str().and_then(|text| BASE64.decode(text.trim().strip_prefix("whsec_")?).ok());
            match bytes {
                Some(bytes) if SECRET_BYTES.contains(&bytes.len()) => Some(Signer::new(&bytes)),
                Some(_) => {
                    problems.push(problem(path, "must have 24 to 64 bytes", Some(MAKE.into())));
                    None
                }
                None => {
                    problems.push(problem(path, "must be `whsec_` and base64", Some(MAKE.into())));
                    None
                }
            }
        };
        match block.get("secrets") {
            None => {
                let help =
                    "write `secrets: [\"${env:WEBHOOK_SECRET}\"]`; while one is replaced, list the new one and the old one".to_owned();
                problems.push(problem(&block.path("secrets"), "is missing", Some(help)));
            }
            Some(Value::Array(secrets)) if !secrets.is_empty() => {
                for (n, secret) in secrets.iter().enumerate() {
                    signers.extend(one(secret, &format!("{}.{n}", block.path("secrets")), problems));
                }
            }
            Some(secret) => signers.extend(one(secret, &block.path("secrets"), problems)),
        }
        Secrets(signers)
    }

    /// Adds the three headers of an attempt: the id is the same on every attempt, the time is not.
    pub(super) fn sign(&self, headers: &mut HeaderMap, id: &str, body: &[u8], now: SystemTime) {
        let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs().to_string();
        let signed = |signer: &Signer| format!("v1,{}", base64(&signer.sign(&[id.as_bytes(), b".", seconds.as_bytes(), b".", body])));
        let signatures = self.0.iter().map(signed).collect::<Vec<_>>().join(" ");
        for (name, text) in [(ID, id), (TIMESTAMP, seconds.as_str()), (SIGNATURE, signatures.as_str())] {
            // Digits, base64 and our own keys: always text that a header takes.
            headers.extend(HeaderValue::from_str(text).ok().map(|value| (name, value)));
        }
    }
}

const MAKE: &str = "make one with: echo whsec_$(openssl rand -base64 32)";

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::time::Duration;

    /// The specification's own example: <https://github.com/standard-webhooks/standard-webhooks/blob/main/libraries/rust/src/lib.rs>.
    #[test]
    fn the_signature_is_the_one_of_the_reference() {
        let block = json!({"secrets": ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"]});
        let mut problems = Vec::new();
        let secrets = Secrets::read(&Block::new(&block, "", &["secrets"], &mut problems).expect("a block"), &mut problems);
        assert_eq!(problems, []);
        let mut headers = HeaderMap::new();
        let now = UNIX_EPOCH + Duration::from_secs(1_614_265_330);
        secrets.sign(&mut headers, "msg_p5jXN8AQM9LWM0D4loKWxJek", br#"{"test": 2432232314}"#, now);
        let signature = headers[SIGNATURE].to_str().expect("text");
        assert!(signature.starts_with("v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE= v1,"), "{signature}");
        assert_eq!(signature.split(' ').count(), 2);
        assert_eq!(
            (&headers[ID], &headers[TIMESTAMP]),
            (&"msg_p5jXN8AQM9LWM0D4loKWxJek".parse().expect("text"), &HeaderValue::from(1_614_265_330))
        );
    }

    #[test]
    fn secrets_that_are_none_are_refused() {
        for secrets in [json!("hunter2"), json!(["whsec_aGk="]), json!([]), Value::Null, json!("whsec_***")] {
            let mut problems = Vec::new();
            let block = json!({ "secrets": secrets });
            Secrets::read(&Block::new(&block, "", &["secrets"], &mut problems).expect("a block"), &mut problems);
            assert_eq!(problems.len(), 1, "{block}");
            assert!(!format!("{problems:?}").contains("hunter2"));
        }
    }
}
