//! What the repository promises about its own shape.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::harness::root;

/// Files that belong to the project, as git knows them (and as they stand in the work tree).
fn files() -> Vec<PathBuf> {
    let list = std::process::Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .expect("git is installed");
    if list.status.success() {
        return String::from_utf8(list.stdout)
            .expect("UTF-8")
            .split_terminator('\0')
            .map(PathBuf::from)
            .filter(|p| root().join(p).is_file())
            .collect();
    }
    // An unpacked archive has no git: walk.
    let (mut found, mut open) = (Vec::new(), vec![root()]);
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(&dir).expect("readable").flatten() {
            let path = entry.path();
            match path.file_name().and_then(|n| n.to_str()) {
                Some("target" | ".git") => {}
                _ if path.is_dir() => open.push(path),
                _ => found.push(path.strip_prefix(root()).expect("below the root").to_owned()),
            }
        }
    }
    found
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(root().join(path)).expect("readable")).into_owned()
}

#[test]
fn the_top_level_holds_what_it_says() {
    let top: BTreeSet<String> = files().iter().filter_map(|p| Some(p.components().next()?.as_os_str().to_str()?.to_owned())).collect();
    let expected: BTreeSet<String> = [
        // The six that matter, then what tools look for beside them.
        "Cargo.toml",
        "pipeline",
        "connectors",
        "schemas",
        "tests",
        "docker",
        "README.md",
        "ARCHITECTURE.md",
        "CHANGELOG.md",
        "BENCHMARKS.md",
        "Cargo.lock",
        "LICENSE-APACHE",
        "LICENSE-MIT",
        "clippy.toml",
        "deny.toml",
        "rustfmt.toml",
        ".ci",
        ".gitignore",
    ]
    .map(str::to_owned)
    .into();
    let strange: Vec<_> = top.difference(&expected).collect();
    let missing: Vec<_> = expected.difference(&top).collect();
    assert!(strange.is_empty() && missing.is_empty(), "not expected: {strange:?}; missing: {missing:?}");
}

/// Each module of `pipeline/src` with those it may import, as ARCHITECTURE.md draws it:
/// cli → ops, demo → capture | delivery | backfill → control → journal → config | telemetry.
const IMPORTS: &[(&str, &[&str])] = &[
    ("cli", &["ops", "demo", "capture", "delivery", "backfill", "control", "journal", "config", "telemetry", "retry"]),
    ("ops", &["capture", "delivery", "backfill", "control", "journal", "config", "telemetry", "retry"]),
    ("demo", &["ops", "capture", "delivery", "backfill", "control", "journal", "config", "telemetry", "retry"]),
    // A backfill joins capture's session through its hook; the two know each other's types there.
    ("backfill", &["capture", "control", "journal", "config", "telemetry", "retry"]),
    ("capture", &["control", "journal", "config", "telemetry", "retry"]),
    ("delivery", &["control", "journal", "config", "telemetry", "retry"]),
    ("control", &["journal", "config", "telemetry", "retry"]),
    ("journal", &["config", "telemetry", "retry"]),
    ("config", &[]),
    ("telemetry", &["config"]),
    ("retry", &[]),
];

/// The paths that a line of code names after `prefix`: `crate::{a::B, c}` names `a` and `c`.
fn named<'a>(line: &'a str, prefix: &str) -> Vec<&'a str> {
    let mut found = Vec::new();
    let mut rest = line;
    while let Some(at) = rest.find(prefix) {
        rest = &rest[at + prefix.len()..];
        let (list, nested) = match rest.strip_prefix('{') {
            Some(list) => (list, true),
            None => (rest, false),
        };
        let mut depth = 0i32;
        let mut start = true;
        for (i, c) in list.char_indices() {
            let ident = |c: char| c.is_alphanumeric() || c == '_';
            if depth == 0 && start && ident(c) {
                let end = list[i..].find(|c| !ident(c)).map_or(list.len(), |e| i + e);
                found.push(&list[i..end]);
                start = false;
            }
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => start = true,
                _ => {}
            }
            if !nested {
                break;
            }
        }
    }
    found
}

/// Source without comments and without the unit tests at its end.
fn code(path: &Path) -> String {
    let text = read(path);
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default().to_owned();
    text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join(" ")
}

#[test]
fn imports_go_one_way() {
    let mut wrong = Vec::new();
    for path in files() {
        let text = path.to_string_lossy().into_owned();
        if path.extension().is_none_or(|e| e != "rs") {
            continue;
        }
        let code = code(&path);
        let forbidden_crates: &[&str] = match text.split('/').next() {
            Some("schemas") => &["tillstream", "tillstream_connectors", "tokio", "reqwest"],
            Some("connectors") => &["tillstream"],
            _ => &[],
        };
        for name in forbidden_crates {
            if code.contains(&format!("{name}::"))
                && code.split(&format!("{name}::")).any(|before| !before.ends_with(|c: char| c.is_alphanumeric() || c == '_'))
            {
                let uses = code.contains(&format!("use {name}::")) || code.contains(&format!(" {name}::"));
                if uses {
                    wrong.push(format!("{text} imports {name}"));
                }
            }
        }
        let Some(module) =
            text.strip_prefix("pipeline/src/").and_then(|rest| rest.split('/').next()).map(|m| m.trim_end_matches(".rs").to_owned())
        else {
            continue;
        };
        let is_test = text.ends_with("/tests.rs") || text.contains("/tests/");
        if is_test || matches!(module.as_str(), "lib" | "main") {
            continue;
        }
        let Some((_, allowed)) = IMPORTS.iter().find(|(m, _)| *m == module) else {
            wrong.push(format!("{text}: module {module} has no place in the import order"));
            continue;
        };
        for name in named(&code, "crate::") {
            let known = IMPORTS.iter().any(|(m, _)| *m == name);
            if known && name != module && !allowed.contains(&name) {
                wrong.push(format!("{text} imports {name}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn paths_in_braces_are_found() {
    assert_eq!(named("use crate::a::B; use crate::{c::{d, e}, f};", "crate::"), ["a", "c", "f"]);
}

#[test]
fn every_queue_has_a_bound() {
    let words = ["unbounded_channel", "UnboundedSender", "mpsc::channel()", "unbounded()"];
    for path in files().into_iter().filter(|p| p.extension().is_some_and(|e| e == "rs") && !p.ends_with("tidy.rs")) {
        let code = code(&path);
        for word in words {
            assert!(!code.contains(word), "{} uses {word}", path.display());
        }
    }
}

#[test]
fn nothing_speaks_of_one_machine() {
    // Assembled here so that this file does not hold them itself.
    let words = [["/wo", "rk/"], ["/ro", "ot/"], ["shared/decis", "ions"], ["issues sh", "ow"]].map(|w| w.concat());
    for path in files().into_iter().filter(|p| !p.ends_with("Cargo.lock")) {
        let text = read(&path);
        for word in &words {
            assert!(!text.contains(word.as_str()), "{} mentions {word}", path.display());
        }
    }
}

#[test]
fn nothing_is_left_for_later() {
    let words = [["to", "do!("], ["unimple", "mented!("], ["FIX", "ME"], ["XX", "X:"]].map(|w| w.concat());
    for path in files().into_iter().filter(|p| p.extension().is_some_and(|e| e == "rs" || e == "sh" || e == "sql")) {
        let text = read(&path);
        for word in &words {
            assert!(!text.contains(word.as_str()), "{} holds {word}", path.display());
        }
    }
}

#[test]
fn dependencies_come_from_one_registry() {
    let lock = read(Path::new("Cargo.lock"));
    let strange: BTreeSet<&str> = lock
        .lines()
        .filter(|l| l.starts_with("source = "))
        .filter(|l| !l.contains("registry+https://github.com/rust-lang/crates.io-index"))
        .collect();
    assert!(strange.is_empty(), "{strange:?}");
}

#[test]
fn scripts_explain_themselves() {
    for path in files().into_iter().filter(|p| p.extension().is_some_and(|e| e == "sh") && !p.ends_with("lib.sh")) {
        let text = read(&path);
        assert!(text.starts_with("#!/usr/bin/env bash\n# "), "{} opens with what it does", path.display());
        assert!(text.contains("set -euo pipefail"), "{} stops at the first error", path.display());
    }
}
