//! Resolved configuration: checked, with units, secrets in a redacting type.
//!
//! ```text
//! file ─document─▶ text ─tree─▶ keys and values with places ─check, beside the key table─▶ checked values ─raw─▶ Pipeline
//!                                                                       └──────── problems ────────▶ Report
//! ```
//!
//! A deserializer stops at its first error, so files become a tree first and are judged as a whole.
//! Resolving is pure but for the secrets it is told to read (`${env:NAME}`, `${file:PATH}`); `validate` and `doctor`
//! do the touching.

pub mod calendar;
mod check;
mod colocation;
mod document;
pub mod golden;
mod keys;
pub mod overlay;
mod raw;
mod report;
pub mod schema;
mod secrets;
pub mod settings;
mod tree;
pub mod units;

use std::collections::BTreeMap;
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretString;
use tillstream_connectors::mapping::{Case, Mapping};
use tillstream_connectors::registry::Target;
pub use tillstream_connectors::sink::OnDelete;
use tillstream_schemas::{HashKey, Op, Policy};

pub(crate) use check::nearest;
pub use keys::reference;
pub use raw::{
    CheckedFile, FileText, Tested, blame, changed_keys, check_files, connector_paths, load, load_connectors, load_file, load_tests,
    warnings,
};
pub use report::{Code, Problem, Report};
pub use secrets::Secrets;

/// A whole pipeline: one source, one journal, its connectors.
#[derive(Debug)]
pub struct Pipeline {
    /// Name of the pipeline: `[a-z0-9_-]{1,40}`; part of producer names and `application_name`.
    pub name: String,
    /// The database that is captured.
    pub source: Source,
    /// Where changes are stored.
    pub journal: Journal,
    /// The admin endpoint.
    pub admin: Admin,
    /// What backfills spare the source and the targets.
    pub protect: Protect,
    /// By `schema.table` an indexed column that every change of a row moves forward.
    pub changed_at: BTreeMap<String, String>,
    /// How often a canary is sent; `None` for never.
    pub canary: Option<Duration>,
    /// What is delivered where.
    pub connectors: Vec<Connector>,
}

/// What backfills spare the source and the targets.
#[derive(Debug, Clone, PartialEq)]
pub struct Protect {
    /// When the source is busy.
    pub peak: Option<calendar::Calendar>,
    /// What backfills do then.
    pub in_peak: InPeak,
    /// Other active sessions at the source from which backfills trickle.
    pub active_sessions: u32,
    /// Sessions that wait for locks from which backfills trickle.
    pub lock_waits: u32,
    /// Replay lag of the source's standbys from which backfills pause.
    pub replica_lag: Duration,
    /// WAL left before the slot is in danger below which backfills pause, in bytes.
    pub wal_budget: u64,
    /// WAL between source and journal from which backfills pause, in bytes.
    pub capture_lag: u64,
    /// Percent of what a target takes that backfills may use.
    pub sink_share: u32,
}

/// What backfills do in a peak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum InPeak {
    /// Nothing.
    #[default]
    Pause,
    /// Little.
    Trickle,
}

impl Default for Protect {
    fn default() -> Self {
        Protect {
            peak: None,
            in_peak: InPeak::Pause,
            active_sessions: 16,
            lock_waits: 4,
            replica_lag: Duration::from_secs(10),
            wal_budget: 256 << 20,
            capture_lag: 256 << 20,
            sink_share: 30,
        }
    }
}

/// The database that is captured.
#[derive(Debug, Clone)]
pub struct Source {
    /// Stable name: part of entry headers and fact keys. `[a-z0-9_-]{1,40}`.
    pub name: String,
    /// libpq URL of the role that streams (`sslmode`, `sslrootcert`, `sslcert`, `sslkey` understood).
    pub url: SecretString,
    /// URL of the role that reads tables for backfills; the stream's when absent.
    pub backfill_url: Option<SecretString>,
    /// Replication slot.
    pub slot: String,
    /// Publication.
    pub publication: String,
    /// What is captured; the publication must hold exactly these.
    pub tables: Vec<SourceTable>,
    /// How long a commit stays unacknowledged after its confirm, so that PostgreSQL can refill a broker that lost its unsynced tail.
    pub hold_back: HoldBack,
    /// Most WAL bytes that may be kept for the slot before everything is done to free it; the server's own limit counts when it is lower.
    pub wal_budget: u64,
    /// Read rows older than the slot when there is no record of an initial load.
    pub initial_load: bool,
    /// Accept `password` and `md5` authentication as well as SCRAM-SHA-256.
    pub allow_weak_auth: bool,
    /// What becomes of columns before they reach the journal.
    pub columns: ColumnRules,
    /// Whether large transactions come before they commit.
    pub streaming: Streaming,
    /// Whose changes are captured.
    pub origin: Origin,
}

/// Whose changes are captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Origin {
    /// Everybody's.
    #[default]
    Any,
    /// Only those made on this server: none that it replicated from another one.
    None,
}

/// Whether the server sends large transactions before they commit, and what they may take here until then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Streaming {
    /// They come before they commit.
    pub on: bool,
    /// Most bytes of them that may wait for their commit.
    pub spool_max: u64,
}

impl Default for Streaming {
    fn default() -> Self {
        Streaming { on: false, spool_max: 4 << 30 }
    }
}

/// What becomes of columns before they reach the journal.
#[derive(Debug, Clone, Default)]
pub struct ColumnRules {
    /// Policies by (schema, table) and column.
    pub tables: BTreeMap<(String, String), BTreeMap<String, Policy>>,
    /// Columns that have no policy do not appear, but for key columns.
    pub hold_new: bool,
    /// The key of hashed columns.
    pub hash_key: Option<Arc<HashKey>>,
}

impl ColumnRules {
    /// The policies of a table.
    #[must_use]
    pub fn of(&self, schema: &str, table: &str) -> Option<&BTreeMap<String, Policy>> {
        // A map of pairs of texts cannot be asked by borrowed ones; there are tens of tables.
        self.tables.iter().find(|((s, t), _)| s == schema && t == table).map(|(_, policies)| policies)
    }
}

/// One captured table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceTable {
    /// Namespace.
    pub schema: String,
    /// Name.
    pub table: String,
    /// Columns whose values choose the partition; `None` means the replica identity's columns.
    pub partition_by: Option<Vec<String>>,
}

/// Bounds of the hold-back window; whichever is reached first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HoldBack {
    /// Longest time.
    pub time: Duration,
    /// Most WAL bytes.
    pub bytes: u64,
}

/// Where changes are stored.
#[derive(Debug, Clone)]
pub enum Journal {
    /// RabbitMQ streams.
    Rabbitmq(RabbitJournal),
    /// A SQLite file: a laptop, a single small site.
    Local(LocalJournal),
}

impl Journal {
    /// When its entries may go.
    #[must_use]
    pub fn retention(&self) -> Retention {
        match self {
            Journal::Rabbitmq(journal) => journal.retention,
            Journal::Local(journal) => journal.retention,
        }
    }
}

/// RabbitMQ streams: `<stream>` with one partition, `<stream>-0..n` as a super stream with several, `<stream>.control` beside them.
#[derive(Debug, Clone)]
pub struct RabbitJournal {
    /// `rabbitmq-stream://user:password@host:5552/vhost`, or `rabbitmq-stream+tls://…:5551/…`; tried in turn.
    pub urls: Vec<SecretString>,
    /// Stream name.
    pub stream: String,
    /// Data partitions.
    pub partitions: NonZeroU16,
    /// Replicas per stream; `None` leaves it to the broker.
    pub replicas: Option<u8>,
    /// Segment size in bytes; retention works on whole segments.
    pub segment_bytes: u64,
    /// Retention of the data logs.
    pub retention: Retention,
    /// The largest frame we offer to the broker, in bytes.
    pub frame_max: u32,
    /// Compression of published batches.
    pub compression: Compression,
    /// Extra trusted CA for TLS (PEM), beside the system's.
    pub tls_ca: Option<PathBuf>,
}

/// A SQLite file.
#[derive(Debug, Clone)]
pub struct LocalJournal {
    /// Directory of the file; created when missing.
    pub dir: PathBuf,
    /// Data partitions.
    pub partitions: NonZeroU16,
    /// Retention of the data logs.
    pub retention: Retention,
}

/// When old entries may go; whichever is reached first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Retention {
    /// By age.
    pub age: Option<Duration>,
    /// By size, bytes per partition.
    pub bytes: Option<u64>,
}

/// Compression of published batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    /// None.
    None,
    /// LZ4 frames: a sixth of the network and the disk, and less work for the broker than it is for us.
    #[default]
    Lz4,
}

/// The admin endpoint: console, API, metrics.
#[derive(Debug, Clone)]
pub struct Admin {
    /// Address to listen on; loopback unless asked otherwise.
    pub listen: std::net::SocketAddr,
    /// Who may do what; empty: whoever reaches loopback may do everything.
    pub tokens: Vec<AdminToken>,
    /// What it proves itself with; without it there is no encryption.
    pub tls: Option<AdminTls>,
}

impl Admin {
    /// Why it must not listen at this address; `None` when it may.
    #[must_use]
    pub fn exposed_at(&self, listen: std::net::SocketAddr) -> Option<&'static str> {
        match (listen.ip().is_loopback(), self.tokens.is_empty(), self.tls.is_none()) {
            (true, ..) | (false, false, false) => None,
            (false, true, _) => Some("it listens beyond this machine and asks nobody who they are"),
            (false, false, true) => Some("it listens beyond this machine, and tokens would travel unencrypted"),
        }
    }
}

/// Somebody who may use the admin endpoint.
#[derive(Debug, Clone)]
pub struct AdminToken {
    /// Who; stands in the audit.
    pub name: String,
    /// What this one may do.
    pub role: Role,
    /// The token itself.
    pub token: secrecy::SecretString,
}

/// What somebody may do; each includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Look, with the values of rows masked.
    Viewer,
    /// What can be taken back and loses nothing.
    Operator,
    /// Everything.
    Admin,
}

impl Role {
    /// The word in files and answers.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Viewer => "viewer",
            Role::Operator => "operator",
            Role::Admin => "admin",
        }
    }
}

/// Files that the admin endpoint proves itself with.
#[derive(Debug, Clone)]
pub struct AdminTls {
    /// PEM: the certificate, then those between it and its authority.
    pub certificate: std::path::PathBuf,
    /// PEM: its private key.
    pub key: std::path::PathBuf,
}

/// What one connector delivers, and how.
#[derive(Debug, Clone)]
pub struct Connector {
    /// Name: `[a-z0-9_-]{1,40}`; part of idempotency keys, metrics and checkpoints.
    pub name: String,
    /// Which tables, as (schema, table).
    pub tables: Vec<(String, String)>,
    /// Which operations.
    pub ops: Vec<Op>,
    /// What a deleted row does in the target.
    pub on_delete: OnDelete,
    /// What is wanted of them and what is sent; `None` when all are, in the sink's own form.
    pub mapping: Option<Arc<Mapping>>,
    /// What `tillstream test` checks.
    pub tests: Vec<Case>,
    /// The checked `to:` block.
    pub target: Arc<dyn Target>,
    /// The kind's name, as `sql`.
    pub kind: &'static str,
    /// How events are grouped and how many are under way.
    pub delivery: Delivery,
    /// How failures are repeated.
    pub retry: Retry,
    /// What is kept of the journal for the mapping.
    pub keep: Keep,
    /// What the file's references yielded, to be kept out of whatever is shown.
    pub secrets: Secrets,
    /// What it does when a table changes its layout.
    pub schema_change: SchemaChange,
}

/// What a connector does when a table of its own has another layout from some event on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SchemaChange {
    /// It goes on, and stops before an event that lacks a column which it uses and the table had before.
    #[default]
    Adapt,
    /// It stops before the first event of every layout that it has not met.
    Pause,
    /// It goes on, and an event that lacks such a column is a dead letter.
    DeadLetter,
}

/// What is kept of the journal for a connector's mapping, beside what it looks up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// Whether an update or a deletion comes with the row's last image where the server sends none.
    pub images: bool,
    /// Most bytes of rows, in each partition; of a transaction that is one fact a quarter of it.
    pub memory: u64,
}

impl Default for Keep {
    fn default() -> Self {
        Keep { images: false, memory: 256 << 20 }
    }
}

/// How events are grouped and how many are under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delivery {
    /// Lanes per partition: events of one row share a lane.
    pub lanes: NonZeroU16,
    /// Most events in one call.
    pub batch_items_max: usize,
    /// Most body bytes in one call.
    pub batch_bytes_max: usize,
    /// How long a lane waits for more events before it sends what it has.
    pub linger: Duration,
    /// Most calls in the air at once, all lanes and partitions of a process together; `None`: one a lane.
    pub in_flight: Option<usize>,
    /// Most events in a time, all processes together: what the file says, else what the target's maker documents.
    pub rate: Option<Rate>,
    /// Longest time of one call; `None`: the sink's own.
    pub timeout: Option<Duration>,
}

/// A number of events in a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// How many; at least one.
    pub events: u64,
    /// In how long.
    pub per: Duration,
}

impl Rate {
    /// Events a second.
    #[must_use]
    pub fn per_second(self) -> f64 {
        self.events as f64 / self.per.as_secs_f64()
    }
}

/// As files write it: `20/s`.
impl std::fmt::Display for Rate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.per.as_secs() {
            1 => write!(f, "{}/s", self.events),
            60 => write!(f, "{}/m", self.events),
            3600 => write!(f, "{}/h", self.events),
            _ => write!(f, "{}/{}ms", self.events, self.per.as_millis()),
        }
    }
}

/// What becomes of later events of a row while one of them waits for its turn or its repetition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Later {
    /// They wait behind it: each of them counts.
    Wait,
    /// The newest one takes its place: only the row's last state counts.
    Supersede,
}

/// How failures are repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// First delay.
    pub base: Duration,
    /// Longest delay.
    pub max: Duration,
    /// When an event whose own failures look transient becomes a dead letter; `None`: never. A target that is away as a whole never counts.
    pub give_up_after: Option<Duration>,
    /// What later events of a row do meanwhile.
    pub later: Later,
}
