//! Whole files, good ones and bad ones.

use std::time::Duration;

use super::pipeline::RETENTION_DEFAULT;
use super::*;
use crate::config::{HoldBack, Journal, Origin, Streaming};

fn files(entries: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    for (name, text) in entries {
        std::fs::write(dir.path().join(name), text).expect("written");
    }
    dir
}

fn codes(text: &str) -> Vec<(&'static str, usize, usize)> {
    let dir = files(&[("t.yaml", text)]);
    match load_with(&dir.path().join("t.yaml"), &Registry::default(), &|_| None) {
        Ok(_) => Vec::new(),
        Err(report) => report.problems().iter().map(|p| (p.code.as_str(), p.line, p.column)).collect(),
    }
}

const GOOD: &str = "version: 1\npipeline: shop\nsource:\n  name: pos\n  url: postgres://u@h/d\n  slot: s\n  publication: p\n  tables: [public.orders]\njournal: {local: {dir: ./j}}\n";

#[test]
fn a_small_file_gets_every_default() {
    let dir = files(&[("t.yaml", GOOD)]);
    let pipeline = load_with(&dir.path().join("t.yaml"), &Registry::default(), &|_| None).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(pipeline.admin.listen.to_string(), "127.0.0.1:7410");
    assert!(pipeline.source.initial_load && !pipeline.source.allow_weak_auth);
    assert_eq!(pipeline.source.hold_back, HoldBack { time: Duration::ZERO, bytes: 0 });
    assert_eq!(pipeline.source.streaming, Streaming::default());
    assert_eq!(pipeline.source.origin, Origin::Any);
    let Journal::Local(local) = pipeline.journal else { panic!("local") };
    assert_eq!((local.dir, local.partitions.get(), local.retention), (dir.path().join("./j"), 1, RETENTION_DEFAULT));
}

#[test]
fn an_endpoint_that_others_reach_wants_tokens_and_encryption() {
    let with = |admin: &str| format!("{GOOD}admin: {{listen: \"0.0.0.0:7410\"{admin}}}\n");
    let tokens = ", tokens: [{name: dana, role: admin, token: 0123456789abcdef}]";
    let tls = ", tls: {certificate: c.pem, key: k.pem}";
    assert_eq!(codes(&with("")), [("config.exposed_admin", 10, 17)]);
    assert_eq!(codes(&with(tokens)), [("config.exposed_admin", 10, 17)]);
    assert_eq!(codes(&with(tls)), [("config.exposed_admin", 10, 17)]);
    assert_eq!(codes(&with(&format!("{tokens}{tls}"))), []);
    let twice = tokens.replace("}]", "}, {name: dana, role: viewer, token: 0123456789abcdef}]");
    let found: Vec<_> = codes(&with(&format!("{twice}{tls}"))).iter().map(|c| c.0).collect();
    assert_eq!(found, ["config.duplicate_name", "config.conflict"]);
}

#[test]
fn what_the_server_is_asked_for_is_read() {
    let text = GOOD.replace("  slot: s\n", "  slot: s\n  streaming: on\n  spool_max: 1GiB\n  origin: none\n");
    let dir = files(&[("t.yaml", &text)]);
    let pipeline = load_with(&dir.path().join("t.yaml"), &Registry::default(), &|_| None).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(pipeline.source.streaming, Streaming { on: true, spool_max: 1 << 30 });
    assert_eq!(pipeline.source.origin, Origin::None);
    assert_eq!(codes(&text.replace("streaming: on", "streaming: parallel")), [("config.bad_choice", 7, 14)]);
}

#[test]
fn every_problem_is_found_at_its_place() {
    let text = GOOD.replace("  slot: s\n", "  slots: s\n").replace("public.orders", "orders").replace("local", "locale");
    assert_eq!(codes(&text), [("config.unknown_key", 6, 3), ("config.bad_table", 8, 12), ("config.unknown_key", 9, 11)]);
    assert_eq!(codes(""), [("config.empty", 1, 1)]);
    assert_eq!(codes("[1, 2]"), [("config.wrong_type", 1, 1)]);
    assert_eq!(codes("version: 1\nversion: 1\n").first(), Some(&("config.missing_key", 1, 1)));
}

#[test]
fn hostile_files_end_in_one_problem() {
    let bomb = format!("a: &a [x, x]\n{}", (0..20).map(|i| format!("k{i}: [*a, *a, *a]\n")).collect::<String>());
    assert_eq!(codes(&bomb).first().map(|c| c.0), Some("config.too_complex"));
    assert_eq!(codes(&"[".repeat(5000)).len(), 1);
    for text in [
        "\tversion: 1",
        "version: 1\n\tpipeline: x",
        "version: [1",
        "version: 1: 2",
        "--- a\n--- b\n",
        "a: !!binary x\n",
        "? [a]\n: b\n",
        "<<: {a: 1}\n",
        "*x",
    ] {
        assert!(!codes(text).is_empty(), "{text:?}");
    }
    let crlf = GOOD.replace('\n', "\r\n");
    assert_eq!(codes(&crlf), []);
    assert_eq!(codes(&format!("\u{feff}{GOOD}")), []);
    assert_eq!(codes(&GOOD.replace("  slot: s\n", "  slot: S!\n").replace('\n', "\r\n")), [("config.bad_name", 6, 9)]);
}

#[test]
fn no_mutation_of_a_file_panics() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("t.yaml");
    let try_bytes = |bytes: &[u8]| {
        std::fs::write(&path, bytes).expect("written");
        if let Err(report) = load_with(&path, &Registry::default(), &|_| None) {
            assert!(!report.is_empty() && !report.render(false).is_empty());
        }
    };
    let good = GOOD.replace("slot: s", "slot: \"ß\" # é");
    for at in 0..good.len() {
        try_bytes(&good.as_bytes()[..at]);
        for byte in [b':', b'\n', b'\t', b'{', b'[', b'"', b'&', b'$', 0xc3] {
            let mut mutated = good.clone().into_bytes();
            mutated[at] = byte;
            try_bytes(&mutated);
        }
    }
}

#[test]
fn a_password_in_a_file_is_never_shown() {
    let text = GOOD.replace("postgres://u@h/d", "postgre://u:hunter2@h/d").replace("pipeline: shop", "pipeline: Shop");
    let dir = files(&[("t.yaml", &text)]);
    let report = load_with(&dir.path().join("t.yaml"), &Registry::default(), &|_| None).expect_err("two problems");
    assert_eq!(report.problems().len(), 2);
    assert!(!report.render(true).contains("hunter2") && !report.to_json().to_string().contains("hunter2"), "{report}");
}
