//! OAuth 2 client credentials (RFC 6749, 4.4): a token that is fetched when there is none, kept while it lasts, and fetched anew once when the API
//! refuses it. However many lanes want one, one of them asks.

use std::time::{Duration, Instant};

use base64::Engine as _;
use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderValue};
use reqwest::{Client, Url};
use serde_json::Value;
use tokio::sync::Mutex;

use super::answer::{Meaning, meaning};
use super::auth::secret;
use super::client::{read_body, read_url, unknown};
use super::egress::Egress;
use super::form;
use crate::block::{Block, problem};
use crate::registry::Problem;
use crate::sink::{Class, SinkError};

/// How long a token is used whose answer does not say how long it lasts.
const LIFETIME_UNKNOWN: Duration = Duration::from_secs(300);

/// A token is not used in its last half minute: a request may be under way for so long.
const MARGIN: Duration = Duration::from_secs(30);

/// The most of a token's answer that is read.
const ANSWER_MAX: usize = 64 << 10;

/// Where tokens come from, and the one at hand.
pub(crate) struct OAuth2 {
    url: Url,
    /// The whole body, credentials included unless they stand in a header.
    body: String,
    basic: Option<HeaderValue>,
    held: Mutex<Option<Token>>,
}

/// A token at hand.
#[derive(Clone)]
pub(crate) struct Token {
    pub(crate) header: HeaderValue,
    /// Tells it from those before it.
    number: u64,
    until: Instant,
}

impl std::fmt::Debug for OAuth2 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OAuth2").field("host", &self.url.host_str()).finish_non_exhaustive()
    }
}

impl OAuth2 {
    pub(crate) fn read(auth: &Block<'_>, egress: &Egress, problems: &mut Vec<Problem>) -> Option<OAuth2> {
        const KEYS: [&str; 6] = ["token_url", "client_id", "client_secret", "scope", "audience", "credentials"];
        let path = auth.path("oauth2");
        let block = Block::new(auth.get("oauth2")?, &path, &KEYS, problems)?;
        let url = read_url(&block, "token_url", "token_url: https://login.example/oauth2/token", egress, problems);
        if url.as_ref().is_some_and(|url| url.scheme() == "http" && !super::client::is_loopback(url)) {
            problems.push(problem(&block.path("token_url"), "would carry the secret unencrypted", Some("use an https:// url".into())));
        }
        let id = block.text("client_id", Some("client_id: name"), problems);
        let secret_text = block.text("client_secret", Some("client_secret: ${env:CLIENT_SECRET}"), problems);
        let in_body = block.choice("credentials", &["header", "body"], problems) == Some("body");
        let mut fields = vec![("grant_type", "client_credentials")];
        fields.extend(block.text("scope", None, problems).map(|scope| ("scope", scope)));
        fields.extend(block.text("audience", None, problems).map(|audience| ("audience", audience)));
        let (id, secret_text) = (id?, secret_text?);
        let basic = if in_body {
            fields.extend([("client_id", id), ("client_secret", secret_text)]);
            None
        } else {
            // RFC 6749, 2.3.1: both are form-encoded before they are joined.
            let pair = format!("{}:{}", form::encode(id), form::encode(secret_text));
            secret(&format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair)))
        };
        let body = fields.iter().map(|(name, value)| format!("{name}={}", form::encode(value))).collect::<Vec<_>>().join("&");
        Some(OAuth2 { url: url?, body, basic, held: Mutex::new(None) })
    }

    /// A token; another one than `refused`, when the API took that for none. Who asks while somebody fetches one waits for it.
    pub(crate) async fn token(&self, client: &Client, refused: Option<&Token>) -> Result<Token, SinkError> {
        let mut held = self.held.lock().await;
        let fresh = held.as_ref().filter(|token| token.until > Instant::now() && refused.is_none_or(|r| r.number != token.number));
        if let Some(token) = fresh {
            return Ok(token.clone());
        }
        let number = held.as_ref().map_or(0, |token| token.number + 1);
        let (header, lasts) = self.fetch(client).await?;
        let token = Token { header, number, until: Instant::now() + lasts };
        *held = Some(token.clone());
        Ok(token)
    }

    async fn fetch(&self, client: &Client) -> Result<(HeaderValue, Duration), SinkError> {
        let mut request = client
            .post(self.url.clone())
            .header(ACCEPT, "application/json")
            .header(reqwest::header::CONTENT_TYPE, form::CONTENT_TYPE)
            .body(self.body.clone());
        if let Some(basic) = &self.basic {
            request = request.header(AUTHORIZATION, basic.clone());
        }
        let response = request.send().await.map_err(|e| unknown(&e))?;
        let status = response.status().as_u16();
        let retry_after = response.headers().get(reqwest::header::RETRY_AFTER).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let body: Option<Value> = serde_json::from_slice(&read_body(response, ANSWER_MAX).await?).ok();
        match meaning(status, retry_after.as_deref(), body.as_ref(), std::time::SystemTime::now()) {
            Meaning::Applied => {}
            // Wrong credentials, a wrong scope: nobody but a person mends it.
            Meaning::Refused(reason) => return Err(definite(&reason.message)),
            Meaning::Whole(error) if error.class == Class::Definite => return Err(definite(&error.message)),
            Meaning::Pause(crate::sink::Outcome::Retry(retry)) => {
                return Err(SinkError { after: retry.after, ..SinkError::transient("http.oauth2", "the token's server asks for a pause") });
            }
            _ => return Err(SinkError::transient("http.oauth2", "the token's server is away or busy")),
        }
        let field = |name: &str| body.as_ref().and_then(|b| b.get(name));
        let token = field("access_token").and_then(Value::as_str).and_then(|token| secret(&format!("Bearer {token}")));
        let token = token.ok_or_else(|| definite("its answer holds no `access_token`"))?;
        // Some servers write the number as text.
        let seconds = field("expires_in").and_then(|v| v.as_u64().or_else(|| v.as_str()?.parse().ok()));
        let lasts = seconds.map_or(LIFETIME_UNKNOWN, |s| Duration::from_secs(s.min(86_400)));
        Ok((token, lasts.saturating_sub(MARGIN.min(lasts / 10))))
    }
}

fn definite(why: &str) -> SinkError {
    let message = format!("no token was given for these client credentials: {why}");
    SinkError::definite("http.oauth2", &message)
}
