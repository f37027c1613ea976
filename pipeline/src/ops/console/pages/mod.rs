//! The pages. Each makes its document first; what is shown is made of the document, so that the twin says the same.

mod audit;
mod backfills;
mod connectors;
mod explain;
mod freshness;
mod incidents;
mod journal;
mod letters;
mod map;
mod rows;
mod runs_by;
mod slots;
mod source;
mod tail;

use super::super::admin::Admin;
use super::super::admin::access::Caller;
use super::super::failure::Failure;
use super::{Fields, View};

pub(super) use letters::revealed;

/// A page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Page {
    Map,
    Freshness,
    Source,
    Journal,
    Connectors,
    Rows,
    Letters,
    Tail,
    Backfills,
    Audit,
    Incidents,
    Explain,
}

impl Page {
    /// In the order in which they are listed.
    pub(super) const ALL: &[Page] = &[
        Page::Map,
        Page::Freshness,
        Page::Source,
        Page::Journal,
        Page::Connectors,
        Page::Rows,
        Page::Letters,
        Page::Tail,
        Page::Backfills,
        Page::Incidents,
        Page::Audit,
        Page::Explain,
    ];

    pub(super) fn path(self) -> &'static str {
        match self {
            Page::Map => "/",
            Page::Freshness => "/freshness",
            Page::Source => "/source",
            Page::Journal => "/journal",
            Page::Connectors => "/connectors",
            Page::Rows => "/rows",
            Page::Letters => "/dead-letters",
            Page::Tail => "/tail",
            Page::Backfills => "/backfills",
            Page::Audit => "/audit",
            Page::Incidents => "/incidents",
            Page::Explain => "/explain",
        }
    }

    /// Where its document is.
    pub(super) fn twin(self) -> String {
        match self {
            Page::Map => "/index.json".to_owned(),
            other => format!("{}.json", other.path()),
        }
    }

    pub(super) fn title(self) -> &'static str {
        match self {
            Page::Map => "Pipeline",
            Page::Freshness => "Freshness",
            Page::Source => "Source & WAL",
            Page::Journal => "Journal",
            Page::Connectors => "Connectors",
            Page::Rows => "Row finder",
            Page::Letters => "Dead letters",
            Page::Tail => "Live tail",
            Page::Backfills => "Backfills",
            Page::Audit => "Audit",
            Page::Incidents => "Incidents",
            Page::Explain => "Runbooks",
        }
    }

    /// What it is for, in a sentence.
    pub(super) fn lead(self) -> &'static str {
        match self {
            Page::Map => {
                "From the point of sale to the targets: what each stage does, how much of the time it is at work, and what limits the whole."
            }
            Page::Freshness => "How old events are when they take effect at the targets, and how old the oldest one is that waits.",
            Page::Source => "What the point of sale's server keeps for this pipeline, and how long its room lasts.",
            Page::Journal => "Where changes are stored until every connector has settled them.",
            Page::Connectors => "What delivers to whom, by which file, and how the targets answer.",
            Page::Rows => "One row's whole life: commit, place in the journal, and what became of it at every connector. No values.",
            Page::Letters => "What targets refused for good: why, whether it would pass now, and what is to be done about it.",
            Page::Tail => "The newest events, as they are stored: names of columns, no values.",
            Page::Backfills => "Tables that are read beside the stream: how far, how fast, and what slows them.",
            Page::Audit => "Who decided what, and why. Kept in the control journal, whoever asked and however.",
            Page::Incidents => "What is not as it should be now, in words, and what helps.",
            Page::Explain => {
                "What to do about an alert or an error code, by whom and in what order. Carried by the program: no network is needed."
            }
        }
    }

    /// Whether what is asked stands before what is shown.
    pub(super) fn asks_first(self) -> bool {
        self == Page::Tail
    }

    /// Whether it is made again while somebody looks.
    pub(super) fn lives(self) -> bool {
        // Reading the journal from end to end is no thing to do every two seconds.
        !matches!(self, Page::Rows | Page::Explain)
    }

    /// What it shows.
    ///
    /// # Errors
    /// What is needed for it is not there.
    pub(super) async fn view(self, admin: &Admin, caller: &Caller, fields: &Fields) -> Result<View, Failure> {
        match self {
            Page::Map => Ok(map::view(admin)),
            Page::Freshness => Ok(freshness::view(admin, fields)),
            Page::Source => Ok(source::view(admin)),
            Page::Journal => Ok(journal::view(admin)),
            Page::Connectors => Ok(connectors::view(admin, caller, fields)),
            Page::Rows => rows::view(admin, fields).await,
            Page::Letters => letters::view(admin, caller, fields).await,
            Page::Tail => tail::view(admin, fields).await,
            Page::Backfills => Ok(backfills::view(admin, caller)),
            Page::Audit => audit::view(admin),
            Page::Incidents => Ok(incidents::view(admin)),
            Page::Explain => Ok(explain::view(fields)),
        }
    }
}

/// A field that is not empty.
fn given<'f>(fields: &'f Fields, name: &str) -> Option<&'f str> {
    fields.get(name).map(|value| value.trim()).filter(|value| !value.is_empty())
}
