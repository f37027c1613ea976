//! Opens a `tokio_postgres` session over our own stream: one place decides whom to trust.

use std::future::{Ready, ready};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::timeout;
use tokio_postgres::config::{SslMode, SslNegotiation};
use tokio_postgres::tls::{ChannelBinding, TlsConnect, TlsStream};
use tokio_postgres::{Client, Config};

use crate::capture::CaptureError;
use crate::capture::wire::{self, Address, Asked, Endpoint, ServerError, Stream};

/// A living server answers a login in milliseconds.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(30);

/// Connects, trying the URL's hosts in turn; the last host's error is the answer.
pub(super) async fn open(url: &SecretString, application: &str, allow_weak_auth: bool) -> Result<Client, CaptureError> {
    let address = Address::parse(url)?;
    let mut last = CaptureError::Unavailable("no host".to_owned());
    for host in &address.hosts {
        match open_host(&address, host, application, allow_weak_auth).await {
            Ok(client) => return Ok(client),
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn open_host(address: &Address, host: &Endpoint, application: &str, allow_weak_auth: bool) -> Result<Client, CaptureError> {
    let stream = wire::open(address, host).await?;
    let mut config = Config::new();
    config
        .user(&address.user)
        .dbname(&address.database)
        .options(&address.options)
        .application_name(application)
        .channel_binding(address.channel_binding)
        // The stream is what it shall be; "direct TLS" makes the client take it as it is and ask it for its binding.
        .ssl_mode(SslMode::Require)
        .ssl_negotiation(SslNegotiation::Direct);
    if let Some(password) = &address.password {
        config.password(password.expose_secret());
    }
    let login = async {
        let (client, connection) = config.connect_raw(Guard::new(stream, allow_weak_auth), AsItIs).await?;
        tokio::spawn(async move {
            // Whoever uses the client gets the error as well.
            if let Err(error) = connection.await {
                tracing::debug!(error = with_causes(&error), "a connection for ordinary SQL ended");
            }
        });
        if address.primary_only {
            let standby: bool = client.query_one("SELECT pg_is_in_recovery()", &[]).await?.get(0);
            if standby {
                return Ok(None);
            }
        }
        Ok(Some(client))
    };
    match timeout(LOGIN_TIMEOUT, login).await {
        Ok(Ok(Some(client))) => Ok(client),
        Ok(Ok(None)) => Err(CaptureError::Unavailable(format!("{host} is a standby"))),
        Ok(Err(error)) => Err(login_error(address, host, &error)),
        Err(_) => Err(CaptureError::Unavailable(format!("{host}: the login was not answered"))),
    }
}

fn login_error(address: &Address, host: &Endpoint, error: &tokio_postgres::Error) -> CaptureError {
    let host = host.to_string();
    if let Some(db) = error.as_db_error() {
        let server = ServerError { code: db.code().clone(), message: db.message().to_owned() };
        return server.explain(Asked::Login { host: &host, user: &address.user, database: &address.database });
    }
    let causes = with_causes(error);
    let weak = causes.contains(WEAK);
    if weak || causes.starts_with("authentication error") || causes.contains("password missing") {
        return wire::definite(
            if weak { "capture.auth_weak" } else { "capture.auth_refused" },
            format!("authentication of \"{}\" with {host} failed: {causes}", address.user),
            "the server has to know that it is us, and we that it is the server",
            if weak {
                "use scram-sha-256 in pg_hba.conf, or set source.allow_weak_auth: true"
            } else {
                "check the password in the source's URL"
            },
        );
    }
    CaptureError::Unavailable(format!("{host}: {causes}"))
}

/// An error with what caused it: the client's own text leaves the causes out.
pub(super) fn with_causes(error: &tokio_postgres::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

/// "Connects" a stream that is connected.
struct AsItIs;

impl TlsConnect<Guard> for AsItIs {
    type Stream = Guard;
    type Error = io::Error;
    type Future = Ready<io::Result<Guard>>;

    fn connect(self, stream: Guard) -> Self::Future {
        ready(Ok(stream))
    }
}

impl TlsStream for Guard {
    fn channel_binding(&self) -> ChannelBinding {
        self.stream.end_point().map_or_else(ChannelBinding::none, ChannelBinding::tls_server_end_point)
    }
}

const WEAK: &str = "the server asks for a cleartext password or MD5";

/// Refuses weak authentication: the client library would answer whatever it is asked. Watches the server's messages
/// until it lets us in.
struct Guard {
    stream: Stream,
    watch: Watch,
}

impl Guard {
    fn new(stream: Stream, allow_weak_auth: bool) -> Guard {
        Guard { stream, watch: if allow_weak_auth { Watch::Over } else { Watch::default() } }
    }
}

enum Watch {
    /// Collecting a message's tag, length and the first word of its body.
    Header { bytes: [u8; 9], have: usize },
    /// Passing over the rest of a message.
    Body { left: u64 },
    /// The server let us in.
    Over,
}

impl Default for Watch {
    fn default() -> Self {
        Watch::Header { bytes: [0; 9], have: 0 }
    }
}

impl Watch {
    /// Looks at bytes on their way in; false when they ask for weak authentication.
    fn allows(&mut self, mut seen: &[u8]) -> bool {
        loop {
            match self {
                Watch::Over => return true,
                Watch::Body { left } => {
                    let n = seen.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                    *left -= n as u64;
                    seen = &seen[n..];
                    if *left > 0 {
                        return true;
                    }
                    *self = Watch::default();
                }
                Watch::Header { bytes, have } => {
                    let [tag, l0, l1, l2, l3, word @ ..] = *bytes;
                    let length = u64::from(u32::from_be_bytes([l0, l1, l2, l3]));
                    // Only authentication requests are opened; other messages may be shorter than a word.
                    let wanted = if *have >= 5 && tag == b'R' { 9 } else { 5 };
                    if *have < wanted {
                        let Some((first, rest)) = seen.split_first() else { return true };
                        bytes[*have] = *first;
                        *have += 1;
                        seen = rest;
                        continue;
                    }
                    *self = match (tag, u32::from_be_bytes(word)) {
                        (b'R', 3 | 5) => return false,
                        (b'R', 0) => Watch::Over,
                        _ => Watch::Body { left: (length + 1).saturating_sub(wanted as u64) },
                    };
                }
            }
        }
    }
}

impl AsyncRead for Guard {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
        if this.watch.allows(&buf.filled()[before..]) { Poll::Ready(Ok(())) } else { Poll::Ready(Err(io::Error::other(WEAK))) }
    }
}

impl AsyncWrite for Guard {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn auth(kind: u32, data: &[u8]) -> Vec<u8> {
        let length = u32::try_from(8 + data.len()).expect("short");
        [&b"R"[..], &length.to_be_bytes(), &kind.to_be_bytes(), data].concat()
    }

    #[test]
    fn weak_requests_are_seen_wherever_the_bytes_are_split() {
        let scram = [auth(10, b"SCRAM-SHA-256\0\0"), auth(11, b"r=x"), auth(12, b"v=x")].concat();
        let notice = [&b"N"[..], &6u32.to_be_bytes(), b"x\0"].concat();
        for (stream, allowed) in [
            ([scram.clone(), auth(0, b""), auth(3, b"")].concat(), true),
            ([notice.clone(), auth(5, b"salt")].concat(), false),
            ([notice, auth(3, b"")].concat(), false),
            ([scram, auth(3, b"")].concat(), false),
        ] {
            for split in 0..=stream.len() {
                let mut watch = Watch::default();
                let seen = watch.allows(&stream[..split]) && watch.allows(&stream[split..]);
                assert_eq!(seen, allowed, "split at {split}");
            }
        }
    }
}
