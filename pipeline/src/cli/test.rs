//! `test`: what becomes of the events in the `tests` of connector files. Pure: no network, no journal, no target.

use std::path::PathBuf;

use clap::Args;
use tillstream_connectors::registry::Registry;

use super::output::{self, End, Format};
use crate::config::{self, Connector};
use crate::ops::failure::Class;

/// Runs the tests that stand in connector files
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tillstream test                                 every connector of tillstream.yaml\n  tillstream test connectors/loyalty.yaml         one connector file by itself"
)]
pub(super) struct Arguments {
    /// Pipeline files (the tests of all their connectors are run) or single connector files
    #[arg(value_name = "FILES", default_value = "tillstream.yaml")]
    files: Vec<PathBuf>,
    /// How the result is printed
    #[arg(long, value_enum, default_value_t)]
    pub(super) format: Format,
}

pub(super) fn run(arguments: &Arguments, registry: &Registry) -> Result<(), End> {
    let connectors = config::load_connectors(&arguments.files, registry)?;
    let (mut passed, mut failed) = (0, Vec::new());
    for connector in &connectors {
        let Some(mapping) = &connector.mapping else { continue };
        for case in &connector.tests {
            match case.check(mapping) {
                Ok(()) => passed += 1,
                Err(differences) => failed.push((connector.name.clone(), case.name.clone(), differences)),
            }
        }
    }
    match arguments.format {
        Format::Json => {
            let failed: Vec<_> = failed
                .iter()
                .map(|(connector, test, differences)| serde_json::json!({"connector": connector, "test": test, "differences": differences}))
                .collect();
            output::print(serde_json::json!({"passed": passed, "failed": failed}))?;
        }
        Format::Human => {
            for (connector, test, differences) in &failed {
                output::print(format_args!("FAILED {connector}: {}", output::clean(test)))?;
                for difference in differences {
                    output::print(format_args!("  {}", output::clean(difference)))?;
                }
            }
            for connector in connectors.iter().filter(|c| c.mapping.is_some() && c.tests.is_empty()) {
                output::print(format_args!("{}: has a mapping and no tests", connector.name))?;
            }
            output::print(format_args!("{passed} passed, {} failed ({})", failed.len(), names(&connectors)))?;
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(End::Code(Class::Check.exit_code())) }
}

fn names(connectors: &[Connector]) -> String {
    let names: Vec<String> = connectors.iter().map(|c| format!("{} {}", c.tests.len(), c.name)).collect();
    names.join(", ")
}
