//! The capture suite on PostgreSQL 14 to 18, and the table that maps each known failure of change capture to its test.
//!
//! [`table::ROWS`] names the tests; `tests/run.sh matrix` runs exactly these on each version (`POSTGRES_MAJOR` chooses the
//! server) and lets [`the_table`] print what came out. Within an ordinary run the table is checked against the sources:
//! a test that is named exists, and no row is listed twice.

mod bench;
mod table;

use std::collections::{BTreeMap, BTreeSet};

pub(crate) use bench::{Bench, Captured};
use table::{ROWS, Row, Shown, Test};

use crate::harness::root;

/// Rows that may stand in the table with a reason instead of a test.
const REASONS_MAX: usize = 8;

fn tests() -> BTreeMap<&'static str, Test> {
    let named = |row: &Row| match row.shown {
        Shown::By(tests) => tests.to_vec(),
        Shown::Reason(_) => Vec::new(),
    };
    ROWS.iter().flat_map(named).map(|test| (test.name, test)).collect()
}

/// Prints the names of the tests to run on `POSTGRES_MAJOR`, each on a line of its own.
#[test]
#[ignore = "for tests/run.sh"]
fn names() {
    let major: u32 = std::env::var("POSTGRES_MAJOR").ok().and_then(|m| m.parse().ok()).expect("POSTGRES_MAJOR names a version");
    let slow = std::env::var_os("TILLSTREAM_MATRIX_SLOW").is_some();
    for test in tests().values() {
        if major >= test.since && (slow || !test.slow) {
            println!("matrix-test {}", test.name);
        }
    }
}

/// What the run of one version said of each test.
fn results(log: &str) -> BTreeMap<&str, &str> {
    let line = |l| {
        let (name, result) = str::strip_prefix(l, "test ")?.split_once(" ... ")?;
        Some((name.trim_end_matches(" - should panic"), result.split([',', ' ']).next()?))
    };
    log.lines().filter_map(line).collect()
}

/// Prints the table with the results that `tests/run.sh matrix` left as `<major>.log` in the directory `TILLSTREAM_MATRIX`.
/// A test that did not pass on a version it is for fails this one.
#[test]
#[ignore = "for tests/run.sh"]
fn the_table() {
    let dir = std::env::var("TILLSTREAM_MATRIX").expect("TILLSTREAM_MATRIX names the directory of the logs");
    let mut logs = BTreeMap::new();
    for file in std::fs::read_dir(dir).expect("readable").flatten() {
        let name = file.file_name().to_string_lossy().into_owned();
        if let Some(major) = name.strip_suffix(".log").and_then(|m| m.parse::<u32>().ok()) {
            logs.insert(major, std::fs::read_to_string(file.path()).expect("readable"));
        }
    }
    let logs: BTreeMap<u32, BTreeMap<&str, &str>> = logs.iter().map(|(major, log)| (*major, results(log))).collect();
    let mut bad = Vec::new();
    let heads: Vec<String> = logs.keys().map(|m| format!("{m:>4}")).collect();
    println!("  #  {}   failure, and what shows that it is met", heads.join(" "));
    for row in ROWS {
        match row.shown {
            Shown::Reason(reason) => {
                println!("{:>3}  {}   {}\n      no test: {reason}", row.number, "   - ".repeat(heads.len()).trim_end(), row.failure)
            }
            Shown::By(tests) => {
                for (at, test) in tests.iter().enumerate() {
                    let cell = |(major, results): (&u32, &BTreeMap<&str, &str>)| match results.get(test.name) {
                        _ if *major < test.since => "   -",
                        Some(&"ok") => "  ok",
                        None if test.slow => "   .",
                        other => {
                            bad.push(format!("{} on {major}: {}", test.name, other.unwrap_or(&"did not run")));
                            "FAIL"
                        }
                    };
                    let cells = logs.iter().map(cell).collect::<Vec<_>>().join(" ");
                    match at {
                        0 => println!("{:>3}  {cells}   {}\n      {}", row.number, row.failure, test.name),
                        _ => println!("     {cells}   {}", test.name),
                    }
                }
            }
        }
    }
    println!("ok passed; - not on this version; . runs with `tests/run.sh matrix`");
    assert!(bad.is_empty(), "{bad:#?}");
}

#[test]
fn every_test_of_the_table_exists() {
    let mut numbers = BTreeSet::new();
    for row in ROWS {
        assert!(numbers.insert(row.number), "row {} stands twice", row.number);
    }
    assert!(ROWS.is_sorted_by_key(|row| row.number), "rows stand in order");
    let reasons = ROWS.iter().filter(|row| matches!(row.shown, Shown::Reason(_))).count();
    assert!(reasons <= REASONS_MAX, "{reasons} rows without a test");
    for name in tests().keys() {
        let (module, function) = name.rsplit_once("::").expect("a path");
        let path = module.replace("::", "/");
        // The benchmarks lie beside the other tests.
        let places = [format!("it/{path}.rs"), format!("it/{path}/mod.rs"), format!("{path}.rs")];
        let file = places.map(|place| root().join("tests").join(place)).into_iter().find(|f| f.exists());
        let text = std::fs::read_to_string(file.unwrap_or_else(|| panic!("{name}: no such module"))).expect("readable");
        assert!(text.contains(&format!("fn {function}(")), "{name} does not exist");
    }
}
