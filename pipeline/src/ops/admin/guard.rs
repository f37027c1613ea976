//! What every request passes before it is answered: whether the operation exists, who asks, whether this one may, whether a page in somebody's browser
//! sent it, how often; and what every answer carries.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::access::{COOKIE, Caller};
use super::listener::Peer;
use super::operations::{self, Operation};
use super::{Admin, answer, limits};
use crate::ops::failure::Failure;

/// Any request: a console's live pages, a scraper and a few commands together stay far below.
pub(super) const ANY: limits::Rate = limits::Rate { burst: 400.0, refill: 200.0 };
/// Requests that change something.
pub(super) const CHANGES: limits::Rate = limits::Rate { burst: 60.0, refill: 2.0 };
/// Wrong tokens from one address; guessing 128 bits at this rate is hopeless, and so is filling the log.
pub(super) const WRONG: limits::Rate = limits::Rate { burst: 10.0, refill: 0.2 };

/// What is said to browsers with every answer: load nothing from elsewhere, run nothing inline, be shown in no frame, tell nobody where one came from.
const HEADERS: [(HeaderName, HeaderValue); 6] = [
    (
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
        ),
    ),
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
    // Told to nobody else; to ourselves it has to be, or browsers send forms as coming from nowhere.
    (header::REFERRER_POLICY, HeaderValue::from_static("same-origin")),
    (HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("same-origin")),
    (HeaderName::from_static("cross-origin-opener-policy"), HeaderValue::from_static("same-origin")),
];

/// The middleware around all routes.
pub(super) async fn guard(State(admin): State<Arc<Admin>>, mut request: Request, next: Next) -> Response {
    let secure = admin.secure;
    let mut response = match admit(&admin, &request) {
        Ok(caller) => {
            if let Some(caller) = caller {
                request.extensions_mut().insert(caller);
            }
            next.run(request).await
        }
        Err(refusal) => *refusal,
    };
    let headers = response.headers_mut();
    for (name, value) in HEADERS {
        headers.insert(name, value);
    }
    if secure {
        headers.insert(header::STRICT_TRANSPORT_SECURITY, HeaderValue::from_static("max-age=31536000"));
    }
    if !headers.contains_key(header::CACHE_CONTROL) {
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    response
}

/// Whether a request is answered, and for whom; `None` for operations that are anybody's.
fn admit(admin: &Admin, request: &Request) -> Result<Option<Caller>, Box<Response>> {
    let now = Instant::now();
    let refuse = |failure: Failure| Box::new(answer(&failure));
    let peer = peer(request);
    admin.any.take(&peer, now).map_err(|wait| Box::new(too_often(wait)))?;
    let Some(operation) = operation(request)? else { return Err(Box::new(StatusCode::NOT_FOUND.into_response())) };
    own_host(admin, request.headers()).map_err(refuse)?;
    if !request.method().is_safe() {
        own_site(request.headers()).map_err(refuse)?;
    }
    let Some(wanted) = operation.role else { return Ok(None) };
    let caller = match identify(admin, request.headers(), &peer)? {
        Some(caller) => caller,
        // People are led to where they can say who they are, machines are told.
        None if operation.page => return Err(Box::new((StatusCode::SEE_OTHER, [(header::LOCATION, "/login")]).into_response())),
        None => {
            let failure = Failure::new("admin.unauthenticated", "this needs a token: `Authorization: Bearer …`");
            let mut response = answer(&failure);
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            return Err(Box::new(response));
        }
    };
    if caller.role < wanted {
        let what = format!("this needs the role {}; {} has {}", wanted.as_str(), caller.name, caller.role.as_str());
        return Err(refuse(Failure::new("admin.forbidden", what)));
    }
    if operation.changes {
        admin.changes.take(&caller.name, now).map_err(|wait| Box::new(too_often(wait)))?;
    }
    Ok(Some(caller))
}

/// The address that a request came from.
pub(crate) fn peer(request: &Request) -> String {
    request.extensions().get::<Peer>().map_or_else(|| "local".to_owned(), |peer| peer.0.ip().to_string())
}

/// Whether somebody may try a token, after so many wrong ones.
pub(crate) fn may_try(admin: &Admin, peer: &str) -> Result<(), Box<Response>> {
    match admin.wrong.has(peer, Instant::now()) {
        true => Ok(()),
        false => Err(Box::new(too_often(Duration::from_secs(5)))),
    }
}

/// A wrong token came from there.
pub(crate) fn failed(admin: &Admin, peer: &str) {
    let _ = admin.wrong.take(peer, Instant::now());
}

/// The operation that is asked for; what no table names is not served.
fn operation(request: &Request) -> Result<Option<Operation>, Box<Response>> {
    let Some(path) = request.extensions().get::<MatchedPath>() else { return Ok(None) };
    let method = if request.method() == Method::HEAD { &Method::GET } else { request.method() };
    match operations::find(method, path.as_str()) {
        Some(operation) => Ok(Some(operation)),
        None => {
            let allowed = operations::methods(path.as_str()).join(", ");
            let mut response = StatusCode::METHOD_NOT_ALLOWED.into_response();
            if let Ok(allowed) = HeaderValue::from_str(&allowed) {
                response.headers_mut().insert(header::ALLOW, allowed);
            }
            Err(Box::new(response))
        }
    }
}

/// Who asks; `None` where somebody is asked for and nobody known came.
fn identify(admin: &Admin, headers: &HeaderMap, peer: &str) -> Result<Option<Caller>, Box<Response>> {
    if let Some(anybody) = admin.access.anybody() {
        return Ok(Some(anybody));
    }
    let (bearer, cookie) = (bearer(headers), cookie(headers));
    if let Some(token) = bearer {
        may_try(admin, peer)?;
        let caller = admin.access.by_token(token);
        if caller.is_none() {
            failed(admin, peer);
        }
        return Ok(caller);
    }
    Ok(cookie.and_then(|cookie| admin.access.by_cookie(cookie)))
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// The console's cookie.
pub(crate) fn cookie(headers: &HeaderMap) -> Option<&str> {
    let pairs = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(';'));
    pairs.filter_map(|pair| pair.trim().split_once('=')).find(|(name, _)| *name == COOKIE).map(|(_, value)| value)
}

/// Where nobody is asked who they are, a name that somebody else's server gave to this address (DNS rebinding) would make its pages our own. Only names
/// that nobody else can give are answered then.
fn own_host(admin: &Admin, headers: &HeaderMap) -> Result<(), Failure> {
    if !admin.access.is_open() {
        return Ok(());
    }
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let name = host.rsplit_once(':').filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit())).map_or(host, |(name, _)| name);
    let literal = name.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>().is_ok();
    match literal || name.is_empty() || name.eq_ignore_ascii_case("localhost") {
        true => Ok(()),
        false => Err(Failure::new("admin.cross_site", "without `admin.tokens` only an IP address or localhost is answered")),
    }
}

/// Refuses what another site's page sent. Commands send neither header, browsers send both and no page can change them.
fn own_site(headers: &HeaderMap) -> Result<(), Failure> {
    let text = |name: &HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or("null"));
    let cross = || Failure::new("admin.cross_site", "the request was sent by another site's page");
    match text(&HeaderName::from_static("sec-fetch-site")) {
        // The browser says itself that the page is ours, whatever it makes of the origin.
        Some("same-origin") => return Ok(()),
        Some("none") | None => {}
        Some(_) => return Err(cross()),
    }
    if let Some(origin) = text(&header::ORIGIN) {
        // The scheme aside: a proxy may speak TLS for us.
        let authority = origin.split_once("://").map(|(_, authority)| authority);
        if authority.is_none_or(|authority| !text(&header::HOST).is_some_and(|host| host.eq_ignore_ascii_case(authority))) {
            return Err(cross());
        }
    }
    Ok(())
}

fn too_often(wait: Duration) -> Response {
    let mut response = answer(&Failure::new("admin.rate_limited", "too many requests"));
    let seconds = wait.as_secs() + 1;
    if let Ok(value) = HeaderValue::from_str(&seconds.to_string()) {
        response.headers_mut().insert(header::RETRY_AFTER, value);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn cookies_and_tokens_are_found_among_others() {
        let both = headers(&[("cookie", "a=b; tillstream=xyz"), ("authorization", "bearer  t0ken ")]);
        assert_eq!((cookie(&both), bearer(&both)), (Some("xyz"), Some("t0ken")));
        assert_eq!(cookie(&headers(&[("cookie", "tillstreams=xyz; b")])), None);
        assert_eq!(bearer(&headers(&[("authorization", "Basic xyz")])), None);
    }

    #[test]
    fn only_our_own_pages_change_something() {
        let is_own = |pairs: &[(&'static str, &'static str)]| {
            let mut all = vec![("host", "127.0.0.1:7410")];
            all.extend(pairs);
            own_site(&headers(&all)).is_ok()
        };
        assert!(
            is_own(&[])
                && is_own(&[("origin", "http://127.0.0.1:7410")])
                && is_own(&[("origin", "null"), ("sec-fetch-site", "same-origin")])
        );
        for bad in ["http://127.0.0.1:7411", "https://evil.example", "null", "127.0.0.1:7410", ""] {
            assert!(!is_own(&[("origin", bad)]), "{bad}");
        }
        assert!(
            !is_own(&[("sec-fetch-site", "cross-site")])
                && !is_own(&[("sec-fetch-site", "same-site"), ("origin", "http://127.0.0.1:7410")])
        );
    }
}
