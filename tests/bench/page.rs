//! `BENCHMARKS.md`, written from the figures that the last runs kept.

use std::fmt::Write as _;

use super::figures::{Asked, Figures, directory, number};
use crate::harness::root;

/// The parts in the page's order.
const PARTS: [(&str, &str); 9] = [
    ("capture-small", "A backlog of small transactions"),
    ("capture-bulk", "One big transaction"),
    ("latency", "Latency"),
    ("start", "Start"),
    ("backfill", "Backfill"),
    ("delivery-http", "Delivery over HTTP"),
    ("delivery-sql", "Delivery into PostgreSQL"),
    ("memory", "Memory at rest"),
    ("costs", "Costs as work grows"),
];

const OPENING: &str = "# Benchmarks\n\nWritten by `tests/bench.sh` from its last runs; do not edit. PostgreSQL, RabbitMQ, Tillstream, the targets and the peer share the machine's \
cores, as on a small site. A shared machine differs from one quarter of an hour to the next by more than most changes do, so only figures of one table belong together, and \
what is asked of a figure is asked of ratios within a round wherever there is a limit or a peer to divide by. Medians of the rounds, with the lowest and the highest.\n";

#[test]
#[ignore = "writes the page, for tests/bench.sh"]
fn the_page_is_written() {
    let mut page = OPENING.to_owned();
    for (part, title) in PARTS {
        let Ok(text) = std::fs::read_to_string(directory().join(format!("{part}.json"))) else { continue };
        let figures: Figures = serde_json::from_str(&text).expect("kept by this program");
        section(&mut page, title, &figures);
    }
    std::fs::write(root().join("BENCHMARKS.md"), page).expect("the repository can be written");
}

fn section(page: &mut String, title: &str, figures: &Figures) {
    let _ = write!(page, "\n## {title}\n\n{} {} cores, {} GiB", figures.about, figures.cores, figures.memory_gib);
    for version in &figures.versions {
        let _ = write!(page, ", {version}");
    }
    page.push('.');
    if let Some(incomplete) = &figures.incomplete {
        let _ = write!(page, " **Incomplete**: {incomplete}.");
    }
    page.push_str("\n\n| figure | median | lowest | highest | rounds | asked |\n| --- | ---: | ---: | ---: | ---: | --- |\n");
    for figure in &figures.figures {
        let Some(median) = figure.median() else { continue };
        let sorted = figure.sorted();
        let asked = match (figure.asked, figure.met()) {
            (Some(Asked::AtLeast(limit)), met) => format!("at least {}{}", number(limit), said(met)),
            (Some(Asked::AtMost(limit)), met) => format!("at most {}{}", number(limit), said(met)),
            (None, _) => String::new(),
        };
        let (low, high, rounds) = (number(sorted[0]), number(sorted[sorted.len() - 1]), sorted.len());
        let _ = writeln!(page, "| {} ({}) | {} | {low} | {high} | {rounds} | {asked} |", figure.what, figure.unit, number(median));
    }
}

fn said(met: Option<bool>) -> &'static str {
    if met == Some(false) { ": **not met**" } else { "" }
}

#[test]
fn a_figure_that_is_missed_is_said_to_be() {
    let mut figures = Figures::new("test", "Nothing.");
    for value in [3.0, 1.0, 2.0] {
        figures.add("a", "rate", "ratio", value);
    }
    figures.ask("a", "rate", Asked::AtLeast(2.5));
    let mut page = String::new();
    section(&mut page, "Title", &figures);
    assert!(page.contains("| rate (ratio) | 2.00 | 1.00 | 3.00 | 3 | at least 2.50: **not met** |"), "{page}");
    figures.ask("a", "rate", Asked::AtMost(2.5));
    let mut page = String::new();
    section(&mut page, "Title", &figures);
    assert!(page.contains("| at most 2.50 |"), "{page}");
}
