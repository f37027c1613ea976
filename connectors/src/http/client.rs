//! The way to a target: one client for all lanes, with what every request has to obey. Sends; says nothing about events.
//!
//! Redirects are not followed, nothing is repeated except once with a fresh token, and answers are read up to a bound.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use reqwest::header::{AUTHORIZATION, HeaderMap, RETRY_AFTER};
use reqwest::{Certificate, Client, Identity, Method, Response, Url};

use super::answer::Answer;
use super::auth::Auth;
use super::balance::{Endpoints, How};
use super::egress::{Egress, Guard, Refused};
use crate::block::{Block, problem};
use crate::registry::Problem;
use crate::show::Text;
use crate::sink::{Outcome, Retry, SinkError};

/// The most of an answer that is read: results of the largest batch fit many times.
const ANSWER_MAX: usize = 8 << 20;

/// A server that does not take a connection within this is away.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The code of a request that was never sent, because nobody takes the connection.
const NO_CONNECTION: &str = "http.connect";

/// One request.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: Method,
    pub(crate) url: Url,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// The way to one target, shared by its lanes.
pub(crate) struct Wire {
    client: Client,
    auth: Auth,
    /// Where the target has several endpoints, all of them: requests go to one of these and not to the URL they name.
    endpoints: Option<Arc<Endpoints>>,
    /// Longest time of one request.
    pub(crate) timeout: Duration,
    /// The end of a pause that the target asked any lane for: the others stop within their calls.
    paused_until: Mutex<Option<Instant>>,
}

/// Shows no header's value and no part of a URL that may hold a secret.
impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wire").field("auth", &self.auth).field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

impl Wire {
    /// Reads `timeout`, `tls` and the permission in `egress`. `url` is where secrets of `auth` will go.
    pub(crate) fn read(
        block: &Block<'_>,
        url: Option<&Url>,
        auth: Auth,
        egress: Egress,
        timeout: Duration,
        problems: &mut Vec<Problem>,
    ) -> Option<Wire> {
        if auth.shows_secret() && url.is_some_and(|url| url.scheme() == "http" && !is_loopback(url)) {
            problems.push(problem("auth", "would be sent unencrypted", Some("use an https:// url".into())));
        }
        let bounds = (Duration::from_millis(100), Duration::from_secs(600));
        let timeout = block.duration("timeout", timeout, bounds, problems);
        let mut builder = Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .no_proxy()
            .dns_resolver(Guard(Arc::new(egress)))
            .connect_timeout(CONNECT_TIMEOUT.min(timeout))
            .timeout(timeout)
            .user_agent(concat!("tillstream/", env!("CARGO_PKG_VERSION")));
        let (identity, authorities) = read_tls(block, problems);
        if let Some(identity) = identity {
            builder = builder.identity(identity);
        }
        if !authorities.is_empty() {
            builder = builder.tls_certs_only(authorities);
        }
        let client = builder.build().map_err(|_| problems.push(problem("", "no HTTP client can be set up with these settings", None)));
        Some(Wire { client: client.ok()?, auth, endpoints: None, timeout, paused_until: Mutex::new(None) })
    }

    /// Balances requests over these endpoints of the target when there are several.
    pub(crate) fn balanced(mut self, urls: Vec<Url>) -> Wire {
        self.endpoints = (urls.len() > 1).then(|| Endpoints::new(urls));
        self
    }

    /// The longest time of one [`Wire::send`].
    pub(crate) fn send_timeout(&self) -> Duration {
        // Endpoints that take no connection are passed by, one after another.
        let passed_by = self.endpoints.as_ref().map_or(0, |e| u32::try_from(e.urls().len()).unwrap_or(u32::MAX) - 1);
        let once = self.timeout + CONNECT_TIMEOUT.min(self.timeout).saturating_mul(passed_by);
        // With a token: fetched, refused, fetched anew, sent.
        if matches!(self.auth, Auth::OAuth2(_)) { once * 4 } else { once }
    }

    /// The headers that every request gets on its way, without what they hold.
    pub(crate) fn shown_auth(&self) -> Vec<(String, Text)> {
        match &self.auth {
            Auth::None => Vec::new(),
            Auth::Fixed(name, _) => vec![(name.to_string(), Text::Secret)],
            Auth::OAuth2(_) => vec![(AUTHORIZATION.to_string(), Text::Secret)],
            Auth::Hmac(hmac) => hmac.headers().map(|name| (name.to_string(), Text::OfAttempt)).collect(),
        }
    }

    /// Sends it and reads the answer. `Err` means that nothing is known.
    pub(crate) async fn send(&self, request: Request) -> Result<Answer, SinkError> {
        let Auth::OAuth2(oauth2) = &self.auth else { return self.attempt(request).await };
        let token = oauth2.token(&self.client, None).await?;
        let with = |token: &super::oauth::Token| {
            let mut request = request.clone();
            request.headers.insert(AUTHORIZATION, token.header.clone());
            request
        };
        let answer = self.attempt(with(&token)).await?;
        if answer.status != 401 {
            return Ok(answer);
        }
        let token = oauth2.token(&self.client, Some(&token)).await?;
        self.attempt(with(&token)).await
    }

    /// Sends it to one of the endpoints. Nothing was sent to one that takes no connection, so the next one is tried at once.
    async fn attempt(&self, mut request: Request) -> Result<Answer, SinkError> {
        let Some(endpoints) = &self.endpoints else { return self.exchange(request).await };
        let mut passed_by = Vec::new();
        loop {
            let chosen = endpoints.pick(&passed_by, Instant::now());
            request.url = chosen.url().clone();
            let error = match self.exchange(request.clone()).await {
                Ok(answer) => {
                    let how = if matches!(answer.status, 502..=504) { How::Failed } else { How::Answered };
                    chosen.ended(how, Instant::now());
                    return Ok(answer);
                }
                Err(error) => error,
            };
            let no_connection = error.code == NO_CONNECTION;
            passed_by.push(chosen.index);
            chosen.ended(if no_connection { How::NoConnection } else { How::Failed }, Instant::now());
            if !no_connection || passed_by.len() == endpoints.urls().len() {
                return Err(error);
            }
        }
    }

    async fn exchange(&self, mut request: Request) -> Result<Answer, SinkError> {
        match &self.auth {
            Auth::Fixed(name, value) => drop(request.headers.insert(name.clone(), value.clone())),
            Auth::Hmac(hmac) => hmac.sign(&mut request.headers, &request.body, SystemTime::now()),
            Auth::None | Auth::OAuth2(_) => {}
        }
        let Request { method, url, headers, body } = request;
        let response = self.client.request(method, url).headers(headers).body(body).send().await.map_err(|e| unknown(&e))?;
        let status = response.status().as_u16();
        let retry_after = response.headers().get(RETRY_AFTER).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let body = read_body(response, ANSWER_MAX).await?;
        Ok(Answer { status, retry_after, body: serde_json::from_slice(&body).ok() })
    }

    /// Whether anything answers there. What it answers says nothing: few targets know OPTIONS.
    pub(crate) async fn check(&self, url: &Url) -> Result<(), SinkError> {
        let urls = self.endpoints.as_ref().map_or(std::slice::from_ref(url), |endpoints| endpoints.urls());
        let mut result = Ok(());
        for url in urls {
            let request = self.client.request(Method::OPTIONS, url.clone()).timeout(Duration::from_secs(10));
            result = request.send().await.map(drop).map_err(|e| unknown(&e));
            if result.is_ok() {
                break;
            }
        }
        result
    }

    /// The `Date` of an answer, whose whole seconds are taken in the middle; `None` from a target that does not date its answers.
    pub(crate) async fn clock(&self, url: &Url) -> Result<Option<i64>, SinkError> {
        let request = self.client.request(Method::OPTIONS, url.clone()).timeout(Duration::from_secs(10));
        let answer = request.send().await.map_err(|e| unknown(&e))?;
        let date = answer.headers().get(reqwest::header::DATE).and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok());
        let since = date.and_then(|date| date.duration_since(std::time::SystemTime::UNIX_EPOCH).ok());
        Ok(since.and_then(|since| i64::try_from(since.as_millis()).ok()).map(|ms| ms + 500))
    }

    /// Whether any lane was asked for a pause that is not over. Delivery waits before a call; this ends one early.
    pub(crate) fn is_paused(&self) -> bool {
        let until = *self.paused_until.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| Instant::now() < until)
    }

    /// Notes the pause that an outcome asks for.
    pub(crate) fn pause(&self, outcome: &Outcome) {
        if let Outcome::Retry(Retry { after: Some(after), .. }) = outcome {
            let mut until = self.paused_until.lock().unwrap_or_else(PoisonError::into_inner);
            let wanted = Instant::now() + *after;
            *until = Some(until.map_or(wanted, |u| u.max(wanted)));
        }
    }
}

/// The URL under a key, checked against what may be reached.
pub(crate) fn read_url(block: &Block<'_>, key: &str, example: &str, egress: &Egress, problems: &mut Vec<Problem>) -> Option<Url> {
    let text = block.text(key, Some(example), problems)?;
    parse_url(text, &block.path(key), egress, problems)
}

pub(crate) fn parse_url(text: &str, path: &str, egress: &Egress, problems: &mut Vec<Problem>) -> Option<Url> {
    let why = match text.parse::<Url>() {
        Ok(url) if !matches!(url.scheme(), "http" | "https") => "must begin with https:// or http://",
        Ok(url) if url.host_str().is_none() => "names no host",
        Ok(url) if !url.username().is_empty() || url.password().is_some() => "must not hold a password; use `auth`",
        Ok(url) => {
            egress.check(&url, path, problems);
            return Some(url);
        }
        Err(_) => "is not a URL",
    };
    problems.push(problem(path, why, None));
    None
}

/// Reads the `url` of a vendor's API, which has one of its own.
pub(crate) fn vendor_url(block: &Block<'_>, default: &str, egress: &Egress, problems: &mut Vec<Problem>) -> Option<Url> {
    let text = block.text("url", None, problems).unwrap_or(default);
    parse_url(text, &block.path("url"), egress, problems)
}

/// A path below a base, which may have a path itself.
pub(crate) fn below(mut base: Url, path: &str) -> Url {
    let joined = format!("{}/{path}", base.path().trim_end_matches('/'));
    base.set_path(&joined);
    base
}

pub(crate) fn is_loopback(url: &Url) -> bool {
    match url.host_str() {
        Some("localhost") => true,
        Some(host) => host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback()),
        None => false,
    }
}

/// Reads `tls`: our own certificate with its key, and the authorities that may vouch for the target. All as PEM, so that files come as `${file:…}`.
fn read_tls(block: &Block<'_>, problems: &mut Vec<Problem>) -> (Option<Identity>, Vec<Certificate>) {
    let none = (None, Vec::new());
    let Some(value) = block.get("tls") else { return none };
    let path = block.path("tls");
    let Some(tls) = Block::new(value, &path, &["certificate", "key", "ca"], problems) else { return none };
    let certificate = tls.text("certificate", None, problems);
    let key = tls.text("key", None, problems);
    let identity = match (certificate, key) {
        (Some(certificate), Some(key)) => {
            let identity = Identity::from_pem(format!("{certificate}\n{key}\n").as_bytes());
            if identity.is_err() {
                let help = "write certificate: ${file:client.pem} and key: ${file:client.key}".to_owned();
                problems.push(problem(&path, "holds no certificate with its key in PEM", Some(help)));
            }
            identity.ok()
        }
        (None, None) => None,
        _ => {
            problems.push(problem(&path, "needs both `certificate` and `key`", None));
            None
        }
    };
    let authorities = tls.text("ca", None, problems).map(|ca| Certificate::from_pem_bundle(ca.as_bytes()).unwrap_or_default());
    if authorities.as_ref().is_some_and(Vec::is_empty) {
        problems.push(problem(&tls.path("ca"), "holds no certificate in PEM", Some("write ca: ${file:ca.pem}".into())));
    }
    (identity, authorities.unwrap_or_default())
}

/// Reads an answer up to the bound.
pub(crate) async fn read_body(mut response: Response, bytes_max: usize) -> Result<Vec<u8>, SinkError> {
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(|e| unknown(&e))? {
        if body.len() + piece.len() > bytes_max {
            let message = format!("the answer is longer than {bytes_max} bytes");
            return Err(SinkError::definite("http.answer_too_long", &message));
        }
        body.extend_from_slice(&piece);
    }
    Ok(body)
}

/// No answer, so nothing is known. The library's words may hold the URL, so they are not repeated.
pub(crate) fn unknown(error: &reqwest::Error) -> SinkError {
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        if error.is::<Refused>() {
            return SinkError::definite("http.address_refused", &error.to_string());
        }
        cause = error.source();
    }
    if error.is_timeout() {
        SinkError::transient("http.timeout", "no answer in time")
    } else if error.is_connect() {
        SinkError::transient(NO_CONNECTION, "no connection")
    } else if error.is_builder() {
        SinkError::definite("http.request", "the request cannot be made")
    } else {
        SinkError::transient("http.connection", "the connection broke before the answer was complete")
    }
}
