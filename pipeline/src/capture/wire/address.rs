//! Where the source is and how it is reached: a libpq URL, checked key by key.
//!
//! `tokio_postgres::Config` parses what it knows; the keys it does not know are taken out first and either mapped to
//! our TLS settings or refused by name. No environment variable, password file or service file is read.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use tokio_postgres::config::{ChannelBinding, Host, SslNegotiation, TargetSessionAttrs};

use super::tls::{TlsMode, TlsSettings, Trust};
use crate::capture::CaptureError;

/// A host that does not answer within this is given up: a LAN or VPN answers in milliseconds, and a longer wait would
/// only delay the next host or the next attempt.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Unacknowledged bytes older than this break the connection, so that a frozen peer is noticed without a keepalive.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(30);

/// Text formats are pinned per session: decoded text must not depend on settings of server, database or role. The
/// empty search path makes `regclass` and the like print their schema, and keeps our own SQL from calling a function
/// that someone planted.
const PINNED: &str = "-c datestyle=ISO -c intervalstyle=postgres -c extra_float_digits=3 -c bytea_output=hex -c timezone=UTC \
     -c lc_monetary=C -c standard_conforming_strings=on -c search_path=";

/// What a replication connection needs beside: a limit meant for queries must not end the stream. Ordinary SQL keeps
/// the limits of its role.
pub(crate) const UNLIMITED: &str = " -c statement_timeout=0 -c lock_timeout=0 -c idle_in_transaction_session_timeout=0";

/// A checked connection URL.
#[derive(Clone, Debug)]
pub(crate) struct Address {
    /// Hosts, tried in turn.
    pub(crate) hosts: Vec<Endpoint>,
    /// Login role.
    pub(crate) user: String,
    /// Database; libpq's default is the user's name.
    pub(crate) database: String,
    /// Password, if the URL has one.
    pub(crate) password: Option<SecretString>,
    /// `options` start-up parameter: the URL's own, then the pinned settings, which therefore win.
    pub(crate) options: String,
    /// Certificates and trust.
    pub(crate) tls: TlsSettings,
    /// `channel_binding` of the URL.
    pub(crate) channel_binding: ChannelBinding,
    /// Whether a standby is passed over for the next host.
    pub(crate) primary_only: bool,
    /// Bound on reaching one host.
    pub(crate) connect_timeout: Duration,
    /// `TCP_USER_TIMEOUT`.
    pub(crate) tcp_user_timeout: Duration,
}

/// One host of an [`Address`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// The name that the server's certificate must carry.
    pub(crate) name: String,
    /// How to get there.
    pub(crate) route: Route,
    /// Whether and how the connection is encrypted.
    pub(crate) tls: TlsMode,
}

/// How to get to a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// By TCP: the name is looked up unless the URL gives the address.
    Tcp { addr: Option<IpAddr>, port: u16 },
    /// Over a local socket.
    Unix(PathBuf),
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.route {
            Route::Tcp { port, .. } => write!(f, "{}:{port}", self.name),
            Route::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

/// How far what a connection carries can be listened to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Locality {
    /// It stays within this host.
    Local,
    /// Encrypted, and the server proves that it is the one that was meant.
    Verified,
    /// Encrypted, with whoever answers.
    Unverified,
    /// In the clear, or encrypted only if the server offers it.
    Clear,
}

impl Address {
    /// The least protected of the hosts decides.
    pub(crate) fn locality(&self) -> Locality {
        let of = |host: &Endpoint| {
            let local = match &host.route {
                Route::Unix(_) => true,
                Route::Tcp { addr, .. } => {
                    host.name == "localhost" || addr.or_else(|| host.name.parse().ok()).is_some_and(|a: IpAddr| a.is_loopback())
                }
            };
            match host.tls {
                _ if local => Locality::Local,
                TlsMode::VerifyFull => Locality::Verified,
                TlsMode::Require | TlsMode::VerifyCa => Locality::Unverified,
                TlsMode::Disable | TlsMode::Prefer => Locality::Clear,
            }
        };
        self.hosts.iter().map(of).max_by_key(|l| *l as u8).unwrap_or(Locality::Local)
    }

    /// Checks a URL.
    ///
    /// # Errors
    /// `config.source_url`, naming the key; never the password or any other value of the URL.
    pub(crate) fn parse(url: &SecretString) -> Result<Address, CaptureError> {
        let (url, tls) = take_own_keys(url.expose_secret())?;
        // Its message names the key, its source might quote the value: only the first is shown.
        let config: tokio_postgres::Config = url.parse().map_err(|e: tokio_postgres::Error| {
            let key = std::error::Error::source(&e)
                .map(ToString::to_string)
                .filter(|s| s.starts_with("unknown option") || s.starts_with("invalid value"));
            refuse(&key.unwrap_or_else(|| "it cannot be parsed".to_owned()))
        })?;
        let user = config.get_user().ok_or_else(|| refuse("it names no user"))?.to_owned();
        let password = match config.get_password() {
            Some(p) => Some(SecretString::from(String::from_utf8(p.to_vec()).map_err(|_| refuse("its password is not UTF-8"))?)),
            None => None,
        };
        if config.get_ssl_negotiation() == SslNegotiation::Direct && tls.mode.is_none_or(|m| m < TlsMode::Require) {
            return Err(refuse("sslnegotiation=direct needs sslmode=require, verify-ca or verify-full"));
        }
        let tls = TlsSettings { direct: config.get_ssl_negotiation() == SslNegotiation::Direct, ..tls };
        Ok(Address {
            hosts: endpoints(&config, tls.mode)?,
            database: config.get_dbname().unwrap_or(&user).to_owned(),
            user,
            password,
            options: config.get_options().map_or_else(|| PINNED.to_owned(), |own| format!("{own} {PINNED}")),
            tls,
            channel_binding: config.get_channel_binding(),
            primary_only: config.get_target_session_attrs() == TargetSessionAttrs::ReadWrite,
            connect_timeout: config.get_connect_timeout().copied().unwrap_or(CONNECT_TIMEOUT),
            tcp_user_timeout: config.get_tcp_user_timeout().copied().unwrap_or(TCP_USER_TIMEOUT),
        })
    }
}

fn endpoints(config: &tokio_postgres::Config, mode: Option<TlsMode>) -> Result<Vec<Endpoint>, CaptureError> {
    let (hosts, addrs, ports) = (config.get_hosts(), config.get_hostaddrs(), config.get_ports());
    let count = hosts.len().max(addrs.len());
    if count == 0 {
        return Err(refuse("it names no host"));
    }
    if (!addrs.is_empty() && !hosts.is_empty() && addrs.len() != hosts.len()) || (ports.len() > 1 && ports.len() != count) {
        return Err(refuse("the numbers of host, hostaddr and port differ"));
    }
    let endpoint = |i: usize| {
        let port = ports.get(i).or(ports.first()).copied().unwrap_or(5432);
        let addr = addrs.get(i).copied();
        match hosts.get(i) {
            Some(Host::Unix(dir)) => {
                Endpoint { name: "localhost".to_owned(), route: Route::Unix(dir.join(format!(".s.PGSQL.{port}"))), tls: TlsMode::Disable }
            }
            host => {
                let name = match host {
                    Some(Host::Tcp(name)) => name.clone(),
                    _ => addr.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)).to_string(),
                };
                // Nothing leaves the machine on loopback; anywhere else encryption without verification would only look safe.
                let default = if is_loopback(&name, addr) { TlsMode::Disable } else { TlsMode::VerifyFull };
                Endpoint { name, route: Route::Tcp { addr, port }, tls: mode.unwrap_or(default) }
            }
        }
    };
    Ok((0..count).map(endpoint).collect())
}

fn is_loopback(name: &str, addr: Option<IpAddr>) -> bool {
    match addr.or_else(|| name.parse().ok()) {
        Some(ip) => ip.is_loopback(),
        None => name.eq_ignore_ascii_case("localhost"),
    }
}

/// Splits the keys that `tokio_postgres` does not know off the query of a URL.
fn take_own_keys(url: &str) -> Result<(String, TlsSettings), CaptureError> {
    let body = url
        .strip_prefix("postgres://")
        .or_else(|| url.strip_prefix("postgresql://"))
        .ok_or_else(|| refuse("it does not begin with postgres://"))?;
    // A question mark in the credentials does not begin the query.
    let credentials = body.find('@').map_or(0, |at| at + 1);
    let Some(query) = body[credentials..].find('?').map(|at| credentials + at) else {
        return Ok((url.to_owned(), TlsSettings::default()));
    };
    let mut tls = TlsSettings::default();
    let mut kept: Vec<&str> = Vec::new();
    for pair in body[query + 1..].split('&').filter(|p| !p.is_empty()) {
        let (key, value) = pair.split_once('=').ok_or_else(|| refuse("a parameter has no value"))?;
        let value = decode(value).ok_or_else(|| refuse(&format!("the value of {} is not UTF-8", printable(key))))?;
        match key {
            "sslmode" => {
                tls.mode =
                    Some(TlsMode::parse(&value).ok_or_else(|| {
                        refuse("invalid value for sslmode: one of disable, allow, prefer, require, verify-ca, verify-full")
                    })?);
            }
            "sslrootcert" if value == "system" => tls.trust = Trust::System,
            "sslrootcert" => tls.trust = Trust::File(value.into()),
            "sslcert" => tls.certificate = Some(value.into()),
            "sslkey" => tls.key = Some(value.into()),
            // What these ask for is what we do anyway.
            "application_name" | "fallback_application_name" => {}
            "client_encoding" if value.eq_ignore_ascii_case("utf8") || value.eq_ignore_ascii_case("auto") => {}
            "gssencmode" if value == "disable" || value == "prefer" => {}
            "require_auth" if value == "scram-sha-256" => {}
            "passfile" | "service" | "servicefile" => {
                return Err(refuse(&format!("{key} is not supported: put the password in the URL by ${{file:PATH}} or ${{env:NAME}}")));
            }
            "client_encoding"
            | "gssencmode"
            | "require_auth"
            | "sslcrl"
            | "sslcrldir"
            | "sslpassword"
            | "sslcompression"
            | "sslsni"
            | "ssl_min_protocol_version"
            | "ssl_max_protocol_version"
            | "requirepeer"
            | "krbsrvname"
            | "gsslib"
            | "replication" => {
                return Err(refuse(&format!("{key} is not supported with this value")));
            }
            _ => kept.push(pair),
        }
    }
    if tls.certificate.is_some() != tls.key.is_some() {
        return Err(refuse("sslcert and sslkey go together"));
    }
    let prefix = &url[..url.len() - body.len() + query];
    Ok((if kept.is_empty() { prefix.to_owned() } else { format!("{prefix}?{}", kept.join("&")) }, tls))
}

/// Percent-decodes; `None` when the result is not UTF-8. A `%` that begins no escape stands for itself.
fn decode(text: &str) -> Option<String> {
    let digit = |b: Option<&u8>| b.and_then(|b| char::from(*b).to_digit(16)).and_then(|d| u8::try_from(d).ok());
    let bytes = text.as_bytes();
    let (mut out, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while let Some(&b) = bytes.get(at) {
        match (b, digit(bytes.get(at + 1)), digit(bytes.get(at + 2))) {
            (b'%', Some(high), Some(low)) => {
                out.push(high << 4 | low);
                at += 3;
            }
            _ => {
                out.push(b);
                at += 1;
            }
        }
    }
    String::from_utf8(out).ok()
}

/// A key as it may be shown: letters, digits and underscores, cut short.
fn printable(key: &str) -> String {
    key.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '_').take(40).collect()
}

fn refuse(what: &str) -> CaptureError {
    CaptureError::Definite {
        code: "config.source_url",
        what: format!("the source's URL cannot be used: {what}"),
        why: "without it the source cannot be reached".to_owned(),
        fix: "write it as postgres://USER:PASSWORD@HOST:5432/DATABASE?sslmode=verify-full&sslrootcert=/path/ca.pem".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<Address, CaptureError> {
        Address::parse(&SecretString::from(url.to_owned()))
    }

    #[test]
    fn tls_is_on_and_verified_anywhere_but_on_loopback() {
        for (url, mode) in [
            ("postgres://u@db.example/pos", TlsMode::VerifyFull),
            ("postgres://u@10.0.0.7/pos", TlsMode::VerifyFull),
            ("postgres://u@localhost/pos", TlsMode::Disable),
            ("postgres://u@[::1]:5433/pos", TlsMode::Disable),
            ("postgres://u@%2Fvar%2Frun%2Fpostgresql/pos", TlsMode::Disable),
            ("postgres://u@db.example/pos?sslmode=disable", TlsMode::Disable),
            ("postgres://u@db.example/pos?hostaddr=127.0.0.1", TlsMode::Disable),
            ("postgres://u@localhost/pos?sslmode=verify-ca&sslrootcert=/ca.pem", TlsMode::VerifyCa),
        ] {
            assert_eq!(parse(url).expect(url).hosts[0].tls, mode, "{url}");
        }
    }

    #[test]
    fn the_pinned_settings_come_last_and_win() {
        let address = parse("postgres://u:p%40ss@h/d?options=-c%20datestyle%3DGerman&sslmode=require").expect("valid");
        assert!(address.options.starts_with("-c datestyle=German -c datestyle=ISO"));
        assert_eq!(address.password.expect("given").expose_secret(), "p@ss");
        assert_eq!((address.user.as_str(), address.database.as_str()), ("u", "d"));
    }

    #[test]
    fn several_hosts_keep_their_ports() {
        let address = parse("postgres://u@a:1,b:2/d?target_session_attrs=read-write&sslrootcert=%2Fetc%2Fca.pem").expect("valid");
        let shown: Vec<_> = address.hosts.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["a:1", "b:2"]);
        assert!(address.primary_only);
        assert_eq!(address.tls.trust, Trust::File("/etc/ca.pem".into()));
        assert_eq!(address.database, "d");
    }

    #[test]
    fn a_refused_url_names_the_key_and_no_value() {
        for (url, named) in [
            ("host=h user=u", "postgres://"),
            ("postgres://h/d", "no user"),
            ("postgres://u:hunter2@h/d?sslmode=hunter2", "sslmode"),
            ("postgres://u:hunter2@h/d?wibble=hunter2", "wibble"),
            ("postgres://u:hunter2@h/d?connect_timeout=hunter2", "connect_timeout"),
            ("postgres://u:hunter2@h/d?passfile=hunter2", "passfile"),
            ("postgres://u:hunter2@h/d?sslcert=hunter2", "sslkey"),
            ("postgres://u:hunter2@h/d?replication=hunter2", "replication"),
            ("postgres://u:hunter2@h/d?sslnegotiation=direct", "sslnegotiation"),
        ] {
            let error = parse(url).expect_err(url);
            assert_eq!(error.code(), "config.source_url");
            assert!(error.to_string().contains(named), "{error}");
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn a_dash_or_question_mark_in_the_password_is_part_of_it() {
        let address = parse("postgres://u:a?b&c=d@localhost/d?sslmode=disable").expect("valid");
        assert_eq!(address.password.expect("given").expose_secret(), "a?b&c=d");
    }
}
