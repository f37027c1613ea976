//! How a request shows whose it is: the `auth` block.

use std::time::{SystemTime, UNIX_EPOCH};

use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};

use super::egress::Egress;
use super::oauth::OAuth2;
use super::signature::{Signer, base64, hex};
use crate::block::{Block, problem};
use crate::registry::Problem;

/// What is added to every request.
#[derive(Debug)]
pub(crate) enum Auth {
    None,
    /// The same header always.
    Fixed(HeaderName, HeaderValue),
    /// A token that is fetched and renewed.
    OAuth2(Box<OAuth2>),
    /// A signature over the body.
    Hmac(Box<Hmac>),
}

#[derive(Debug)]
pub(crate) struct Hmac {
    signer: Signer,
    header: HeaderName,
    prefix: String,
    is_base64: bool,
    /// With one, seconds since 1970 stand in it and the signature covers `<seconds>.<body>`.
    timestamp: Option<HeaderName>,
}

impl Hmac {
    /// The headers it adds.
    pub(crate) fn headers(&self) -> impl Iterator<Item = &HeaderName> {
        [&self.header].into_iter().chain(&self.timestamp)
    }

    /// Adds the headers of an attempt at `now`.
    pub(crate) fn sign(&self, headers: &mut HeaderMap, body: &[u8], now: SystemTime) {
        let signed = match &self.timestamp {
            Some(header) => {
                let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
                headers.insert(header.clone(), HeaderValue::from(seconds));
                self.signer.sign(&[seconds.to_string().as_bytes(), b".", body])
            }
            None => self.signer.sign(&[body]),
        };
        let text = if self.is_base64 { base64(&signed) } else { hex(&signed) };
        // The prefix was tried when the file was read.
        headers.extend(HeaderValue::from_str(&format!("{}{text}", self.prefix)).ok().map(|value| (self.header.clone(), value)));
    }
}

impl Auth {
    /// A secret in a header of its own, as `Authorization: Klaviyo-API-Key …`.
    pub(crate) fn fixed(name: HeaderName, text: &str, path: &str, problems: &mut Vec<Problem>) -> Auth {
        match secret(text) {
            Some(value) => Auth::Fixed(name, value),
            None => {
                problems.push(problem(path, "cannot be written into a header", None));
                Auth::None
            }
        }
    }

    /// Whether it would show a secret to whoever reads along. A signature shows none.
    pub(crate) fn shows_secret(&self) -> bool {
        matches!(self, Auth::Fixed(..) | Auth::OAuth2(_))
    }
}

/// A header value that no log shows.
pub(crate) fn secret(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok().filter(|v| !v.is_empty())?;
    value.set_sensitive(true);
    Some(value)
}

/// A header's name under a key.
pub(crate) fn header(block: &Block<'_>, key: &str, default: Option<&str>, problems: &mut Vec<Problem>) -> Option<HeaderName> {
    let text = block.text(key, None, problems).or(default)?;
    let name = HeaderName::from_bytes(text.as_bytes());
    if name.is_err() {
        problems.push(problem(&block.path(key), "is not a header name", None));
    }
    name.ok()
}

/// Reads `auth`, which holds one of four ways.
pub(crate) fn read(block: &Block<'_>, egress: &Egress, problems: &mut Vec<Problem>) -> Auth {
    const WAYS: [&str; 4] = ["bearer", "basic", "oauth2", "hmac"];
    let Some(value) = block.get("auth") else { return Auth::None };
    let path = block.path("auth");
    let Some(auth) = Block::new(value, &path, &WAYS, problems) else { return Auth::None };
    let given: Vec<&str> = WAYS.into_iter().filter(|way| auth.get(way).is_some()).collect();
    let [way] = given[..] else {
        problems.push(problem(&path, "must hold exactly one of `bearer`, `basic`, `oauth2` and `hmac`", None));
        return Auth::None;
    };
    let read = match way {
        "bearer" => {
            auth.text("bearer", None, problems).map(|token| Auth::fixed(AUTHORIZATION, &format!("Bearer {token}"), &path, problems))
        }
        "basic" => basic(&auth, problems),
        "oauth2" => OAuth2::read(&auth, egress, problems).map(|oauth2| Auth::OAuth2(Box::new(oauth2))),
        _ => hmac(&auth, problems).map(|hmac| Auth::Hmac(Box::new(hmac))),
    };
    read.unwrap_or(Auth::None)
}

fn basic(auth: &Block<'_>, problems: &mut Vec<Problem>) -> Option<Auth> {
    let path = auth.path("basic");
    let basic = Block::new(auth.get("basic")?, &path, &["user", "password"], problems)?;
    let user = basic.text("user", Some("user: name"), problems);
    let password = basic.text("password", Some("password: ${env:PASSWORD}"), problems);
    let text = format!("Basic {}", base64(format!("{}:{}", user?, password?).as_bytes()));
    Some(Auth::fixed(AUTHORIZATION, &text, &path, problems))
}

fn hmac(auth: &Block<'_>, problems: &mut Vec<Problem>) -> Option<Hmac> {
    let path = auth.path("hmac");
    let hmac = Block::new(auth.get("hmac")?, &path, &["secret", "header", "encoding", "prefix", "timestamp_header"], problems)?;
    let secret = hmac.text("secret", Some("secret: ${env:SIGNING_SECRET}"), problems);
    let name = header(&hmac, "header", Some("x-signature"), problems);
    let encoding = hmac.choice("encoding", &["hex", "base64"], problems);
    let prefix = hmac.text("prefix", None, problems).unwrap_or_default();
    if !prefix.is_empty() && HeaderValue::from_str(prefix).is_err() {
        problems.push(problem(&hmac.path("prefix"), "cannot be written into a header", None));
    }
    let timestamp = header(&hmac, "timestamp_header", None, problems);
    let signer = Signer::new(secret?.as_bytes());
    Some(Hmac { signer, header: name?, prefix: prefix.to_owned(), is_base64: encoding == Some("base64"), timestamp })
}
