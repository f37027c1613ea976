//! `validate`: checks configuration files layer by layer and says which layers ran.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use serde_json::{Map, Value, json};
use tillstream_connectors::registry::Registry;
use tillstream_connectors::sink::LaneId;

use super::output::{self, End, Format};
use crate::config::{self, CheckedFile, Code, Problem, Report, Tested};
use crate::journal;
use crate::ops::failure::{Class, Failure};
use crate::ops::references;

/// A target that does not answer a harmless question within this is away.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Checks configuration files
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tillstream validate tillstream.yaml\n  tillstream validate --offline --deny-warnings --format github connectors/*.yaml\n  tillstream --environment prod validate        with tillstream.prod.yaml and the like laid over the files\n\nEnds with 0 when the files are sound, 78 when they have problems, 1 for warnings with --deny-warnings, 69 when a server is away."
)]
pub(super) struct Arguments {
    /// Pipeline files (their connector files are checked with them) or single connector files
    #[arg(value_name = "FILES", default_value = "tillstream.yaml")]
    files: Vec<PathBuf>,
    /// Touch no network: skip the comparison with the live catalogue, and do not ask journal and targets
    #[arg(long)]
    offline: bool,
    /// End with 1 when there are warnings
    #[arg(long)]
    deny_warnings: bool,
    /// How the result is printed
    #[arg(long, value_enum, default_value_t)]
    pub(super) format: Printed,
}

/// How the result of a validation is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Printed {
    /// For people.
    #[default]
    Human,
    /// One JSON document.
    Json,
    /// SARIF 2.1.0, for code scanning.
    Sarif,
    /// Commands of GitHub Actions, which put the problems into a pull request.
    Github,
}

impl Printed {
    /// How a failure is printed that is no problem of a file.
    pub(super) fn of_failures(self) -> Format {
        if self == Printed::Json { Format::Json } else { Format::Human }
    }
}

/// What is looked at, in this order.
const LAYERS: [&str; 8] = ["syntax", "schema", "references", "semantics", "tests", "secrets", "connectivity", "security"];

/// The layer that a kind of problem belongs to.
fn layer(code: Code) -> usize {
    match code {
        Code::UnreadableFile
        | Code::TooLarge
        | Code::NotUtf8
        | Code::ControlCharacter
        | Code::Syntax
        | Code::Empty
        | Code::TooComplex
        | Code::DuplicateKey => 0,
        Code::UnknownTable | Code::UnknownColumn | Code::DuplicateName => 2,
        Code::Conflict | Code::BadSink | Code::BadMapping | Code::NoIdempotency => 3,
        Code::TestFailed | Code::Untested => 4,
        Code::SecretMissing | Code::BadReference | Code::BadSecret => 5,
        Code::LiteralSecret | Code::ExposedAdmin => 7,
        _ => 1,
    }
}

/// What was found, and what each layer came to.
struct Found {
    problems: Report,
    warnings: Vec<Problem>,
    layers: Vec<(&'static str, String)>,
    pipelines: Vec<CheckedFile>,
    away: Option<Failure>,
}

pub(super) async fn run(arguments: Arguments, registry: &Registry) -> Result<(), End> {
    let found = look(&arguments, registry).await;
    match arguments.format {
        Printed::Human => human(&arguments, &found)?,
        Printed::Json => {
            let layers: Map<String, Value> = found.layers.iter().map(|(name, result)| ((*name).to_owned(), json!(result))).collect();
            let warnings: Vec<Value> = found.warnings.iter().map(Problem::to_json).collect();
            if found.problems.is_empty() {
                let rates: Map<String, Value> = found
                    .pipelines
                    .iter()
                    .flat_map(|file| of_vendors(&file.pipeline))
                    .map(|(name, rate)| (name.to_owned(), rate.to_string().into()))
                    .collect();
                output::print(
                    json!({"valid": true, "files": arguments.files, "layers": layers, "warnings": warnings, "rates_of_vendors": rates}),
                )?;
            } else {
                let problems = found.problems.to_json();
                eprintln!(
                    "{}",
                    json!({"error": {"code": "config.invalid", "class": "config", "problems": problems, "layers": layers, "warnings": warnings}})
                );
            }
        }
        Printed::Sarif => output::print(format_args!("{:#}", sarif(&found)))?,
        Printed::Github => {
            for (level, problem) in found.all() {
                output::print(github(level, problem))?;
            }
        }
    }
    if !found.problems.is_empty() {
        return Err(End::Code(Class::Config.exit_code()));
    }
    if let Some(away) = found.away {
        return Err(away.into());
    }
    if arguments.deny_warnings && !found.warnings.is_empty() {
        return Err(End::Code(Class::Check.exit_code()));
    }
    Ok(())
}

impl Found {
    fn all(&self) -> impl Iterator<Item = (&'static str, &Problem)> {
        self.problems.problems().iter().map(|p| ("error", p)).chain(self.warnings.iter().map(|p| ("warning", p)))
    }

    /// Says what the problems and warnings leave of each layer that ran.
    fn judge(&mut self, ran: &[(usize, String)]) {
        for (n, name) in LAYERS.iter().enumerate() {
            let of = |problems: &[Problem]| problems.iter().filter(|p| layer(p.code) == n).count();
            let (problems, warnings) = (of(self.problems.problems()), of(&self.warnings));
            let many = |n: usize, what: &str| if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") };
            let result = match (problems, warnings, ran.iter().find(|(ran, _)| *ran == n)) {
                (1.., ..) => many(problems, "problem"),
                (0, 1.., _) => many(warnings, "warning"),
                (0, 0, Some((_, result))) => result.clone(),
                (0, 0, None) => "not reached".to_owned(),
            };
            self.layers.push((name, result));
        }
    }
}

async fn look(arguments: &Arguments, registry: &Registry) -> Found {
    let mut found = Found { problems: Report::default(), warnings: Vec::new(), layers: Vec::new(), pipelines: Vec::new(), away: None };
    let ok = || "ok".to_owned();
    match config::check_files(&arguments.files, registry) {
        Ok(pipelines) => found.pipelines = pipelines,
        Err(report) => {
            let reached = report.problems().iter().map(|p| layer(p.code)).max().unwrap_or(0);
            let sound = report.problems().iter().all(|p| layer(p.code) > 0);
            found.problems = report;
            // Each file is judged as a whole, so where all of them can be read, what was not found was looked for.
            let ran: Vec<_> = (0..=reached.min(3)).filter(|_| sound).map(|n| (n, ok())).collect();
            found.judge(&ran);
            return found;
        }
    }
    let mut ran = vec![(0, ok()), (1, ok()), (2, ok()), (3, ok()), (5, ok()), (7, ok())];
    match config::load_tests(&arguments.files, registry) {
        Ok(tested) => ran.push((4, tests(&tested, &mut found.problems))),
        Err(report) => found.problems.extend(report),
    }
    let connectors: Vec<PathBuf> =
        arguments.files.iter().filter(|path| !found.pipelines.iter().any(|f| f.path == **path)).cloned().collect();
    found.warnings = config::warnings(&found.pipelines, &connectors);
    if arguments.offline {
        ran.retain(|(n, _)| *n != 2);
        ran.extend([(2, "ok among the files; live catalogue skipped (--offline)".to_owned()), (6, "skipped (--offline)".to_owned())]);
    } else {
        live(&mut found, &mut ran).await;
    }
    found.judge(&ran);
    found
}

/// Runs the tests that stand in the files.
fn tests(tested: &[Tested], problems: &mut Report) -> String {
    let (mut passed, mut all) = (0, 0);
    for file in tested {
        let Some(mapping) = &file.mapping else { continue };
        for case in &file.tests {
            all += 1;
            match case.check(mapping) {
                Ok(()) => passed += 1,
                Err(differences) => {
                    // What differs may be values: `test` shows them to whoever asks.
                    let message = format!("the test `{}` of connector {} fails ({} lines differ)", case.name, file.name, differences.len());
                    let help = "see what differs with `tillstream test`".to_owned();
                    problems.push(config::blame(&file.path, &["tests"], &case.name, Code::TestFailed, message, help));
                }
            }
        }
    }
    format!("ok ({passed}/{all})")
}

/// Compares with the catalogue, and asks journal and targets.
async fn live(found: &mut Found, ran: &mut Vec<(usize, String)>) {
    let mut servers = Vec::new();
    for file in &found.pipelines {
        match references::compare(file).await {
            Ok(compared) => {
                servers.push(compared.server);
                found.problems.extend(compared.report);
            }
            Err(error) => {
                found.away.get_or_insert(error.into());
            }
        }
    }
    ran.retain(|(n, _)| *n != 2);
    if servers.len() < found.pipelines.len() {
        ran.push((2, "ok among the files; the live catalogue could not be asked".to_owned()));
    } else {
        ran.push((2, if servers.is_empty() { "ok".to_owned() } else { format!("ok ({})", servers.join("; ")) }));
    }
    if !found.problems.is_empty() {
        return;
    }
    let mut asked = 0;
    for file in &found.pipelines {
        asked += 2 + file.pipeline.connectors.len();
        if let Err(failure) = reach(&file.pipeline).await {
            found.away.get_or_insert(failure);
        }
    }
    ran.push((
        6,
        found.away.as_ref().map_or_else(|| format!("ok ({asked} servers and targets answer)"), |away| format!("failed ({})", away.code)),
    ));
}

/// Asks the journal and every target something harmless.
async fn reach(pipeline: &config::Pipeline) -> Result<(), Failure> {
    let late = |what: &str| Failure::new("journal.unavailable", format!("{what} did not answer within {} s", ANSWER_WITHIN.as_secs()));
    let journal = journal::open(&pipeline.journal, "tillstream validate")?;
    tokio::time::timeout(ANSWER_WITHIN, journal.describe()).await.map_err(|_| late("the journal"))??;
    for connector in &pipeline.connectors {
        let lane = LaneId { connector: connector.name.clone(), partition: 0, lane: 0 };
        let mut sink = connector.target.build(lane, connector.on_delete);
        let answer = match tokio::time::timeout(ANSWER_WITHIN, sink.check()).await {
            Ok(answer) => answer.map_err(|error| crate::delivery::DeliveryError::from(error).into()),
            Err(_) => Err(Failure { class: Class::Unavailable, ..late("the target") }),
        };
        answer.map_err(|failure: Failure| Failure { what: format!("connector {}: {}", connector.name, failure.what), ..failure })?;
    }
    Ok(())
}

fn human(arguments: &Arguments, found: &Found) -> Result<(), End> {
    let color = output::color(&std::io::stderr());
    if !found.problems.is_empty() {
        eprint!("{}", found.problems.render(color));
    }
    for warning in &found.warnings {
        eprint!("{}", Report::render_warning(warning, color));
    }
    let lines = found.layers.iter().map(|(name, result)| format!("  {name:<14} {result}")).collect::<Vec<_>>();
    if !found.problems.is_empty() {
        // A failure writes no data.
        eprintln!("{}", lines.join("\n"));
        return Ok(());
    }
    for CheckedFile { path, pipeline, .. } in &found.pipelines {
        let (tables, connectors) = (pipeline.source.tables.len(), pipeline.connectors.len());
        output::print(format_args!("{}: pipeline {}, {tables} tables, {connectors} connectors", path.display(), pipeline.name))?;
        for (connector, rate) in of_vendors(pipeline) {
            let of = format_args!("{connector}: at most {rate}, as the vendor documents it; `delivery.rate` says otherwise");
            output::print(format_args!("  {of}"))?;
        }
    }
    let files = found.pipelines.iter().flat_map(|file| file.connectors.iter().chain([&file.path])).chain(&arguments.files);
    let overlays: std::collections::BTreeSet<PathBuf> = files.filter_map(|path: &PathBuf| config::overlay::of(Path::new(path))).collect();
    for overlay in overlays {
        output::print(format_args!("  overlay        {}", overlay.display()))?;
    }
    for line in lines {
        output::print(line)?;
    }
    Ok(())
}

/// The connectors whose rate is what their vendor documents, since their files say nothing.
fn of_vendors(pipeline: &config::Pipeline) -> impl Iterator<Item = (&str, config::Rate)> {
    pipeline.connectors.iter().filter_map(|connector| {
        let (rate, budget) = (connector.delivery.rate?, connector.target.plan().budget?);
        (rate.events == budget.events && rate.per == budget.per).then_some((connector.name.as_str(), rate))
    })
}

/// SARIF as code scanning reads it (OASIS, 2.1.0).
fn sarif(found: &Found) -> Value {
    let mut rules: Vec<&str> = found.all().map(|(_, p)| p.code.as_str()).collect();
    rules.sort_unstable();
    rules.dedup();
    let result = |(level, problem): (&str, &Problem)| {
        let text = match &problem.help {
            Some(help) => format!("{}; {help}", problem.message),
            None => problem.message.clone(),
        };
        let region = json!({"startLine": problem.line.max(1), "startColumn": problem.column.max(1)});
        json!({
            "ruleId": problem.code.as_str(), "level": level, "message": {"text": text},
            "locations": [{"physicalLocation": {"artifactLocation": {"uri": problem.file}, "region": region}}],
        })
    };
    json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json", "version": "2.1.0",
        "runs": [{
            "tool": {"driver": {
                "name": "tillstream", "version": env!("CARGO_PKG_VERSION"),
                "rules": rules.iter().map(|id| json!({"id": id})).collect::<Vec<_>>(),
            }},
            "results": found.all().map(result).collect::<Vec<_>>(),
        }],
    })
}

/// A workflow command; line feeds and what separates its properties are escaped.
fn github(level: &str, problem: &Problem) -> String {
    let data = |text: &str| text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A");
    let property = |text: &str| data(text).replace(':', "%3A").replace(',', "%2C");
    let help = problem.help.as_ref().map(|help| format!("\n{help}")).unwrap_or_default();
    format!(
        "::{level} file={},line={},col={},title={}::{}",
        property(&problem.file),
        problem.line.max(1),
        problem.column.max(1),
        property(problem.code.as_str()),
        data(&format!("{}{help}", problem.message))
    )
}
