//! Every command that pages, READMEs and fixes of codes name is one that the program takes.

use std::path::{Path, PathBuf};

use clap::CommandFactory;
use clap::error::ErrorKind;

use super::Arguments;
use crate::ops::codes;

/// Words of a command line as a shell would split it, up to whatever ends the command. `None` when a quote stays open.
fn words(line: &str) -> Option<Vec<String>> {
    let (mut words, mut word, mut quote, mut begun) = (Vec::new(), String::new(), None, false);
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(q), _) if c == q => quote = None,
            (Some('"') | None, '\\') => word.extend(chars.next()),
            (Some(_), _) => word.push(c),
            (None, '\'' | '"') => (quote, begun) = (Some(c), true),
            (None, '|' | ';' | '&' | '>' | '<') => break,
            // A comment, or the words that explain a command: two blanks or more stand before them.
            (None, '#') if word.is_empty() && !begun => break,
            (None, ' ') if chars.peek() == Some(&' ') => break,
            (None, _) if c.is_whitespace() => {
                if begun || !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                begun = false;
            }
            (None, _) => word.push(c),
        }
    }
    if begun || !word.is_empty() {
        words.push(word);
    }
    quote.is_none().then_some(words)
}

/// The command lines in a text: lines of blocks that begin with the program, and whole spans in backticks that do.
fn commands(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut fenced = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
            continue;
        }
        if fenced || line.starts_with("    ") {
            let line = line.trim_start().trim_start_matches("$ ").trim_start_matches("../release/");
            // A service's file names the program by its whole path, a crontab behind its schedule.
            let at = ["ExecStart=/usr/local/bin/tillstream ", "ExecStartPre=/usr/local/bin/tillstream ", "&& tillstream "]
                .into_iter()
                .find_map(|p| Some(line.find(p)? + p.len() - "tillstream ".len()));
            match at {
                Some(at) => found.push(line[at..].to_owned()),
                None if line == "tillstream" || line.starts_with("tillstream ") && !line.starts_with("tillstream = ") => {
                    found.push(line.to_owned())
                }
                None => {}
            }
            continue;
        }
        let mut rest = line;
        while let Some(at) = rest.find('`') {
            let Some(end) = rest[at + 1..].find('`') else { break };
            let span = &rest[at + 1..at + 1 + end];
            if span.starts_with("tillstream ") {
                found.push(span.to_owned());
            }
            rest = &rest[at + 2 + end..];
        }
    }
    found
}

/// What is wrong with a command line, if anything. Placeholders in capitals (`NAME`, `ID`) stand for any value; a group of commands
/// (`tillstream slot list|show`) is its first.
fn wrong(command: &str) -> Option<String> {
    let alternatives = command.split(' ').map(|word| if word.contains('|') { word.split('|').next().unwrap_or(word) } else { word });
    let command = alternatives.collect::<Vec<_>>().join(" ");
    let Some(words) = words(&command) else { return Some("a quote stays open".to_owned()) };
    match Arguments::command().try_get_matches_from(&words) {
        Ok(_) => None,
        Err(error) => match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => None,
            // Prose names a command without all that it needs; what is named has to be right.
            ErrorKind::MissingRequiredArgument | ErrorKind::MissingSubcommand | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => None,
            ErrorKind::InvalidValue | ErrorKind::ValueValidation if placeholder(&words) => None,
            _ => Some(error.to_string()),
        },
    }
}

fn placeholder(words: &[String]) -> bool {
    let capitals = |w: &str| !w.is_empty() && w.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || "@_-…".contains(c));
    words.iter().any(|w| capitals(w.rsplit('=').next().unwrap_or(w)) || w.contains('…') || w.contains('$'))
}

fn pages() -> Vec<PathBuf> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(dir).expect("a folder").flatten() {
            let path = entry.path();
            if path.is_dir() {
                walk(&path, found);
            } else {
                found.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut found = vec![root.join("README.md"), root.join("connectors/README.md"), root.join("schemas/README.md")];
    walk(&root.join("pipeline/docs"), &mut found);
    walk(&root.join("docker/schedule"), &mut found);
    found.sort();
    found
}

#[test]
fn every_command_that_is_written_down_exists() {
    let mut faults = Vec::new();
    let mut seen = 0;
    for path in pages() {
        let text = std::fs::read_to_string(&path).expect("a page");
        let scheduled = path.extension().is_none_or(|e| e != "md");
        let text = if scheduled { text.lines().map(|l| format!("    {l}\n")).collect() } else { text };
        for command in commands(&text) {
            seen += 1;
            if let Some(why) = wrong(&command) {
                faults.push(format!("{}: {command}\n    {}", path.display(), why.lines().next().unwrap_or_default()));
            }
        }
    }
    for explanation in codes::ALL {
        for command in commands(explanation.fix) {
            seen += 1;
            if let Some(why) = wrong(&command) {
                faults.push(format!("{}: {command}\n    {}", explanation.code, why.lines().next().unwrap_or_default()));
            }
        }
    }
    assert!(faults.is_empty(), "{} of {seen} commands do not exist:\n{}", faults.len(), faults.join("\n"));
    assert!(seen > 100, "only {seen} commands were found");
}

#[test]
fn a_command_that_does_not_exist_is_found() {
    for command in [
        "tillstream slto show",
        "tillstream slot shwo",
        "tillstream setup --roll-back",
        "tillstream replay crm --form first",
        "tillstream explain a b",
    ] {
        assert!(wrong(command).is_some(), "{command}");
    }
    for command in [
        "tillstream slot show",
        "tillstream slot list|show",
        "tillstream backfill cancel ID",
        "tillstream incident template --severity N",
        "tillstream status --format json | jq .ready",
    ] {
        assert_eq!(wrong(command), None, "{command}");
    }
}

#[test]
fn lines_are_split_as_a_shell_splits_them() {
    let split = |line| words(line).expect("closed");
    assert_eq!(split("tillstream a --b \"c d\" 'e f' | jq x"), ["tillstream", "a", "--b", "c d", "e f"]);
    assert_eq!(split("tillstream a  what it does"), ["tillstream", "a"]);
    assert_eq!(split("tillstream a # what it does"), ["tillstream", "a"]);
    assert_eq!(words("tillstream \"a"), None);
}
