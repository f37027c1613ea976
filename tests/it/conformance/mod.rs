//! Every sink under every fault, in one table; and sinks that are wrong on purpose, each of which has to fail what it should.

mod command;
mod dialects;
mod files;
mod over_http;
mod postgres;
mod wrong;

use std::io::Write as _;

use futures_util::future::join_all;
use tillstream_connectors::conformance::{Fault, Row, Subject, Verdict, run, table};

/// Prints the table also where the harness keeps what passing tests print to itself.
fn show(text: &str) {
    // A reader that went away changes no verdict.
    let _ = std::io::stdout().lock().write_all(format!("\n{text}\n").as_bytes());
}

/// Runs each sink beside the others: most of the time is pauses.
async fn rows(subjects: Vec<Box<dyn Subject>>) -> Vec<Row> {
    join_all(subjects.into_iter().map(|mut subject| async move { run(subject.as_mut()).await })).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_sink_withstands_every_fault() {
    // A new sink is a line here.
    let mut subjects: Vec<Box<dyn Subject>> = over_http::subjects().await;
    subjects.push(Box::new(postgres::Rows::new().await));
    subjects.push(Box::new(dialects::Maria::new().await));
    subjects.push(Box::new(dialects::File::new()));
    subjects.push(Box::new(files::Lines::new()));
    subjects.push(Box::new(wrong::Example::subject(wrong::Mistake::None).await));
    let rows = rows(subjects).await;
    let text = table(&rows);
    show(&text);
    assert!(rows.iter().all(|row| row.failed().is_empty()), "a sink does not withstand a fault:\n{text}");
    // What cannot happen to a sink says nothing about it: each fault has to happen to several.
    for fault in Fault::ALL {
        let met = rows.iter().filter(|row| row.verdicts.contains(&(fault, Verdict::Ok))).count();
        assert!(met >= 2, "{fault:?} happens to {met} sinks");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_wrong_sink_fails_what_it_should_and_nothing_else() {
    let mut subjects: Vec<Box<dyn Subject>> = Vec::new();
    for mistake in wrong::Mistake::ALL {
        subjects.push(Box::new(wrong::Example::subject(mistake).await));
    }
    let rows = rows(subjects).await;
    let text = table(&rows);
    show(&text);
    for (mistake, row) in wrong::Mistake::ALL.into_iter().zip(&rows) {
        assert_eq!(row.failed(), mistake.fails(), "{mistake:?}:\n{text}");
    }
}
