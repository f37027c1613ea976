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

#[allow(dead_code, reason = "not every release of the table needs each")]
const fn since(major: u32, name: &'static str) -> Test {
    Test { name, since: major, slow: false }
}

#[allow(dead_code, reason = "not every release of the table needs each")]
const fn slow(name: &'static str) -> Test {
    Test { name, since: 14, slow: true }
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
    row(44, "TRUNCATE, also CASCADE and of partitions: an ordered event of each table", &[on_all("identity::a_truncate_is_an_ordered_event_of_each_table")]),
];
