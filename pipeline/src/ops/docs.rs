//! The pages of `pipeline/docs/`, carried by the program, so that whoever is woken has them where there is no network.
//!
//! One page an alert and one a family of error codes (what a code begins with), runbooks of longer ways, guides by task, and why this
//! program is. Tests hold them against alerts, codes and the command line.

/// A page.
#[derive(Clone, Copy, Debug)]
pub struct Page {
    /// Below `pipeline/docs/`, as `alerts/WalCeilingSoon.md`.
    pub path: &'static str,
    /// Markdown.
    pub text: &'static str,
}

macro_rules! pages {
    ($($path:literal,)*) => {
        /// All of them, by path.
        pub const PAGES: &[Page] = &[$(Page { path: $path, text: include_str!(concat!("../../docs/", $path)) },)*];
    };
}

pages! {
    "README.md",
    "alerts/TillstreamAckStalled.md",
    "alerts/TillstreamBackfillMissed.md",
    "alerts/TillstreamCanaryLate.md",
    "alerts/TillstreamCaptureStopped.md",
    "alerts/TillstreamConnectorWaits.md",
    "alerts/TillstreamDeadLettersGrow.md",
    "alerts/TillstreamDown.md",
    "alerts/TillstreamFreshnessBudgetBurns.md",
    "alerts/TillstreamJournalAway.md",
    "alerts/TillstreamLagHigh.md",
    "alerts/TillstreamNotCaptured.md",
    "alerts/TillstreamRetentionLossSoon.md",
    "alerts/TillstreamTargetErrors.md",
    "alerts/TillstreamTwoWriters.md",
    "alerts/TillstreamWalCeilingSoon.md",
    "codes/admin.md",
    "codes/apply.md",
    "codes/backfill.md",
    "codes/capture.md",
    "codes/config.md",
    "codes/connector.md",
    "codes/control.md",
    "codes/coverage.md",
    "codes/delivery.md",
    "codes/demo.md",
    "codes/diff.md",
    "codes/explain.md",
    "codes/http.md",
    "codes/internal.md",
    "codes/journal.md",
    "codes/jsonl.md",
    "codes/klaviyo.md",
    "codes/mapping.md",
    "codes/publication.md",
    "codes/queries.md",
    "codes/replay.md",
    "codes/sandbox.md",
    "codes/segment.md",
    "codes/setup.md",
    "codes/slot.md",
    "codes/sql.md",
    "codes/square.md",
    "codes/telemetry.md",
    "codes/usage.md",
    "codes/webhook.md",
    "guides/add-a-table.md",
    "guides/backfill-job.md",
    "guides/canary.md",
    "guides/dba.md",
    "guides/enable-replication.md",
    "guides/engineer.md",
    "guides/first-delivery.md",
    "guides/kubernetes.md",
    "guides/on-call.md",
    "guides/pause-a-connector.md",
    "guides/redrive.md",
    "guides/replay-a-day.md",
    "guides/scale.md",
    "guides/systemd.md",
    "guides/tell-others.md",
    "guides/trace.md",
    "runbooks/backfill-late.md",
    "runbooks/blocked-row.md",
    "runbooks/broker-lost.md",
    "runbooks/clock.md",
    "runbooks/credentials.md",
    "runbooks/dead-letters.md",
    "runbooks/disk-full.md",
    "runbooks/key-window.md",
    "runbooks/memory.md",
    "runbooks/pg-failover.md",
    "runbooks/pg-upgrade.md",
    "runbooks/pii-leak.md",
    "runbooks/pos-slow.md",
    "runbooks/rebuild.md",
    "runbooks/release-rollback.md",
    "runbooks/restore.md",
    "runbooks/retention-reached.md",
    "runbooks/schema-change.md",
    "runbooks/slot-lost.md",
    "runbooks/target-down.md",
    "why.md",
}

impl Page {
    /// The folder: `alerts`, `codes`, `runbooks`, `guides`, or nothing.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        self.path.split_once('/').map_or("", |(folder, _)| folder)
    }

    /// What the page is asked for by: `WalCeilingSoon`, `capture`, `restore`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        let file = self.path.rsplit('/').next().unwrap_or(self.path);
        file.strip_suffix(".md").unwrap_or(file)
    }

    /// Its heading.
    #[must_use]
    pub fn title(&self) -> &'static str {
        self.text.lines().next().unwrap_or_default().trim_start_matches('#').trim()
    }
}

/// A page by its name, whatever the case; alerts before runbooks before guides. Alerts are found without the program's name too.
#[must_use]
pub fn find(name: &str) -> Option<&'static Page> {
    let is = |page: &Page| {
        page.name().eq_ignore_ascii_case(name)
            || page.name().strip_prefix("Tillstream").is_some_and(|alert| alert.eq_ignore_ascii_case(name))
    };
    let of = |kind: &str| PAGES.iter().find(|page| page.kind() == kind && is(page));
    ["alerts", "runbooks", "guides", ""].into_iter().find_map(of)
}

/// The page of a code's family: of `capture.slot_lost`, that of `capture`.
#[must_use]
pub fn family(code: &str) -> Option<&'static Page> {
    let family = code.split('.').next().unwrap_or(code);
    PAGES.iter().find(|page| page.kind() == "codes" && page.name() == family)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::ops::codes;

    #[test]
    fn every_page_that_stands_in_the_folder_is_carried() {
        fn walk(dir: &Path, below: &str, found: &mut Vec<String>) {
            for entry in std::fs::read_dir(dir).expect("docs").flatten() {
                let name = format!("{below}{}", entry.file_name().to_string_lossy());
                if entry.path().is_dir() {
                    walk(&entry.path(), &format!("{name}/"), found);
                } else {
                    found.push(name);
                }
            }
        }
        let mut found = Vec::new();
        walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join("docs"), "", &mut found);
        found.sort();
        let mut carried: Vec<&str> = PAGES.iter().map(|page| page.path).collect();
        carried.sort_unstable();
        assert_eq!(found, carried);
    }

    #[test]
    fn every_code_has_the_page_of_its_family_and_every_page_has_codes() {
        for explanation in codes::ALL {
            assert!(family(explanation.code).is_some(), "pipeline/docs/codes/ has no page for {}", explanation.code);
        }
        for page in PAGES.iter().filter(|page| page.kind() == "codes") {
            assert!(codes::ALL.iter().any(|e| e.code.split('.').next() == Some(page.name())), "{} explains no code", page.path);
        }
    }

    /// What a page for the night has to say, in this order.
    const SKELETON: [&str; 8] = [
        "## Symptom",
        "## Who notices",
        "## Is data at risk?",
        "## Stop the bleeding",
        "## Diagnose",
        "## Fix",
        "## Verify",
        "## Afterwards",
    ];

    #[test]
    fn pages_for_the_night_are_built_alike() {
        for page in PAGES.iter().filter(|page| ["alerts", "codes", "runbooks"].contains(&page.kind())) {
            let places: Vec<usize> =
                SKELETON.iter().map(|heading| page.text.find(heading).unwrap_or_else(|| panic!("{} lacks {heading}", page.path))).collect();
            assert!(places.is_sorted(), "{} has its headings in another order", page.path);
            let first = &page.text[places[3]..places[4]];
            let commands = first.lines().filter(|line| line.starts_with("    ")).count();
            assert!(commands <= 3, "{}: {commands} commands to stop the bleeding; three can be typed at night", page.path);
        }
    }

    #[test]
    fn pages_refer_to_pages_that_are_there() {
        for page in PAGES {
            let mut rest = page.text;
            while let Some(at) = rest.find("](") {
                rest = &rest[at + 2..];
                let target = rest.split(')').next().unwrap_or_default();
                let file = target.split('#').next().unwrap_or_default();
                if file.is_empty() || target.starts_with("http") {
                    continue;
                }
                let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(page.path);
                assert!(base.parent().expect("a folder").join(file).exists(), "{} refers to {target}", page.path);
            }
        }
    }

    #[test]
    fn every_alert_has_its_page_and_every_page_its_alert() {
        let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docker/prometheus/alerts.yaml");
        let rules = std::fs::read_to_string(&rules).expect("the alert rules");
        let mut alerts: Vec<&str> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
        alerts.sort_unstable();
        let mut pages: Vec<&str> = PAGES.iter().filter(|p| p.kind() == "alerts").map(Page::name).collect();
        pages.sort_unstable();
        assert_eq!(alerts, pages);
        let links: Vec<String> = alerts.iter().map(|alert| format!("runbook_url: \"pipeline/docs/alerts/{alert}.md\"")).collect();
        assert!(links.iter().all(|link| rules.contains(link.as_str())), "each alert links to its page");
    }

    #[test]
    fn names_are_found_whatever_their_case_and_are_one_pages() {
        for name in ["walceilingsoon", "TillstreamWalCeilingSoon"] {
            assert_eq!(find(name).map(|page| page.path), Some("alerts/TillstreamWalCeilingSoon.md"));
        }
        assert_eq!(family("http.status_503").map(|page| page.path), Some("codes/http.md"));
        let mut names: Vec<String> = PAGES.iter().filter(|p| p.kind() != "codes").map(|p| p.name().to_lowercase()).collect();
        names.sort();
        let all = names.len();
        names.dedup();
        assert_eq!(names.len(), all, "two pages have one name");
    }
}
