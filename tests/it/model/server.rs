//! The simulated database server: a history, one slot, and walsenders.
//!
//! The rules that matter: one connection holds the slot, until it closes or says nothing for `wal_sender_timeout`; a
//! start sends every record that begins at or above what the slot has confirmed; what was confirmed can fall back to
//! what was last persisted when the server crashes; a status on a connection that is gone has no effect.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tillstream::capture::CaptureError;
use tillstream::capture::source::{Frame, Looked, Replication, SlotLook, Source, StandbyStatus, SystemIdentity};
use tillstream_schemas::Lsn;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use super::checker::Checker;
use super::dice::Dice;
use super::history::{Record, relation};

const WAL_SENDER_TIMEOUT: Duration = Duration::from_secs(60);
/// Frames that fit between server and client.
const SOCKET_FRAMES: usize = 48;

struct State {
    history: Vec<Arc<Record>>,
    wal_end: Lsn,
    confirmed: Lsn,
    persisted: Lsn,
    up: bool,
    holder: Option<u64>,
    next_connection: u64,
    connections: Vec<Arc<Connection>>,
}

/// The server.
#[derive(Clone)]
pub(crate) struct Server {
    state: Arc<Mutex<State>>,
    grown: Arc<Notify>,
    dice: Dice,
    checker: Checker,
}

impl Server {
    pub(crate) fn new(dice: Dice, checker: Checker, start: Lsn) -> Self {
        let state = State {
            history: Vec::new(),
            wal_end: start,
            confirmed: start,
            persisted: start,
            up: true,
            holder: None,
            next_connection: 1,
            connections: Vec::new(),
        };
        Server { state: Arc::new(Mutex::new(state)), grown: Arc::new(Notify::new()), dice, checker }
    }

    fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.state.lock().expect("never poisoned"))
    }

    /// A record is committed.
    pub(crate) fn commit(&self, record: Record, wal_end: Lsn) {
        self.checker.written(&record);
        self.with(|s| {
            s.history.push(Arc::new(record));
            s.wal_end = wal_end;
        });
        self.grown.notify_waiters();
    }

    /// WAL grew without anything for us.
    pub(crate) fn pass_by(&self, wal_end: Lsn) {
        self.with(|s| s.wal_end = wal_end);
    }

    pub(crate) fn confirmed(&self) -> Lsn {
        self.with(|s| s.confirmed)
    }

    /// The slot's position reaches the disk.
    pub(crate) fn checkpoint(&self) {
        self.with(|s| s.persisted = s.confirmed);
    }

    /// Connections break; the slot falls back to what was persisted.
    pub(crate) fn crash(&self) {
        let connections = self.with(|s| {
            s.confirmed = s.persisted;
            s.up = false;
            s.holder = None;
            std::mem::take(&mut s.connections)
        });
        for connection in connections {
            connection.close();
        }
    }

    pub(crate) fn restart(&self) {
        self.with(|s| s.up = true);
    }

    /// The connection that holds the slot breaks.
    pub(crate) fn cut(&self) {
        let held = self.with(|s| {
            let holder = s.holder.take();
            s.connections.iter().find(|c| Some(c.id) == holder).cloned()
        });
        if let Some(connection) = held {
            connection.close();
        }
    }

    fn release(&self, id: u64) {
        self.with(|s| {
            if s.holder == Some(id) {
                s.holder = None;
            }
            s.connections.retain(|c| c.id != id);
        });
    }
}

/// What travels to the client.
#[derive(Clone, Debug)]
enum Sent {
    Data(Lsn, Vec<u8>),
    Keepalive(Lsn, bool),
}

struct ConnectionState {
    outbox: VecDeque<Sent>,
    heard_at: Instant,
    closed: bool,
    wants_reply: bool,
}

struct Connection {
    id: u64,
    state: Mutex<ConnectionState>,
    to_client: Notify,
    to_server: Notify,
}

impl Connection {
    fn with<T>(&self, f: impl FnOnce(&mut ConnectionState) -> T) -> T {
        f(&mut self.state.lock().expect("never poisoned"))
    }

    fn close(&self) {
        self.with(|c| c.closed = true);
        self.to_client.notify_one();
        self.to_server.notify_one();
    }
}

/// The walsender of one connection.
struct Walsender {
    server: Server,
    connection: Arc<Connection>,
    known: Vec<u32>,
}

impl Walsender {
    fn is_alive(&self) -> bool {
        let holds = self.server.with(|s| s.up && s.holder == Some(self.connection.id));
        holds && self.connection.with(|c| !c.closed && c.heard_at.elapsed() < WAL_SENDER_TIMEOUT)
    }

    async fn emit(&self, sent: Sent) -> Option<()> {
        loop {
            if !self.is_alive() {
                return None;
            }
            let room = self.connection.with(|c| {
                let room = c.outbox.len() < SOCKET_FRAMES;
                if room {
                    c.outbox.push_back(sent.clone());
                }
                room
            });
            if room {
                self.connection.to_client.notify_one();
                self.server.dice.step();
                return Some(());
            }
            tokio::select! {
                biased;
                () = self.connection.to_server.notified() => {}
                () = sleep(Duration::from_secs(5)) => {}
            }
        }
    }

    async fn send(&mut self, record: &Record, sent_through: Lsn) -> Option<()> {
        let dice = self.server.dice.clone();
        for piece in &record.pieces {
            for oid in &piece.needs {
                if !self.known.contains(oid) {
                    self.known.push(*oid);
                    self.emit(Sent::Data(Lsn(0), relation(*oid))).await?;
                }
            }
            self.emit(Sent::Data(record.start, piece.bytes.clone())).await?;
            if dice.chance(10) {
                sleep(dice.millis(0, 4)).await;
            }
            if dice.chance(3) {
                self.emit(Sent::Keepalive(sent_through, dice.chance(30))).await?;
            }
        }
        Some(())
    }

    async fn serve(mut self, mut next: usize) -> Option<()> {
        let server = self.server.clone();
        let mut sent_through = Lsn(0);
        loop {
            let grown = server.grown.notified();
            if let Some(record) = server.with(|s| s.history.get(next).cloned()) {
                self.send(&record, sent_through).await?;
                sent_through = record.end;
                next += 1;
                continue;
            }
            sent_through = server.with(|s| if s.history.len() == next { s.wal_end } else { sent_through });
            if self.connection.with(|c| std::mem::take(&mut c.wants_reply)) {
                self.emit(Sent::Keepalive(sent_through, false)).await?;
            }
            let pause = server.dice.millis(500, 8_000);
            tokio::select! {
                biased;
                () = grown => {}
                () = self.connection.to_server.notified() => {}
                () = sleep(pause) => {
                    sent_through = server.with(|s| if s.history.len() == next { s.wal_end } else { sent_through });
                    self.emit(Sent::Keepalive(sent_through, server.dice.chance(30))).await?;
                }
            }
            if !self.is_alive() {
                return None;
            }
        }
    }
}

/// The server as one process reaches it.
pub(crate) struct SimSource(pub(crate) Server);

#[async_trait]
impl Source for SimSource {
    async fn connect(&self) -> Result<Box<dyn Replication>, CaptureError> {
        sleep(self.0.dice.millis(0, 20)).await;
        let connection = self.0.with(|s| {
            if !s.up {
                return Err(CaptureError::Unavailable("the server is down".into()));
            }
            let id = s.next_connection;
            s.next_connection += 1;
            let state = ConnectionState { outbox: VecDeque::new(), heard_at: Instant::now(), closed: false, wants_reply: false };
            let connection = Connection { id, state: Mutex::new(state), to_client: Notify::new(), to_server: Notify::new() };
            let connection = Arc::new(connection);
            s.connections.push(connection.clone());
            Ok((
                connection,
                SystemIdentity {
                    system_id: 7_000_000_000_000_000_001,
                    timeline: 1,
                    wal_flush: s.wal_end,
                    sender_timeout: Some(WAL_SENDER_TIMEOUT),
                    ..SystemIdentity::default()
                },
            ))
        });
        let (connection, identity) = connection?;
        Ok(Box::new(SimReplication {
            server: self.0.clone(),
            connection,
            identity,
            ready: VecDeque::new(),
            current: Sent::Keepalive(Lsn(0), false),
        }))
    }

    async fn look(&self) -> Result<Looked, CaptureError> {
        sleep(self.0.dice.millis(0, 20)).await;
        self.0.with(|s| {
            if !s.up {
                return Err(CaptureError::Unavailable("the server is down".into()));
            }
            let slot = SlotLook { restart: Some(s.persisted), confirmed: Some(s.confirmed), ..SlotLook::default() };
            Ok(Looked { wal: s.wal_end, slot: Some(slot), keep_bytes: None })
        })
    }
}

struct SimReplication {
    server: Server,
    connection: Arc<Connection>,
    identity: SystemIdentity,
    /// What the client has read from its socket.
    ready: VecDeque<Sent>,
    current: Sent,
}

fn lost() -> CaptureError {
    CaptureError::Unavailable("the connection was lost".into())
}

#[async_trait]
impl Replication for SimReplication {
    fn identity(&self) -> &SystemIdentity {
        &self.identity
    }

    async fn start(&mut self) -> Result<(), CaptureError> {
        sleep(self.server.dice.millis(0, 10)).await;
        let id = self.connection.id;
        let next = self.server.with(|s| {
            if self.connection.with(|c| c.closed) || !s.up {
                return Err(lost());
            }
            if s.holder.is_some() {
                return Err(CaptureError::SlotActive { slot: "model".into(), pid: 42, holder: None });
            }
            s.holder = Some(id);
            Ok(s.history.iter().position(|r| r.start >= s.confirmed).unwrap_or(s.history.len()))
        })?;
        self.connection.with(|c| c.heard_at = Instant::now());
        let walsender = Walsender { server: self.server.clone(), connection: self.connection.clone(), known: Vec::new() };
        tokio::spawn(async move {
            let (server, connection) = (walsender.server.clone(), walsender.connection.clone());
            walsender.serve(next).await;
            server.release(connection.id);
            connection.close();
        });
        Ok(())
    }

    async fn fill(&mut self, _behind: bool) -> Result<(), CaptureError> {
        loop {
            let (moved, closed) = self.connection.with(|c| {
                let n = match c.outbox.len() {
                    0 => 0,
                    n => self.server.dice.below(n) + 1,
                };
                self.ready.extend(c.outbox.drain(..n));
                (n > 0, c.closed)
            });
            if moved {
                self.connection.to_server.notify_one();
                return Ok(());
            }
            if closed {
                return Err(lost());
            }
            self.connection.to_client.notified().await;
        }
    }

    fn next(&mut self) -> Result<Option<Frame<'_>>, CaptureError> {
        let Some(sent) = self.ready.pop_front() else { return Ok(None) };
        self.current = sent;
        Ok(Some(match &self.current {
            Sent::Data(at, data) => Frame::XLogData { wal_start: *at, wal_end: *at, data },
            Sent::Keepalive(wal_end, reply_requested) => Frame::Keepalive { wal_end: *wal_end, reply_requested: *reply_requested },
        }))
    }

    async fn send_status(&mut self, status: StandbyStatus) -> Result<(), CaptureError> {
        let dead = self.connection.with(|c| {
            c.heard_at = Instant::now();
            c.wants_reply |= status.reply_requested;
            c.closed
        });
        let holds = self.server.with(|s| s.holder == Some(self.connection.id));
        if dead || !holds {
            // Written to a socket that nobody reads: sometimes that is an error, sometimes it looks fine.
            return if self.server.dice.chance(50) { Ok(()) } else { Err(lost()) };
        }
        let moved = self.server.with(|s| {
            let moved = status.flush > s.confirmed;
            s.confirmed = s.confirmed.max(status.flush);
            moved
        });
        if moved {
            self.server.checker.acknowledged(status.flush);
            self.server.dice.step();
        }
        self.connection.to_server.notify_one();
        Ok(())
    }

    async fn sip(&mut self) -> Result<(), CaptureError> {
        Ok(())
    }

    async fn stop(&mut self) {
        self.server.release(self.connection.id);
        self.connection.close();
    }
}

impl Drop for SimReplication {
    /// The process is gone, or has dropped the connection: the server notices at once or a little later.
    fn drop(&mut self) {
        let (server, connection) = (self.server.clone(), self.connection.clone());
        let pause = if server.dice.chance(50) { Duration::ZERO } else { server.dice.millis(1, 3_000) };
        tokio::spawn(async move {
            sleep(pause).await;
            server.release(connection.id);
            connection.close();
        });
    }
}
