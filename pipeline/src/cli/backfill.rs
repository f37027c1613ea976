//! `backfill`: asks the running pipeline (or a capture of its own) to read tables, and follows it to the end.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};
use tillstream_connectors::registry::Registry;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::ConfigFile;
use super::backfill_link::Link;
use super::backfill_watch::{self, Screen};
use super::output::{self, End, Format};
use crate::backfill::{Change, IfRunning, Request};
use crate::config::settings::Settings;
use crate::config::units;
use crate::control::{BackfillOptions, BackfillSpec, KeyTexts, now_ms};
use crate::ops::failure::Failure;
use crate::ops::standalone::Standalone;

/// A file of keys is read as a whole; more than a job takes is a mistake.
const KEYS_FILE_MAX: u64 = 8 << 20;
/// After a request to stop the chunk under way ends within seconds.
const PAUSE_WITHIN: Duration = Duration::from_secs(20);

/// Reads rows that are older than the stream, by chunks, while it goes on
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Start a backfill, or go on with one, and follow it to its end
    #[command(
        after_help = "Examples:\n  tillstream backfill start --table public.orders --id orders-2026-11\n  tillstream backfill start --table public.customer --where \"tier >= 2\" --connector loyalty --dry-run\n  tillstream backfill start --table public.orders --since last-success --deadline 3h --if-running skip\n\nExit codes: 0 done (or already complete, or skipped), 4 another one reads the table, 69 no pipeline answers, 75 paused or cancelled by\nsomebody, 124 deadline reached, 130/143 interrupted; with these four the progress is saved and the same --id goes on."
    )]
    Start(Box<Start>),
    /// List backfills
    List(List),
    /// Show one backfill
    Show(One),
    /// Follow a backfill to its end
    Watch(One),
    /// Stop a backfill after the chunk under way; its progress is kept
    Pause(Ask),
    /// Go on with a paused or failed backfill
    Resume(Ask),
    /// Stop a backfill for good; what it stored stays
    Cancel(Ask),
}

/// Where the pipeline is, and how things are printed.
#[derive(Debug, Args)]
struct Common {
    #[command(flatten)]
    config: ConfigFile,
    /// Address of the admin endpoint instead of the file's
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// How it is printed
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// Arguments of `start`.
#[derive(Debug, Args)]
pub(super) struct Start {
    #[command(flatten)]
    common: Common,
    /// Table to read, as public.orders; may be repeated
    #[arg(long = "table", value_name = "TABLE", required = true)]
    tables: Vec<String>,
    /// Names the backfill: the same id goes on where it was, or finds it complete
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    /// Only rows for which this SQL expression is true
    #[arg(long = "where", value_name = "EXPRESSION")]
    filter: Option<String>,
    /// Only rows changed since a moment (2026-11-01T00:00Z), or `last-success`
    #[arg(long, value_name = "MOMENT")]
    since: Option<String>,
    /// Only these columns beside the key; targets leave the others alone
    #[arg(long, value_name = "COLUMNS", value_delimiter = ',')]
    columns: Vec<String>,
    /// Exactly the rows with these keys: one a line, a JSON array for a key of several columns
    #[arg(long, value_name = "FILE", conflicts_with_all = ["filter", "since"])]
    keys_file: Option<PathBuf>,
    /// Only this connector takes the rows
    #[arg(long, value_name = "NAME")]
    connector: Option<String>,
    /// Most rows a second, as 5k
    #[arg(long, value_name = "ROWS", value_parser = rate)]
    max_rate: Option<u64>,
    /// Stop after so long, with the progress saved (exit 124)
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    deadline: Option<Duration>,
    /// Read only in this part of the day, as 02:00-05:00
    #[arg(long, value_name = "HOURS")]
    window: Option<String>,
    /// Time zone of --window
    #[arg(long, value_name = "ZONE", requires = "window")]
    tz: Option<String>,
    /// What to do when a backfill reads one of the tables already
    #[arg(long, value_enum, value_name = "WHAT", default_value = "attach")]
    if_running: Running,
    /// Do not wait for the end
    #[arg(long, conflicts_with = "wait")]
    detach: bool,
    /// Wait for the end (the default)
    #[arg(long)]
    wait: bool,
    /// Run it in this process, where no pipeline runs; nothing is delivered
    #[arg(long, conflicts_with_all = ["detach", "url"])]
    standalone: bool,
    /// Only say what would be read: rows, bytes, minutes, index
    #[arg(long)]
    dry_run: bool,
    /// Read although no index serves --where
    #[arg(long)]
    allow_scan: bool,
    /// Let --where hold a sub-select
    #[arg(long)]
    allow_subquery: bool,
    /// Take no notice of brakes and peak calendar
    #[arg(long)]
    no_brakes: bool,
    /// Compare with the connector's target at the end (exit 1 when they differ)
    #[arg(long, requires = "connector", conflicts_with_all = ["detach", "standalone", "dry_run", "since"])]
    verify: bool,
}

/// See [`IfRunning`].
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Running {
    /// Leave it at that (exit 0).
    Skip,
    /// Refuse (exit 4).
    Fail,
    /// Follow it if it has the same id, else start beside it.
    Attach,
}

/// Arguments of `list`.
#[derive(Debug, Args)]
pub(super) struct List {
    #[command(flatten)]
    common: Common,
}

/// Arguments of `show` and `watch`.
#[derive(Debug, Args)]
pub(super) struct One {
    /// The backfill
    id: String,
    #[command(flatten)]
    common: Common,
}

/// Arguments of `pause`, `resume` and `cancel`.
#[derive(Debug, Args)]
pub(super) struct Ask {
    /// The backfill
    id: String,
    #[command(flatten)]
    common: Common,
    /// Why, for whoever looks at it later
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
}

impl Command {
    pub(super) fn format(&self) -> Format {
        match self {
            Command::Start(start) => start.common.format,
            Command::List(list) => list.common.format,
            Command::Show(one) | Command::Watch(one) => one.common.format,
            Command::Pause(ask) | Command::Resume(ask) | Command::Cancel(ask) => ask.common.format,
        }
    }
}

impl Common {
    fn link(&self, settings: &Settings, registry: &Registry) -> Result<Link, End> {
        let base = super::status::address(self.url.as_deref(), &self.config, settings, registry)?;
        Ok(Link::http(&base)?)
    }
}

pub(super) async fn run(command: Command, settings: &Settings, registry: &Registry) -> Result<(), End> {
    match command {
        Command::Start(start) => self::start(*start, settings, registry).await,
        Command::List(list) => {
            let document = list.common.link(settings, registry)?.list().await?;
            match list.common.format {
                Format::Json => output::print(&document)?,
                Format::Human => output::print(output::clean_lines(&backfill_watch::table(&document)).trim_end())?,
            }
            Ok(())
        }
        Command::Show(one) => {
            let view = one.common.link(settings, registry)?.show(&one.id).await?;
            match one.common.format {
                Format::Json => output::print(&view)?,
                Format::Human => output::print(output::clean_lines(&backfill_watch::page(&view)).trim_end())?,
            }
            Ok(())
        }
        Command::Watch(one) => {
            let link = one.common.link(settings, registry)?;
            let view = link.show(&one.id).await?;
            let mut signals = Signals::new()?;
            let mut screen = Screen::new();
            let last = tokio::select! {
                last = follow(&link, &one.id, view, &mut screen) => last?,
                // Whoever only watches stops nothing.
                signal = signals.next() => return Err(End::Code(signal.1)),
            };
            finish(&last, None)
        }
        Command::Pause(ask) => change(ask, Change::Pause, settings, registry).await,
        Command::Resume(ask) => change(ask, Change::Resume, settings, registry).await,
        Command::Cancel(ask) => change(ask, Change::Cancel, settings, registry).await,
    }
}

async fn change(ask: Ask, what: Change, settings: &Settings, registry: &Registry) -> Result<(), End> {
    let view = ask.common.link(settings, registry)?.change(&ask.id, what, &who(), &ask.reason).await?;
    match ask.common.format {
        Format::Json => output::print(&view)?,
        Format::Human => output::print(format_args!("{} is {}", ask.id, output::clean(view["state"].as_str().unwrap_or("-"))))?,
    }
    Ok(())
}

/// SIGTERM and SIGINT, heard from the first moment on.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Signals, Failure> {
        let failed = |e: std::io::Error| Failure::new("internal.runtime", format!("handle signals: {e}"));
        Ok(Signals {
            terminate: signal(SignalKind::terminate()).map_err(failed)?,
            interrupt: signal(SignalKind::interrupt()).map_err(failed)?,
        })
    }

    /// The next one's name and exit code.
    async fn next(&mut self) -> (&'static str, u8) {
        tokio::select! {
            _ = self.terminate.recv() => ("SIGTERM", 143),
            _ = self.interrupt.recv() => ("SIGINT", 130),
        }
    }
}

async fn start(start: Start, settings: &Settings, registry: &Registry) -> Result<(), End> {
    let mut signals = Signals::new()?;
    let request = request(&start)?;
    let (link, standalone) = if start.standalone {
        let pipeline = start.common.config.load(registry)?;
        let standalone = tokio::select! {
            standalone = Standalone::start(pipeline) => standalone?,
            signal = signals.next() => return Err(End::Code(signal.1)),
        };
        (Link::local(&standalone.backfill), Some(standalone))
    } else {
        (start.common.link(settings, registry)?, None)
    };
    let result = on_link(&start, &request, &link, &mut signals).await;
    if let Some(standalone) = standalone {
        let ended = standalone.end().await;
        // What the backfill came to counts more than how the process let go.
        if result.is_ok() {
            ended?;
        }
    }
    result?;
    if start.verify {
        return super::diff::after_backfill(&start.common.config, registry, &link, &request.spec).await;
    }
    Ok(())
}

/// Follows a backfill of which only the end matters.
pub(super) async fn follow_to_end(link: &Link, view: &Value) -> Result<(), End> {
    let mut screen = Screen::new();
    let id = view["id"].as_str().unwrap_or_default().to_owned();
    let last = follow(link, &id, view.clone(), &mut screen).await?;
    match last["state"].as_str() {
        Some("done") => Ok(()),
        _ => finish(&last, None),
    }
}

async fn on_link(start: &Start, request: &Request, link: &Link, signals: &mut Signals) -> Result<(), End> {
    let started = tokio::select! {
        started = link.start(request) => started?,
        signal = signals.next() => return Err(End::Code(signal.1)),
    };
    let view = &started["backfill"];
    let id = view["id"].as_str().unwrap_or_default().to_owned();
    match started["result"].as_str() {
        Some("plan") => return print_plan(&started, start.common.format),
        Some("already_complete") => {
            say(start, &format!("{id}: already complete"));
            output::print(backfill_watch::summary(view, "already complete"))?;
            return Ok(());
        }
        Some("skipped") => {
            say(start, &format!("skipped: backfill {id} reads the table"));
            output::print(backfill_watch::summary(view, "skipped"))?;
            return Ok(());
        }
        Some(how) => say(start, &format!("{id}: {how}")),
        None => {}
    }
    if start.detach {
        return Ok(output::print(match start.common.format {
            Format::Json => started.to_string(),
            Format::Human => format!("follow it: tillstream backfill watch {}", output::clean(&id)),
        })?);
    }
    let mut screen = Screen::new();
    let (last, code) = tokio::select! {
        last = follow(link, &id, view.clone(), &mut screen) => (last?, None),
        signal = signals.next() => {
            screen.clear();
            eprintln!("{}: the chunk under way ends, the progress is saved", signal.0);
            (pause(link, &id, signal.0, &mut screen).await, Some(signal.1))
        }
        // The job itself knows of it, unless it was found running.
        () = late(start.deadline) => {
            screen.clear();
            (pause(link, &id, "the deadline", &mut screen).await, Some(124))
        }
    };
    finish(&last, code)
}

/// A moment after the deadline; never without one.
async fn late(deadline: Option<Duration>) {
    match deadline {
        Some(deadline) => tokio::time::sleep(deadline + Duration::from_secs(2)).await,
        None => std::future::pending().await,
    }
}

/// Asks for a pause and waits for it; what comes of it when the pipeline does not answer is told from the last view.
async fn pause(link: &Link, id: &str, signal: &str, screen: &mut Screen) -> Value {
    let asked = async {
        let view = link.change(id, Change::Pause, &who(), &format!("{signal} of the command that waits for it")).await?;
        follow(link, id, view, screen).await
    };
    match tokio::time::timeout(PAUSE_WITHIN, asked).await {
        Ok(Ok(view)) => view,
        // It was over before, or nobody answers: what is stored is stored.
        Ok(Err(_)) | Err(_) => link.show(id).await.unwrap_or_else(|_| json!({"id": id, "state": "running"})),
    }
}

/// Looks at the backfill until it is over.
async fn follow(link: &Link, id: &str, mut view: Value, screen: &mut Screen) -> Result<Value, Failure> {
    loop {
        screen.draw(&view);
        if view["state"].as_str() != Some("running") {
            screen.clear();
            return Ok(view);
        }
        view = link.next(id).await?;
    }
}

/// Prints the last line and says how it ended. `interrupted` is the exit code of what asked for the end.
fn finish(view: &Value, interrupted: Option<u8>) -> Result<(), End> {
    let code = view["code"].as_str();
    let (meaning, end) = match (view["state"].as_str(), interrupted) {
        (Some("done"), _) => ("done", Ok(())),
        (_, Some(124)) => ("deadline reached, progress saved", Err(End::Code(124))),
        (_, Some(signal)) => ("interrupted, progress saved", Err(End::Code(signal))),
        (Some("paused"), None) if code == Some("backfill.deadline") => ("deadline reached, progress saved", Err(End::Code(124))),
        (Some("paused"), None) => ("paused, progress saved", Err(End::Code(75))),
        (Some("cancelled"), None) => ("cancelled", Err(End::Code(75))),
        _ => {
            let failure = Failure::new(code.unwrap_or("backfill.query_failed"), view["why"].as_str().unwrap_or("the backfill failed"));
            ("failed, progress saved", Err(failure.into()))
        }
    };
    output::print(backfill_watch::summary(view, meaning))?;
    end
}

fn print_plan(started: &Value, format: Format) -> Result<(), End> {
    if format == Format::Json {
        return Ok(output::print(started)?);
    }
    for table in started["tables"].as_array().into_iter().flatten() {
        let how = match (table["index"].as_str(), table["scans"].as_bool()) {
            (Some(index), _) => format!("by index {index}"),
            (None, Some(true)) => "the whole table, along its key".to_owned(),
            _ => "by its key".to_owned(),
        };
        let text = format!(
            "{}: about {} rows, {}, {} min at the source's speed, {how}",
            table["table"].as_str().unwrap_or("-"),
            table["rows"],
            table["bytes"].as_u64().map_or_else(|| "-".to_owned(), units::show_size),
            table["minutes"],
        );
        output::print(output::clean(&text))?;
    }
    Ok(())
}

fn say(start: &Start, text: &str) {
    if start.common.format == Format::Human {
        eprintln!("{}", output::clean(text));
    }
}

fn request(start: &Start) -> Result<Request, End> {
    let keys = match &start.keys_file {
        Some(path) => read_keys(path)?,
        None => Vec::new(),
    };
    Ok(Request {
        id: start.id.clone(),
        spec: BackfillSpec {
            tables: start.tables.clone(),
            filter: start.filter.clone(),
            since: start.since.clone(),
            columns: start.columns.clone(),
            keys,
            connector: start.connector.clone(),
        },
        options: BackfillOptions {
            max_rate: start.max_rate,
            deadline_ms: start.deadline.map(|d| now_ms() + i64::try_from(d.as_millis()).unwrap_or(i64::MAX / 2)),
            window: start.window.clone(),
            timezone: start.tz.clone(),
            allow_scan: start.allow_scan,
            allow_subquery: start.allow_subquery,
            no_brakes: start.no_brakes,
        },
        if_running: match start.if_running {
            Running::Skip => IfRunning::Skip,
            Running::Fail => IfRunning::Fail,
            Running::Attach => IfRunning::Attach,
        },
        dry_run: start.dry_run,
        by: who(),
    })
}

/// Keys, one a line: a JSON array of texts and numbers, or the text itself for a key of one column.
fn read_keys(path: &std::path::Path) -> Result<Vec<KeyTexts>, Failure> {
    let bad = |what: String| Failure::new("backfill.bad_request", format!("{}: {what}", path.display()));
    let length = std::fs::metadata(path).map_err(|e| bad(e.to_string()))?.len();
    if length > KEYS_FILE_MAX {
        return Err(bad(format!("{length} bytes are more keys than one job takes")));
    }
    let text = std::fs::read_to_string(path).map_err(|e| bad(e.to_string()))?;
    parse_keys(&text).map_err(|line| bad(format!("line {line} is neither a JSON array of texts and numbers nor a text")))
}

/// The number of the first bad line, from 1, is the error.
fn parse_keys(text: &str) -> Result<Vec<KeyTexts>, usize> {
    let mut keys = Vec::new();
    for (number, line) in (1_usize..).zip(text.lines()) {
        if line.trim().is_empty() {
            continue;
        }
        if !line.trim_start().starts_with('[') {
            keys.push(KeyTexts(vec![line.to_owned()]));
            continue;
        }
        let values: Vec<Value> = serde_json::from_str(line).map_err(|_| number)?;
        let texts = values.iter().map(|v| match v {
            Value::String(text) => Some(text.clone()),
            Value::Number(n) => Some(n.to_string()),
            Value::Bool(b) => Some(b.to_string()),
            _ => None,
        });
        keys.push(KeyTexts(texts.collect::<Option<Vec<_>>>().ok_or(number)?));
    }
    Ok(keys)
}

/// Who asks.
pub(super) fn who() -> String {
    format!("{} pid {}", std::env::var("USER").unwrap_or_else(|_| "unknown".to_owned()), std::process::id())
}

/// `5k`, `1M`, `800`, with or without `/s`.
fn rate(text: &str) -> Result<u64, String> {
    let bare = text.trim_end_matches("/s");
    let (digits, factor) = match bare.chars().last() {
        Some('k') => (&bare[..bare.len() - 1], 1_000),
        Some('M') => (&bare[..bare.len() - 1], 1_000_000),
        _ => (bare, 1),
    };
    let rows = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(factor));
    rows.filter(|n| *n > 0).ok_or_else(|| "write a number of rows a second, as 800 or 5k".to_owned())
}

fn duration(text: &str) -> Result<Duration, String> {
    units::duration(text).filter(|d| !d.is_zero()).ok_or_else(|| "write a whole number and ms, s, m, h or d, as 90m".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_lines() {
        let keys = parse_keys("7\n\n[\"a\\tb\", 5]\nplain, text\n").expect("keys");
        let texts: Vec<Vec<&str>> = keys.iter().map(|k| k.0.iter().map(String::as_str).collect()).collect();
        assert_eq!(texts, [vec!["7"], vec!["a\tb", "5"], vec!["plain, text"]]);
        assert_eq!(parse_keys("1\n[1"), Err(2));
        assert_eq!(parse_keys("[null]"), Err(1));
    }

    #[test]
    fn rates_have_units() {
        assert_eq!((rate("800"), rate("5k/s"), rate("2M")), (Ok(800), Ok(5_000), Ok(2_000_000)));
        assert!(rate("").is_err() && rate("0").is_err() && rate("fast").is_err() && rate("99999999999999999999k").is_err());
    }
}
