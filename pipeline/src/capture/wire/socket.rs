//! The socket under a connection: TCP or a local socket, plain or TLS, and its two ways of reading.
//!
//! *Live*: a read returns as soon as a byte is there.
//!
//! *Bulk*: the socket is looked at every [`GATHER`] and not in between, and the poller does not know it. PostgreSQL sends a backlog change by change,
//! a system call each. Whoever is woken by them pays for a wake-up each time, and so does the server, in whose system call the reader is woken; whoever
//! sets a mark (`SO_RCVLOWAT`) makes the kernel acknowledge every few of them, again in the server's time. Left alone, the server's kernel
//! gathers what it could not send yet, and sends it in a few large segments when we read: a third less of the server's time for a change.

use std::future::Future;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, BufReader, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, Sleep};
use tokio_rustls::client::TlsStream;

/// From one look at the socket to the next in bulk, and so the most that bulk reading can add to latency. With half of it the server still sends many
/// small segments; with twice as much nothing is gained.
const GATHER: Duration = Duration::from_millis(10);

/// The receive window while the socket is hardly read. The kernel reopens a closed window only once a sixteenth of what it
/// would offer at most is free, so a narrow one reopens after a small read.
pub(super) const NARROW_WINDOW: usize = 256 * 1024;

/// No window is wider.
const WIDE_WINDOW: i32 = 1 << 30;

/// TLS asks for a few kilobytes at a time; behind this buffer that is a system call per 64 KiB.
const TLS_READ_BYTES: usize = 64 * 1024;

/// A socket in one of its two ways of reading.
pub(crate) struct Socket {
    kind: Kind,
    narrow: bool,
    /// When bulk reading looks again; armed after a look that found less than there was room for.
    next: Pin<Box<Sleep>>,
    armed: bool,
}

enum Kind {
    /// Known to the poller.
    Tcp(TcpStream),
    /// Unknown to it.
    Bulk(std::net::TcpStream),
    /// Local sockets are always read live.
    Unix(UnixStream),
    /// Between two ways, and after a change of them failed.
    Gone,
}

impl Socket {
    pub(super) fn tcp(stream: TcpStream) -> Socket {
        Socket::new(Kind::Tcp(stream))
    }

    pub(super) fn unix(stream: UnixStream) -> Socket {
        Socket::new(Kind::Unix(stream))
    }

    fn new(kind: Kind) -> Socket {
        Socket { kind, narrow: false, next: Box::pin(tokio::time::sleep(Duration::ZERO)), armed: false }
    }

    /// Narrows the receive window, or opens it to its full width again; does nothing when it is so.
    fn set_narrow(&mut self, narrow: bool) -> io::Result<()> {
        let fd = match &self.kind {
            Kind::Tcp(tcp) => tcp.as_raw_fd(),
            Kind::Bulk(tcp) => tcp.as_raw_fd(),
            Kind::Unix(_) | Kind::Gone => return Ok(()),
        };
        if self.narrow != narrow {
            let width: i32 = if narrow { NARROW_WINDOW as i32 } else { WIDE_WINDOW };
            uapi::setsockopt(fd, uapi::c::IPPROTO_TCP, uapi::c::TCP_WINDOW_CLAMP, &width).map_err(|e| io::Error::from_raw_os_error(e.0))?;
            self.narrow = narrow;
        }
        Ok(())
    }

    /// Changes the way of reading; does nothing when it is in place.
    fn set_bulk(&mut self, bulk: bool) -> io::Result<()> {
        match (&self.kind, bulk) {
            (Kind::Tcp(_), true) | (Kind::Bulk(_), false) => {}
            _ => return Ok(()),
        }
        self.armed = false;
        self.kind = match std::mem::replace(&mut self.kind, Kind::Gone) {
            Kind::Tcp(tcp) => Kind::Bulk(tcp.into_std()?),
            Kind::Bulk(tcp) => Kind::Tcp(TcpStream::from_std(tcp)?),
            other => other,
        };
        Ok(())
    }

    /// Ready when bulk reading may look again.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.armed {
            ready!(self.next.as_mut().poll(cx));
            self.armed = false;
        }
        Poll::Ready(())
    }

    /// Lets bytes gather from now on.
    fn gather(&mut self) {
        self.next.as_mut().reset(Instant::now() + GATHER);
        self.armed = true;
    }
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, "the socket could not change its way of reading")
}

fn waits(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            ready!(this.poll_next(cx));
            let read = match &mut this.kind {
                Kind::Tcp(tcp) => return Pin::new(tcp).poll_read(cx, buf),
                Kind::Unix(unix) => return Pin::new(unix).poll_read(cx, buf),
                Kind::Bulk(tcp) => tcp.read(buf.initialize_unfilled()),
                Kind::Gone => return Poll::Ready(Err(gone())),
            };
            match read {
                Err(error) if waits(&error) => this.gather(),
                Err(error) => return Poll::Ready(Err(error)),
                Ok(n) => {
                    if n < buf.remaining() {
                        this.gather();
                    }
                    buf.advance(n);
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        loop {
            let written = match &mut this.kind {
                Kind::Tcp(tcp) => return Pin::new(tcp).poll_write(cx, buf),
                Kind::Unix(unix) => return Pin::new(unix).poll_write(cx, buf),
                Kind::Bulk(tcp) => tcp.write(buf),
                Kind::Gone => return Poll::Ready(Err(gone())),
            };
            match written {
                // The server reads nothing either: to be looked at as rarely.
                Err(error) if waits(&error) => {
                    if !this.armed {
                        this.gather();
                    }
                    ready!(this.poll_next(cx));
                }
                done => return Poll::Ready(done),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().kind {
            Kind::Tcp(s) => Pin::new(s).poll_flush(cx),
            Kind::Unix(s) => Pin::new(s).poll_flush(cx),
            Kind::Bulk(_) | Kind::Gone => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().kind {
            Kind::Tcp(s) => Pin::new(s).poll_shutdown(cx),
            Kind::Unix(s) => Pin::new(s).poll_shutdown(cx),
            Kind::Bulk(s) => Poll::Ready(s.shutdown(std::net::Shutdown::Write)),
            Kind::Gone => Poll::Ready(Ok(())),
        }
    }
}

/// A connection's bytes.
pub(crate) enum Stream {
    /// Without TLS.
    Plain(Socket),
    /// With TLS; boxed because its state is large.
    Tls(Box<TlsStream<BufReader<Socket>>>),
}

impl Stream {
    /// Wraps the socket for a TLS handshake.
    pub(super) fn buffered(socket: Socket) -> BufReader<Socket> {
        BufReader::with_capacity(TLS_READ_BYTES, socket)
    }

    /// `tls-server-end-point` of the server's certificate; `None` without TLS or where the certificate cannot be bound.
    pub(crate) fn end_point(&self) -> Option<Vec<u8>> {
        let Stream::Tls(tls) = self else { return None };
        super::tls::server_end_point(tls.get_ref().1.peer_certificates()?.first()?)
    }

    /// The socket is going to be read little. Cheap when nothing changes.
    pub(super) fn narrow(&mut self) -> io::Result<()> {
        self.socket().set_narrow(true)
    }

    /// The socket is read as usual again. Cheap when nothing changes.
    pub(super) fn widen(&mut self) -> io::Result<()> {
        self.socket().set_narrow(false)
    }

    fn socket(&mut self) -> &mut Socket {
        match self {
            Stream::Plain(socket) => socket,
            Stream::Tls(tls) => tls.get_mut().0.get_mut(),
        }
    }

    /// Lets bytes gather in the kernel, or not. Cheap when nothing changes.
    pub(super) fn set_bulk(&mut self, bulk: bool) -> io::Result<()> {
        self.socket().set_bulk(bulk)
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(s) => Pin::new(s).poll_read(cx, buf),
            Stream::Tls(s) => Pin::new(s).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Plain(s) => Pin::new(s).poll_write(cx, buf),
            Stream::Tls(s) => Pin::new(s).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(s) => Pin::new(s).poll_flush(cx),
            Stream::Tls(s) => Pin::new(s).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Plain(s) => Pin::new(s).poll_shutdown(cx),
            Stream::Tls(s) => Pin::new(s).poll_shutdown(cx),
        }
    }
}
