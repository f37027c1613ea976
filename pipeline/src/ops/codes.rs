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

use Class::{Bug, Check, Config, Data, Permission, Temporary, Unavailable, Usage};

/// All of them, by code.
pub const ALL: &[Explanation] = &[
    entry(
        "config.unreadable_file",
        Config,
        "A configuration file cannot be read.",
        NOTHING_STARTED,
        "Name an existing file that this user may read.",
    ),
    entry(
        "config.too_large",
        Config,
        "A configuration file is larger than 1 MiB.",
        NOTHING_STARTED,
        "Name the right file; connectors stand in files of their own.",
    ),
    entry("config.not_utf8", Config, "A configuration file is not UTF-8 text.", NOTHING_STARTED, "Save it as UTF-8."),
    entry("config.control_character", Config, "A configuration file holds a control character.", NOTHING_STARTED, "Remove it."),
    entry(
        "config.syntax",
        Config,
        "A configuration file is not YAML.",
        NOTHING_STARTED,
        "Check indentation (spaces only), quotes and colons at and above the line.",
    ),
    entry("config.empty", Config, "A configuration file is empty.", NOTHING_STARTED, "Begin with `version: 1`."),
    entry(
        "config.too_complex",
        Config,
        "A configuration file uses anchors or aliases, or nests too deeply.",
        NOTHING_STARTED,
        "Write each value where it belongs.",
    ),
    entry(
        "config.unknown_key",
        Config,
        "A key is not one of those allowed at its place.",
        NOTHING_STARTED,
        "Correct the spelling; `tillstream explain config` lists every key.",
    ),
    entry("config.duplicate_key", Config, "A key stands twice in one block.", NOTHING_STARTED, "Keep one of the two."),
    entry(
        "config.missing_key",
        Config,
        "A required key is missing.",
        NOTHING_STARTED,
        "Add it; `tillstream explain config` lists every key.",
    ),
    entry("config.missing_value", Config, "A key has no value.", NOTHING_STARTED, "Give it one, or remove the key if it is optional."),
    entry(
        "config.wrong_type",
        Config,
        "A value has the wrong form: a list where one value belongs, a block where a list belongs.",
        NOTHING_STARTED,
        "Write it in the form named.",
    ),
    entry(
        "config.bad_version",
        Config,
        "The file's format version is not known.",
        NOTHING_STARTED,
        "Write `version: 1`, or use a later program.",
    ),
    entry(
        "config.bad_name",
        Config,
        "A name holds characters that are not allowed or is too long.",
        NOTHING_STARTED,
        "Use small letters, digits, `_` (and `-` where allowed).",
    ),
    entry(
        "config.bad_number",
        Config,
        "A number is not one or lies outside its bounds.",
        NOTHING_STARTED,
        "Write digits only, within the bounds named.",
    ),
    entry(
        "config.bad_duration",
        Config,
        "A duration has no unit, an unknown one, or lies outside its bounds.",
        NOTHING_STARTED,
        "Write a whole number and ms, s, m, h or d: `30s`, `1h30m`.",
    ),
    entry(
        "config.bad_size",
        Config,
        "A size has no unit, an unknown one, or lies outside its bounds.",
        NOTHING_STARTED,
        "Write a whole number and B, KiB, MiB, GiB or TiB: `8MiB`.",
    ),
    entry(
        "config.bad_address",
        Config,
        "An address is not an IP address with port.",
        NOTHING_STARTED,
        "Write `127.0.0.1:7410` or `[::1]:7410`.",
    ),
    entry(
        "config.bad_url",
        Config,
        "A URL has the wrong scheme or form.",
        NOTHING_STARTED,
        "Begin with the scheme named; percent-encode special characters in user and password.",
    ),
    entry(
        "config.bad_table",
        Config,
        "A table is not written as schema.table.",
        NOTHING_STARTED,
        "Write `public.orders`, as the catalogue spells it.",
    ),
    entry("config.bad_choice", Config, "A value is not one of the words allowed.", NOTHING_STARTED, "Choose one of them."),
    entry("config.bad_reference", Config, "`${…}` is neither `${env:NAME}` nor `${file:PATH}`.", NOTHING_STARTED, "Write one of the two."),
    entry(
        "config.secret_missing",
        Config,
        "The environment variable or file that a reference names is not there.",
        NOTHING_STARTED,
        "Set the variable where the program is started, or make the file readable for it.",
    ),
    entry(
        "config.unknown_kind",
        Config,
        "A connector names a kind of sink that this program does not have.",
        NOTHING_STARTED,
        "Choose one of the kinds named.",
    ),
    entry(
        "config.unknown_table",
        Config,
        "A table is named that is not captured, not delivered, or not in the database.",
        NOTHING_STARTED,
        "Correct the spelling or add it to the list named.",
    ),
    entry(
        "config.unknown_column",
        Config,
        "A column is named that the table does not have, or that the publication does not hold.",
        NOTHING_STARTED,
        "Correct the spelling, or add the column to the publication.",
    ),
    entry("config.duplicate_name", Config, "Two things of one kind have the same name.", NOTHING_STARTED, "Remove or rename one."),
    entry("config.conflict", Config, "A block holds two things of which only one is allowed.", NOTHING_STARTED, "Keep one."),
    entry("config.bad_sink", Config, "A sink's own settings are wrong.", NOTHING_STARTED, "Mend what the message names."),
    entry(
        "config.settings",
        Config,
        "The settings file, a TILLSTREAM__ variable or a flag is wrong.",
        NOTHING_STARTED,
        "Correct the name or the value.",
    ),
    entry("usage.arguments", Usage, "The command line is wrong.", NOTHING_STARTED, "Run the command with `--help`."),
    entry(
        "explain.unknown_code",
        Usage,
        "There is no such code.",
        NOTHING_STARTED,
        "`tillstream explain` without a code lists all of them.",
    ),
    entry(
        "internal.runtime",
        Bug,
        "The program could not start its runtime.",
        NOTHING_STARTED,
        "Check the limits of processes and file descriptors (`ulimit -a`).",
    ),
    entry(
        "internal.panicked",
        Bug,
        "A part of the program ended by a fault of ours.",
        "The process ends; a restart goes on where it was, nothing is lost.",
        "Start it again and report the message with the version.",
    ),
    entry(
        "capture.source_unavailable",
        Unavailable,
        "The source database cannot be reached or the connection was lost.",
        WAITS,
        "Check host, port and network; `tillstream doctor` tells more.",
    ),
    entry(
        "capture.slot_active",
        Unavailable,
        "Another process streams from the slot.",
        "It waits as a standby and takes over when the other ends.",
        "Nothing, if a standby is meant; else end the other process.",
    ),
    entry(
        "capture.fenced",
        Temporary,
        "A later run took the journal over.",
        "This run ends and begins again behind the other; nothing is doubled.",
        "See that only one process captures this source.",
    ),
    entry(
        "journal.unavailable",
        Unavailable,
        "The broker or the journal's file cannot be reached.",
        WAITS,
        "Check that the broker runs, its address and the network.",
    ),
    entry(
        "journal.fenced",
        Temporary,
        "A later run writes to the journal.",
        "This writer ends; its process begins a new session.",
        "See that only one process captures this source.",
    ),
    entry(
        "journal.expired",
        Data,
        "Retention deleted entries that a reader still needed.",
        CONNECTOR_STOPS,
        "Raise `retention`, then load the tables again.",
    ),
    entry(
        "journal.missing",
        Config,
        "A log of the journal does not exist: it was deleted or never set up.",
        STOPS,
        "`tillstream run` creates it when the configuration is right; after a deletion load the tables again.",
    ),
    entry(
        "journal.refused",
        Permission,
        "The broker or the file refuses access.",
        NOTHING_STARTED,
        "Check user, password, virtual host and permissions.",
    ),
    entry(
        "journal.damaged",
        Data,
        "Stored bytes are damaged.",
        CONNECTOR_STOPS,
        "Check the disk; restore the journal from a replica or load the tables again.",
    ),
    entry(
        "journal.unusable",
        Config,
        "The configuration does not fit the journal that is there: version, partitions, frame size.",
        NOTHING_STARTED,
        "Mend what the message names, or use a new stream name.",
    ),
    entry(
        "journal.malformed_event",
        Data,
        "An entry's body is not an event.",
        CONNECTOR_STOPS,
        "See which program wrote it; only Tillstream may write to its streams.",
    ),
    entry("control.version", Config, "A later program wrote to the control log.", NOTHING_STARTED, "Use that version or a later one."),
    entry(
        "control.malformed",
        Data,
        "The control log holds something that is no record.",
        NOTHING_STARTED,
        "Only Tillstream may write to its logs; report it with the version.",
    ),
    entry(
        "control.incomplete",
        Data,
        "The control log lost its beginning and holds no snapshot of it.",
        NOTHING_STARTED,
        "Raise the control log's retention; then use a new stream name and load the tables again.",
    ),
    entry(
        "control.rival",
        Temporary,
        "Another process took over a connector.",
        "This one ends; the other goes on from the checkpoint.",
        "See that only as many processes deliver as are meant to.",
    ),
    entry(
        "control.dead_letters_full",
        Unavailable,
        "There are as many open dead letters as can be kept.",
        CONNECTOR_STOPS,
        "Mend the cause, then redrive them: `tillstream dead-letters redrive`.",
    ),
    entry(
        "delivery.gap",
        Data,
        "An entry follows something that is not in the journal.",
        CONNECTOR_STOPS,
        "Load the tables again; report it unless entries were deleted on purpose.",
    ),
    entry(
        "delivery.malformed_entry",
        Data,
        "An entry claims to be ours and cannot be read.",
        CONNECTOR_STOPS,
        "Check disk and program versions; load the tables again.",
    ),
    entry(
        "delivery.lineage_changed",
        Data,
        "Another history began without a new epoch.",
        CONNECTOR_STOPS,
        "See whether the source was restored or another source writes to this stream.",
    ),
    entry(
        "admin.listen",
        Unavailable,
        "The admin endpoint's address cannot be used.",
        NOTHING_STARTED,
        "Choose another `admin.listen`, or end the process that uses it.",
    ),
    entry(
        "admin.unreachable",
        Unavailable,
        "No process answers at the admin endpoint.",
        "Nothing is known of the pipeline's state; it may be stopped.",
        "Start `tillstream run`, or name its address with --url.",
    ),
    entry("demo.unavailable", Unavailable, "A server of the demo cannot be reached.", NOTHING_STARTED, "Start the demo's servers."),
    entry("demo.internal", Bug, "A command of the demo failed.", "The demo ends.", "Report the message with the version."),
    entry(
        "demo.differs",
        Check,
        "The two ends of the demo differ.",
        "The comparison ends; it changed nothing.",
        "See the differences printed.",
    ),
];

/// The explanation of a code.
#[must_use]
pub fn find(code: &str) -> Option<&'static Explanation> {
    ALL.iter().find(|e| e.code == code)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// The first words of our codes; a string literal `"<word>.<more>"` in the sources is a code.
    const AREAS: [&str; 12] =
        ["config", "usage", "explain", "internal", "capture", "journal", "control", "delivery", "backfill", "admin", "demo", "setup"];

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
        visit(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src")), &mut found);
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
