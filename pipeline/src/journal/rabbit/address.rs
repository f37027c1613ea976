//! Where the broker is and who we are: the configured URLs, taken apart.

use std::fmt;

use secrecy::{ExposeSecret, SecretString};

use crate::journal::JournalError;

/// One way to reach the broker.
#[derive(Clone)]
pub(super) struct Address {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) tls: bool,
    pub(super) user: String,
    pub(super) password: SecretString,
    pub(super) vhost: String,
}

impl Address {
    /// Takes `rabbitmq-stream[+tls]://user:password@host:port/vhost` apart. Without user, password, port and vhost the broker's
    /// defaults hold: `guest`, 5552 or 5551, `/`.
    pub(super) fn parse(url: &SecretString) -> Result<Self, JournalError> {
        // Messages never show the URL: it holds the password.
        let unusable = |why: &str| JournalError::Unusable(format!("the URL of the broker {why}"));
        let url = reqwest::Url::parse(url.expose_secret()).map_err(|e| unusable(&format!("can not be read: {e}")))?;
        let tls = match url.scheme() {
            "rabbitmq-stream" => false,
            "rabbitmq-stream+tls" => true,
            other => return Err(unusable(&format!("begins with {other}://, wanted rabbitmq-stream:// or rabbitmq-stream+tls://"))),
        };
        let host = url.host_str().filter(|host| !host.is_empty()).ok_or_else(|| unusable("names no host"))?;
        let decode = |text: &str| percent_decode(text).ok_or_else(|| unusable("has a percent sign that stands for no UTF-8 text"));
        let user = if url.username().is_empty() { "guest".to_owned() } else { decode(url.username())? };
        let password = url.password().map_or(Ok("guest".to_owned()), decode)?;
        let vhost = match url.path().trim_start_matches('/') {
            "" => "/".to_owned(),
            path => decode(path)?,
        };
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = url.port().unwrap_or(if tls { 5551 } else { 5552 });
        Ok(Address { host, port, tls, user, password: password.into(), vhost })
    }

    /// The same broker cluster through another of its nodes.
    pub(super) fn at(&self, node: &Node) -> Self {
        Address { host: node.host.clone(), port: node.port, ..self.clone() }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// A node of the cluster as the broker advertises it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) host: String,
    pub(super) port: u16,
}

fn percent_decode(text: &str) -> Option<String> {
    let (mut out, mut rest) = (Vec::with_capacity(text.len()), text.as_bytes());
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte == b'%' {
            let hex = std::str::from_utf8(rest.get(..2)?).ok()?;
            out.push(u8::from_str_radix(hex, 16).ok()?);
            rest = &rest[2..];
        } else {
            out.push(byte);
        }
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<(String, u16, bool, String, String, String), String> {
        let a = Address::parse(&SecretString::from(url)).map_err(|e| e.to_string())?;
        Ok((a.host, a.port, a.tls, a.user, a.password.expose_secret().to_owned(), a.vhost))
    }

    #[test]
    fn urls_are_taken_apart() {
        let all = parse("rabbitmq-stream+tls://till%40shop:p%2Fw@broker.example:5561/my%2Fhost").unwrap();
        assert_eq!(all, ("broker.example".into(), 5561, true, "till@shop".into(), "p/w".into(), "my/host".into()));
        let least = parse("rabbitmq-stream://broker").unwrap();
        assert_eq!(least, ("broker".into(), 5552, false, "guest".into(), "guest".into(), "/".into()));
        assert_eq!(parse("rabbitmq-stream+tls://[::1]/%2f").unwrap().1, 5551);
        assert_eq!(parse("rabbitmq-stream://[::1]/%2f").unwrap().0, "::1");
    }

    #[test]
    fn a_bad_url_is_told_without_its_password() {
        for url in [
            "amqp://a:hidden@h",
            "rabbitmq-stream://a:hidden@",
            "hidden",
            "rabbitmq-stream://a:%zzhidden@h",
            "rabbitmq-stream://a:%e9hidden@h",
        ] {
            let error = parse(url).unwrap_err();
            assert!(error.contains("the URL of the broker") && !error.contains("hidden"), "{error}");
        }
    }
}
