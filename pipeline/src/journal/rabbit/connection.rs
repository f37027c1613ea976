//! A connection to the broker: opening it, requests and answers, heartbeats.
//!
//! ```text
//! TCP or TLS ─▶ PeerProperties ─▶ SaslHandshake, SaslAuthenticate (PLAIN) ─▶ Tune ─▶ Open
//! ```
//!
//! Everything has a deadline: connecting, every request, and silence (two heartbeats). A connection never reconnects by itself:
//! its user does, since only the user knows what has to be said again.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use secrecy::ExposeSecret;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};

use super::address::{Address, Node};
use super::frame::{Fields, Frame, Incoming, code, code_error, key};
use super::tls::Tls;
use crate::journal::{JournalError, Offset};

/// How long a connection may take from its first packet to an open virtual host. A broker that starts or is overloaded answers in
/// seconds; a silent one must not hold us.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the broker may take to answer a request.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// What we ask for as the heartbeat. Twice this is how long a dead peer goes unnoticed: long enough for a stalled broker,
/// short enough that others need not wait minutes.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// The largest frame we accept. The broker joins what several publishers have under way into one chunk and delivers it as one
/// frame, whatever the negotiated size; memory is taken only as its bytes arrive.
const FRAME_IN_MAX: usize = 256 << 20;

/// Free space for reading ahead: many small frames in one system call.
const READ_AHEAD: usize = 64 << 10;

/// How to reach the broker, and what it last told about itself.
#[derive(Debug)]
pub(super) struct Broker {
    addresses: Vec<Address>,
    /// Index of the address that worked last.
    good: AtomicUsize,
    tls: Tls,
    /// How the broker's connection list names us.
    client: String,
    /// The frame size we offer, then the one agreed upon; 0 means no limit.
    frame_max: AtomicU32,
    offered_frame_max: u32,
}

impl Broker {
    pub(super) fn new(addresses: Vec<Address>, tls: Tls, client: &str, frame_max: u32) -> Self {
        let client = client.to_owned();
        Broker { addresses, good: AtomicUsize::new(0), tls, client, frame_max: AtomicU32::new(frame_max), offered_frame_max: frame_max }
    }

    /// The frame size of the latest connection, or what the configuration offers before there was one. 0 means no limit.
    pub(super) fn frame_max(&self) -> u32 {
        self.frame_max.load(Ordering::Relaxed)
    }

    pub(super) fn tls(&self) -> &Tls {
        &self.tls
    }

    pub(super) fn client(&self) -> &str {
        &self.client
    }

    /// Connects to the first address that answers, beginning with the one that worked last.
    pub(super) async fn connect(&self) -> Result<Connection, JournalError> {
        let good = self.good.load(Ordering::Relaxed);
        let mut errors = Vec::new();
        for n in 0..self.addresses.len() {
            let at = (good + n) % self.addresses.len();
            match self.connect_to(&self.addresses[at]).await {
                Ok(connection) => {
                    self.good.store(at, Ordering::Relaxed);
                    return Ok(connection);
                }
                Err(error) => errors.push(error),
            }
        }
        // When one address could still come right, the whole may.
        match errors.iter().find(|error| error.is_transient()).or(errors.first()) {
            Some(JournalError::Unavailable(_)) => {
                let all: Vec<String> = errors.into_iter().map(|error| error.to_string()).collect();
                Err(JournalError::Unavailable(all.join("; ").replace("journal unavailable: ", "")))
            }
            Some(error) => Err(error.clone()),
            None => Err(JournalError::Unusable("no URL of a broker is configured".into())),
        }
    }

    async fn connect_to(&self, address: &Address) -> Result<Connection, JournalError> {
        match timeout(CONNECT_TIMEOUT, self.open(address)).await {
            Ok(Ok(connection)) => {
                self.frame_max.store(connection.frame_max, Ordering::Relaxed);
                Ok(connection)
            }
            Ok(Err(error)) => Err(error),
            Err(_) => Err(JournalError::Unavailable(format!("{address}: no answer within {CONNECT_TIMEOUT:?}"))),
        }
    }

    async fn open(&self, address: &Address) -> Result<Connection, JournalError> {
        let (reader, writer) = self.dial(address).await?;
        let mut connection = Connection {
            reader: FrameReader {
                io: reader,
                buffer: BytesMut::with_capacity(READ_AHEAD),
                heard: Instant::now(),
                about: address.to_string(),
            },
            writer,
            out: BytesMut::new(),
            unflushed: false,
            backlog: VecDeque::new(),
            correlation: 0,
            heartbeat: HEARTBEAT,
            beat_at: Instant::now() + HEARTBEAT,
            address: address.clone(),
            frame_max: 0,
            version: String::new(),
            node: None,
        };
        connection.handshake(&self.client, self.offered_frame_max).await?;
        Ok(connection)
    }

    async fn dial(&self, address: &Address) -> Result<(Source, Sink), JournalError> {
        let unavailable = |error: std::io::Error| JournalError::Unavailable(format!("{address}: {error}"));
        let tcp = TcpStream::connect((address.host.as_str(), address.port)).await.map_err(unavailable)?;
        tcp.set_nodelay(true).map_err(unavailable)?;
        if !address.tls {
            let (reader, writer) = tcp.into_split();
            return Ok((Box::new(reader), Box::new(writer)));
        }
        let (reader, writer) = tokio::io::split(self.tls.connect(address, tcp).await?);
        Ok((Box::new(reader), Box::new(writer)))
    }

    /// Connects to the node that leads a stream: where it is written, and where its end is known.
    pub(super) async fn connect_to_leader(&self, stream: &str) -> Result<Connection, JournalError> {
        let mut connection = self.connect().await?;
        let leader = connection.members(stream).await?.leader;
        let leader = leader.ok_or_else(|| JournalError::Unavailable(format!("stream {stream} has no leader")))?;
        self.move_to(connection, &leader).await
    }

    /// Connects to a node that has a copy of a stream, by preference one that does not lead it.
    pub(super) async fn connect_to_copy(&self, stream: &str) -> Result<Connection, JournalError> {
        let mut connection = self.connect().await?;
        let Members { leader, replicas } = connection.members(stream).await?;
        let here = connection.node.clone();
        let here = here.filter(|here| replicas.contains(here));
        match here.or_else(|| replicas.into_iter().next()).or(leader) {
            Some(node) => self.move_to(connection, &node).await,
            None => Err(JournalError::Unavailable(format!("no copy of stream {stream} is running"))),
        }
    }

    async fn move_to(&self, connection: Connection, node: &Node) -> Result<Connection, JournalError> {
        // A node that does not say its name is taken as the only one.
        if connection.node.as_ref().is_none_or(|here| here == node) {
            return Ok(connection);
        }
        let address = connection.address.at(node);
        connection.close().await;
        self.connect_to(&address).await
    }
}

type Source = Box<dyn AsyncRead + Send + Unpin>;
type Sink = Box<dyn AsyncWrite + Send + Unpin>;

/// Which nodes have a stream.
#[derive(Debug)]
pub(super) struct Members {
    pub(super) leader: Option<Node>,
    pub(super) replicas: Vec<Node>,
}

/// The extent of a stream as one node knows it; chunk ids are offsets of first records, bookkeeping included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stats {
    /// The oldest chunk, or `None` while the stream is empty.
    pub(super) first: Option<Offset>,
    /// The newest chunk that is confirmed.
    pub(super) committed: Option<Offset>,
    /// The newest chunk; not told by every version.
    pub(super) last: Option<Offset>,
}

/// Where a subscription begins.
#[derive(Debug, Clone, Copy)]
pub(super) enum Start {
    First,
    Last,
    Offset(Offset),
    Time(i64),
}

/// An open connection.
pub(super) struct Connection {
    reader: FrameReader,
    writer: Sink,
    /// What is still to be written; `next` writes it.
    out: BytesMut,
    unflushed: bool,
    /// Frames that came while an answer was awaited.
    backlog: VecDeque<Incoming>,
    correlation: u32,
    heartbeat: Duration,
    beat_at: Instant,
    address: Address,
    frame_max: u32,
    version: String,
    /// What the node calls itself.
    node: Option<Node>,
}

impl Connection {
    async fn handshake(&mut self, client: &str, offered_frame_max: u32) -> Result<(), JournalError> {
        let about = self.address.to_string();
        let properties =
            [("product", "Tillstream"), ("version", env!("CARGO_PKG_VERSION")), ("platform", "Rust"), ("connection_name", client)];
        let mut answer = self.request(key::PEER_PROPERTIES, &about, |frame| frame.properties(&properties)).await?;
        self.version = answer.properties()?.into_iter().find(|(key, _)| key == "version").map(|(_, value)| value).unwrap_or_default();
        check_version(&self.version, &about)?;

        let mut answer = self.request(key::SASL_HANDSHAKE, &about, |frame| frame).await?;
        let count = answer.count(2)?;
        let mechanisms = (0..count).map(|_| answer.string()).collect::<Result<Vec<_>, _>>()?;
        if !mechanisms.iter().any(|mechanism| mechanism == "PLAIN") {
            return Err(code_error(code::SASL_MECHANISM_NOT_SUPPORTED, &about));
        }
        let secret = format!("\0{}\0{}", self.address.user, self.address.password.expose_secret());
        self.request(key::SASL_AUTHENTICATE, &about, |frame| frame.string("PLAIN").bytes(secret.as_bytes())).await?;

        let (frame_max, heartbeat) = loop {
            match self.next().await? {
                Incoming::Tune { frame_max, heartbeat } => break (frame_max, heartbeat),
                _ => continue,
            }
        };
        // Zero means no limit on either side, and no heartbeat.
        self.frame_max =
            if frame_max == 0 || offered_frame_max == 0 { frame_max.max(offered_frame_max) } else { frame_max.min(offered_frame_max) };
        let ours = u32::try_from(HEARTBEAT.as_secs()).expect("seconds");
        let seconds = if heartbeat == 0 { ours } else { heartbeat.min(ours) };
        self.heartbeat = Duration::from_secs(seconds.into());
        self.send(Frame::new(key::TUNE).u32(self.frame_max).u32(seconds).finish(0));

        let vhost = self.address.vhost.clone();
        let mut answer = self.request(key::OPEN, &about, |frame| frame.string(&vhost)).await?;
        let properties = answer.properties()?;
        let property = |name: &str| properties.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
        self.node = property("advertised_host")
            .zip(property("advertised_port").and_then(|port| port.parse().ok()))
            .map(|(host, port)| Node { host, port });
        Ok(())
    }

    /// The broker's version, as `4.0.5`.
    pub(super) fn version(&self) -> &str {
        &self.version
    }

    pub(super) fn address(&self) -> &Address {
        &self.address
    }

    /// Queues a frame; the next call that waits for the broker writes it.
    pub(super) fn send(&mut self, frame: Bytes) {
        self.out.extend_from_slice(&frame);
    }

    /// The next frame that is not the connection's own business. Writes what is queued, sends heartbeats, and fails after two missed
    /// ones. Cancel-safe.
    pub(super) async fn next(&mut self) -> Result<Incoming, JournalError> {
        match self.backlog.pop_front() {
            Some(frame) => Ok(frame),
            None => self.receive().await,
        }
    }

    async fn receive(&mut self) -> Result<Incoming, JournalError> {
        loop {
            tokio::select! {
                frame = self.reader.next() => match frame? {
                    Incoming::Heartbeat | Incoming::Other => {}
                    Incoming::Close { code, reason, .. } => return Err(closed(&self.address.to_string(), code, &reason)),
                    frame => return Ok(frame),
                },
                written = write_out(&mut self.writer, &mut self.out, &mut self.unflushed), if !self.out.is_empty() || self.unflushed => {
                    written.map_err(|error| JournalError::Unavailable(format!("{}: {error}", self.address)))?;
                }
                () = sleep_until(self.beat_at) => {
                    self.reader.check_alive(self.heartbeat)?;
                    self.out.extend_from_slice(&heartbeat());
                    self.beat_at = Instant::now() + self.heartbeat / 2;
                }
            }
        }
    }

    /// Sends a request and waits for its answer; other frames are kept for [`Connection::next`]. `about` names in errors what was asked for.
    async fn request(&mut self, key: u16, about: &str, fill: impl FnOnce(Frame) -> Frame) -> Result<Fields, JournalError> {
        self.correlation = self.correlation.wrapping_add(1);
        let wanted = self.correlation;
        self.send(fill(Frame::request(key, wanted)).finish(0));
        let answer = timeout(REQUEST_TIMEOUT, async {
            loop {
                match self.receive().await? {
                    Incoming::Response { correlation, code, key: answered, fields } if correlation == wanted && answered == key => {
                        return if code == code::OK { Ok(fields) } else { Err(code_error(code, about)) };
                    }
                    Incoming::Response { .. } => {}
                    frame => self.backlog.push_back(frame),
                }
            }
        });
        match answer.await {
            Ok(answer) => answer,
            Err(_) => Err(JournalError::Unavailable(format!("{}: no answer within {REQUEST_TIMEOUT:?}", self.address))),
        }
    }

    /// Which nodes have a stream.
    pub(super) async fn members(&mut self, stream: &str) -> Result<Members, JournalError> {
        let mut answer = self.request(key::METADATA, stream, |frame| frame.u32(1).string(stream)).await?;
        let count = answer.count(8)?;
        let mut nodes = Vec::with_capacity(count);
        for _ in 0..count {
            let (reference, host, port) = (answer.u16()?, answer.string()?, answer.u32()?);
            nodes.push((reference, Node { host, port: u16::try_from(port).unwrap_or(0) }));
        }
        let node = |reference: u16| nodes.iter().find(|(r, _)| *r == reference).map(|(_, node)| node.clone());
        if answer.count(10)? != 1 {
            return Err(JournalError::Unavailable(format!("{}: an answer about another number of streams", self.address)));
        }
        let (_name, code, leader) = (answer.string()?, answer.u16()?, answer.u16()?);
        if code != code::OK {
            return Err(code_error(code, stream));
        }
        let replicas = (0..answer.count(2)?).map(|_| answer.u16()).collect::<Result<Vec<_>, _>>()?;
        Ok(Members { leader: node(leader), replicas: replicas.into_iter().filter_map(node).collect() })
    }

    /// The extent of a stream, as this node knows it.
    pub(super) async fn stats(&mut self, stream: &str) -> Result<Stats, JournalError> {
        let mut answer = self.request(key::STREAM_STATS, stream, |frame| frame.string(stream)).await?;
        let mut stats = Stats { first: None, committed: None, last: None };
        for _ in 0..answer.count(10)? {
            let (name, value) = (answer.string()?, answer.u64()?.cast_signed());
            // -1 says that there is none.
            let offset = u64::try_from(value).ok().map(Offset);
            match name.as_str() {
                "first_chunk_id" => stats.first = offset,
                "committed_chunk_id" => stats.committed = offset,
                "last_chunk_id" => stats.last = offset,
                _ => {}
            }
        }
        Ok(stats)
    }

    /// Declares the connection's publisher, number 0.
    pub(super) async fn declare_publisher(&mut self, name: &str, stream: &str) -> Result<(), JournalError> {
        self.request(key::DECLARE_PUBLISHER, stream, |frame| frame.u8(0).string(name).string(stream)).await.map(drop)
    }

    /// The highest id that the stream holds of a publisher; 0 when it holds none.
    pub(super) async fn publisher_sequence(&mut self, name: &str, stream: &str) -> Result<u64, JournalError> {
        let mut fields = self.request(key::QUERY_PUBLISHER_SEQUENCE, stream, |frame| frame.string(name).string(stream)).await?;
        fields.u64()
    }

    /// Opens the connection's subscription, number 0. `credit` is how many chunks may be sent.
    pub(super) async fn subscribe(&mut self, stream: &str, start: Start, credit: u16) -> Result<(), JournalError> {
        let fill = |frame: Frame| {
            let frame = frame.u8(0).string(stream);
            let frame = match start {
                Start::First => frame.u16(1),
                Start::Last => frame.u16(2),
                Start::Offset(offset) => frame.u16(4).u64(offset.0),
                Start::Time(ms) => frame.u16(5).u64(ms.cast_unsigned()),
            };
            frame.u16(credit).properties(&[])
        };
        self.request(key::SUBSCRIBE, stream, fill).await.map(drop)
    }

    /// Lets the broker send more chunks.
    pub(super) fn credit(&mut self, more: u16) {
        self.send(Frame::new(key::CREDIT).u8(0).u16(more).finish(0));
    }

    /// Whether a chunk has already come.
    pub(super) fn has_delivery(&self) -> bool {
        self.backlog.iter().any(|frame| matches!(frame, Incoming::Deliver(_)))
    }

    /// Says goodbye, briefly: the broker also copes with a connection that just ends.
    pub(super) async fn close(mut self) {
        self.out.extend_from_slice(&goodbye());
        let _ = timeout(Duration::from_secs(1), async {
            while !self.out.is_empty() {
                self.writer.write_buf(&mut self.out).await?;
            }
            self.writer.shutdown().await
        })
        .await;
    }

    /// Both directions, for a publisher: it writes for long while confirms come in.
    pub(super) async fn into_halves(mut self) -> Result<Halves, JournalError> {
        // A heartbeat may be half written.
        let finish = async {
            while !self.out.is_empty() || self.unflushed {
                write_out(&mut self.writer, &mut self.out, &mut self.unflushed).await?;
            }
            Ok::<_, std::io::Error>(())
        };
        match timeout(REQUEST_TIMEOUT, finish).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(JournalError::Unavailable(format!("{}: {error}", self.address))),
            Err(_) => return Err(JournalError::Unavailable(format!("{}: takes nothing for {REQUEST_TIMEOUT:?}", self.address))),
        }
        let Connection { reader, writer, heartbeat, frame_max, backlog: early, .. } = self;
        Ok(Halves { reader, writer, heartbeat, frame_max, early })
    }
}

/// Writes some of what is queued, or flushes: TLS may hold back what it was given. Cancel-safe.
async fn write_out(writer: &mut Sink, out: &mut BytesMut, unflushed: &mut bool) -> std::io::Result<()> {
    if out.is_empty() {
        writer.flush().await?;
        *unflushed = false;
    } else {
        writer.write_buf(out).await?;
        *unflushed = true;
    }
    Ok(())
}

/// A connection taken apart.
pub(super) struct Halves {
    pub(super) reader: FrameReader,
    pub(super) writer: Sink,
    pub(super) heartbeat: Duration,
    /// 0 means no limit.
    pub(super) frame_max: u32,
    /// Frames that have already come.
    pub(super) early: VecDeque<Incoming>,
}

/// The receiving direction.
pub(super) struct FrameReader {
    io: Source,
    buffer: BytesMut,
    /// When the broker was last heard of.
    heard: Instant,
    /// The broker's address, for errors.
    about: String,
}

impl FrameReader {
    /// The next frame. Cancel-safe: what was read stays in the buffer.
    pub(super) async fn next(&mut self) -> Result<Incoming, JournalError> {
        loop {
            if let Some(frame) = self.split()? {
                return Incoming::parse(frame);
            }
            let read = self.io.read_buf(&mut self.buffer).await;
            match read.map_err(|error| JournalError::Unavailable(format!("{}: {error}", self.about)))? {
                0 => return Err(JournalError::Unavailable(format!("{}: the broker ended the connection", self.about))),
                _ => self.heard = Instant::now(),
            }
        }
    }

    /// Splits a whole frame off the buffer, or makes room for the rest of it.
    fn split(&mut self) -> Result<Option<Bytes>, JournalError> {
        let Some(len) = self.buffer.first_chunk::<4>().map(|len| u32::from_be_bytes(*len) as usize) else {
            self.buffer.reserve(READ_AHEAD);
            return Ok(None);
        };
        if len > FRAME_IN_MAX {
            return Err(JournalError::Unavailable(format!("{}: the broker announces a frame of {len} bytes", self.about)));
        }
        if self.buffer.len() < 4 + len {
            // Exactly the rest of a large frame, so that it is read in place; beside small ones the next are read as well.
            self.buffer.reserve((4 + len - self.buffer.len()).max(4096));
            return Ok(None);
        }
        self.buffer.advance(4);
        Ok(Some(self.buffer.split_to(len).freeze()))
    }

    /// Fails when the broker was silent for two heartbeats.
    pub(super) fn check_alive(&self, heartbeat: Duration) -> Result<(), JournalError> {
        match self.heard.elapsed() {
            silent if silent > 2 * heartbeat => {
                Err(JournalError::Unavailable(format!("{}: silent for {} s", self.about, silent.as_secs())))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn about(&self) -> &str {
        &self.about
    }
}

/// What the broker's farewell means.
pub(super) fn closed(about: &str, code: u16, reason: &str) -> JournalError {
    match code_error(code, about) {
        JournalError::Unusable(why) => JournalError::Unusable(format!("{why} ({reason})")),
        JournalError::Refused(why) => JournalError::Refused(format!("{why} ({reason})")),
        _ => JournalError::Unavailable(format!("{about}: the broker closed the connection: {reason} (code {code})")),
    }
}

pub(super) fn heartbeat() -> Bytes {
    Frame::new(key::HEARTBEAT).finish(0)
}

/// The frame that ends a connection in order.
pub(super) fn goodbye() -> Bytes {
    Frame::request(key::CLOSE, 0).u16(code::OK).string("OK").finish(0)
}

/// Streams' own super streams, and statistics we stand on, exist since 3.13.
fn check_version(version: &str, about: &str) -> Result<(), JournalError> {
    let mut numbers = version.split('.').map(|n| n.parse::<u32>().ok());
    match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(major), Some(minor)) if (major, minor) >= (3, 13) => Ok(()),
        _ => Err(JournalError::Unusable(format!("{about}: RabbitMQ {version} is too old, 3.13 or newer is needed"))),
    }
}

/// Shared by everything that talks to the broker.
pub(super) type SharedBroker = Arc<Broker>;

#[cfg(test)]
mod tests {
    use super::*;

    fn reader(chunks: &[&[u8]]) -> FrameReader {
        let mut io = tokio_test_io::Builder::default();
        for chunk in chunks {
            io.push(chunk);
        }
        FrameReader { io: Box::new(io), buffer: BytesMut::new(), heard: Instant::now(), about: "test".into() }
    }

    /// A source that yields prepared pieces, then ends.
    mod tokio_test_io {
        use std::collections::VecDeque;
        use std::pin::Pin;
        use std::task::{Context, Poll};

        use tokio::io::{AsyncRead, ReadBuf};

        #[derive(Default)]
        pub(super) struct Builder(VecDeque<Vec<u8>>);

        impl Builder {
            pub(super) fn push(&mut self, bytes: &[u8]) {
                self.0.push_back(bytes.to_vec());
            }
        }

        impl AsyncRead for Builder {
            fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
                if let Some(mut piece) = self.0.pop_front() {
                    let rest = piece.split_off(piece.len().min(buf.remaining()));
                    buf.put_slice(&piece);
                    if !rest.is_empty() {
                        self.0.push_front(rest);
                    }
                }
                Poll::Ready(Ok(()))
            }
        }
    }

    #[tokio::test]
    async fn frames_are_split_wherever_the_pieces_end() {
        let confirm = Frame::new(key::PUBLISH_CONFIRM).u8(0).u32(1).u64(5).finish(0);
        let both = [heartbeat().as_ref(), confirm.as_ref()].concat();
        for cut in 0..both.len() {
            let mut reader = reader(&[&both[..cut.max(1)], &both[cut.max(1)..]]);
            assert!(matches!(reader.next().await, Ok(Incoming::Heartbeat)));
            assert!(matches!(reader.next().await, Ok(Incoming::Confirm(ids)) if ids == [5]));
            assert!(reader.next().await.unwrap_err().is_transient());
        }
    }

    #[tokio::test]
    async fn a_frame_beyond_all_bounds_is_refused_before_memory_is_taken() {
        let mut reader = reader(&[&[0xff, 0xff, 0xff, 0xff, 0, 8]]);
        assert!(reader.next().await.unwrap_err().to_string().contains("4294967295 bytes"));
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        for (version, good) in
            [("3.13.0", true), ("4.0.5", true), ("10.0", true), ("3.12.14", false), ("3.9.1", false), ("", false), ("x.y", false)]
        {
            assert_eq!(check_version(version, "b").is_ok(), good, "{version}");
        }
    }
}
