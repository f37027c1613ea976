//! Every key of the two kinds of file, once: type, need, default and meaning. The checker walks it and the reference is printed from it.

/// What a value must be.
#[derive(Debug)]
pub(crate) enum Type {
    /// The number 1.
    Version,
    /// `[a-z0-9_-]{1,40}`, beginning with a letter or digit.
    Name,
    /// A PostgreSQL slot's name: `[a-z0-9_]{1,63}`.
    SlotName,
    /// Any text that is not empty.
    Text,
    /// A URL with one of these schemes; may hold a password, so it is kept redacted.
    Url(&'static [&'static str]),
    /// `true` or `false`.
    Bool,
    /// A whole number within bounds.
    Count(u64, u64),
    /// A duration with unit, within bounds in milliseconds.
    Duration(u64, u64),
    /// So many events in a time, as `20/s`.
    Rate,
    /// A size with unit, within bounds in bytes.
    Size(u64, u64),
    /// A path; relative ones begin at the file.
    Path,
    /// `address:port`.
    Address,
    /// `schema.table`.
    Table,
    /// A column's name.
    Column,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// One or more.
    List(&'static Type),
    /// A map from `schema.table`.
    PerTable(&'static Type),
    /// A map from columns.
    PerColumn(&'static Type),
    /// What becomes of a column.
    Policy,
    /// A secret text; kept redacted.
    Secret,
    /// A block of keys.
    Block(&'static [Key]),
    /// A block with exactly one of these keys.
    OneOf(&'static [Key]),
    /// `{<kind of sink>: {…}}`.
    Sink,
    /// What whoever uses it checks.
    Tree,
}

/// Whether a key has to be there.
#[derive(Debug)]
pub(crate) enum Need {
    /// It has to, and this is an example to show when it is not.
    Required(&'static str),
    /// It may be missing; the text says what that means.
    Optional(&'static str),
    /// It may be missing and then has this value, written as in the file.
    Default(&'static str),
    /// A block that may be missing and then stands for an empty one: the defaults of its keys.
    Implied,
}

/// One key.
#[derive(Debug)]
pub(crate) struct Key {
    pub(crate) name: &'static str,
    pub(crate) ty: Type,
    pub(crate) need: Need,
    /// One sentence for the reference.
    pub(crate) doc: &'static str,
}

const fn key(name: &'static str, ty: Type, need: Need, doc: &'static str) -> Key {
    Key { name, ty, need, doc }
}

use Need::{Default, Implied, Optional, Required};

const SECOND: u64 = 1000;
const HOUR: u64 = 3_600_000;
const DAY: u64 = 24 * HOUR;
const MIB: u64 = 1 << 20;
const TIB: u64 = 1 << 40;

const RETENTION: [Key; 2] = [
    key("age", Type::Duration(SECOND, 3660 * DAY), Optional("not limited by age"), "Entries older than this may go."),
    key("bytes", Type::Size(MIB, 1024 * TIB), Optional("not limited by size"), "What a partition holds beyond this may go, oldest first."),
];

const RABBITMQ: [Key; 9] = [
    key(
        "urls",
        Type::List(&Type::Url(&["rabbitmq-stream", "rabbitmq-stream+tls"])),
        Required("urls: [\"rabbitmq-stream://user:${env:BROKER_PASSWORD}@127.0.0.1:5552/%2f\"]"),
        "Stream endpoints of the brokers, tried in turn.",
    ),
    key(
        "stream",
        Type::Text,
        Required("stream: pos"),
        "Name of the stream; with several partitions of the super stream. The control log is `<stream>.control`.",
    ),
    key("partitions", Type::Count(1, 512), Default("1"), "Data partitions; fixed once the stream exists."),
    key("replicas", Type::Count(1, 9), Optional("left to the broker"), "Replicas of each stream."),
    key("segment", Type::Size(MIB, 3 << 30), Default("128MiB"), "Size of a segment file; retention removes whole segments."),
    key("retention", Type::Block(&RETENTION), Optional("7 days"), "When old entries may go, whichever limit is reached first."),
    key("frame_max", Type::Size(64 << 10, 64 * MIB), Default("1MiB"), "Largest frame offered to the broker; the broker may lower it."),
    key("compression", Type::Choice(&["none", "lz4"]), Default("lz4"), "Compression of published batches."),
    key("tls", Type::Block(&TLS), Optional("the system's certificate authorities"), "Trust for `rabbitmq-stream+tls` URLs."),
];

const TLS: [Key; 1] = [key("ca", Type::Path, Required("ca: ca.pem"), "PEM file of a certificate authority trusted beside the system's.")];

const LOCAL: [Key; 3] = [
    key("dir", Type::Path, Required("dir: ./journal"), "Directory of the journal's file; created when missing."),
    key("partitions", Type::Count(1, 64), Default("1"), "Data partitions; fixed once the file exists."),
    key("retention", Type::Block(&RETENTION), Optional("7 days"), "When old entries may go, whichever limit is reached first."),
];

const JOURNAL: [Key; 2] = [
    key("rabbitmq", Type::Block(&RABBITMQ), Optional("then `local`"), "RabbitMQ streams (3.13 or newer)."),
    key("local", Type::Block(&LOCAL), Optional("then `rabbitmq`"), "One SQLite file, for one machine."),
];

const HOLD_BACK: [Key; 2] = [
    key(
        "time",
        Type::Duration(0, HOUR),
        Default("60s"),
        "Longest time a confirmed commit stays unacknowledged; ten seconds once none follows.",
    ),
    key(
        "bytes",
        Type::Size(0, TIB),
        Default("256MiB"),
        "Most WAL that stays unacknowledged for this reason; at most a quarter of `wal_budget`.",
    ),
];

const HASH_KEY: [Key; 2] = [
    key("id", Type::Name, Required("id: k1"), "Stands in every hash, so that values of a later key can be told from these."),
    key("secret", Type::Secret, Required("secret: ${env:COLUMN_KEY}"), "The key; sixteen bytes or more."),
];

const SOURCE: [Key; 18] = [
    key("name", Type::Name, Required("name: pos"), "Stable name of the database; part of event headers and fact keys, so never change it."),
    key(
        "url",
        Type::Url(&["postgres", "postgresql"]),
        Required("url: postgres://tillstream:${env:POS_PASSWORD}@db.example/pos"),
        "Connection of the role that streams; `sslmode`, `sslrootcert`, `sslcert` and `sslkey` are understood.",
    ),
    key(
        "backfill_url",
        Type::Url(&["postgres", "postgresql"]),
        Optional("`url`"),
        "Connection of the role that reads tables for backfills.",
    ),
    key("slot", Type::SlotName, Required("slot: tillstream"), "Replication slot."),
    key("publication", Type::Text, Required("publication: tillstream"), "Publication."),
    key("tables", Type::List(&Type::Table), Required("tables: [public.orders]"), "What is captured; the publication holds exactly these."),
    key(
        "partition_by",
        Type::PerTable(&Type::List(&Type::Column)),
        Optional("the replica identity's columns"),
        "Columns whose values choose the journal partition, by table.",
    ),
    key(
        "hold_back",
        Type::Block(&HOLD_BACK),
        Optional("60s and 256MiB with rabbitmq, nothing with local"),
        "How long PostgreSQL keeps what is already confirmed, so that a broker that lost power can be refilled; whichever limit is reached first.",
    ),
    key(
        "wal_budget",
        Type::Size(16 * MIB, 1024 * TIB),
        Default("5GiB"),
        "WAL that the server may keep for the slot: a warning at a quarter, an error at 60 %, at 90 % nothing is held back any more; max_slot_wal_keep_size counts when it is lower.",
    ),
    key("initial_load", Type::Bool, Default("true"), "Read the rows that are older than the slot, once."),
    key(
        "changed_at",
        Type::PerTable(&Type::Column),
        Optional("`--since` is refused"),
        "An indexed column that every change of a row moves forward, by table: what `backfill start --since` goes by.",
    ),
    key("allow_weak_auth", Type::Bool, Default("false"), "Accept password and md5 authentication beside SCRAM-SHA-256."),
    key(
        "columns",
        Type::PerTable(&Type::PerColumn(&Type::Policy)),
        Optional("every column passes"),
        "What becomes of columns before they reach the journal: pass, drop, null, mask, hash or truncate(N), by table and column. Not for key columns.",
    ),
    key(
        "on_new_column",
        Type::Choice(&["pass", "hold"]),
        Default("pass"),
        "Whether a column that `columns` does not name passes or is held back until it is named there.",
    ),
    key("hash_key", Type::Block(&HASH_KEY), Optional("no column is hashed"), "The key of hashed columns."),
    key(
        "streaming",
        Type::Choice(&["off", "on"]),
        Default("off"),
        "Whether the server sends large transactions before they commit, to be kept in nameless files of the temporary directory (TMPDIR), as the server sends them, instead of on its own disk; events, ids and order are the same.",
    ),
    key("spool_max", Type::Size(MIB, 1024 * TIB), Default("4GiB"), "What transactions may take there before they commit, all together."),
    key(
        "origin",
        Type::Choice(&["any", "none"]),
        Default("any"),
        "Whether changes that the server replicated from another one are captured too, or only its own (none; PostgreSQL 16 and newer). A load reads all rows either way.",
    ),
];

const ADMIN: [Key; 3] = [
    key(
        "listen",
        Type::Address,
        Default("127.0.0.1:7410"),
        "Address of the console, the API, /metrics and /healthz; beyond this machine only with `tokens` and `tls`.",
    ),
    key(
        "tokens",
        Type::List(&Type::Block(&ADMIN_TOKEN)),
        Optional("whoever reaches the address on this machine may do everything"),
        "Who may do what.",
    ),
    key(
        "tls",
        Type::Block(&ADMIN_TLS),
        Optional("without encryption, on this machine only"),
        "What the console and the API prove themselves with.",
    ),
];

const ADMIN_TOKEN: [Key; 3] = [
    key("name", Type::Name, Required("name: dana"), "Who it is; stands in the audit."),
    key(
        "role",
        Type::Choice(&["viewer", "operator", "admin"]),
        Required("role: viewer"),
        "What this one may do: look, with values masked (viewer); also what can be taken back and loses nothing, as redrives and backfills (operator); everything (admin).",
    ),
    key(
        "token",
        Type::Secret,
        Required("token: ${file:dana.token}"),
        "What is sent as `Authorization: Bearer …`, or typed in once for the console.",
    ),
];

const ADMIN_TLS: [Key; 2] = [
    key(
        "certificate",
        Type::Path,
        Required("certificate: server.pem"),
        "PEM file with the certificate and those between it and its authority.",
    ),
    key("key", Type::Path, Required("key: server.key"), "PEM file with the certificate's private key."),
];

const PROTECT: [Key; 9] = [
    key("timezone", Type::Text, Default("UTC"), "Time zone of `peak`, as America/Chicago."),
    key("peak", Type::List(&Type::Text), Optional("no peak"), "When the source is busy, as `Mon-Fri 11:00-14:00` or `daily 17:00-21:30`."),
    key("in_peak", Type::Choice(&["pause", "trickle"]), Default("pause"), "What backfills do in a peak."),
    key("active_sessions", Type::Count(1, 10_000), Default("16"), "Other active sessions at the source from which backfills trickle."),
    key("lock_waits", Type::Count(1, 10_000), Default("4"), "Sessions that wait for locks from which backfills trickle."),
    key("replica_lag", Type::Duration(100, HOUR), Default("10s"), "Replay lag of the source's standbys from which backfills pause."),
    key("wal_budget", Type::Size(MIB, TIB), Default("256MiB"), "WAL left before the slot is in danger below which backfills pause."),
    key("capture_lag", Type::Size(MIB, TIB), Default("256MiB"), "WAL between source and journal from which backfills pause."),
    key(
        "sink_share",
        Type::Count(1, 100),
        Default("30"),
        "Percent of what a target takes that backfills may use; the initial load is exempt.",
    ),
];

const CANARY: [Key; 1] = [key(
    "every",
    Type::Duration(SECOND, HOUR),
    Default("10s"),
    "How often one is sent. Each is a small transaction at the source, a connection of its own, and an entry in every partition of the journal.",
)];

/// Keys of a pipeline file.
pub(crate) const PIPELINE: [Key; 8] = [
    key("version", Type::Version, Required("version: 1"), "Version of this file format."),
    key("pipeline", Type::Name, Required("pipeline: shop"), "Name of the pipeline; part of producer names and `application_name`."),
    key("source", Type::Block(&SOURCE), Required("source: {name: pos, …}"), "The database that is captured."),
    key("journal", Type::OneOf(&JOURNAL), Required("journal: {local: {dir: ./journal}}"), "Where changes are stored."),
    key("admin", Type::Block(&ADMIN), Implied, "The admin endpoint."),
    key("protect", Type::Block(&PROTECT), Implied, "What backfills spare the source and the targets."),
    key(
        "canary",
        Type::Block(&CANARY),
        Optional("none is sent"),
        "A logical message that capture writes at the source and times through every stage to each connector, also while no row changes.",
    ),
    key("connectors", Type::List(&Type::Path), Optional("nothing is delivered"), "Connector files."),
];

const FROM: [Key; 3] = [
    key("tables", Type::List(&Type::Table), Required("tables: [public.orders]"), "Which tables; each must be in the source's list."),
    key("ops", Type::List(&Type::Choice(&OPS)), Default("[insert, update, delete, truncate, read]"), "Which operations."),
    key(
        "before",
        Type::Choice(&["sent", "kept"]),
        Default("sent"),
        "What `before` is where the server sends no old row (replica identity DEFAULT): nothing, or the row's last image, kept in memory from the journal.",
    ),
];

/// Operations a connector may ask for.
pub(crate) const OPS: [&str; 6] = ["insert", "update", "delete", "truncate", "read", "message"];

const BATCH: [Key; 3] = [
    key("items", Type::Count(1, 100_000), Default("500"), "Most events in one call."),
    key("bytes", Type::Size(1024, 256 * MIB), Default("1MiB"), "Most event bytes in one call."),
    key("linger", Type::Duration(0, 60 * SECOND), Default("10ms"), "How long a lane waits for more events before it sends what it has."),
];

const DELIVERY: [Key; 5] = [
    key("lanes", Type::Count(1, 256), Default("4"), "Ordered queues per partition; events of one row share a lane."),
    key("batch", Type::Block(&BATCH), Implied, "How events are grouped."),
    key(
        "in_flight",
        Type::Count(1, 10_000),
        Optional("one a lane"),
        "Most calls in the air at once in a process; fewer while the target asks for pauses or becomes slow.",
    ),
    key(
        "rate",
        Type::Rate,
        Optional("what the vendor documents (klaviyo: 3500/m, of profiles 750/m), else not limited"),
        "Most events in a time, as 20/s or 750/m, over all processes that share the connector; batches become small enough to keep it.",
    ),
    key(
        "timeout",
        Type::Duration(100, HOUR),
        Optional("the sink's own"),
        "Longest time of one call; what became of its events is unknown then, and they are sent again under the same keys.",
    ),
];

const RETRY: [Key; 4] = [
    key("base", Type::Duration(1, HOUR), Default("200ms"), "First delay; it doubles, with jitter."),
    key("max", Type::Duration(1, DAY), Default("30s"), "Longest delay."),
    key(
        "give_up_after",
        Type::Duration(SECOND, 366 * DAY),
        Optional("never"),
        "When an event that alone keeps failing becomes a dead letter; a target that is away as a whole never counts.",
    ),
    key(
        "later",
        Type::Choice(&["wait", "supersede"]),
        Default("wait"),
        "What later events of a row do while one of them waits: stand behind it, or take its place (rows as states, of which the newest is enough; never for facts).",
    ),
];

/// Keys of a connector file.
pub(crate) const CONNECTOR: [Key; 17] = [
    key("version", Type::Version, Required("version: 1"), "Version of this file format."),
    key("connector", Type::Name, Required("connector: inventory"), "Name; part of idempotency keys, metrics and checkpoints."),
    key("from", Type::Block(&FROM), Required("from: {tables: [public.orders]}"), "What is delivered."),
    key(
        "on_delete",
        Type::Choice(&["tombstone", "delete", "ignore"]),
        Required("on_delete: tombstone"),
        "What a deleted row does in the target; there is no default because each answer is wrong somewhere.",
    ),
    key(
        "schema_change",
        Type::Choice(&["adapt", "pause", "dead-letter"]),
        Default("adapt"),
        "What happens when a table changes its layout: go on, and stop before the first event without a column that is used here (adapt); stop before the first event of any new layout (pause); go on, and make dead letters of the events without such a column (dead-letter).",
    ),
    key("to", Type::Sink, Required("to: {sql: {…}}"), "The sink and its settings."),
    key(
        "when",
        Type::Text,
        Optional("all of them"),
        "An expression that is true for the events to deliver, as `\"{{ row.active }}\"`; `row` is the row after the change, of a deleted one what is known of it.",
    ),
    key(
        "key",
        Type::Text,
        Optional("the row"),
        "What an output is about, as `\"{{ after.order_id }}\"`: outputs with one key are delivered in order. With `group` it also says which events of a transaction belong together.",
    ),
    key(
        "each",
        Type::Text,
        Optional("one output an event"),
        "An expression for a list: each of its items is an output of its own, and is `item` (and `index`) in `id`, `key` and `map`. Needs `id`.",
    ),
    key(
        "id",
        Type::Text,
        Optional("the event's own id"),
        "Names the business fact that an output states, as `\"sale:{{ key.id }}\"`: the idempotency key is made of it, so that a fact is stated once, whatever event tells it.",
    ),
    key(
        "lookup",
        Type::Tree,
        Optional("nothing is looked up"),
        "Rows of other tables that expressions find, kept in memory from the journal: `item: {table: public.menu_item, by: id}`, then `lookup('item', after.item_id)`. `many: true` finds a list, `missing: none` lets an event pass that finds nothing, `columns` says what to keep.",
    ),
    key(
        "group",
        Type::Choice(&["transaction"]),
        Optional("each event is one"),
        "Makes one event of all those of a transaction (of each `key` in it): `events` is their list. `when` and `key` are asked of each.",
    ),
    key(
        "memory",
        Type::Size(MIB, TIB),
        Default("256MiB"),
        "What rows for `lookup` and `before: kept` may take in each partition, and four times what a transaction may that is one event; the connector stops where it is not enough.",
    ),
    key(
        "map",
        Type::Tree,
        Optional("the sink's own form"),
        "The JSON that is sent, for kinds that take JSON: texts may hold expressions, as `total: \"{{ after.total | minor }}\"`. Truncates are not delivered then.",
    ),
    key(
        "tests",
        Type::Tree,
        Optional("none"),
        "What `tillstream test` checks: a list of {name, given: {op, table, after, …} or a transaction's list of them, lookup: {public.table: [rows]}, expect: the JSON, or with `each` a list of them, `filtered`, `whole` or {fails: LEAF}}.",
    ),
    key("delivery", Type::Block(&DELIVERY), Implied, "How events are grouped and how many are under way."),
    key("retry", Type::Block(&RETRY), Implied, "How failures are repeated."),
];

impl Type {
    /// For messages and the reference.
    pub(crate) fn describe(&self) -> String {
        match self {
            Type::Version => "the number 1".to_owned(),
            Type::Name => "a name (a-z, 0-9, `_`, `-`; at most 40 characters)".to_owned(),
            Type::SlotName => "a slot name (a-z, 0-9, `_`; at most 63 characters)".to_owned(),
            Type::Text => "a text".to_owned(),
            Type::Url(schemes) => {
                format!("a URL beginning with {}", schemes.iter().map(|s| format!("{s}://")).collect::<Vec<_>>().join(" or "))
            }
            Type::Bool => "true or false".to_owned(),
            Type::Count(min, max) => format!("a whole number from {min} to {max}"),
            Type::Duration(..) => "a duration with unit, as 30s".to_owned(),
            Type::Rate => "a number of events in a time, as 20/s or 750/m".to_owned(),
            Type::Size(..) => "a size with unit, as 8MiB".to_owned(),
            Type::Path => "a path".to_owned(),
            Type::Address => "an address with port, as 127.0.0.1:7410".to_owned(),
            Type::Table => "a table as schema.table".to_owned(),
            Type::Column => "a column name".to_owned(),
            Type::Choice(words) => format!("one of {}", words.join(", ")),
            Type::List(of) => format!("a list, each {}", of.describe()),
            Type::PerTable(of) => format!("a block with tables as keys, each {}", of.describe()),
            Type::PerColumn(of) => format!("a block with columns as keys, each {}", of.describe()),
            Type::Policy => "pass, drop, null, mask, hash or truncate(N)".to_owned(),
            Type::Secret => "a secret, as ${env:NAME}".to_owned(),
            Type::Block(_) => "a block of keys".to_owned(),
            Type::OneOf(keys) => format!("a block with one of {}", keys.iter().map(|k| k.name).collect::<Vec<_>>().join(", ")),
            Type::Sink => "a block with the kind of sink as its key".to_owned(),
            Type::Tree => "a block or a list".to_owned(),
        }
    }
}

/// The reference of both kinds of file, as text: one line a key.
#[must_use]
pub fn reference() -> String {
    fn block(out: &mut String, keys: &[Key], prefix: &str) {
        for key in keys {
            let need = match key.need {
                Need::Required(_) => "required".to_owned(),
                Need::Optional(absent) => format!("absent: {absent}"),
                Need::Default(value) => format!("default {value}"),
                Need::Implied => "its keys' defaults".to_owned(),
            };
            out.push_str(&format!("{prefix}{}\n    {} ({}; {need})\n", key.name, key.doc, key.ty.describe()));
            match &key.ty {
                Type::Block(keys) | Type::OneOf(keys) | Type::List(Type::Block(keys)) => {
                    block(out, keys, &format!("{prefix}{}.", key.name))
                }
                _ => {}
            }
        }
    }
    let mut out = String::from("Pipeline file\n\n");
    block(&mut out, &PIPELINE, "");
    out.push_str("\nConnector file\n\n");
    block(&mut out, &CONNECTOR, "");
    out
}
