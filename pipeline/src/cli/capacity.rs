//! `capacity`: what a peak would need, by what a running pipeline has measured.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use tillstream_connectors::registry::Registry;

use super::ConfigFile;
use super::output::{self, End, Format};
use crate::config::settings::Settings;
use crate::config::units;
use crate::ops::capacity::{self, Profile};
use crate::ops::failure::{Class, Failure};
use crate::ops::figures::Figures;

/// Longest profile that is read: two weeks of seconds.
const PROFILE_BYTES_MAX: u64 = 32 << 20;

/// Tell what a peak needs, by what a running pipeline has measured
///
/// The profile is a CSV file with the heading `seconds,events` or `seconds,orders`: from each row's second on, so many come in a
/// second; the last row is the end. The pipeline has to deliver, or have delivered, something meanwhile: without that nothing is
/// known of what an event costs.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tillstream capacity --profile peak.csv\n  tillstream capacity --orders-per-hour 3000000 --events-per-order 14 --lag-within 30s\n\nEnds with 1 when no number of replicas suffices, with 69 when no process answers."
)]
pub(super) struct Arguments {
    #[command(flatten)]
    config: ConfigFile,
    /// What comes, as CSV
    #[arg(long, value_name = "FILE", required_unless_present = "orders_per_hour")]
    profile: Option<PathBuf>,
    /// An even hour instead of a profile
    #[arg(long, value_name = "N", conflicts_with = "profile", value_parser = positive)]
    orders_per_hour: Option<f64>,
    /// Change events of an order, where orders are given
    #[arg(long, value_name = "N", value_parser = positive)]
    events_per_order: Option<f64>,
    /// No event shall wait longer
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = duration)]
    lag_within: Duration,
    /// Address of the admin endpoint instead of the file's
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// How it is printed
    #[arg(long, value_enum, default_value_t)]
    pub(super) format: Format,
}

fn positive(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|n: &f64| n.is_finite() && *n > 0.0).ok_or_else(|| "a number above 0".to_owned())
}

fn duration(text: &str) -> Result<Duration, String> {
    units::duration(text).ok_or_else(|| "a duration as `30s` or `10m`".to_owned())
}

pub(super) async fn run(arguments: Arguments, settings: &Settings, registry: &Registry) -> Result<(), End> {
    let profile = match (&arguments.profile, arguments.orders_per_hour) {
        (Some(path), _) => read(path)?,
        (None, per_hour) => Profile::even(per_hour.unwrap_or(0.0)),
    };
    let events = match (profile.orders, arguments.events_per_order) {
        (false, None) => 1.0,
        (true, Some(events)) => events,
        (true, None) => {
            return Err(
                Failure::new("usage.arguments", "how many change events is an order? Say so with --events-per-order".to_owned()).into()
            );
        }
        (false, Some(_)) => {
            return Err(Failure::new(
                "usage.arguments",
                "the profile counts events: --events-per-order means nothing beside it".to_owned(),
            )
            .into());
        }
    };
    let base = super::status::address(arguments.url.as_deref(), &arguments.config, settings, registry)?;
    let mut document = super::status::fetch(&format!("{}/api/scale", base.trim_end_matches('/'))).await?;
    let figures: Figures = serde_json::from_value(document["figures"].take())
        .map_err(|_| Failure::new("admin.unreachable", format!("{base}/api/scale answers something else than figures")))?;
    let needs = capacity::needs(&figures, &profile, events, arguments.lag_within.as_secs_f64());
    match arguments.format {
        Format::Json => output::print(serde_json::to_value(&needs).unwrap_or_default())?,
        Format::Human => output::print(output::clean_lines(&capacity::screen(&needs)).trim_end())?,
    }
    let capture = needs.capture_utilisation.is_none_or(|part| part <= 1.0);
    if needs.replicas.is_some() && capture { Ok(()) } else { Err(End::Code(Class::Check.exit_code())) }
}

fn read(path: &std::path::Path) -> Result<Profile, Failure> {
    let refuse = |what: String| Failure::new("usage.arguments", format!("{}: {what}", path.display()));
    let length = std::fs::metadata(path).map_err(|e| refuse(e.to_string()))?.len();
    if length > PROFILE_BYTES_MAX {
        return Err(refuse(format!("it has {length} bytes, more than a profile of two weeks")));
    }
    let text = std::fs::read_to_string(path).map_err(|e| refuse(e.to_string()))?;
    Profile::parse(&text).map_err(|e| refuse(e.to_string()))
}
