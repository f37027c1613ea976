//! `test`: what becomes of the events in the `tests` of connector files. Pure: no network, no journal, no target, and no need of its secrets.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use clap::Args;
use tillstream_connectors::mapping::{Case, Mapping};
use tillstream_connectors::registry::Registry;

use super::output::{self, End, Format};
use crate::config::{self, Tested, golden};
use crate::ops::failure::Class;

/// How often files are looked at with `--watch`: quicker than a hand goes from one window to the other.
const LOOK_EVERY: Duration = Duration::from_millis(300);

/// Runs the tests that stand in connector files
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tillstream test                                 every connector of tillstream.yaml\n  tillstream test connectors/loyalty.yaml         one connector file by itself\n  tillstream test --watch --filter refund         those whose names say refund, again whenever a file is saved\n  tillstream test --update-golden && git diff      take what the tests come to for what they expect, and look at it\n\nEnds with 1 when a test fails. A test whose mapping fails, or that expects something else than `expect`, is never rewritten. What `to` refers to (${env:…}) need not be there."
)]
pub(super) struct Arguments {
    /// Pipeline files (the tests of all their connectors are run) or single connector files
    #[arg(value_name = "FILES", default_value = "tillstream.yaml")]
    files: Vec<PathBuf>,
    /// Only tests whose name, or whose connector's, holds this text
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// Run them again whenever a file is saved, until interrupted
    #[arg(long)]
    watch: bool,
    /// Write what the tests come to into the `expect` of those that fail, and nothing else
    #[arg(long, conflicts_with = "watch")]
    update_golden: bool,
    /// How the result is printed
    #[arg(long, value_enum, default_value_t)]
    pub(super) format: Format,
}

pub(super) async fn run(arguments: &Arguments, registry: &Registry) -> Result<(), End> {
    if !arguments.watch {
        return once(arguments, registry);
    }
    let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
    loop {
        // Before the run: what is saved while it runs is run again.
        let seen = saved(&arguments.files);
        match once(arguments, registry) {
            Err(End::Problems(report)) => eprint!("{}", report.render(output::color(&std::io::stderr()))),
            Ok(()) | Err(End::Code(1)) => {}
            other => return other,
        }
        eprintln!("waiting for a file to be saved");
        while saved(&arguments.files) == seen {
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                _ = &mut interrupted => return Err(End::Code(130)),
            }
        }
    }
}

/// When the files, and every file beside them, were saved last.
fn saved(files: &[PathBuf]) -> BTreeMap<PathBuf, SystemTime> {
    let yaml = |path: &Path| path.extension().is_some_and(|e| e == "yaml" || e == "yml");
    let beside = |path: &PathBuf| {
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).filter(|path| yaml(path)).collect::<Vec<_>>()
    };
    let all = files.iter().flat_map(|path| beside(path).into_iter().chain([path.clone()]));
    // What a pipeline file names may stand elsewhere.
    let named = files.iter().flat_map(|path| config::connector_paths(path));
    all.chain(named).filter_map(|path| Some((path.clone(), std::fs::metadata(path).ok()?.modified().ok()?))).collect()
}

fn once(arguments: &Arguments, registry: &Registry) -> Result<(), End> {
    let tested = config::load_tests(&arguments.files, registry)?;
    let meant = |connector: &str, test: &str| arguments.filter.as_ref().is_none_or(|text| connector.contains(text) || test.contains(text));
    let (mut passed, mut failed, mut updated) = (0, Vec::new(), Vec::new());
    for file in &tested {
        let Some(mapping) = &file.mapping else { continue };
        for (number, case) in file.tests.iter().enumerate().filter(|(_, case)| meant(&file.name, &case.name)) {
            let Err(mut differences) = case.check(mapping) else {
                passed += 1;
                continue;
            };
            let rewritten = arguments.update_golden.then(|| rewrite(file, number, case, mapping)).transpose();
            let told = |differences| (file.name.clone(), case.name.clone(), differences);
            match rewritten {
                Ok(Some(())) => updated.push(told(differences)),
                Ok(None) => failed.push(told(differences)),
                Err(why) => {
                    differences.push(format!("not rewritten: {why}"));
                    failed.push(told(differences));
                }
            }
        }
    }
    match arguments.format {
        Format::Json => {
            let list = |told: &[(String, String, Vec<String>)]| -> serde_json::Value {
                let of = |(connector, test, differences): &(String, String, Vec<String>)| serde_json::json!({"connector": connector, "test": test, "differences": differences});
                told.iter().map(of).collect()
            };
            let mut document = serde_json::json!({"passed": passed, "failed": list(&failed)});
            if arguments.update_golden {
                document["updated"] = list(&updated);
            }
            output::print(document)?;
        }
        Format::Human => {
            let rewritten = updated.iter().map(|told| ("UPDATED", told));
            for (what, (connector, test, differences)) in rewritten.chain(failed.iter().map(|told| ("FAILED", told))) {
                output::print(format_args!("{what} {connector}: {}", output::clean(test)))?;
                for difference in differences {
                    output::print(format_args!("  {}", output::clean(difference)))?;
                }
            }
            for file in tested.iter().filter(|f| f.mapping.is_some() && f.tests.is_empty()) {
                output::print(format_args!("{}: has a mapping and no tests", file.name))?;
            }
            let rewritten = if arguments.update_golden { format!(", {} updated", updated.len()) } else { String::new() };
            output::print(format_args!("{passed} passed, {} failed{rewritten} ({})", failed.len(), names(&tested)))?;
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(End::Code(Class::Check.exit_code())) }
}

/// Writes what a test comes to into its file.
fn rewrite(file: &Tested, number: usize, case: &Case, mapping: &Mapping) -> Result<(), String> {
    let Some(came_to) = case.golden(mapping)? else { return Err("it has no `expect`".to_owned()) };
    let text = golden::rewrite(&file.path, number, &came_to).map_err(|why| why.to_string())?;
    golden::write(&file.path, &text).map_err(|error| format!("the file cannot be written: {error}"))
}

fn names(tested: &[Tested]) -> String {
    let names: Vec<String> = tested.iter().map(|file| format!("{} {}", file.tests.len(), file.name)).collect();
    names.join(", ")
}
