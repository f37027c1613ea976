//! Opens a connection's socket: name, address, TCP options, TLS. Both the replication connection and ordinary SQL come
//! through here, so that they cannot differ in whom they trust.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, UnixStream};
use tokio::time::timeout;

use super::address::{Address, Endpoint, Route};
use super::socket::{Socket, Stream};
use super::tls::TlsMode;
use crate::capture::CaptureError;

/// Keepalive probes after this much silence, this often; with [`KEEPALIVE_PROBES`] lost ones a dead peer is noticed
/// within half a minute, also through a firewall that forgets idle connections.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(15);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_PROBES: u32 = 3;

/// Receive buffer we ask for, where the system grants one large enough to be worth turning its own tuning off.
const RECEIVE_BUFFER: usize = 4 << 20;
const RECEIVE_BUFFER_MIN: usize = 1 << 20;

/// Opens a socket to one host, with TLS as its mode says. One deadline covers all of it.
///
/// # Errors
/// [`CaptureError::Unavailable`] when the host cannot be reached; definite errors when it refuses TLS or shows a
/// certificate that is not trusted.
pub(crate) async fn open(address: &Address, host: &Endpoint) -> Result<Stream, CaptureError> {
    match timeout(address.connect_timeout, open_now(address, host)).await {
        Ok(result) => result,
        Err(_) => Err(CaptureError::Unavailable(format!("{host}: no answer within {} s", address.connect_timeout.as_secs()))),
    }
}

async fn open_now(address: &Address, host: &Endpoint) -> Result<Stream, CaptureError> {
    let away = |e: std::io::Error| CaptureError::Unavailable(format!("{host}: {e}"));
    let mut socket = match &host.route {
        Route::Unix(path) => Socket::unix(UnixStream::connect(path).await.map_err(away)?),
        Route::Tcp { addr, port } => Socket::tcp(tcp(address, &host.name, *addr, *port).await.map_err(away)?),
    };
    if host.tls == TlsMode::Disable {
        return Ok(Stream::Plain(socket));
    }
    if !address.tls.direct && !ask_for_tls(&mut socket).await.map_err(away)? {
        if host.tls == TlsMode::Prefer {
            return Ok(Stream::Plain(socket));
        }
        return Err(CaptureError::Definite {
            code: "capture.tls_refused",
            what: format!("{host} does not offer TLS"),
            why: "changes and the password would cross the network in the clear".to_owned(),
            fix: "set ssl = on with a certificate on the server, or sslmode=disable in the source's URL if the network is private"
                .to_owned(),
        });
    }
    let config = address.tls.client_config(host.tls)?;
    let name = ServerName::try_from(host.name.clone()).map_err(|_| untrusted(host, "its name cannot be in a certificate"))?;
    match tokio_rustls::TlsConnector::from(config).connect(name, Stream::buffered(socket)).await {
        Ok(tls) => Ok(Stream::Tls(Box::new(tls))),
        // rustls puts its own error inside; anything else is the network's.
        Err(e) => match e.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(reason) => Err(untrusted(host, &reason.to_string())),
            None => Err(away(e)),
        },
    }
}

fn untrusted(host: &Endpoint, reason: &str) -> CaptureError {
    CaptureError::Definite {
        code: "capture.tls_untrusted",
        what: format!("the TLS handshake with {host} failed: {reason}"),
        why: "something else than the source may be answering".to_owned(),
        fix: "set sslrootcert to the CA of the server's certificate and use the host name the certificate carries".to_owned(),
    }
}

/// Sends SSLRequest. Reads exactly one byte: what came after it in the clear would otherwise pass as encrypted.
async fn ask_for_tls(socket: &mut Socket) -> std::io::Result<bool> {
    let mut request = BytesMut::new();
    frontend::ssl_request(&mut request);
    socket.write_all(&request).await?;
    match socket.read_u8().await? {
        b'S' => Ok(true),
        b'N' => Ok(false),
        _ => Err(std::io::Error::new(std::io::ErrorKind::InvalidData, "not a PostgreSQL server")),
    }
}

async fn tcp(address: &Address, name: &str, addr: Option<std::net::IpAddr>, port: u16) -> std::io::Result<TcpStream> {
    let candidates: Vec<SocketAddr> = match addr {
        Some(ip) => vec![SocketAddr::new(ip, port)],
        None => tokio::net::lookup_host((name, port)).await?.collect(),
    };
    let mut last = std::io::Error::new(std::io::ErrorKind::NotFound, "the name has no address");
    for candidate in candidates {
        let socket = if candidate.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        tune(&socket, address)?;
        match socket.connect(candidate).await {
            Ok(stream) => return Ok(stream),
            Err(e) => last = e,
        }
    }
    Err(last)
}

/// Before connecting: the window's scale is agreed on in the first packet.
fn tune(socket: &TcpSocket, address: &Address) -> std::io::Result<()> {
    socket.set_nodelay(true)?;
    let options = SockRef::from(socket);
    options.set_tcp_keepalive(
        &TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL).with_retries(KEEPALIVE_PROBES),
    )?;
    #[cfg(target_os = "linux")]
    {
        if !address.tcp_user_timeout.is_zero() {
            options.set_tcp_user_timeout(Some(address.tcp_user_timeout))?;
        }
        // Asking turns the kernel's own tuning off, which would shrink the buffer where the limit is at its default (208 KiB).
        let limit = std::fs::read_to_string("/proc/sys/net/core/rmem_max").ok().and_then(|t| t.trim().parse::<usize>().ok());
        if let Some(limit) = limit.filter(|l| *l >= RECEIVE_BUFFER_MIN) {
            options.set_recv_buffer_size(limit.min(RECEIVE_BUFFER))?;
        }
    }
    Ok(())
}
