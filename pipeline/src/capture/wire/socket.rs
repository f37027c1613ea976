//! The socket under a connection: TCP or a local socket, plain or TLS, and its two ways of reading.
//!
//! *Live*: a read returns as soon as a byte is there.
//!
//! *Bulk*: the kernel reports the socket as readable only once [`GATHER_BYTES`] are there (`SO_RCVLOWAT`), or after
//! [`GATHER_MAX`]. PostgreSQL sends a backlog change by change, and a reader that is woken by every one of them costs
//! itself and the server a wake-up each time. The mark also makes the kernel acknowledge at once what lies below it;
//! a reader that merely slept would see the server stall on delayed acknowledgements after some 60 KB.

use std::future::Future;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, BufReader, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, Sleep};
use tokio_rustls::client::TlsStream;

/// What one read should find in bulk: the drain rate grows up to here and hardly further.
const GATHER_BYTES: i32 = 256 * 1024;

/// The longest that bytes may lie in the kernel: what bulk reading can add to latency. A backlog fills the mark sooner.
const GATHER_MAX: Duration = Duration::from_millis(20);

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
    bulk: bool,
    narrow: bool,
    /// When bulk reading looks for itself, whatever the mark says; armed while a read waits.
    limit: Pin<Box<Sleep>>,
    armed: bool,
}

enum Kind {
    Tcp(TcpStream),
    /// Local sockets know no mark: they are always read live.
    Unix(UnixStream),
}

impl Socket {
    pub(super) fn tcp(stream: TcpStream) -> Socket {
        Socket::new(Kind::Tcp(stream))
    }

    pub(super) fn unix(stream: UnixStream) -> Socket {
        Socket::new(Kind::Unix(stream))
    }

    fn new(kind: Kind) -> Socket {
        Socket { kind, bulk: false, narrow: false, limit: Box::pin(tokio::time::sleep(Duration::ZERO)), armed: false }
    }

    /// Narrows the receive window, or opens it to its full width again; does nothing when it is so.
    fn set_narrow(&mut self, narrow: bool) -> io::Result<()> {
        let Kind::Tcp(tcp) = &self.kind else { return Ok(()) };
        if self.narrow != narrow {
            let width: i32 = if narrow { NARROW_WINDOW as i32 } else { WIDE_WINDOW };
            uapi::setsockopt(tcp.as_raw_fd(), uapi::c::IPPROTO_TCP, uapi::c::TCP_WINDOW_CLAMP, &width)
                .map_err(|e| io::Error::from_raw_os_error(e.0))?;
            self.narrow = narrow;
        }
        Ok(())
    }

    /// Changes the way of reading; does nothing when it is in place.
    fn set_bulk(&mut self, bulk: bool) -> io::Result<()> {
        let Kind::Tcp(tcp) = &self.kind else { return Ok(()) };
        if self.bulk != bulk {
            let mark: i32 = if bulk { GATHER_BYTES } else { 1 };
            uapi::setsockopt(tcp.as_raw_fd(), uapi::c::SOL_SOCKET, uapi::c::SO_RCVLOWAT, &mark)
                .map_err(|e| io::Error::from_raw_os_error(e.0))?;
            (self.bulk, self.armed) = (bulk, false);
        }
        Ok(())
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let tcp = match &mut this.kind {
            Kind::Unix(unix) => return Pin::new(unix).poll_read(cx, buf),
            Kind::Tcp(tcp) => tcp,
        };
        loop {
            if let Poll::Ready(read) = Pin::new(&mut *tcp).poll_read(cx, buf) {
                this.armed = false;
                return Poll::Ready(read);
            }
            if !this.bulk {
                return Poll::Pending;
            }
            if !this.armed {
                this.limit.as_mut().reset(Instant::now() + GATHER_MAX);
                this.armed = true;
            }
            ready!(this.limit.as_mut().poll(cx));
            this.armed = false;
            // The poller believes that nothing is there; only the socket itself knows what lies below the mark.
            match (&*SockRef::from(&*tcp)).read(buf.initialize_unfilled()) {
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(e) => return Poll::Ready(Err(e)),
                Ok(n) => {
                    buf.advance(n);
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().kind {
            Kind::Tcp(s) => Pin::new(s).poll_write(cx, buf),
            Kind::Unix(s) => Pin::new(s).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().kind {
            Kind::Tcp(s) => Pin::new(s).poll_flush(cx),
            Kind::Unix(s) => Pin::new(s).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().kind {
            Kind::Tcp(s) => Pin::new(s).poll_shutdown(cx),
            Kind::Unix(s) => Pin::new(s).poll_shutdown(cx),
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
