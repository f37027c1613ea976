//! The failures of change capture that others met, in the order of their numbers, each with the tests that show how it is met.
//!
//! A row without a test says why in a sentence. Numbers 24 to 30 concern the initial load, 61 to 76 and 87 the transport and delivery:
//! they are tested there and not listed here.

/// One failure.
pub(super) struct Row {
    /// Its number in the catalogue; never reused.
    pub(super) number: u8,
    /// What goes wrong elsewhere, and what happens here instead.
    pub(super) failure: &'static str,
    /// What shows it.
    pub(super) shown: Shown,
}

/// What shows that a failure is met.
#[derive(Clone, Copy)]
pub(super) enum Shown {
    /// These tests, all of them.
    By(&'static [Test]),
    /// No test can; this is why.
    Reason(&'static str),
}

/// A test by its path in this binary.
#[derive(Clone, Copy)]
pub(super) struct Test {
    pub(super) name: &'static str,
    /// The first major version that it is for.
    pub(super) since: u32,
    /// Takes longer than a few seconds: once in an ordinary run, on every version only when asked.
    pub(super) slow: bool,
}

const fn on_all(name: &'static str) -> Test {
    Test { name, since: 14, slow: false }
}

const fn since(major: u32, name: &'static str) -> Test {
    Test { name, since: major, slow: false }
}

const fn slow(name: &'static str) -> Test {
    Test { name, since: 14, slow: true }
}

const fn slow_since(major: u32, name: &'static str) -> Test {
    Test { name, since: major, slow: true }
}

const fn row(number: u8, failure: &'static str, tests: &'static [Test]) -> Row {
    Row { number, failure, shown: Shown::By(tests) }
}

const fn reason(number: u8, failure: &'static str, reason: &'static str) -> Row {
    Row { number, failure, shown: Shown::Reason(reason) }
}

#[rustfmt::skip] // One failure a line: a table.
pub(super) const ROWS: &[Row] = &[
    row(1, "an UPDATE leaves a large value alone: it is named as unchanged, never null", &[on_all("identity::large_values_are_unchanged_or_whole_never_null")]),
    row(2, "a large value under identity FULL: taken from the old row", &[on_all("identity::large_values_are_unchanged_or_whole_never_null")]),
    row(3, "a DELETE knows the key only: nothing is invented beside it", &[on_all("identity::large_values_are_unchanged_or_whole_never_null")]),
    row(4, "a table without a key: inserts flow, updates and deletes need FULL, all in one partition", &[on_all("identity::every_replica_identity_gives_its_key")]),
    row(5, "publishing a table without a key makes UPDATE and DELETE fail in the point of sale: said beforehand", &[on_all("identity::every_replica_identity_gives_its_key")]),
    row(6, "replica identity INDEX and NOTHING: the index is the key; nothing means inserts only, loudly", &[on_all("identity::every_replica_identity_gives_its_key")]),
    row(7, "the replica identity changes while capture runs: another layout from there on", &[on_all("schema::an_identity_that_changes_is_followed")]),
    row(8, "a changed key: a delete of the old and an insert of the new one, each in its partition", &[on_all("identity::a_key_change_is_a_delete_and_an_insert_in_their_partitions")]),
    row(9, "identity FULL costs WAL: the doctor names wide tables that have it and a key besides", &[on_all("identity::a_whole_old_row_costs_what_the_doctor_says")]),
    row(10, "the slot is missing at the start: refused, with the way back", &[on_all("slot::history::a_slot_that_was_dropped_recreated_or_advanced_halts_until_an_epoch_begins"), slow("faults::absent::a_missing_slot_is_an_error_with_its_fix")]),
    row(11, "the server invalidated the slot: refused, never created anew in silence", &[on_all("wire::a_server_that_cannot_decode_or_lost_the_slot_says_so")]),
    row(12, "a slot that was idle for too long (18): the reason is told, the doctor warns before", &[since(18, "slot::history::a_slot_that_was_idle_for_too_long_is_lost_and_says_why")]),
    row(13, "no limit to the WAL that is kept, or none kept: the doctor says both, and whatever else is sown", &[on_all("wire::owner::setup_prepares_a_server_twice_and_the_doctor_finds_what_is_then_broken"), on_all("doctor::seeded::every_fault_that_is_sown_is_found_and_a_good_server_has_none"), on_all("setup::setup_runs_twice_and_its_rollback_leaves_the_catalogue_as_it_was_byte_for_byte")]),
    row(14, "the slot was created anew or advanced by hand: refused, since it confirms more than was ever acknowledged", &[on_all("slot::history::a_slot_that_was_dropped_recreated_or_advanced_halts_until_an_epoch_begins")]),
    row(15, "another server under the same name: system identifier, timeline and slot are compared", &[on_all("slot::history::another_server_under_the_same_name_is_refused_and_an_upgraded_one_goes_on")]),
    row(16, "a restore moves positions back, and new ones reuse them: refused by position, then by content", &[on_all("slot::history::a_server_restored_from_a_base_backup_is_refused_with_the_way_out")]),
    row(17, "an idle database beside a busy one: its slot keeps none of the other's WAL", &[slow("slot::idle::an_idle_database_keeps_none_of_its_neighbours_wal")]),
    row(18, "a long transaction holds the oldest WAL although its reader has acknowledged more: it is named", &[on_all("slot::history::what_holds_the_wal_although_we_do_not_is_named")]),
    row(19, "creating the slot waits for a transaction that is open: waited for, and said", &[on_all("slot::history::a_slot_that_is_still_being_created_is_waited_for")]),
    row(20, "a huge transaction: spilled by the server, constant memory here; or streamed, with the same events", &[slow("bench::capture::a_transaction_of_many_rows_drains_in_constant_memory"), on_all("streaming::events_are_the_same_with_and_without_streaming"), on_all("streaming::what_is_streamed_beyond_the_spool_stops_capture_and_loses_nothing")]),
    row(21, "the server spills a large transaction to disk: counted, shown, and the setting named", &[on_all("slot::spill::what_the_server_spills_is_shown_with_the_setting_to_raise"), on_all("slot::spill::what_is_spilled_and_streamed_is_in_status_and_metrics")]),
    row(22, "rolled-back subtransactions, large ones too: nothing of them is told", &[on_all("cases::transactions_and_subtransactions"), on_all("cases::transactions_that_come_before_they_commit"), on_all("streaming::any_interleaving_tells_what_the_commit_order_tells")]),
    row(23, "empty transactions between others: acknowledged in order, told by nothing", &[on_all("cases::transactions_and_subtransactions")]),
    row(31, "a column is added, with a default: old events lack it, the layout says since when", &[on_all("schema::columns_come_go_and_change_without_a_value_in_a_wrong_place")]),
    row(32, "columns are dropped and renamed, even swapped: no value in a wrong place", &[on_all("schema::columns_come_go_and_change_without_a_value_in_a_wrong_place")]),
    row(33, "a type changes and the table is rewritten: values in their order, the rewrite itself is no change", &[on_all("schema::columns_come_go_and_change_without_a_value_in_a_wrong_place"), on_all("cases::definitions_among_changes")]),
    row(34, "a new connection between a definition and its rows: nothing remembered is trusted", &[on_all("schema::changes_made_while_nobody_reads_are_told_in_their_order"), on_all("schema::columns_come_go_and_change_without_a_value_in_a_wrong_place")]),
    row(35, "an enum gets a value: text, before anybody knows it", &[on_all("schema::an_enum_value_is_text_before_anybody_knows_it")]),
    row(36, "every type, built in or not: text-exact, numbers never through a float", &[on_all("types::every_type_is_text_exact")]),
    row(37, "numeric NaN, infinities, 131,072 digits: exact strings", &[on_all("types::every_type_is_text_exact")]),
    row(38, "timestamps infinite, BC, of year 294276, 24:00:00: exact", &[on_all("types::every_type_is_text_exact")]),
    row(39, "settings of role or database that change how values print: pinned", &[on_all("types::every_type_is_text_exact")]),
    row(40, "databases in other encodings or in none: converted, or replaced and gone on", &[on_all("types::encodings_are_converted_or_replaced_and_never_stop_anything")]),
    row(41, "values of many megabytes: split below the frame limit and joined again", &[slow("e2e::big_row::a_row_of_5_mb_passes_frames_of_1_mib")]),
    row(42, "generated columns: absent, not null, unless the publication holds them (18)", &[on_all("schema::generated_columns_are_absent_unless_they_are_published")]),
    row(43, "partitioned tables under their root, whatever is attached, detached, or in another order of columns", &[on_all("schema::partitions_are_their_root_whatever_is_attached"), on_all("cases::partitions_filters_and_publications")]),
    row(44, "TRUNCATE, also CASCADE and of partitions: an ordered event of each table", &[on_all("identity::a_truncate_is_an_ordered_event_of_each_table")]),
    row(45, "sequences, large objects, materialized views: no change of a table, and no event", &[on_all("cases::rows_and_identities")]),
    row(46, "prepared transactions: told when they commit, never before", &[on_all("cases::prepared_transactions_come_when_they_commit")]),
    row(47, "row filters and column lists (15): named, and an update across the filter is an insert or a delete", &[since(15, "schema::row_filters_and_column_lists_cut_what_is_sent")]),
    row(48, "a publication of inserts only: said at the start", &[on_all("schema::a_publication_says_what_is_captured_from_then_on")]),
    row(49, "a publication younger than the position that is read: explained, or (18) read from where it exists", &[on_all("schema::a_publication_younger_than_the_backlog_is_explained")]),
    row(50, "a table joins the publication with a backlog pending: captured from that point, never guessed before", &[on_all("schema::a_publication_says_what_is_captured_from_then_on")]),
    row(51, "a table is dropped and created anew, or the publication is emptied: another table, and a gap with a name", &[on_all("schema::a_recreated_table_is_another_one"), on_all("coverage::what_is_not_captured_is_named"), on_all("setup::drift_is_found_and_its_sql_mends_it_and_slots_are_told")]),
    row(52, "a table is renamed or moved: followed by its OID under the configured name, a successor takes the name over", &[on_all("schema::a_renamed_table_keeps_its_name_and_a_successor_takes_it")]),
    row(53, "two readers of one slot: the second names the first, waits, takes over, and the first writes no more", &[slow("slot::readers::a_standby_names_the_holder_takes_over_and_fences_it_off"), slow("faults::absent::a_slot_in_use_is_waited_for")]),
    row(54, "a link that passes nothing on: found by silence and replaced", &[slow("slot::readers::a_link_that_passes_nothing_on_is_found_and_replaced")]),
    row(55, "back-pressure for longer than wal_sender_timeout: no reconnect, no loss, no memory", &[slow("slot::stall::a_stalled_broker_costs_no_reconnect_no_loss_and_no_memory")]),
    row(56, "an acknowledgement never passes what is confirmed and promised", &[slow("model::every_change_is_stored_once_in_order_and_acknowledged_only_then")]),
    row(57, "the acknowledged position is the next byte: a restart after every transaction neither loses nor doubles", &[on_all("slot::history::a_restart_after_every_transaction_neither_loses_nor_doubles")]),
    row(58, "a crash between publishing and acknowledging: the tail says what is there", &[slow("faults::kills::every_process_is_killed_in_turn_and_nothing_is_lost_or_doubled")]),
    row(59, "a broker that lost what it had confirmed: PostgreSQL, held back, fills it again", &[slow("slot::refill::a_broker_that_lost_its_unsynced_tail_is_filled_again")]),
    row(60, "a late writer under the same name: dropped by the broker and found by reading back", &[slow("slot::readers::a_standby_names_the_holder_takes_over_and_fences_it_off"), slow("model::every_change_is_stored_once_in_order_and_acknowledged_only_then")]),
    row(77, "a pooler where the server should be: detected and explained", &[on_all("slot::pooler::a_pooler_in_front_is_detected_and_explained")]),
    reason(78, "decoding on a standby: slots lost to recovery conflicts", "a conflict is read from the slot (invalidation_reason, conflicting) and refused like any lost slot; none was provoked on a standby"),
    row(79, "a promotion: with a failover slot nothing is lost or doubled, without it capture halts", &[slow_since(17, "slot::promotion::a_promotion_with_a_failover_slot_loses_and_doubles_nothing"), slow("slot::promotion::a_promotion_without_the_slot_or_without_the_events_halts")]),
    row(80, "an event is there before its row is visible: events are whole, and a load never overwrites them with what it saw", &[slow("backfill::a_commit_that_is_streamed_before_it_is_visible_is_not_overwritten")]),
    row(81, "captured, and then the primary died before its standby had it: the phantom is found by the timeline's history", &[slow("slot::promotion::a_promotion_without_the_slot_or_without_the_events_halts")]),
    reason(82, "commit timestamps jump or differ between servers", "nothing is ordered or acknowledged by a clock: positions are LSNs, and lag is told in bytes of WAL"),
    row(83, "a major upgrade: another system identifier halts, and a drained slot goes on without a load", &[on_all("slot::history::another_server_under_the_same_name_is_refused_and_an_upgraded_one_goes_on")]),
    row(84, "hundreds of subtransactions", &[on_all("cases::transactions_and_subtransactions")]),
    reason(85, "faults of certain server releases", "they cannot be provoked on the releases that the tests run; every error without a meaning of its own is tried again with a pause and shown"),
    row(86, "no walsender is free: waited for, with the setting named", &[on_all("wire::a_server_that_cannot_decode_or_lost_the_slot_says_so")]),
    row(88, "a graceful stop in the middle of a batch", &[slow("e2e::shutdown::sigterm_under_load_ends_within_10_seconds_without_loss")]),
];
