//! The socket under a connection: TCP or a local socket, plain or TLS, and its two ways of reading.
//!
//! *Live*: registered with the runtime's poller; a read returns as soon as a byte is there.
//!
//! *Bulk*: taken out of the poller and read every few milliseconds. PostgreSQL sends a backlog change by change; a
//! reader that is woken by every one of them costs itself and the server a wake-up each time. Nobody waits on a
//! bulk socket, so bytes gather in the kernel and come in pieces of about [`GATHER_BYTES`]. (`SO_RCVLOWAT` would do the
//! same, but no safe interface offers it.)

use std::future::Future;
use std::io::{self, Read, Write};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, BufReader, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, Sleep};
use tokio_rustls::client::TlsStream;

/// What one read should find in bulk: the drain rate grows up to here and no further.
const GATHER_BYTES: usize = 256 * 1024;

/// Shortest and longest time to let bytes gather. The longest bounds what bulk reading adds to latency; the shortest
/// is the resolution of the runtime's timer.
const GATHER_MIN: Duration = Duration::from_millis(1);
const GATHER_MAX: Duration = Duration::from_millis(10);

/// TLS asks for a few kilobytes at a time; behind this buffer that is a system call per 64 KiB.
const TLS_READ_BYTES: usize = 64 * 1024;

/// A socket in one of its two ways of reading.
pub(crate) struct Socket {
    mode: Mode,
    /// Ends when bulk reading may look again; counts from the last read, so that the reader's own work is part of it.
    pause: Pin<Box<Sleep>>,
    paused: bool,
    gather: Duration,
}

enum Mode {
    Tcp(TcpStream),
    Unix(UnixStream),
    BulkTcp(std::net::TcpStream),
    BulkUnix(std::os::unix::net::UnixStream),
    /// Only while changing over, or after that failed.
    Gone,
}

impl Socket {
    pub(super) fn tcp(stream: TcpStream) -> Socket {
        Socket::new(Mode::Tcp(stream))
    }

    pub(super) fn unix(stream: UnixStream) -> Socket {
        Socket::new(Mode::Unix(stream))
    }

    fn new(mode: Mode) -> Socket {
        Socket { mode, pause: Box::pin(tokio::time::sleep(Duration::ZERO)), paused: false, gather: GATHER_MIN * 2 }
    }

    /// Changes the way of reading; does nothing when it is in place.
    fn set_bulk(&mut self, bulk: bool) -> io::Result<()> {
        let now = matches!(self.mode, Mode::BulkTcp(_) | Mode::BulkUnix(_));
        if now == bulk {
            return Ok(());
        }
        self.paused = false;
        self.mode = match std::mem::replace(&mut self.mode, Mode::Gone) {
            Mode::Tcp(s) => Mode::BulkTcp(s.into_std()?),
            Mode::Unix(s) => Mode::BulkUnix(s.into_std()?),
            Mode::BulkTcp(s) => Mode::Tcp(TcpStream::from_std(s)?),
            Mode::BulkUnix(s) => Mode::Unix(UnixStream::from_std(s)?),
            Mode::Gone => Mode::Gone,
        };
        Ok(())
    }

    fn poll_bulk_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.paused {
                ready!(self.pause.as_mut().poll(cx));
                self.paused = false;
            }
            let room = buf.initialize_unfilled();
            let wanted = room.len();
            let read = match &mut self.mode {
                Mode::BulkTcp(s) => s.read(room),
                Mode::BulkUnix(s) => s.read(room),
                _ => return Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
            };
            let (got, ended) = match read {
                Ok(n) => (n, n == 0),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => (0, false),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Poll::Ready(Err(e)),
            };
            if got < wanted && !ended {
                // The kernel's buffer is empty now: leave it alone for a while, longer the slower it fills.
                self.gather = (if got < GATHER_BYTES { self.gather * 5 / 4 } else { self.gather * 3 / 4 }).clamp(GATHER_MIN, GATHER_MAX);
                self.pause.as_mut().reset(Instant::now() + self.gather);
                self.paused = true;
            }
            if got > 0 || ended {
                buf.advance(got);
                return Poll::Ready(Ok(()));
            }
        }
    }

    fn poll_bulk_write(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = match &mut self.mode {
            Mode::BulkTcp(s) => s.write(buf),
            Mode::BulkUnix(s) => s.write(buf),
            _ => Err(io::ErrorKind::NotConnected.into()),
        };
        match written {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => match self.set_bulk(false) {
                // Our send buffer is full, which a few status updates never fill: the server does not read. Let the poller wait.
                Ok(()) => Pin::new(self).poll_write(cx, buf),
                Err(e) => Poll::Ready(Err(e)),
            },
            other => Poll::Ready(other),
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.mode {
            Mode::Tcp(s) => Pin::new(s).poll_read(cx, buf),
            Mode::Unix(s) => Pin::new(s).poll_read(cx, buf),
            _ => self.poll_bulk_read(cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.mode {
            Mode::Tcp(s) => Pin::new(s).poll_write(cx, buf),
            Mode::Unix(s) => Pin::new(s).poll_write(cx, buf),
            _ => self.poll_bulk_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.mode {
            Mode::Tcp(s) => Pin::new(s).poll_shutdown(cx),
            Mode::Unix(s) => Pin::new(s).poll_shutdown(cx),
            Mode::BulkTcp(s) => Poll::Ready(s.shutdown(std::net::Shutdown::Write)),
            Mode::BulkUnix(s) => Poll::Ready(s.shutdown(std::net::Shutdown::Write)),
            Mode::Gone => Poll::Ready(Ok(())),
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

    /// Lets bytes gather in the kernel, or not. Cheap when nothing changes.
    pub(super) fn set_bulk(&mut self, bulk: bool) -> io::Result<()> {
        match self {
            Stream::Plain(socket) => socket.set_bulk(bulk),
            Stream::Tls(tls) => tls.get_mut().0.get_mut().set_bulk(bulk),
        }
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
