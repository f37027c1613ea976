//! `plan` and `apply`: what the connector files say beside what the running process delivers by, and the request to take it over.

use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};
use tillstream_connectors::registry::Registry;

use super::ConfigFile;
use super::backfill_link::Link;
use super::output::{self, End, Format};
use crate::config::settings::Settings;
use crate::config::{self, units};
use crate::ops::apply::Request;
use crate::ops::difference;
use crate::ops::failure::{Class, Failure};

/// Shows how connector files differ from what the running process delivers by
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tillstream plan\n  tillstream plan --detailed || echo there are differences\n\nThe pipeline file itself (source, journal, tables) is not compared: what changes in it takes a restart."
)]
pub(super) struct Plan {
    #[command(flatten)]
    common: Common,
    /// End with 1 when there are differences
    #[arg(long)]
    detailed: bool,
}

/// Has the running process take over what connector files say now
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tillstream apply --reason \"tiers by name\"\n  tillstream apply --connector loyalty --probation 2m\n\nEach connector switches at the end of a transaction, when everything read so far is settled, and is on trial then: when more of its events become\ndead letters than before, it goes back to the file it had, and they are delivered again by that. Ends with 1 after a rollback, with 75 when what\nwas read could not be settled, and changes nothing then."
)]
pub(super) struct Apply {
    #[command(flatten)]
    common: Common,
    /// How long each connector is on trial
    #[arg(long, default_value = "30s", value_parser = parse_probation, value_name = "TIME")]
    probation: Duration,
    /// Why; kept with the decision
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
    reason: String,
    /// Only show what would change
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Args)]
struct Common {
    #[command(flatten)]
    config: ConfigFile,
    /// Only this connector; may be repeated
    #[arg(long, value_name = "NAME")]
    connector: Vec<String>,
    /// Address of the admin endpoint instead of the file's
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// How it is printed
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

impl Plan {
    pub(super) fn format(&self) -> Format {
        self.common.format
    }
}

impl Apply {
    pub(super) fn format(&self) -> Format {
        self.common.format
    }
}

fn parse_probation(text: &str) -> Result<Duration, String> {
    let bound = Duration::from_secs(3600);
    units::duration(text).filter(|d| *d <= bound).ok_or_else(|| "write a duration of at most an hour, as 30s".to_owned())
}

/// One connector whose file and process differ.
struct Difference {
    name: String,
    /// The keys that differ; none of a connector that is new or gone.
    keys: Vec<&'static str>,
    /// What a change means.
    class: &'static str,
    meaning: &'static str,
    lines: Vec<String>,
}

pub(super) async fn plan(arguments: Plan, settings: &Settings, registry: &Registry) -> Result<(), End> {
    let (differences, _) = compare(&arguments.common, settings, registry).await?;
    show(&differences, arguments.common.format)?;
    if arguments.detailed && !differences.is_empty() { Err(End::Code(Class::Check.exit_code())) } else { Ok(()) }
}

pub(super) async fn apply(arguments: Apply, settings: &Settings, registry: &Registry) -> Result<(), End> {
    let Apply { common, probation, reason, dry_run } = arguments;
    let (differences, base) = compare(&common, settings, registry).await?;
    if dry_run || !differences.iter().any(|d| !d.keys.is_empty()) {
        return show(&differences, common.format);
    }
    if common.format == Format::Human {
        show(&differences, Format::Human)?;
    }
    let user = std::env::var("USER").unwrap_or_else(|_| "unknown".to_owned());
    let by = format!("{user} pid {}: apply", std::process::id());
    let probation_ms = u64::try_from(probation.as_millis()).unwrap_or(u64::MAX);
    let count = differences.len() as u32 + 1;
    let request = Request { connectors: common.connector.clone(), probation_ms, by, reason };
    // For each connector a trial, and twice the time in which what was read is settled.
    let link = Link::patient(&base, (probation + Duration::from_secs(90)) * count)?;
    let answer = link.post("/api/connectors/apply", json!(request)).await?;
    if common.format == Format::Json {
        output::print(&answer)?;
    }
    let results = answer["applied"].as_array().cloned().unwrap_or_default();
    let mut code = 0;
    for result in &results {
        let text = |key: &str| output::clean(result[key].as_str().unwrap_or_default());
        code = match result["result"].as_str() {
            Some("rolled_back") => Class::Check.exit_code(),
            Some("not_settled") if code == 0 => Class::Temporary.exit_code(),
            _ => code,
        };
        if common.format == Format::Human {
            let (name, settled) = (text("connector"), &result["settled"]);
            match result["result"].as_str() {
                Some("applied") if result["why"].is_string() => output::print(format_args!("{name}: applied; {}", text("why")))?,
                Some("applied") => {
                    output::print(format_args!("{name}: applied; {settled} events settled in its trial, {} refused", result["refused"]))?
                }
                Some("rolled_back") => output::print(format_args!(
                    "{name}: ROLLED BACK: {}; {} dead letters are delivered again by the file before. The file still holds what failed",
                    text("why"),
                    result["redriven"]
                ))?,
                _ => output::print(format_args!("{name}: not applied: {}; nothing was changed", text("why")))?,
            }
        }
    }
    if code == 0 { Ok(()) } else { Err(End::Code(code)) }
}

/// What differs, and the address of the process that was asked.
async fn compare(common: &Common, settings: &Settings, registry: &Registry) -> Result<(Vec<Difference>, String), End> {
    let file = config::load_file(&common.config.config, registry)?;
    let base = super::admin::base(common.url.as_deref(), settings.admin.listen, &file.pipeline.admin);
    let answer = Link::http(&base)?.document("/api/connectors").await?;
    let running = answer["connectors"].as_array().cloned().unwrap_or_default();
    let of = |name: &str| running.iter().find(|r| r["name"] == name);
    let meant = |name: &str| common.connector.is_empty() || common.connector.iter().any(|c| c == name);
    let mut differences = Vec::new();
    for (connector, text) in file.pipeline.connectors.iter().zip(&file.texts).filter(|(c, _)| meant(&c.name)) {
        match of(&connector.name) {
            None => differences.push(restart(&connector.name, "new")),
            Some(was) if was["hash"] == text.hash => {}
            Some(was) => {
                let before = was["text"].as_str().unwrap_or_default();
                let keys = config::changed_keys(before, &text.shown);
                let (class, meaning) = classify(&keys);
                differences.push(Difference {
                    name: connector.name.clone(),
                    keys,
                    class,
                    meaning,
                    lines: difference::lines(before, &text.shown),
                });
            }
        }
    }
    for gone in running.iter().filter_map(|r| r["name"].as_str()).filter(|name| meant(name)) {
        if !file.pipeline.connectors.iter().any(|c| c.name == gone) {
            differences.push(restart(gone, "gone"));
        }
    }
    if let Some(unknown) =
        common.connector.iter().find(|name| of(name).is_none() && !file.pipeline.connectors.iter().any(|c| c.name == **name))
    {
        return Err(Failure::new("usage.arguments", format!("there is no connector `{}`", output::clean(unknown))).into());
    }
    Ok((differences, base))
}

fn restart(name: &str, what: &str) -> Difference {
    let meaning = match what {
        "new" => "it is not part of the running process: restart that to deliver it from the oldest stored event on",
        _ => "it is no longer in the pipeline's file: it goes on until the process is restarted, and keeps its checkpoint",
    };
    Difference { name: name.to_owned(), keys: Vec::new(), class: "restart", meaning, lines: Vec::new() }
}

/// What a change of these keys means for events.
fn classify(keys: &[&str]) -> (&'static str, &'static str) {
    let any = |names: &[&str]| keys.iter().any(|key| names.contains(key));
    if any(&["to"]) {
        ("target", "events read from then on go to the target as it is described now; what was delivered stays where it is")
    } else if keys.iter().all(|key| ["tests", "version"].contains(key)) {
        ("safe", "nothing that is delivered changes")
    } else if keys.iter().all(|key| ["delivery", "retry", "schema_change", "tests", "version"].contains(key)) {
        ("safe", "what is delivered stays the same, only how fast, how patiently and what stops it changes")
    } else {
        ("from-now", "events read from then on are chosen and told by the new file; for older ones there is `tillstream backfill start`")
    }
}

fn show(differences: &[Difference], format: Format) -> Result<(), End> {
    if format == Format::Json {
        let all: Vec<Value> = differences
            .iter()
            .map(|d| json!({"connector": d.name, "keys": d.keys, "class": d.class, "meaning": d.meaning, "diff": d.lines}))
            .collect();
        return Ok(output::print(json!({"differences": all}))?);
    }
    if differences.is_empty() {
        output::print("the running process delivers by these files")?;
    }
    for d in differences {
        let keys = if d.keys.is_empty() { String::new() } else { format!(" ({})", d.keys.join(", ")) };
        output::print(format_args!("{}: {}{keys}: {}", output::clean(&d.name), d.class, d.meaning))?;
        for line in &d.lines {
            output::print(format_args!("  {}", output::clean(line)))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_what_its_gravest_key_says() {
        assert_eq!(classify(&["tests"]).0, "safe");
        assert_eq!(classify(&["delivery", "retry"]).0, "safe");
        assert_eq!(classify(&["delivery", "map"]).0, "from-now");
        assert_eq!(classify(&["map", "to"]).0, "target");
    }
}
