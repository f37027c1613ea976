//! Every error code: what it means, what it does to the data, how to mend it, and which exit code it leads to.
//! A test checks that each code in the sources has its entry here.

use super::failure::Class;

/// One code.
#[derive(Clone, Copy, Debug)]
pub struct Explanation {
    /// The dotted code.
    pub code: &'static str,
    /// Decides the exit code.
    pub class: Class,
    /// What it means.
    pub meaning: &'static str,
    /// What it does to data and to everything else.
    pub impact: &'static str,
    /// How to mend it.
    pub fix: &'static str,
}

const fn entry(code: &'static str, class: Class, meaning: &'static str, impact: &'static str, fix: &'static str) -> Explanation {
    Explanation { code, class, meaning, impact, fix }
}

const NOTHING_STARTED: &str = "Nothing was started and nothing was changed.";
const WAITS: &str = "Nothing is lost: PostgreSQL keeps its WAL and the journal its entries, and it is tried again until it works.";
const STOPS: &str = "Capture stops; nothing is lost while PostgreSQL keeps the slot's WAL. Delivery of what is stored goes on.";
const CONNECTOR_STOPS: &str = "This connector stops at its checkpoint; other connectors and capture go on. Nothing is skipped.";

use Class::{Bug, Check, Config, Data, Locked, Permission, Temporary, Unavailable, Usage};

/// All of them, by code.
#[rustfmt::skip] // One line an entry: a table.
pub const ALL: &[Explanation] = &[
    entry("config.unreadable_file", Config, "A configuration file cannot be read.", NOTHING_STARTED, "Name an existing file that this user may read."),
    entry("config.too_large", Config, "A configuration file is larger than 1 MiB.", NOTHING_STARTED, "Name the right file; connectors stand in files of their own."),
    entry("config.not_utf8", Config, "A configuration file is not UTF-8 text.", NOTHING_STARTED, "Save it as UTF-8."),
    entry("config.control_character", Config, "A configuration file holds a control character.", NOTHING_STARTED, "Remove it."),
    entry("config.syntax", Config, "A configuration file is not YAML.", NOTHING_STARTED, "Check indentation (spaces only), quotes and colons at and above the line."),
    entry("config.empty", Config, "A configuration file is empty.", NOTHING_STARTED, "Begin with `version: 1`."),
    entry("config.too_complex", Config, "A configuration file uses anchors or aliases, or nests too deeply.", NOTHING_STARTED, "Write each value where it belongs."),
    entry("config.unknown_key", Config, "A key is not one of those allowed at its place.", NOTHING_STARTED, "Correct the spelling; `tillstream explain config` lists every key."),
    entry("config.duplicate_key", Config, "A key stands twice in one block.", NOTHING_STARTED, "Keep one of the two."),
    entry("config.missing_key", Config, "A required key is missing.", NOTHING_STARTED, "Add it; `tillstream explain config` lists every key."),
    entry("config.missing_value", Config, "A key has no value.", NOTHING_STARTED, "Give it one, or remove the key if it is optional."),
    entry("config.wrong_type", Config, "A value has the wrong form: a list where one value belongs, a block where a list belongs.", NOTHING_STARTED, "Write it in the form named."),
    entry("config.bad_version", Config, "The file's format version is not known.", NOTHING_STARTED, "Write `version: 1`, or use a later program."),
    entry("config.bad_name", Config, "A name holds characters that are not allowed or is too long.", NOTHING_STARTED, "Use small letters, digits, `_` (and `-` where allowed)."),
    entry("config.bad_number", Config, "A number is not one or lies outside its bounds.", NOTHING_STARTED, "Write digits only, within the bounds named."),
    entry("config.bad_duration", Config, "A duration has no unit, an unknown one, or lies outside its bounds.", NOTHING_STARTED, "Write a whole number and ms, s, m, h or d: `30s`, `1h30m`."),
    entry("config.bad_size", Config, "A size has no unit, an unknown one, or lies outside its bounds.", NOTHING_STARTED, "Write a whole number and B, KiB, MiB, GiB or TiB: `8MiB`."),
    entry("config.bad_address", Config, "An address is not an IP address with port.", NOTHING_STARTED, "Write `127.0.0.1:7410` or `[::1]:7410`."),
    entry("config.bad_url", Config, "A URL has the wrong scheme or form.", NOTHING_STARTED, "Begin with the scheme named; percent-encode special characters in user and password."),
    entry("config.bad_table", Config, "A table is not written as schema.table.", NOTHING_STARTED, "Write `public.orders`, as the catalogue spells it."),
    entry("config.bad_choice", Config, "A value is not one of the words allowed.", NOTHING_STARTED, "Choose one of them."),
    entry("config.bad_reference", Config, "`${…}` is neither `${env:NAME}` nor `${file:PATH}`.", NOTHING_STARTED, "Write one of the two."),
    entry("config.secret_missing", Config, "The environment variable or file that a reference names is not there.", NOTHING_STARTED, "Set the variable where the program is started, or make the file readable for it."),
    entry("config.unknown_kind", Config, "A connector names a kind of sink that this program does not have.", NOTHING_STARTED, "Choose one of the kinds named."),
    entry("config.unknown_table", Config, "A table is named that is not captured, not delivered, or not in the database.", NOTHING_STARTED, "Correct the spelling or add it to the list named."),
    entry("config.unknown_column", Config, "A column is named that the table does not have, or that the publication does not hold.", NOTHING_STARTED, "Correct the spelling, or add the column to the publication."),
    entry("config.duplicate_name", Config, "Two things of one kind have the same name.", NOTHING_STARTED, "Remove or rename one."),
    entry("config.conflict", Config, "A block holds two things of which only one is allowed.", NOTHING_STARTED, "Keep one."),
    entry("config.bad_secret", Config, "A key is too short to protect anything.", NOTHING_STARTED, "Take 16 random bytes or more: `openssl rand -hex 32`."),
    entry("config.bad_sink", Config, "A sink's own settings are wrong.", NOTHING_STARTED, "Mend what the message names."),
    entry("config.bad_mapping", Config, "A connector's `when`, `map`, `each`, `id`, `key`, `lookup` or `tests` is wrong: an expression that cannot be read, a name that does not exist, or a `map` that says what its vendor does not take.", NOTHING_STARTED, "Mend what the message names; `tillstream test` shows what becomes of the events in `tests`."),
    entry("config.not_colocated", Config, "A connector's `lookup` or `group` brings rows together that may stand in different partitions of the journal, each of which is delivered by itself.", NOTHING_STARTED, "Spread the tables by what they share with `source.partition_by` (the column has to be in each table's replica identity), or use one partition."),
    entry("apply.busy", Locked, "Another request to apply connector files is worked on.", "Nothing was changed by this one.", "Wait for the other one to end, which it does with its trial."),
    entry("apply.invalid", Config, "The files that were to be applied have problems.", "Nothing was changed; the connectors go on with the files they have.", "Mend what the message names, run `tillstream validate`, and apply again."),
    entry("apply.not_here", Check, "The process that was asked does not deliver this connector (until it is stopped).", "Nothing was changed.", "Ask the process that delivers: `--url`; or restart it, which reads the files anew."),
    entry("apply.rolled_back", Check, "A connector did worse with its new file and went back to the one before.", "What became dead letters on trial is delivered again by the file before; nothing is lost.", "Look at the reason, mend the file (`tillstream preview` shows what it makes of stored events), and apply again. Until then a restart would use the file as it is."),
    entry("delivery.not_settled", Temporary, "A connector was to take over another file, and what it had read was not settled in time.", "It goes on with the file it has; nothing is lost.", "See why its target is away or slow (`tillstream status`), and apply again."),
    entry("apply.test_failed", Check, "A test in a connector file that was to be applied fails.", "Nothing was changed; the connectors go on with the files they have.", "See what differs with `tillstream test`, mend it, and apply again."),
    entry("config.test_failed", Config, "A test in a connector file fails.", NOTHING_STARTED, "See what differs with `tillstream test`; mend the map or the test."),
    entry("config.untested", Check, "A connector chooses or maps events and has no tests.", "None; `validate --deny-warnings` ends with 1.", "Add `tests` to its file."),
    entry("config.literal_secret", Check, "A secret stands in a configuration file.", "None; whoever reads the file knows it. `validate --deny-warnings` ends with 1.", "Write `${env:NAME}` or `${file:PATH}`, and change the secret."),
    entry("config.no_idempotency", Check, "Nothing keeps a repeat from having a second effect at a connector's target.", "After a crash or a lost answer some events have two effects there. `validate --deny-warnings` ends with 1.", "Name the header in which the target takes a key for each effect, if it takes any."),
    entry("config.exposed_admin", Config, "The admin endpoint is to listen beyond this machine without tokens, or without encryption.", NOTHING_STARTED, "Listen on 127.0.0.1 (the default), or give it `admin.tokens` and `admin.tls`."),
    entry("config.settings", Config, "The settings file, a TILLSTREAM__ variable or a flag is wrong.", NOTHING_STARTED, "Correct the name or the value."),
    entry("replay.expired", Check, "The place that a replay is to begin at was removed by retention.", "Nothing was changed.", "Begin at the oldest entry there is (`--from first`), or load the rows that are missing (`tillstream backfill start --connector NAME`); keep entries longer with `retention`."),
    entry("replay.nothing", Check, "Nothing of the connector stands in the stretch that was to be replayed, or it has not delivered that yet.", "Nothing was changed.", "Look at the stretch with `tillstream tap --from PLACE`, and at the place where the connector stands with `tillstream status`."),
    entry("replay.would_duplicate", Check, "Nothing at the connector's target keeps an event that comes again from having a second effect.", "Nothing was changed.", "Narrow the stretch with --to and --key, and say --accept-duplicates if each of its events may have another effect."),
    entry("replay.older_states", Check, "Rows of the stretch changed again behind it, and the target would be left with what they were at its end.", "Nothing was changed.", "Leave out --to, so that delivery goes on to the newest state, or say --accept-older."),
    entry("replay.would_skip", Check, "The connector has not come to that place yet: going there leaves out what lies between.", "Nothing was changed.", "Say --accept-loss if those events are not wanted; `--dry-run` counts them."),
    entry("replay.inside_transaction", Check, "The place stands inside a transaction, and the connector makes one event of whole transactions.", "Nothing was changed.", "Begin at the LSN that the message names."),
    entry("replay.row_of_transaction", Check, "The connector makes one event of the rows of a transaction, so that a row has no events of its own.", "Nothing was changed.", "Replay the stretch without --key."),
    entry("replay.cut_short", Data, "The journal lost its end and was filled again under other offsets while a stretch was replayed.", "The replay ended; delivery goes on where it stood before, and nothing is left out.", "Ask for the replay again."),
    entry("telemetry.otlp_not_built", Config, "Spans are asked for, and the program was built without the feature `otlp`.", NOTHING_STARTED, "Build it with `--features otlp`, or take `telemetry.otlp` out of the settings."),
    entry("telemetry.otlp_endpoint", Config, "The address of the OpenTelemetry collector is none.", NOTHING_STARTED, "Write telemetry.otlp as http://HOST:4318; credentials go into OTEL_EXPORTER_OTLP_HEADERS."),
    entry("telemetry.otlp_away", Check, "The OpenTelemetry collector cannot be reached, or takes no spans.", "Spans are dropped; capture and delivery go on, and nothing waits.", "See what the message says of its answer; port 4318 is HTTP, 4317 is not."),
    entry("usage.arguments", Usage, "The command line is wrong.", NOTHING_STARTED, "Run the command with `--help`."),
    entry("usage.file", Usage, "A file named on the command line cannot be read.", NOTHING_STARTED, "Name a file that exists and that this user may read."),
    entry("usage.not_confirmed", Usage, "A decision that cannot be taken back was not confirmed in the words that it asks for.", NOTHING_STARTED, "Type exactly what is asked for."),
    entry("explain.unknown_code", Usage, "There is no such code.", NOTHING_STARTED, "`tillstream explain` without a code lists all of them."),
    entry("internal.runtime", Bug, "The program could not start its runtime.", NOTHING_STARTED, "Check the limits of processes and file descriptors (`ulimit -a`)."),
    entry("internal.panicked", Bug, "A part of the program ended by a fault of ours.", "The process ends; a restart goes on where it was, nothing is lost.", "Start it again and report the message with the version."),
    entry("capture.source_unavailable", Unavailable, "The source database cannot be reached or the connection was lost.", WAITS, "Check host, port and network; `tillstream doctor` tells more."),
    entry("capture.slot_active", Unavailable, "Another process streams from the slot.", "It waits as a standby and takes over when the other ends.", "Nothing, if a standby is meant; else end the other process."),
    entry("capture.epoch_began", Temporary, "An operator began a new epoch while capture ran.", "The session ends and the next one works in the new epoch; nothing is lost.", "Nothing."),
    entry("capture.spool_failed", Unavailable, "A temporary file of transactions that are not committed yet cannot be written or read.", WAITS, "Make room in the temporary directory or point TMPDIR elsewhere; or set `source.streaming: off`."),
    entry("capture.wal_warn", Check, "The server keeps more than a quarter of the WAL that it may keep for the slot.", "None yet.", "See what holds it: `tillstream status` names it."),
    entry("capture.wal_page", Check, "The server keeps more than 60 % of the WAL that it may keep for the slot.", "At the ceiling the slot may be lost, or the disk of the point of sale fills.", "See what holds it: a journal that takes nothing, or a transaction that is open; `tillstream status` names it."),
    entry("capture.wal_shed", Check, "The server keeps 90 % of the WAL that it may keep for the slot, or says that the slot is in danger.", "Nothing is held back any more, so a broker that loses power now could lose what it confirmed.", "Make the journal take entries, end the transaction that holds the WAL, or raise max_slot_wal_keep_size."),
    entry("capture.wal_calm", Check, "The WAL kept for the slot is far below its ceiling.", "None.", "Nothing."),
    entry("capture.fenced", Temporary, "A later run took the journal over.", "This run ends and begins again behind the other; nothing is doubled.", "See that only one process captures this source."),
    entry("capture.policy_on_key", Config, "A column policy stands on a key column.", NOTHING_STARTED, "Remove the policy, or give the table a key without personal data."),
    entry("capture.policy_column_gone", Config, "A column that has a policy is not there: dropped, renamed or misspelt.", STOPS, "Name the column that takes its place in source.columns and keep the former name there; older changes may still come."),
    entry("coverage.publication_missing", Check, "The publication was dropped while capture runs.", "Nothing is sent any more; changes are missed.", "Create it again (`tillstream setup`) and load what was missed."),
    entry("coverage.publication_emptied", Check, "The publication holds no table any more.", "Nothing is sent any more; changes are missed.", "ALTER PUBLICATION … ADD TABLE …, and load what was missed."),
    entry("coverage.operation_missing", Check, "The publication does not publish an operation.", "Targets keep rows that the point of sale has changed or removed.", "ALTER PUBLICATION … SET (publish = 'insert, update, delete, truncate')."),
    entry("coverage.table_missing", Check, "A captured table does not exist any more.", "Nothing of it comes any more.", "Remove it from source.tables, or create it again."),
    entry("coverage.table_renamed", Check, "A captured table has another name now.", "Its changes go on under the configured name; the next start will not find the table.", "Name the new one in source.tables before the next start."),
    entry("coverage.table_recreated", Check, "A captured table was dropped and created again.", "Rows of the former one stay in the targets.", "Restart the pipeline and load the table again."),
    entry("coverage.not_published", Check, "A captured table left the publication.", "Its changes are missed.", "ALTER PUBLICATION … ADD TABLE …, and load what was missed."),
    entry("coverage.row_filter", Check, "The publication filters the rows of a captured table.", "Rows outside the filter are not captured.", "Nothing, if that is meant."),
    entry("coverage.column_list", Check, "The publication does not hold every column of a captured table.", "Those columns are absent from events.", "Nothing, if that is meant."),
    entry("coverage.column_held", Check, "Columns are held back because nobody has classified them.", "Those columns are absent from events.", "Name them in source.columns; load the table again if former rows need them."),
    entry("coverage.new_table", Check, "A table was created beside the captured ones.", "It is not captured.", "Add it to source.tables and the publication, if it is to be captured."),
    entry("capture.decoding_spills", Check, "The server writes transactions to its disk while it decodes them, because they do not fit logical_decoding_work_mem.", "They are written and read once more at their commit, and come later for it; nothing is lost.", "Raise logical_decoding_work_mem (per walsender), or set `source.streaming: on`."),
    entry("capture.encoding", Check, "The source database is not encoded in UTF-8.", "A character without a counterpart stops the stream; of SQL_ASCII text what is not UTF-8 stands as U+FFFD in events.", "Nothing, if all text is known to convert; else convert the database."),
    entry("capture.identity_full", Check, "A wide table with a primary key has REPLICA IDENTITY FULL.", "Every update writes the whole old row to WAL.", "ALTER TABLE … REPLICA IDENTITY DEFAULT."),
    entry("capture.idle_timeout", Check, "The server drops slots that are idle for less than a day.", "A planned stop of the pipeline can lose the slot.", "Raise idle_replication_slot_timeout."),
    entry("capture.long_transaction", Check, "A transaction has been open for more than 15 minutes.", "The server keeps WAL since its begin, and creating a slot waits for its end.", "End it where it was begun."),
    entry("capture.no_sender_timeout", Check, "wal_sender_timeout is 0.", "After the pipeline's host dies, no successor can have the slot.", "Set wal_sender_timeout to 60s."),
    entry("capture.prepared_transaction", Check, "A prepared transaction was forgotten.", "The server keeps WAL since then, and creating a slot waits for it.", "COMMIT PREPARED or ROLLBACK PREPARED it."),
    entry("capture.role_superuser", Check, "The pipeline streams as a superuser.", "Whoever learns its password owns the source database.", "Stream as the role that `tillstream setup` prints."),
    entry("capture.senders_full", Check, "Walsenders are (nearly) used up.", "The pipeline, a takeover or a backup finds none free.", "Raise max_wal_senders and restart PostgreSQL."),
    entry("capture.slot_in_danger", Check, "The server is about to remove WAL that the slot needs.", "The slot will be lost and the tables have to be loaded again.", "Let the pipeline catch up, or raise max_slot_wal_keep_size."),
    entry("capture.slot_no_failover", Check, "There are standbys, and the slot does not follow a promotion.", "After a promotion the tables have to be loaded again.", "Create the slot with failover = true (17 and later) and set sync_replication_slots on the standbys."),
    entry("capture.slot_ahead_of_standby", Check, "Changes are captured before the standbys have them.", "After the promotion of a standby that lacks them capture halts with capture.source_diverged.", "Name the standbys' physical slots in synchronized_standby_slots."),
    entry("capture.slots_full", Check, "Replication slots are (nearly) used up.", "The pipeline's slot cannot be created.", "Raise max_replication_slots and restart PostgreSQL, or drop slots that nobody needs."),
    entry("capture.table_unsupported", Check, "A configured table is a view, foreign or unlogged.", "Its changes are not in WAL and cannot be captured.", "Take it out of source.tables, or ALTER TABLE … SET LOGGED."),
    entry("capture.tls_off", Check, "The source server has TLS off and listens beyond its host.", "Sales and customers cross the network in the clear.", "Install a certificate and set ssl = on."),
    entry("capture.version_minor", Check, "The source server lacks a correction against lost changes.", "DDL beside an open transaction can lose that transaction's changes.", "Install the newest minor version of PostgreSQL."),
    entry("capture.version_untested", Check, "The source server is newer than what Tillstream is tested with.", "It probably works.", "Try it beside production first."),
    entry("capture.wal_little_kept", Check, "max_slot_wal_keep_size is below 1 GB.", "A pause of minutes at peak can lose the slot.", "Raise max_slot_wal_keep_size."),
    entry("capture.wal_none_kept", Check, "max_slot_wal_keep_size is 0.", "The slot is lost at the first checkpoint at which the pipeline is behind.", "Raise max_slot_wal_keep_size."),
    entry("capture.wal_unlimited", Check, "max_slot_wal_keep_size has no limit.", "A pipeline that stands still makes the server keep WAL until its disk is full.", "Set max_slot_wal_keep_size to what the disk can spare."),
    entry("publication.column_exposed", Check, "A column leaves the database that the configuration drops or holds.", "Its values reach this program, which throws them away.", "Publish the table with a column list: `tillstream publication diff --format sql` prints it."),
    entry("capture.version_ends", Check, "The source server's major version gets no corrections any more, or soon will not.", "Faults that are found from then on stay.", "Upgrade to a newer major version; before 17 an upgrade loses the slot, so plan a new epoch."),
    entry("capture.provider", Check, "The source server is run by a service with habits of its own.", "What the finding says of that service.", "Nothing, if what it says is known."),
    entry("capture.restart_pending", Check, "Settings of the source server were changed and wait for a restart.", "The server works otherwise than its files say.", "Restart it in a quiet hour, or take the change back."),
    entry("capture.files_invalid", Check, "postgresql.conf or pg_hba.conf holds lines that cannot be read.", "Changes to them do not take effect, and the server does not come back from its next restart.", "Mend the lines named, then SELECT pg_reload_conf()."),
    entry("capture.not_durable", Check, "fsync or full_page_writes is off.", "After a crash the source database may be damaged, and targets may hold what it has forgotten.", "Set both to on."),
    entry("capture.wal_budget_above_limit", Check, "source.wal_budget is more than the server keeps for a slot.", "None: the lower of both counts.", "Nothing, or raise max_slot_wal_keep_size."),
    entry("capture.sender_timeout_short", Check, "wal_sender_timeout is below 10 s.", "A short pause of the pipeline's host ends the stream, again and again.", "Set wal_sender_timeout to 60s."),
    entry("capture.decoding_memory_small", Check, "logical_decoding_work_mem is below 16 MB.", "Transactions of a few thousand rows go over the server's disk before they are sent.", "Set logical_decoding_work_mem to 64MB or more."),
    entry("capture.keyless_partition", Check, "A partition of a published table has no usable replica identity of its own.", "UPDATE and DELETE on its rows FAIL in the point of sale while its root is published.", "Add a primary key to the partition, or ALTER TABLE … REPLICA IDENTITY FULL."),
    entry("capture.identity_not_published", Check, "A table's published columns lack one that names its rows.", "UPDATE and DELETE on the table FAIL in the point of sale.", "Put the column into the publication's list."),
    entry("capture.filter_beyond_identity", Check, "A publication's row filter asks for a column that old rows do not carry.", "UPDATE and DELETE on the table FAIL in the point of sale.", "Filter in the connector's `when:` instead, or ALTER TABLE … REPLICA IDENTITY FULL."),
    entry("capture.other_publication_keyless", Check, "Another publication holds a table without a usable key.", "UPDATE and DELETE on the table FAIL in the point of sale, whoever the publication is for.", "Add a primary key, or take the table out of that publication."),
    entry("capture.publication_open_ended", Check, "The publication holds all tables, or all of a schema, also those made later.", "A new table without a key is one whose UPDATEs FAIL in the point of sale from its first day.", "Name the tables one by one in a new publication."),
    entry("capture.columns_not_published", Check, "Columns of a captured table are not published.", "Events do not have them.", "Nothing, if that is meant; generated columns are published from version 18 on, if asked for."),
    entry("capture.not_captured", Check, "Logical replication carries rows alone: no DDL, no sequences, no large objects.", "Targets learn of a new layout with the next change of the table; of the others never.", "Nothing."),
    entry("capture.other_slot_idle", Check, "Nobody reads from another slot, and the server keeps WAL for it.", "It fills the disk of the point of sale, or is lost at max_slot_wal_keep_size.", "Start its reader; if nobody needs it, drop it."),
    entry("capture.other_slot_lost", Check, "Another slot was invalidated.", "Whoever read from it gets nothing any more.", "Ask whose it is, then drop it."),
    entry("capture.horizon_old", Check, "A slot keeps vacuum from rows that are more than ten million transactions old.", "Tables or catalogues bloat, and queries of the point of sale get slower.", "Let the slot's reader catch up, or drop the slot."),
    entry("capture.wraparound_near", Check, "Rows have not been frozen for more than a thousand million transactions.", "At about 2,100 million the server takes no transaction any more, and the point of sale stops.", "End what keeps vacuum from its work (slots, prepared and long transactions), then VACUUM (FREEZE)."),
    entry("capture.subtransactions", Check, "The server often has to read which transaction a savepoint belongs to.", "Every snapshot gets dearer, and decoding slower.", "See which part of the application sets a savepoint for each row."),
    entry("capture.table_huge", Check, "A captured table has more than 50 GiB.", "An initial load or backfill of it takes hours.", "Plan it for quiet hours, with --max-rate and --where."),
    entry("capture.auth_none", Check, "Connections from other hosts are let in without a password.", "Whoever reaches the port can read and change the point of sale.", "Write scram-sha-256 in place of trust in pg_hba.conf and reload."),
    entry("capture.role_missing", Check, "A role that the configuration names does not exist.", "The pipeline, or its backfills, cannot log in.", "`tillstream setup` prints the statement that creates it."),
    entry("capture.role_no_connect", Check, "The streaming role may not log in or connect to the database.", "The pipeline does not get in.", "ALTER ROLE … LOGIN; GRANT CONNECT ON DATABASE … TO …."),
    entry("capture.role_expires", Check, "The streaming role's password has ended or ends within two weeks.", "From then on no new session gets in, so that the pipeline stops at the next hiccup of the network.", "Set a new password and VALID UNTIL."),
    entry("capture.role_connection_limit", Check, "The streaming role may have fewer sessions than a run and its takeover need.", "A takeover waits, or status is unknown.", "ALTER ROLE … CONNECTION LIMIT 8."),
    entry("capture.backfill_not_permitted", Check, "The role of backfills may not read what is captured.", "Tables cannot be loaded: a new target stays without former rows.", "GRANT what the finding names; `tillstream setup` prints it."),
    entry("capture.backfill_writes", Check, "The role of backfills may write to captured tables.", "Whoever learns its password can change the point of sale.", "REVOKE what the finding names."),
    entry("capture.row_security", Check, "Row security is on for a captured table and concerns the role of backfills.", "A backfill reads fewer rows than the stream carries.", "ALTER ROLE … BYPASSRLS, or a policy for that role."),
    entry("capture.tls_unverified", Check, "The source's URL does not ask the server to prove who it is, beyond this host.", "Whoever stands between can read sales and customers.", "Set sslmode=verify-full and sslrootcert."),
    entry("capture.standby_feedback", Check, "The source is a standby without hot_standby_feedback.", "The slot is lost when the primary cleans up.", "Set hot_standby_feedback = on."),
    entry("capture.standby_slot_absent", Check, "synchronized_standby_slots names a slot that no standby streams from.", "Nothing is sent to the pipeline until one does; WAL is kept meanwhile.", "Start that standby, or take its slot out of synchronized_standby_slots."),
    entry("capture.canary_refused", Check, "The source does not let the streaming role write a logical message, or is a standby.", "No canary is sent; capture and delivery go on.", "GRANT EXECUTE ON FUNCTION pg_logical_emit_message(boolean, text, text) TO the streaming role (everybody has it by default); on a standby remove `canary` from the file."),
    entry("capture.clock_offset", Check, "The source server's clock is more than two seconds from ours.", "Lags and times look wrong by as much.", "Let both hosts follow the same time server."),
    entry("journal.no_leader", Check, "A stream has no leader.", "Nothing can be stored there; capture waits, and PostgreSQL keeps its WAL.", "Bring back the broker's nodes: a majority of the stream's copies."),
    entry("journal.leaders_together", Check, "One node of the broker leads all partitions.", "It carries all writes, and its restart interrupts every partition at once.", "`rabbitmq-queues rebalance stream`."),
    entry("journal.one_copy", Check, "Streams have one copy.", "A broken disk takes confirmed events with it.", "Use three nodes and `replicas: 3`, in a new stream."),
    entry("journal.segments_coarse", Check, "Retention is fewer than four segments.", "A slow connector loses a large part of the window at once.", "Lower `segment`, in a new stream, or raise `retention`."),
    entry("journal.retention_near", Check, "Retention is about to remove what a connector still needs.", "Its target will miss events, and its tables have to be loaded again.", "Make its target take events, or raise the retention now."),
    entry("journal.clock_offset", Check, "The broker's clock is ahead of ours.", "Retention by age and places by time are off by as much.", "Let the broker's nodes follow the same time server."),
    entry("connector.clock_offset", Check, "A target's clock is more than five seconds from ours.", "Times do not compare; signed requests and tokens may be refused.", "Let both hosts follow the same time server."),
    entry("queries.heavy_statement", Check, "One statement takes a large share of the source database's time.", "Everything else waits behind it, most of all at peak.", "See the suggestion of `tillstream doctor queries`."),
    entry("queries.sequential_scan", Check, "A large table is read as a whole, again and again.", "Each such query costs more as the table grows, and pushes other pages out of memory.", "Create the index that the finding names."),
    entry("queries.unindexed_foreign_key", Check, "A foreign key has no index on the referring side.", "Each DELETE or key change of a referred row reads the whole referring table, with locks held.", "CREATE INDEX CONCURRENTLY on the key's columns."),
    entry("queries.unused_index", Check, "An index was not used since statistics began.", "Each write maintains it, and its pages take memory.", "DROP INDEX CONCURRENTLY, once standbys and rare reports are known not to use it."),
    entry("queries.duplicate_index", Check, "Two indexes do the same.", "Each write maintains both.", "DROP INDEX CONCURRENTLY one of them."),
    entry("queries.invalid_index", Check, "An index is invalid: CREATE INDEX CONCURRENTLY was broken off.", "Each write maintains it, and no query uses it.", "DROP INDEX CONCURRENTLY it and create it again."),
    entry("queries.bloat", Check, "A large part of a table is dead rows.", "Queries read them in passing, and the table takes more disk and memory than it needs.", "See what keeps vacuum away, then VACUUM (ANALYZE)."),
    entry("queries.stale_statistics", Check, "A table changed a lot since it was analysed.", "The planner guesses wrong and chooses slow plans.", "ANALYZE it; lower autovacuum_analyze_scale_factor for it."),
    entry("queries.long_transaction", Check, "A transaction has been open for minutes.", "Vacuum cannot clean up behind it, locks are held, and WAL is kept.", "End it where it was begun."),
    entry("queries.idle_in_transaction", Check, "A session began a transaction and does nothing.", "Its locks are held and vacuum cannot clean up.", "End it where it was begun; set idle_in_transaction_session_timeout."),
    entry("queries.lock_chain", Check, "Sessions wait for locks of another one.", "Registers stand still.", "End the session at the head of the chain."),
    entry("queries.cache_hit", Check, "Many pages are read from outside shared memory.", "Queries wait for the disk.", "Raise shared_buffers, or index what is read as a whole."),
    entry("queries.checkpoints", Check, "Most checkpoints come because max_wal_size is reached.", "Writes come in bursts, and each checkpoint makes WAL grow.", "Raise max_wal_size."),
    entry("queries.connections", Check, "Sessions are nearly used up.", "The next register that connects is refused.", "Put a pooler in front of the application, or raise max_connections and restart."),
    entry("queries.temporary_files", Check, "Statements sort or join over temporary files.", "They wait for the disk, and fill it.", "Raise work_mem for the role that runs them, or index what is sorted."),
    entry("queries.deadlocks", Check, "Transactions locked each other and one was ended by the server.", "Somebody's sale failed and had to be tried again.", "Let all transactions take rows in the same order."),
    entry("setup.failed", Config, "A statement of the setup failed.", "What was done before stays and is found done the next time.", "Mend what the server says and run setup again."),
    entry("setup.not_permitted", Permission, "The role may not run a statement of the setup.", "What was done before stays and is found done the next time.", "Name a superuser by --admin-url, or give the printed SQL to somebody who may run it."),
    entry("setup.slot_waits", Temporary, "Creating the slot waited a minute for open transactions.", "Everything but the slot is in place.", "Wait until they end, or end them, and run setup again."),
    entry("setup.slot_in_use", Locked, "The slot is to be dropped, and somebody streams from it.", "What was done before stays; the slot is as it was.", "End the pipeline and its standbys (`tillstream slot show` names who reads), then run it again."),
    entry("setup.exists", Usage, "A file that would be written is there already; a script that takes a change back cannot be written again after the change.", "Nothing was changed, in files or in the database.", "Choose another name, or move the file away."),
    entry("setup.write", Unavailable, "A file could not be written.", "Nothing was changed in the database.", "See that the directory may be written and has room."),
    entry("slot.unknown", Usage, "The server has no slot of that name.", "Nothing was changed.", "`tillstream slot list` shows all."),
    entry("slot.not_permitted", Permission, "The role may not drop the slot.", "Nothing was changed.", "Name a role with REPLICATION by --admin-url."),
    entry("setup.standby", Config, "The server that was named is a standby.", "Nothing was changed.", "Name the primary by --admin-url."),
    entry("journal.unavailable", Unavailable, "The broker or the journal's file cannot be reached.", WAITS, "Check that the broker runs, its address and the network."),
    entry("journal.fenced", Temporary, "A later run writes to the journal.", "This writer ends; its process begins a new session.", "See that only one process captures this source."),
    entry("journal.expired", Data, "Retention deleted entries that a reader still needed.", CONNECTOR_STOPS, "Raise `retention`, then load the tables again."),
    entry("journal.missing", Config, "A log of the journal does not exist: it was deleted or never set up.", STOPS, "`tillstream run` creates it when the configuration is right; after a deletion load the tables again."),
    entry("journal.refused", Permission, "The broker or the file refuses access.", NOTHING_STARTED, "Check user, password, virtual host and permissions."),
    entry("journal.damaged", Data, "Stored bytes are damaged.", CONNECTOR_STOPS, "Check the disk; restore the journal from a replica or load the tables again."),
    entry("journal.unusable", Config, "The configuration does not fit the journal that is there: version, partitions, frame size.", NOTHING_STARTED, "Mend what the message names, or use a new stream name."),
    entry("journal.malformed_event", Data, "An entry's body is not an event.", CONNECTOR_STOPS, "See which program wrote it; only Tillstream may write to its streams."),
    entry("control.version", Config, "A later program wrote to the control log.", NOTHING_STARTED, "Use that version or a later one."),
    entry("control.malformed", Data, "The control log holds something that is no record.", NOTHING_STARTED, "Only Tillstream may write to its logs; report it with the version."),
    entry("control.incomplete", Data, "The control log lost its beginning and holds no snapshot of it.", NOTHING_STARTED, "Raise the control log's retention; then use a new stream name and load the tables again."),
    entry("control.rival", Temporary, "Another process took over a connector.", "This one ends; the other goes on from the checkpoint.", "See that only as many processes deliver as are meant to."),
    entry("control.dead_letters_full", Unavailable, "There are as many open dead letters as can be kept.", CONNECTOR_STOPS, "Mend the cause, then redrive them: `tillstream dead-letters redrive`."),
    entry("delivery.gap", Data, "An entry follows something that is not in the journal.", CONNECTOR_STOPS, "Load the tables again; report it unless entries were deleted on purpose."),
    entry("delivery.malformed_entry", Data, "An entry claims to be ours and cannot be read.", CONNECTOR_STOPS, "Check disk and program versions; load the tables again."),
    entry("delivery.lineage_changed", Data, "Another history began without a new epoch.", CONNECTOR_STOPS, "See whether the source was restored or another source writes to this stream."),
    entry("connector.no_scaffold", Usage, "The kind of sink brings no connector file to begin with.", NOTHING_STARTED, "Begin with the file of another kind and write its `to:` block anew."),
    entry("connector.exists", Usage, "A file that would be written is there already.", NOTHING_STARTED, "Choose another `--name` or `--dir`, or move the file away."),
    entry("connector.write", Unavailable, "A file could not be written.", "Files named before on stdout were written.", "See that the directory may be written and has room."),
    entry("sandbox.listen", Unavailable, "The sandbox's address cannot be used.", NOTHING_STARTED, "Choose another `--listen`, or end the process that uses it."),
    entry("admin.listen", Unavailable, "The admin endpoint's address cannot be used.", NOTHING_STARTED, "Choose another `admin.listen`, or end the process that uses it."),
    entry("admin.unauthenticated", Permission, "The admin endpoint wants to know who asks, and the request has no token that it knows.", "Nothing was done.", "Give the command the token in TILLSTREAM__ADMIN__TOKEN, or send `Authorization: Bearer …`."),
    entry("admin.forbidden", Permission, "Whoever asked may not do this.", "Nothing was done.", "Ask somebody with the role that the message names (`admin.tokens` in the pipeline's file)."),
    entry("admin.cross_site", Permission, "A request came from another site's page, or from a page that is not the console's.", "Nothing was done.", "Use the console's own pages, or a command. Without `admin.tokens` reach it by an IP address or as localhost."),
    entry("admin.rate_limited", Temporary, "Somebody asks more often than the admin endpoint answers.", "Nothing was done; capture and delivery are not touched by it.", "Wait for as long as `Retry-After` says."),
    entry("admin.bad_request", Usage, "A request to the admin endpoint does not say what is needed.", "Nothing was done.", "Mend what the message names; /api/openapi.json says what each request takes."),
    entry("admin.busy", Temporary, "The journal is being read for somebody else, or reading it took too long.", "Nothing was done.", "Ask again in a moment, or narrow the question (`since`)."),
    entry("admin.tls", Config, "The admin endpoint's certificate or key cannot be used.", NOTHING_STARTED, "Name a PEM file with the certificate in `admin.tls.certificate`, and its key in `admin.tls.key`."),
    entry("admin.unreachable", Unavailable, "No process answers at the admin endpoint.", "Nothing is known of the pipeline's state; it may be stopped.", "Start `tillstream run`, or name its address with --url."),
    entry("demo.unavailable", Unavailable, "A server of the demo cannot be reached.", NOTHING_STARTED, "Start the demo's servers."),
    entry("demo.internal", Bug, "A command of the demo failed.", "The demo ends.", "Report the message with the version."),
    entry("demo.differs", Check, "The two ends of the demo differ.", "The comparison ends; it changed nothing.", "See the differences printed."),
    entry("config.invalid", Config, "Configuration files have problems, each with a code of its own.", NOTHING_STARTED, "Mend each of them."),
    entry("config.source_url", Config, "The source's URL cannot be used.", NOTHING_STARTED, "Write postgres://USER:PASSWORD@HOST:5432/DATABASE; percent-encode special characters."),
    entry("config.source_name", Config, "A name of the source's configuration cannot exist in PostgreSQL.", NOTHING_STARTED, "Mend `source.slot` or `source.publication`."),
    entry("config.source_tls", Config, "TLS to the source cannot be set up from the files named.", NOTHING_STARTED, "Set `sslrootcert` in the URL to the PEM file of the authority that signed the server's certificate."),
    entry("capture.auth_refused", Permission, "The server refuses the role's credentials.", STOPS, "Check user, password and pg_hba.conf."),
    entry("capture.auth_weak", Permission, "The server asks for a password in a form that whoever listens could use.", STOPS, "Use scram-sha-256, or set `source.allow_weak_auth: true` if the network is private."),
    entry("capture.not_permitted", Permission, "The role lacks a right that capture needs.", STOPS, "`tillstream setup --dry-run` prints the grants; the streaming role needs LOGIN and REPLICATION."),
    entry("capture.database_missing", Config, "The database named does not exist.", STOPS, "Name the database at the end of the source's URL."),
    entry("capture.pooler", Config, "A connection pooler answers instead of PostgreSQL.", STOPS, "Point the source's URL at the database server itself."),
    entry("capture.publication_missing", Config, "The publication does not exist, or did not at the point the slot streams from.", STOPS, "Create the publication first, then the slot: `tillstream setup --dry-run` prints both."),
    entry("capture.publication_lacks_table", Config, "The publication does not hold a table that is to be captured.", "Its changes would be missed silently, so capture does not start.", "ALTER PUBLICATION … ADD TABLE …; then load the table."),
    entry("capture.publication_extra_table", Config, "The publication holds a table that is not captured.", "Its changes are sent and dropped. Capture goes on.", "Add it to `source.tables`, or drop it from the publication."),
    entry("capture.publication_partial", Config, "The publication leaves out an operation.", "Targets keep rows that the source changed or removed. Capture goes on.", "ALTER PUBLICATION … SET (publish = 'insert, update, delete, truncate');"),
    entry("capture.publication_row_filter", Config, "The publication filters rows.", "Rows outside the filter are not captured. Capture goes on.", "Nothing, if that is meant."),
    entry("capture.keyless_table", Config, "A published table has no usable replica identity.", "UPDATE and DELETE on it FAIL in the point of sale while it is published.", "Add a primary key, or ALTER TABLE … REPLICA IDENTITY FULL."),
    entry("capture.table_missing", Config, "A table that is to be captured does not exist.", STOPS, "Mend `source.tables`, or the database in the source's URL."),
    entry("capture.partition_by_unknown", Config, "`partition_by` names a column that the table does not have or the publication does not hold.", STOPS, "Correct the name, or publish the column."),
    entry("capture.partition_by_not_in_identity", Config, "`partition_by` names a column that old rows do not carry, so a delete could go to another partition than its insert.", STOPS, "Choose columns of the replica identity, or set REPLICA IDENTITY FULL."),
    entry("capture.slot_missing", Config, "The replication slot does not exist.", "What was committed since it was dropped can no longer be streamed.", "Create it (`tillstream setup`), then load the tables again."),
    entry("capture.slot_advanced", Data, "The slot has confirmed more than this pipeline ever acknowledged: it was dropped and created again, or advanced by hand.", STOPS, "Changes in between are gone from the stream: `tillstream epoch bump` begins a new epoch, in which the tables are loaded again."),
    entry("capture.slot_lost", Config, "The server invalidated the replication slot.", "What was committed since its last acknowledged position can no longer be streamed; what is in the journal stays and is delivered.", "Raise max_slot_wal_keep_size, drop and create the slot, then load the tables again."),
    entry("capture.origin_unsupported", Config, "`source.origin: none` needs PostgreSQL 16 or newer.", STOPS, "Set `source.origin: any`, or upgrade the server."),
    entry("capture.spool_full", Config, "Transactions that the server sends before they commit take more than source.spool_max.", STOPS, "Set `source.streaming: off`, so that the server keeps them until they commit; or raise source.spool_max."),
    entry("capture.streamed_message", Config, "A transaction that was sent before it committed holds logical messages and rolled a savepoint back; the server does not say which of the messages that concerns.", STOPS, "Set `source.streaming: off` and start again."),
    entry("capture.slot_unusable", Config, "The slot is not a logical slot with plugin pgoutput in this database.", STOPS, "Name another slot in `source.slot`, or create one."),
    entry("capture.wal_level", Config, "The server does not write what logical decoding needs.", STOPS, "ALTER SYSTEM SET wal_level = 'logical'; then restart the server."),
    entry("capture.standby", Config, "The server is a standby that cannot decode.", STOPS, "Point the URL at the primary."),
    entry("capture.version_unsupported", Config, "The server's version is not supported.", STOPS, "Use PostgreSQL 14 to 18."),
    entry("capture.tls_refused", Config, "The server does not offer TLS.", STOPS, "Set ssl = on there, or sslmode=disable in the URL if the network is private."),
    entry("capture.tls_untrusted", Config, "The server's certificate cannot be trusted.", STOPS, "Set `sslrootcert`, and use the host name that the certificate carries."),
    entry("capture.source_changed", Data, "The journal was written from another server or slot than the one that answers.", STOPS, "Connect to the former one; or begin a new epoch and load the tables again."),
    entry("capture.source_regressed", Data, "The database was restored to an earlier moment than the journal knows.", STOPS, "Begin a new epoch and load the tables again."),
    entry("capture.source_diverged", Data, "What the server sends again differs from what is stored: its history is another one.", STOPS, "Begin a new epoch and load the tables again."),
    entry("capture.partitioning_changed", Config, "Rows would be spread over the data logs otherwise than before.", STOPS, "Put `partitions` and `partition_by` back; or use a new stream name and load the tables again."),
    entry("capture.row_too_large", Data, "A row is larger than the limit.", "It is stored as a dead letter with its id; capture goes on.", "Shrink the row, or leave the column out of the publication."),
    entry("capture.transaction_too_large", Data, "A transaction has more changes than can be numbered.", STOPS, "Split it; four thousand million changes fit."),
    entry("capture.tokens_used_up", Data, "More than sixteen million capture sessions wrote to this journal.", STOPS, "Use a new stream name and load the tables again."),
    entry("capture.malformed_message", Data, "The server sent something that is not pgoutput.", STOPS, "Check that nothing stands between us and the server; report it with the server's version."),
    entry("capture.unknown_message", Data, "The server sent a message that this program does not know.", STOPS, "Use a later program."),
    entry("capture.unexpected_message", Data, "The server sent a message where none of its kind may stand.", STOPS, "Report it with the server's version."),
    entry("capture.malformed_entry", Data, "An entry at the journal's end cannot be read.", STOPS, "Only Tillstream may write to its streams; check disk and versions."),
    entry("delivery.bug", Bug, "A part of delivery ended by a fault of ours.", CONNECTOR_STOPS, "Start it again and report the message with the version."),
    entry("delivery.call_timeout", Unavailable, "The target did not answer in time.", WAITS, "Check the target; raise the sink's timeout if it is merely slow."),
    entry("delivery.control_ended", Unavailable, "The control journal could no longer be followed.", WAITS, "Check that the journal can be reached."),
    entry("delivery.journal_regressed", Data, "A partition ends before a connector's checkpoint: it was replaced or lost its end.", CONNECTOR_STOPS, "If the journal was replaced on purpose, load the tables again under a new stream name."),
    entry("delivery.malformed_event", Data, "An entry of ours holds no event.", CONNECTOR_STOPS, "Check disk and program versions; load the tables again."),
    entry("delivery.redrive_impossible", Data, "A dead letter's event was too large to be kept, so it cannot be sent again.", "It stays a dead letter.", "Load the row again from the source."),
    entry("delivery.sink_answer", Bug, "A sink reported more outcomes than it was given events.", CONNECTOR_STOPS, "Report it with the sink's kind and the version."),
    entry("delivery.unknown_mark", Data, "The target holds a mark of a form that this program does not know.", CONNECTOR_STOPS, "Use the program's version that wrote it, or a later one."),
    entry("diff.behind", Unavailable, "The target did not pass a position in time.", "Nothing was changed.", "See with `tillstream status` what the connector waits for, or give it longer: --settle."),
    entry("diff.not_readable", Config, "The connector's target cannot be read.", "Nothing was compared.", "Compare by the target's own means."),
    entry("diff.target", Unavailable, "The target could not be read.", "Nothing was changed.", "Mend what the message names."),
    entry("diff.too_many", Check, "Too many rows differ for them to be listed.", "Nothing was changed.", "Backfill the table for this connector as a whole."),
    entry("backfill.bad_request", Usage, "A request for a backfill contradicts itself.", NOTHING_STARTED, "Mend what the message names; `tillstream backfill start --help`."),
    entry("backfill.bad_where", Usage, "The condition of a backfill is not one SQL expression, or the server does not take it.", NOTHING_STARTED, "Write one expression over the table's columns, as \"tier >= 2\"."),
    entry("backfill.cancelled", Temporary, "A backfill was cancelled by somebody else.", "What it stored stays; its progress counts for nothing.", "Start it again under its id, from the beginning."),
    entry("backfill.deadline", Temporary, "A backfill reached its deadline.", "What it stored stays, and so does its progress.", "Start it again under its id: it goes on where it was."),
    entry("backfill.id_taken", Config, "Another request has this id.", NOTHING_STARTED, "Use another id, or ask for the same."),
    entry("backfill.no_session", Unavailable, "Capture does not stream, so a backfill cannot store anything.", "Nothing was started; running backfills go on with the next session.", "`tillstream status` tells what capture waits for."),
    entry("backfill.over", Config, "A backfill is over, so it cannot be paused, resumed or cancelled.", "Nothing was changed.", "Start one with another id."),
    entry("backfill.paused", Temporary, "A backfill was paused by somebody.", "What it stored stays, and so does its progress.", "`tillstream backfill resume ID`, or start it again under its id."),
    entry("backfill.pipeline_runs", Locked, "A pipeline has the slot, so a backfill of its own process cannot have it.", NOTHING_STARTED, "Leave --standalone out: the backfill then runs in the pipeline."),
    entry("backfill.running", Locked, "A backfill reads the same table already, and the request said to fail then.", NOTHING_STARTED, "Wait for it, or say --if-running=skip or attach."),
    entry("backfill.since_undeclared", Config, "Nothing says which column tells when a row of the table changed.", NOTHING_STARTED, "Declare an indexed column that every change moves forward: source.changed_at: {public.orders: updated_at}."),
    entry("backfill.too_slow", Unavailable, "Reading a single row takes longer than half a minute, or its lock is not to be had.", "The backfill stops; its progress is kept.", "See what holds the table's lock, or narrow the condition."),
    entry("backfill.unknown", Usage, "There is no backfill of that id.", "Nothing was changed.", "`tillstream backfill list` shows all."),
    entry("backfill.unknown_column", Config, "A column is not there or not published.", NOTHING_STARTED, "Correct the name, or add it to the publication."),
    entry("backfill.unknown_connector", Config, "The connector does not exist or takes no rows of backfills.", NOTHING_STARTED, "Correct the name, or add `read` to its `from.ops`."),
    entry("backfill.unknown_table", Config, "The table is not captured, or the connector does not take it.", NOTHING_STARTED, "Correct the name, or add it to the lists named."),
    entry("backfill.where_unindexed", Config, "No index serves the condition, so each chunk would look at the whole table.", NOTHING_STARTED, "Create the index named, or say --allow-scan."),
    entry("backfill.no_key", Config, "A table has no key to read it in chunks.", "Its older rows are not loaded; its changes are captured.", "Add a primary key."),
    entry("backfill.no_permission", Permission, "The reading role may not read a table, or a row security policy hides rows.", "Its older rows are not loaded; its changes are captured.", "Grant SELECT on the columns to the role of `backfill_url`: `tillstream publication diff --format sql` prints the statement."),
    entry("backfill.not_a_table", Config, "Foreign tables and views are not read.", "Its older rows are not loaded.", "Name the table itself."),
    entry("backfill.not_utf8", Data, "A value is no valid UTF-8.", "The table's load waits.", "Mend the value in the source."),
    entry("backfill.null_in_key", Data, "A key column holds NULL.", "The table's load waits.", "Set the key's columns NOT NULL."),
    entry("backfill.query_failed", Unavailable, "The server refused to read a chunk.", "It is tried again; changes are captured meanwhile.", "See the message; `tillstream doctor` tells more."),
    entry("backfill.table_missing", Config, "A table that is to be loaded does not exist or is not published.", "Its older rows are not loaded.", "Mend `source.tables` or the publication."),
    entry("sql.connection", Unavailable, "The target database cannot be reached.", WAITS, "Check host, port and network."),
    entry("sql.timeout", Unavailable, "The target database did not answer in time.", WAITS, "Look for locks there; raise the sink's timeout if it is merely slow."),
    entry("sql.target_not_ready", Config, "The target lacks a table, a column, an index, a privilege, or the file itself.", CONNECTOR_STOPS, "The message says what, with the statement that adds it where there is one."),
    entry("sql.tls", Config, "TLS to the target database cannot be set up.", CONNECTOR_STOPS, "Check `sslmode` and the certificates."),
    entry("sql.taken_over", Temporary, "Another process delivers this lane.", "This one ends; nothing is doubled.", "See that only as many processes deliver as are meant to."),
    entry("sql.behind", Data, "An earlier change of the same row waits, so that this one waits behind it.", WAITS, "Look for the reason of the earlier one."),
    entry("sql.no_table", Data, "A logical message belongs to no table, so that it can be no row.", "The event becomes a dead letter.", "Leave `message` out of `from.ops`."),
    entry("sql.column_missing", Config, "A column of the target or of the event does not exist.", CONNECTOR_STOPS, "Create it, or correct its name in the connector file."),
    entry("sql.table_not_mapped", Config, "An event's table has no mapping in the connector.", "The event becomes a dead letter.", "Add the table to the sink's block, or remove it from `from.tables`."),
    entry("sql.key_null", Data, "A key column of the target would be NULL.", "The event becomes a dead letter.", "Choose key columns that are never NULL."),
    entry("sql.value", Data, "The target refuses a value.", "The event becomes a dead letter; the others go on.", "Mend the column's type in the target, then redrive it."),
    entry("sql.state_*", Data, "PostgreSQL refused a statement with this SQLSTATE.", "A refused row becomes a dead letter; what concerns the whole target stops the connector.", "Look the SQLSTATE up in PostgreSQL's documentation; mend the target, then redrive."),
    entry("sql.error_*", Data, "MySQL or MariaDB refused a statement with this error number.", "A refused row becomes a dead letter; what concerns the whole target stops the connector.", "Look the number up in the server's documentation; mend the target, then redrive."),
    entry("sql.sqlite_*", Data, "SQLite refused a statement with this extended result code.", "A refused row becomes a dead letter; what concerns the whole target stops the connector.", "Look the code up in SQLite's documentation; mend the file, then redrive."),
    entry("http.status_*", Data, "The target answered with this HTTP status.", "What it refuses for good (most of 4xx) becomes a dead letter; the rest is repeated.", "See the target's documentation; mend the cause, then `tillstream dead-letters redrive`."),
    entry("journal.sqlite", Unavailable, "The journal's file failed.", WAITS, "Check disk space and permissions."),
    entry("demo.usage", Usage, "A demo command was used wrongly.", NOTHING_STARTED, "Run it with `--help`."),
    entry("http.key_reused", Bug, "The target knows the event's idempotency key with another body.", "The event becomes a dead letter; what came first under its key stands in the target.", "Usually the map was changed between two attempts: compare what the target holds, then redrive under the old file or discard."),
    entry("http.connect", Unavailable, "The target cannot be reached.", WAITS, "Check host, port, network and certificate."),
    entry("http.address_refused", Config, "The target's name stands for addresses that are not public: loopback, a private network, a cloud's metadata.", CONNECTOR_STOPS, "If it is meant, write `allow_private: true` into the sink's block, or the network as `allow_private: [10.1.0.0/16]`."),
    entry("http.connection", Unavailable, "The connection to the target was lost during a call.", "Whether the call had its effect is not known; it is repeated under the same keys.", "Nothing, unless it goes on."),
    entry("http.timeout", Unavailable, "The target did not answer in time.", "Whether the call had its effect is not known; it is repeated under the same keys.", "Check the target; raise the sink's timeout if it is merely slow."),
    entry("http.request", Config, "The request could not be built.", CONNECTOR_STOPS, "Check URL and headers of the connector."),
    entry("http.answer_too_long", Data, "The target answered more than is read.", "The call counts as failed and is repeated under the same keys.", "Check the URL: an API's answer is short."),
    entry("http.no_result", Data, "The target's answer to a batch does not name an event's result.", "The event is repeated under the same key.", "Check the sink's setting of how results are read."),
    entry("mapping.failed", Data, "A connector's `when` or `map` could not be evaluated for an event: a column that is not there, a text that is no number.", "The event is a dead letter of this connector; nothing else waits for it.", "Mend the leaf that the message names, try it with `tillstream preview` and `tillstream test`, then `tillstream dead-letters redrive --code mapping.failed`."),
    entry("mapping.lookup_missing", Data, "An event asks for a row that the connector does not know: it was never there, was deleted, or is older than what the journal still holds.", "The event (or the one output of it that asks) is a dead letter; nothing else waits for it.", "Where the row is older than the journal's retention: `tillstream backfill start --table TABLE --connector CONNECTOR`, then `tillstream dead-letters redrive --code mapping.lookup_missing`. Where it may be missing: `missing: none` in the lookup."),
    entry("mapping.duplicate_id", Data, "Two outputs of one event have the same `id`, so the target would take one of them for a repeat of the other.", "The event is a dead letter; nothing of it was sent.", "Put what tells the outputs apart into `id`, as `{{ item.id }}` or `{{ index }}`; then redrive."),
    entry("delivery.lookup_full", Config, "The rows that a connector keeps for `lookup` and `before: kept` take more than `memory`.", "The connector stops and keeps its checkpoint; nothing is skipped.", "Raise `memory`, name only the `columns` that are needed, or spread the tables over more partitions with `partition_by`."),
    entry("delivery.lookup_keyless", Config, "A table whose rows are to be kept has no key, so nothing tells its rows apart.", "The connector stops and keeps its checkpoint.", "Give the table a primary key, or remove it from `lookup` (or from `from.tables`, with `before: kept`)."),
    entry("delivery.group_too_large", Config, "A transaction has more rows than a connector with `group: transaction` may hold together.", "The connector stops before this transaction and keeps its checkpoint; nothing is skipped.", "Raise `memory` (a transaction may take a quarter of it), or leave such rows out with `from` and `when`."),
    entry("delivery.schema_changed", Data, "A table has changed, and a connector cannot go on by its file as it is, or is not to (`schema_change`).", "This connector delivers everything before the change and waits there, or makes dead letters of what its file cannot tell; other connectors and capture go on. Nothing is lost.", "See what changed with `tillstream schema history`; mend the file and have it taken over with `tillstream apply`, or accept the change with `tillstream connector resume NAME`. Redrive what became dead letters when the file was mended."),
    entry("delivery.paused", Temporary, "Somebody paused the connector, and a run that was to end when everything is delivered cannot end so.", "Nothing is sent to its target; what comes for it waits in the journal, in order, as long as that keeps it. Other connectors and capture go on.", "`tillstream status` says who paused it and why; `tillstream connector resume NAME` ends that. Then run again."),
    entry("delivery.group_incomplete", Data, "A transaction's end never came, because the history of the source did not continue; its rows are not one fact.", "What came of it is a dead letter.", "Compare the target with the source; then discard the letter with a reason, or redrive it as it is."),
    entry("jsonl.cut", Data, "A file of JSON lines is shorter than what was written to it.", CONNECTOR_STOPS, "Somebody cut or replaced it: bring it back, or move the file and its `.state` away and begin anew under another connector's name."),
    entry("jsonl.damaged", Data, "The `.state` file beside a file of JSON lines cannot be read.", CONNECTOR_STOPS, "Bring it back from a backup, or move both files away and begin anew under another connector's name."),
    entry("jsonl.file", Unavailable, "A file of JSON lines cannot be opened, written or synced.", CONNECTOR_STOPS, "See that the directory exists, may be written, and has room."),
    entry("jsonl.held", Locked, "Another process writes this file of JSON lines.", WAITS, "End the other process, or give each its own directory."),
    entry("http.oauth2", Config, "The token's server gave no token for the client credentials.", "Where someone has to act, the connector stops and keeps its place; else it waits.", "Check `token_url`, `client_id`, `client_secret` and `scope` below `auth.oauth2`."),
    entry("http.template", Data, "An expression in the sink's URL or headers comes to something that cannot stand there.", "The event becomes a dead letter.", "Mend the expression, then redrive it."),
    entry("http.too_large", Data, "An event is larger than the target takes.", "The event becomes a dead letter; the others go on.", "Send less of it in the connector's map, then redrive it."),
    entry("webhook.gone", Data, "The receiver answers 410: it wants no more of these events.", CONNECTOR_STOPS, "Ask the receiver for its new endpoint, or take the connector out of `connectors`."),
    entry("klaviyo.delete", Data, "A row was deleted, and the connector tells Klaviyo profiles.", "The event becomes a dead letter; the profile stays.", "Write `on_delete: ignore`; erasing a guest is a request of its own in Klaviyo."),
    entry("klaviyo.field", Data, "What the connector's map makes is not what Klaviyo takes; the message names the field.", "The event becomes a dead letter.", "Mend the map, try it with `tillstream preview`, then redrive. Fields of consent are never sent."),
    entry("segment.field", Data, "What the connector's map makes is no call of the Segment spec; the message names the field.", "The event becomes a dead letter; Segment itself would have dropped it without a word.", "Mend the map, try it with `tillstream preview`, then redrive."),
    entry("square.field", Data, "What the connector's map makes is no inventory change of Square's; the message names the field.", "The event becomes a dead letter.", "Mend the map, try it with `tillstream preview`, then redrive."),
    entry("square.in_future", Data, "A change's `occurred_at` lies ahead of this machine's clock.", "The event becomes a dead letter.", "Set the clocks of the point of sale and of this machine, then redrive."),
    entry("square.too_old", Data, "A change's `occurred_at` is older than the 24 hours that Square takes.", "The event becomes a dead letter; Square's stock lacks it, unless an attempt whose answer was lost had applied it.", "Send the stock as it is now as one PHYSICAL_COUNT an item and place, then `tillstream dead-letters discard --code square.too_old --reason counted`."),
    entry("http.no_table", Data, "The event has no table, so the sink does not know what to send.", "The event becomes a dead letter.", "Leave `message` out of `from.ops`."),
    entry("http.table_not_listed", Config, "An event's table is not in the sink's list.", "The event becomes a dead letter.", "Add the table to the sink's block, or remove it from `from.tables`."),
    entry("http.column_missing", Data, "The event lacks a column that the sink sends.", "The event becomes a dead letter.", "Publish the column, or leave it out of the sink's list."),
    entry("connector.target", Unavailable, "A connector's target does not answer or does not permit what is needed.", "Its events wait in the journal.", "Mend the target, or the connector's `to:` block."),
    entry("internal.output", Bug, "The result could not be written to stdout.", "The command ends; what it did before stands.", "Check the disk or the program that reads it."),
    entry("internal.stop_deadline", Temporary, "A loop did not end within nine seconds of a request to stop.", "Nothing is lost; the next run repeats a little, which targets absorb.", "Start it again; see the log for what it waited for."),
];

/// The explanation of a code; an entry that ends in `*` stands for a family (`http.status_422`).
#[must_use]
pub fn find(code: &str) -> Option<&'static Explanation> {
    ALL.iter()
        .find(|e| e.code == code)
        .or_else(|| ALL.iter().find(|e| e.code.strip_suffix('*').is_some_and(|family| code.starts_with(family))))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// The first words of our codes; a string literal `"<word>.<more>"` in the sources is a code.
    #[rustfmt::skip]
    const AREAS: [&str; 23] = [
        "config", "usage", "explain", "internal", "capture", "journal", "control", "delivery", "backfill", "admin", "demo", "setup",
        "connector", "sql", "http", "webhook", "klaviyo", "segment", "square", "sandbox", "publication", "slot", "queries",
    ];

    fn literals(text: &str, found: &mut Vec<String>) {
        for piece in text.split('"') {
            let Some((area, name)) = piece.split_once('.') else { continue };
            let word = |w: &str| !w.is_empty() && w.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
            if AREAS.contains(&area) && word(name) && !["rs", "yaml", "json", "sqlite", "md", "sh"].contains(&name) {
                found.push(piece.to_owned());
            }
        }
    }

    fn visit(dir: &Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(dir).expect("sources").flatten() {
            let path = entry.path();
            if path.is_dir() {
                visit(&path, found);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = std::fs::read_to_string(&path).expect("a source");
                // Tests stand at the end of a file and may use invented codes.
                literals(text.split("#[cfg(test)]").next().unwrap_or_default(), found);
            }
        }
    }

    #[test]
    fn every_code_in_the_sources_is_explained() {
        let mut found = Vec::new();
        let pipeline = Path::new(env!("CARGO_MANIFEST_DIR"));
        visit(&pipeline.join("src"), &mut found);
        visit(&pipeline.join("../connectors/src"), &mut found);
        found.sort();
        found.dedup();
        let missing: Vec<_> = found.iter().filter(|code| find(code).is_none()).collect();
        assert!(missing.is_empty(), "explain these in ops/codes.rs: {missing:?}");
    }

    #[test]
    fn no_code_is_explained_twice() {
        for (i, explanation) in ALL.iter().enumerate() {
            assert!(ALL[..i].iter().all(|other| other.code != explanation.code), "{}", explanation.code);
        }
    }
}
