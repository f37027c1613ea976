//! How commands reach the admin endpoint of a running process: which address, and as whom.

use std::net::SocketAddr;
use std::sync::OnceLock;
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};

use crate::config::Admin;
use crate::config::settings::Token;

/// Whom the process's settings make of us; like the environment's name it holds for all that the process does.
static TOKEN: OnceLock<Token> = OnceLock::new();

/// Says as whom the admin endpoint is asked.
pub(super) fn set_token(token: Option<Token>) {
    if let Some(token) = token {
        let _ = TOKEN.set(token);
    }
}

/// A client for it. A proxy has no business between a command and its own machine.
///
/// # Errors
/// The token is nothing that a header can hold, or TLS cannot be set up.
pub(super) fn client(within: Duration) -> Result<reqwest::Client, String> {
    let mut headers = HeaderMap::new();
    if let Some(token) = TOKEN.get() {
        let mut value = HeaderValue::from_str(&format!("Bearer {}", token.expose())).map_err(|_| "admin.token holds control characters")?;
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
    }
    let client = reqwest::Client::builder().no_proxy().timeout(within).default_headers(headers).build();
    client.map_err(|error| error.to_string())
}

/// Where it is: what was named, else what the settings say, else what the pipeline's file says.
pub(super) fn base(url: Option<&str>, settings: Option<SocketAddr>, admin: &Admin) -> String {
    let scheme = if admin.tls.is_some() { "https" } else { "http" };
    url.map_or_else(|| format!("{scheme}://{}", settings.unwrap_or(admin.listen)), |url| url.trim_end_matches('/').to_owned())
}
