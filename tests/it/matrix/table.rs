//! The failures of change capture that others met, in the order of their numbers, each with the tests that show how it is met.
//!
//! A row whose right behaviour no test can show says why in a sentence.

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

#[allow(dead_code, reason = "not every release of the table needs each")]
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
    row(8, "a changed key: a delete of the old and an insert of the new one, each in its partition", &[on_all("identity::a_key_change_is_a_delete_and_an_insert_in_their_partitions")]),
    row(10, "the slot is missing at the start: refused, with the way back", &[on_all("slot::history::a_slot_that_was_dropped_recreated_or_advanced_halts_until_an_epoch_begins"), slow("faults::absent::a_missing_slot_is_an_error_with_its_fix")]),
    row(11, "the server invalidated the slot: refused, never created anew in silence", &[on_all("wire::a_server_that_cannot_decode_or_lost_the_slot_says_so")]),
    row(12, "a slot that was idle for too long (18): the reason is told, the doctor warns before", &[since(18, "slot::history::a_slot_that_was_idle_for_too_long_is_lost_and_says_why")]),
    row(13, "no limit to the WAL that is kept, or none kept: the doctor says both", &[on_all("wire::owner::setup_prepares_a_server_twice_and_the_doctor_finds_what_is_then_broken")]),
    row(14, "the slot was created anew or advanced by hand: refused, since it confirms more than was ever acknowledged", &[on_all("slot::history::a_slot_that_was_dropped_recreated_or_advanced_halts_until_an_epoch_begins")]),
    row(15, "another server under the same name: system identifier, timeline and slot are compared", &[on_all("slot::history::another_server_under_the_same_name_is_refused_and_an_upgraded_one_goes_on")]),
    row(16, "a restore moves positions back, and new ones reuse them: refused by position, then by content", &[on_all("slot::history::a_server_restored_from_a_base_backup_is_refused_with_the_way_out")]),
    row(17, "an idle database beside a busy one: its slot keeps none of the other's WAL", &[slow("slot::idle::an_idle_database_keeps_none_of_its_neighbours_wal")]),
    row(18, "a long transaction holds the oldest WAL although its reader has acknowledged more: it is named", &[on_all("slot::history::what_holds_the_wal_although_we_do_not_is_named")]),
    row(19, "creating the slot waits for a transaction that is open: waited for, and said", &[on_all("slot::history::a_slot_that_is_still_being_created_is_waited_for")]),
    row(44, "TRUNCATE, also CASCADE and of partitions: an ordered event of each table", &[on_all("identity::a_truncate_is_an_ordered_event_of_each_table")]),
    row(53, "two readers of one slot: the second names the first, waits, takes over, and the first writes no more", &[slow("slot::readers::a_standby_names_the_holder_takes_over_and_fences_it_off"), slow("faults::absent::a_slot_in_use_is_waited_for")]),
    row(54, "a link that passes nothing on: found by silence and replaced", &[slow("slot::readers::a_link_that_passes_nothing_on_is_found_and_replaced")]),
    row(55, "back-pressure for longer than wal_sender_timeout: no reconnect, no loss, no memory", &[slow("slot::stall::a_stalled_broker_costs_no_reconnect_no_loss_and_no_memory")]),
    row(56, "an acknowledgement never passes what is confirmed and promised", &[slow("model::every_change_is_stored_once_in_order_and_acknowledged_only_then")]),
    row(57, "the acknowledged position is the next byte: a restart after every transaction neither loses nor doubles", &[on_all("slot::history::a_restart_after_every_transaction_neither_loses_nor_doubles")]),
    row(58, "a crash between publishing and acknowledging: the tail says what is there", &[slow("faults::kills::every_process_is_killed_in_turn_and_nothing_is_lost_or_doubled")]),
    row(59, "a broker that lost what it had confirmed: PostgreSQL, held back, fills it again", &[slow("slot::refill::a_broker_that_lost_its_unsynced_tail_is_filled_again")]),
    row(60, "a late writer under the same name: dropped by the broker and found by reading back", &[slow("slot::readers::a_standby_names_the_holder_takes_over_and_fences_it_off"), slow("model::every_change_is_stored_once_in_order_and_acknowledged_only_then")]),
    row(77, "a pooler where the server should be: detected and explained", &[on_all("slot::pooler::a_pooler_in_front_is_detected_and_explained")]),
    row(79, "a promotion: with a failover slot nothing is lost or doubled, without it capture halts", &[slow_since(17, "slot::promotion::a_promotion_with_a_failover_slot_loses_and_doubles_nothing"), slow("slot::promotion::a_promotion_without_the_slot_or_without_the_events_halts")]),
    row(81, "captured, and then the primary died before its standby had it: the phantom is found by the timeline's history", &[slow("slot::promotion::a_promotion_without_the_slot_or_without_the_events_halts")]),
    row(83, "a major upgrade: another system identifier halts, and a drained slot goes on without a load", &[on_all("slot::history::another_server_under_the_same_name_is_refused_and_an_upgraded_one_goes_on")]),
    row(86, "no walsender is free: waited for, with the setting named", &[on_all("wire::a_server_that_cannot_decode_or_lost_the_slot_says_so")]),
    row(88, "a graceful stop in the middle of a batch", &[slow("e2e::shutdown::sigterm_under_load_ends_within_10_seconds_without_loss")]),
];
