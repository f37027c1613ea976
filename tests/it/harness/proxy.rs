//! A TCP proxy that cuts and stalls: what networks do.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// A proxy in front of one server. Dropping it cuts everything and stops listening.
#[derive(Debug)]
pub(crate) struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    listener: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    target: String,
    /// Counts cuts: a connection lives as long as the number stays.
    cuts: watch::Sender<u64>,
    stalled: watch::Sender<bool>,
    refusing: watch::Sender<bool>,
    delay: watch::Sender<Duration>,
    accepted: AtomicU64,
    bytes: AtomicU64,
}

impl Proxy {
    /// A proxy on a free loopback port in front of `target` (`host:port`).
    pub(crate) async fn start(target: &str) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let shared = Arc::new(Shared {
            target: target.to_owned(),
            cuts: watch::Sender::new(0),
            stalled: watch::Sender::new(false),
            refusing: watch::Sender::new(false),
            delay: watch::Sender::new(Duration::ZERO),
            accepted: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        });
        let address = listener.local_addr().expect("bound");
        let accepting = Arc::clone(&shared);
        let listener = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if !*accepting.refusing.borrow() {
                    accepting.accepted.fetch_add(1, Ordering::Relaxed);
                    tokio::spawn(Arc::clone(&accepting).serve(client));
                }
            }
        });
        Proxy { address, shared, listener }
    }

    /// `host:port` to connect to.
    pub(crate) fn address(&self) -> String {
        self.address.to_string()
    }

    /// Ends every connection at once, in the middle of whatever is under way.
    pub(crate) fn cut(&self) {
        self.shared.cuts.send_modify(|n| *n += 1);
    }

    /// Passes nothing on any more, or goes on; connections stay open.
    pub(crate) fn stall(&self, stalled: bool) {
        self.shared.stalled.send_replace(stalled);
    }

    /// Passes everything on so much later, at most 16 KiB at a time: a disk or a network that is slow.
    pub(crate) fn delay(&self, delay: Duration) {
        self.shared.delay.send_replace(delay);
    }

    /// Drops new connections as soon as they are made, or no longer.
    pub(crate) fn refuse(&self, refusing: bool) {
        self.shared.refusing.send_replace(refusing);
    }

    /// How many connections were passed on so far.
    pub(crate) fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::Relaxed)
    }

    /// How many bytes were passed on so far, both ways.
    pub(crate) fn bytes(&self) -> u64 {
        self.shared.bytes.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.listener.abort();
        self.cut();
    }
}

impl Shared {
    async fn serve(self: Arc<Self>, client: TcpStream) {
        let mut cuts = self.cuts.subscribe();
        let Ok(server) = TcpStream::connect(&self.target).await else { return };
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
        tokio::select! {
            () = self.pass(from_client, to_server) => {}
            () = self.pass(from_server, to_client) => {}
            _ = cuts.changed() => {}
        }
    }

    async fn pass(&self, mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) {
        let mut stalled = self.stalled.subscribe();
        let mut buffer = vec![0; 16 << 10];
        while let Ok(read @ 1..) = from.read(&mut buffer).await {
            let delay = *self.delay.borrow();
            if !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
            if stalled.wait_for(|stalled| !stalled).await.is_err() || to.write_all(&buffer[..read]).await.is_err() {
                return;
            }
            self.bytes.fetch_add(read as u64, Ordering::Relaxed);
        }
    }
}
