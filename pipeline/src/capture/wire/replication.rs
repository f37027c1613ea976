//! The conversation on a replication connection: start-up, IDENTIFY_SYSTEM, START_REPLICATION, copy-both, farewell.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::{BufMut, BytesMut};
use postgres_protocol::message::frontend;
use tillstream_schemas::Lsn;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout};

use super::address::{Address, Endpoint, UNLIMITED};
use super::auth::{Auth, Exchange, Method, Step};
use super::errors::{Asked, ORIGIN_MAJOR, ServerError, definite, origin_unsupported};
use super::frames::{Buffer, STREAM_MESSAGE_MAX, frame};
use super::socket::{NARROW_WINDOW, Stream};
use crate::capture::CaptureError;
use crate::capture::source::{Frame, Replication, StandbyStatus, SystemIdentity};
use crate::config::Origin;

/// Login and the first queries. A server that is alive answers in milliseconds; START_REPLICATION may wait for a checkpoint.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// A farewell takes a round trip; in the middle of a large transaction the server only notices that we are gone.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// Status updates that the server has not taken: a hundred, at one a second, mean that it reads nothing any more.
const UNSENT_MAX: usize = 4096;

/// What is taken out of a socket that is otherwise not read: as much as its window is narrowed to.
const SIP_BYTES: usize = NARROW_WINDOW;

/// A socket with bytes gives them at once.
const SIP_PATIENCE: Duration = Duration::from_millis(20);

/// Most bytes that may gather so: half an hour of sips and more. The buffer may be twice as large.
const SIPPED_MAX: usize = 48 << 20;

/// PostgreSQL counts microseconds from the start of 2000.
const POSTGRES_EPOCH: Duration = Duration::from_secs(946_684_800);

/// A replication connection: the real [`Replication`].
pub struct PgReplication {
    stream: Stream,
    input: Buffer,
    /// What still has to be sent; survives a cancelled write.
    output: BytesMut,
    names: Names,
    identity: SystemIdentity,
    method: Method,
    parameters: Parameters,
    /// Highest flush position told so far.
    flushed: Lsn,
    pace: Pace,
    streaming: bool,
}

/// Whether the server sends faster than live traffic does. A reader that keeps up gets a backlog in reads as small as
/// live traffic, so the size of one read tells nothing; the rate does.
#[derive(Default)]
struct Pace {
    since: Option<Instant>,
    bytes: usize,
    fast: bool,
}

impl Pace {
    /// Long enough to tell a backlog from one large transaction's burst, short enough to matter within it.
    const WINDOW: Duration = Duration::from_millis(20);
    /// 4 MB/s, about 20,000 changes a second: no live point of sale, but a quarter of what a backlog comes at.
    const FAST_BYTES_PER_SECOND: u128 = 4 << 20;
    /// Once fast, a backlog that a busy server sends haltingly is still one: it has to be this much slower for this much longer.
    const HYSTERESIS: u32 = 5;

    fn received(&mut self, bytes: usize, now: Instant) {
        self.bytes += bytes;
        let elapsed = now - *self.since.get_or_insert(now);
        let times = if self.fast { Self::HYSTERESIS } else { 1 };
        if elapsed >= Self::WINDOW * times {
            self.fast = self.bytes as u128 * 1_000_000 * u128::from(times) >= Self::FAST_BYTES_PER_SECOND * elapsed.as_micros();
            (self.since, self.bytes) = (Some(now), 0);
        }
    }
}

/// What the connection is for.
#[derive(Clone, Debug)]
pub(super) struct Names {
    pub(super) application: String,
    pub(super) slot: String,
    pub(super) publication: String,
    pub(super) allow_weak_auth: bool,
    /// Large transactions come before they commit (protocol version 2).
    pub(super) streaming: bool,
    pub(super) origin: Origin,
}

/// What the server reports about itself at start-up.
#[derive(Default)]
struct Parameters {
    /// Major version; 0 until it said so.
    major: u32,
    standby: bool,
    /// The database has no encoding: `SQL_ASCII`.
    raw: bool,
}

impl PgReplication {
    /// Logs in over an open stream and asks who the server is.
    pub(super) async fn log_in(stream: Stream, address: &Address, host: &Endpoint, names: Names) -> Result<PgReplication, CaptureError> {
        let identity = SystemIdentity::default();
        let mut connection = PgReplication {
            stream,
            input: Buffer::new(),
            output: BytesMut::new(),
            names,
            identity,
            method: Method::None,
            parameters: Parameters::default(),
            flushed: Lsn(0),
            pace: Pace::default(),
            streaming: false,
        };
        let login = async {
            connection.start_up(address, host).await?;
            connection.identify().await?;
            connection.take_bytes_as_they_are().await
        };
        timeout(ANSWER_TIMEOUT, login).await.map_err(|_| CaptureError::Unavailable(format!("{host}: the login was not answered")))??;
        Ok(connection)
    }

    /// How the server made sure of us.
    #[must_use]
    pub fn method(&self) -> Method {
        self.method
    }

    /// Whether the server is a standby (PostgreSQL 14 and later say so).
    pub(super) fn is_standby(&self) -> bool {
        self.parameters.standby
    }

    async fn start_up(&mut self, address: &Address, host: &Endpoint) -> Result<(), CaptureError> {
        let options = format!("{}{UNLIMITED}", address.options);
        let parameters = [
            ("user", address.user.as_str()),
            ("database", address.database.as_str()),
            ("replication", "database"),
            ("client_encoding", "UTF8"),
            ("application_name", self.names.application.as_str()),
            ("options", options.as_str()),
        ];
        frontend::startup_message(parameters, &mut self.output)
            .map_err(|_| definite("config.source_url", "the source's URL holds a zero byte", "the server cannot be asked", "remove it"))?;
        self.flush().await?;
        let host = host.to_string();
        let auth = Auth {
            host: host.clone(),
            user: address.user.clone(),
            password: address.password.clone(),
            binding: address.channel_binding,
            end_point: self.stream.end_point(),
            allow_weak: self.names.allow_weak_auth,
        };
        let (mut exchange, mut welcome) = (Exchange::Start, None);
        loop {
            let (tag, body) = receive(&mut self.stream, &mut self.input).await?;
            match (tag, welcome) {
                (b'R', None) => match exchange.step(&auth, body, &mut self.output)? {
                    Step::Answer => self.flush().await?,
                    Step::Wait => {}
                    Step::Done(method) => welcome = Some(method),
                },
                (b'E', _) => {
                    return Err(ServerError::parse(body).explain(Asked::Login {
                        host: &host,
                        user: &address.user,
                        database: &address.database,
                    }));
                }
                (b'S', Some(_)) => self.parameters.learn(body),
                // BackendKeyData serves to cancel queries, notices have no reader here.
                (b'K' | b'N', _) => {}
                (b'Z', Some(method)) => {
                    self.method = method;
                    return Ok(());
                }
                _ => return Err(unexpected(tag)),
            }
        }
    }

    /// Asks on the replication connection itself, so that no balancer can answer with another server's identity.
    async fn identify(&mut self) -> Result<(), CaptureError> {
        let row = self.row("IDENTIFY_SYSTEM").await?;
        self.identity =
            identity(&row).ok_or_else(|| CaptureError::Unavailable("IDENTIFY_SYSTEM was not answered as expected".to_owned()))?;
        self.identity.standby = self.parameters.standby;
        let timeout = self.row("SELECT setting FROM pg_catalog.pg_settings WHERE name = 'wal_sender_timeout'").await?;
        let ms: u64 = text(&timeout, 0).and_then(|t| t.parse().ok()).unwrap_or(0);
        self.identity.sender_timeout = (ms > 0).then(|| Duration::from_millis(ms));
        if self.identity.timeline > 1 {
            let history = self.row(&format!("TIMELINE_HISTORY {}", self.identity.timeline)).await?;
            self.identity.switches = switches(text(&history, 1).unwrap_or_default());
        }
        Ok(())
    }

    /// Asks something that answers one row, and returns its columns; empty when there is none.
    async fn row(&mut self, query: &str) -> Result<Vec<Option<Vec<u8>>>, CaptureError> {
        self.query(query).await?;
        let mut row = Vec::new();
        loop {
            let (tag, body) = receive(&mut self.stream, &mut self.input).await?;
            match tag {
                b'D' => row = columns(body).unwrap_or_default(),
                b'E' => return Err(ServerError::parse(body).explain(Asked::Sql)),
                b'Z' => return Ok(row),
                b'T' | b'C' | b'N' | b'S' => {}
                _ => return Err(unexpected(tag)),
            }
        }
    }

    /// Asks a database without encoding for its bytes. Asked for UTF-8 it checks them, and ends the stream at the first
    /// text that is not; what is not UTF-8 is replaced when it is encoded.
    async fn take_bytes_as_they_are(&mut self) -> Result<(), CaptureError> {
        if !self.parameters.raw {
            return Ok(());
        }
        self.query("SET client_encoding = 'SQL_ASCII'").await?;
        loop {
            let (tag, body) = receive(&mut self.stream, &mut self.input).await?;
            match tag {
                b'E' => return Err(ServerError::parse(body).explain(Asked::Sql)),
                b'Z' => return Ok(()),
                b'C' | b'N' | b'S' => {}
                _ => return Err(unexpected(tag)),
            }
        }
    }

    async fn begin(&mut self) -> Result<(), CaptureError> {
        // Logical messages carry the backfill's watermarks; PostgreSQL 13 and before cannot send them.
        let messages = if self.parameters.major >= 14 { ", messages 'true'" } else { "" };
        let (version, streaming) = if self.names.streaming { (2, ", streaming 'on'") } else { (1, "") };
        let origin = match self.names.origin {
            Origin::None if self.parameters.major < ORIGIN_MAJOR => return Err(origin_unsupported(&self.parameters.major.to_string())),
            Origin::None => ", origin 'none'",
            Origin::Any => "",
        };
        let command = format!(
            "START_REPLICATION SLOT {} LOGICAL 0/0 (proto_version '{version}', publication_names {}{messages}{streaming}{origin})",
            identifier(&self.names.slot),
            literal(&identifier(&self.names.publication)),
        );
        self.query(&command).await?;
        loop {
            let (tag, body) = receive(&mut self.stream, &mut self.input).await?;
            match tag {
                b'W' => {
                    self.input.set_message_max(STREAM_MESSAGE_MAX);
                    self.streaming = true;
                    return Ok(());
                }
                b'E' => return Err(self.names.refusal(body)),
                b'N' | b'S' => {}
                _ => return Err(unexpected(tag)),
            }
        }
    }

    async fn query(&mut self, text: &str) -> Result<(), CaptureError> {
        frontend::query(text, &mut self.output).map_err(|_| {
            definite("config.source_name", "the slot's or publication's name holds a zero byte", "no such name exists", "mend source.slot")
        })?;
        self.flush().await
    }

    /// Sends what is due. Cancel-safe: the rest stays for the next call.
    async fn flush(&mut self) -> Result<(), CaptureError> {
        while !self.output.is_empty() {
            self.stream.write_buf(&mut self.output).await.map_err(lost)?;
        }
        self.stream.flush().await.map_err(lost)
    }

    async fn say_goodbye(&mut self) -> Result<(), CaptureError> {
        self.stream.set_bulk(false).map_err(lost)?;
        if self.streaming {
            frontend::copy_done(&mut self.output);
            self.flush().await?;
            // What is still under way is dropped: it was not acknowledged and comes again.
            while receive(&mut self.stream, &mut self.input).await?.0 != b'Z' {}
        }
        frontend::terminate(&mut self.output);
        self.flush().await?;
        self.stream.shutdown().await.map_err(lost)
    }
}

#[async_trait]
impl Replication for PgReplication {
    fn identity(&self) -> &SystemIdentity {
        &self.identity
    }

    async fn start(&mut self) -> Result<(), CaptureError> {
        timeout(ANSWER_TIMEOUT, self.begin())
            .await
            .map_err(|_| CaptureError::Unavailable(format!("START_REPLICATION was not answered within {} s", ANSWER_TIMEOUT.as_secs())))?
    }

    async fn fill(&mut self, behind: bool) -> Result<(), CaptureError> {
        while !self.input.has_message()? {
            self.stream.widen().map_err(lost)?;
            self.stream.set_bulk(behind || self.pace.fast).map_err(lost)?;
            let bytes = read_some(&mut self.stream, &mut self.input).await?;
            self.pace.received(bytes, Instant::now());
        }
        Ok(())
    }

    fn next(&mut self) -> Result<Option<Frame<'_>>, CaptureError> {
        let at = loop {
            let Some((tag, at)) = self.input.take()? else { return Ok(None) };
            match tag {
                b'd' => break at,
                b'E' => return Err(self.names.refusal(self.input.body(at))),
                b'N' | b'S' => {}
                // A server that shuts down ends the copy once it has sent everything.
                b'c' | b'C' => return Err(CaptureError::Unavailable("the server ended the replication stream".to_owned())),
                _ => return Err(unexpected(tag)),
            }
        };
        frame(self.input.body(at)).map(Some)
    }

    async fn send_status(&mut self, status: StandbyStatus) -> Result<(), CaptureError> {
        if self.output.len() > UNSENT_MAX {
            return Err(CaptureError::Unavailable("the server reads no status updates".to_owned()));
        }
        self.flushed = self.flushed.max(status.flush);
        let message = standby_status(StandbyStatus { flush: self.flushed, ..status });
        frontend::CopyData::new(&message[..]).map_err(lost)?.write(&mut self.output);
        self.flush().await
    }

    async fn sip(&mut self) -> Result<(), CaptureError> {
        self.stream.set_bulk(false).map_err(lost)?;
        self.stream.narrow().map_err(lost)?;
        let mut taken = 0;
        while taken < SIP_BYTES && self.input.held() < SIPPED_MAX {
            match timeout(SIP_PATIENCE, read_some(&mut self.stream, &mut self.input)).await {
                Ok(read) => taken += read?,
                Err(_) => break,
            }
        }
        Ok(())
    }

    async fn stop(&mut self) {
        if let Err(error) =
            timeout(STOP_TIMEOUT, self.say_goodbye()).await.unwrap_or(Err(CaptureError::Unavailable("no answer in time".to_owned())))
        {
            tracing::debug!(%error, "the replication connection was closed without a farewell");
            // The server notices by the closed socket.
            let _ = self.stream.shutdown().await;
        }
    }
}

impl Names {
    fn refusal(&self, body: &[u8]) -> CaptureError {
        ServerError::parse(body).explain(Asked::Stream { slot: &self.slot, publication: &self.publication })
    }
}

impl Parameters {
    /// Takes a ParameterStatus: name and value, each ended by a zero byte.
    fn learn(&mut self, body: &[u8]) {
        let mut texts = body.split(|b| *b == 0).map(|t| std::str::from_utf8(t).unwrap_or_default());
        match (texts.next(), texts.next()) {
            (Some("server_version"), Some(version)) => {
                self.major = version.split(|c: char| !c.is_ascii_digit()).next().and_then(|n| n.parse().ok()).unwrap_or(0);
            }
            (Some("in_hot_standby"), Some(value)) => self.standby = value == "on",
            (Some("server_encoding"), Some(value)) => self.raw = value == "SQL_ASCII",
            _ => {}
        }
    }
}

/// Reads once. Cancel-safe: nothing is held between the socket and the buffer.
async fn read_some(stream: &mut Stream, input: &mut Buffer) -> Result<usize, CaptureError> {
    match stream.read(input.room()).await.map_err(lost)? {
        0 => Err(CaptureError::Unavailable("the server closed the connection".to_owned())),
        n => {
            input.filled(n);
            Ok(n)
        }
    }
}

/// Waits for the next whole message.
async fn receive<'a>(stream: &mut Stream, input: &'a mut Buffer) -> Result<(u8, &'a [u8]), CaptureError> {
    while !input.has_message()? {
        read_some(stream, input).await?;
    }
    let (tag, at) = input.take()?.ok_or_else(|| CaptureError::Unavailable("a message vanished".to_owned()))?;
    Ok((tag, input.body(at)))
}

fn lost(error: std::io::Error) -> CaptureError {
    CaptureError::Unavailable(format!("the connection was lost: {error}"))
}

fn unexpected(tag: u8) -> CaptureError {
    CaptureError::Unavailable(format!("the server sent an unexpected message (tag {tag})"))
}

/// The columns of a DataRow; `None` when it is damaged.
fn columns(body: &[u8]) -> Option<Vec<Option<Vec<u8>>>> {
    let (count, mut rest) = body.split_first_chunk::<2>()?;
    let mut columns = Vec::new();
    for _ in 0..u16::from_be_bytes(*count) {
        let (length, tail) = rest.split_first_chunk::<4>()?;
        let length = i32::from_be_bytes(*length);
        if length == -1 {
            (rest, _) = (tail, columns.push(None));
            continue;
        }
        let (value, tail) = tail.split_at_checked(usize::try_from(length).ok()?)?;
        (rest, _) = (tail, columns.push(Some(value.to_vec())));
    }
    Some(columns)
}

fn text(row: &[Option<Vec<u8>>], column: usize) -> Option<&str> {
    std::str::from_utf8(row.get(column)?.as_deref()?).ok()
}

/// The row that IDENTIFY_SYSTEM answers: system id, timeline, flush position, database.
fn identity(row: &[Option<Vec<u8>>]) -> Option<SystemIdentity> {
    Some(SystemIdentity {
        system_id: text(row, 0)?.parse().ok()?,
        timeline: text(row, 1)?.parse().ok()?,
        wal_flush: text(row, 2)?.parse().ok()?,
        ..SystemIdentity::default()
    })
}

/// A timeline's history file: a line for each earlier timeline with the position where it ended. Comments and damaged lines say nothing.
fn switches(file: &str) -> Vec<(u32, Lsn)> {
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
    };
    file.lines().filter_map(line).collect()
}

/// A standby status update: what was received, what may be forgotten, our clock, whether we want an answer.
fn standby_status(status: StandbyStatus) -> BytesMut {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH + POSTGRES_EPOCH).unwrap_or_default().as_micros();
    let mut message = BytesMut::with_capacity(34);
    message.put_u8(b'r');
    message.put_u64(status.write.max(status.flush).0);
    message.put_u64(status.flush.0);
    // Applied, in the sense of the protocol, is what is stored.
    message.put_u64(status.flush.0);
    message.put_i64(i64::try_from(clock).unwrap_or(i64::MAX));
    message.put_u8(u8::from(status.reply_requested));
    message
}

fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backlog_in_small_reads_is_told_from_live_traffic() {
        let begin = Instant::now();
        let run = |pace: &mut Pace, after_ms: u64, bytes: usize, gap_us: u64| {
            for read in 0..1000 {
                pace.received(bytes, begin + Duration::from_millis(after_ms) + Duration::from_micros(gap_us * read));
            }
            pace.fast
        };
        assert!(!run(&mut Pace::default(), 0, 2400, 13_000), "77 transactions a second");
        assert!(!run(&mut Pace::default(), 0, 200_000, 100_000), "a burst every now and then");
        let mut pace = Pace::default();
        assert!(run(&mut pace, 0, 600, 30), "20 MB/s in small reads");
        assert!(run(&mut pace, 30, 250_000, 40_000), "the same haltingly");
        assert!(!run(&mut pace, 50_000, 2400, 13_000), "caught up");
    }

    #[test]
    fn names_are_quoted_for_where_they_stand() {
        assert_eq!(identifier(r#"a"b"#), r#""a""b""#);
        assert_eq!(literal(&identifier("it's")), r#"'"it''s"'"#);
    }

    #[test]
    fn versions_are_read_from_what_servers_say() {
        for (said, major) in [("15.18 (Debian 15.18-0+deb12u1)", 15), ("18beta1", 18), ("19devel", 19), ("", 0)] {
            let mut parameters = Parameters::default();
            parameters.learn(format!("server_version\0{said}\0").as_bytes());
            assert_eq!(parameters.major, major);
        }
    }

    #[test]
    fn a_status_update_never_claims_to_have_stored_more_than_received() {
        let message = standby_status(StandbyStatus { write: Lsn(1), flush: Lsn(7), reply_requested: true });
        assert_eq!(message.len(), 34);
        assert_eq!((message[0], message[33]), (b'r', 1));
        assert_eq!(message[1..9], 7u64.to_be_bytes());
        assert_eq!(message[17..25], 7u64.to_be_bytes());
    }

    #[test]
    fn a_damaged_identity_is_no_identity() {
        let row = |values: &[&str]| {
            let mut body = (values.len() as u16).to_be_bytes().to_vec();
            for v in values {
                body.extend(u32::try_from(v.len()).expect("short").to_be_bytes());
                body.extend(v.as_bytes());
            }
            body
        };
        let good = row(&["7300000000000000001", "3", "1/16B3748", "pos"]);
        let system_id = 7_300_000_000_000_000_001;
        let expected = SystemIdentity { system_id, timeline: 3, wal_flush: Lsn(0x1_016B_3748), ..SystemIdentity::default() };
        let of = |body: &[u8]| columns(body).and_then(|row| identity(&row));
        assert_eq!(of(&good), Some(expected));
        for end in 0..good.len() {
            assert_eq!(of(&good[..end]), None);
        }
        assert_eq!(of(&row(&["x", "3", "1/1", "pos"])), None);
        assert_eq!(columns(&[0, 1, 255, 255, 255, 255]), Some(vec![None]));
    }

    #[test]
    fn a_history_file_says_where_timelines_ended() {
        let file = "1\t0/5000000\tno recovery target specified\n\n# a comment\n2\t1/6000060\tbefore 2026-01-01\ndamaged\n3\tx\n";
        assert_eq!(switches(file), [(1, Lsn(0x500_0000)), (2, Lsn(0x1_0600_0060))]);
    }
}
