//! The figures of one part: what was measured in each round, printed for people and kept for the page.

use std::fmt::Write as _;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::harness::{Level, target};

/// What is asked of a figure's median.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Asked {
    AtLeast(f64),
    AtMost(f64),
}

/// One figure: a value a round.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Figure {
    /// The group it is shown in, such as a backlog's name.
    pub(crate) of: String,
    pub(crate) what: String,
    pub(crate) unit: String,
    pub(crate) values: Vec<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) asked: Option<Asked>,
}

impl Figure {
    pub(crate) fn sorted(&self) -> Vec<f64> {
        let mut sorted: Vec<f64> = self.values.iter().copied().filter(|value| !value.is_nan()).collect();
        sorted.sort_by(f64::total_cmp);
        sorted
    }

    /// The median; none when nothing was measured, as without the peer.
    pub(crate) fn median(&self) -> Option<f64> {
        let sorted = self.sorted();
        sorted.get(sorted.len() / 2).copied()
    }

    pub(crate) fn met(&self) -> Option<bool> {
        match (self.asked?, self.median()?) {
            (Asked::AtLeast(limit), median) => Some(median >= limit),
            (Asked::AtMost(limit), median) => Some(median <= limit),
        }
    }
}

/// The figures of a part of the benchmarks.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Figures {
    pub(crate) part: String,
    /// What was done, in a sentence or two.
    pub(crate) about: String,
    pub(crate) cores: usize,
    pub(crate) memory_gib: u64,
    pub(crate) versions: Vec<String>,
    /// Without the peer, or in another way less than it should be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) incomplete: Option<String>,
    pub(crate) figures: Vec<Figure>,
}

impl Figures {
    pub(crate) fn new(part: &str, about: &str) -> Figures {
        let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let kib = memory.lines().find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse::<u64>().ok());
        Figures {
            part: part.to_owned(),
            about: about.to_owned(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_gib: kib.unwrap_or(0).div_ceil(1 << 20),
            versions: Vec::new(),
            incomplete: None,
            figures: Vec::new(),
        }
    }

    /// One round's value of a figure.
    pub(crate) fn add(&mut self, of: &str, what: &str, unit: &str, value: f64) {
        match self.figures.iter_mut().find(|figure| figure.of == of && figure.what == what) {
            Some(figure) => figure.values.push(value),
            None => {
                let (of, what, unit) = (of.to_owned(), what.to_owned(), unit.to_owned());
                self.figures.push(Figure { of, what, unit, values: vec![value], asked: None });
            }
        }
    }

    /// What a figure's median has to be.
    pub(crate) fn ask(&mut self, of: &str, what: &str, asked: Asked) {
        let figure = self.figures.iter_mut().find(|figure| figure.of == of && figure.what == what);
        figure.unwrap_or_else(|| panic!("{of}: {what} was not measured")).asked = Some(asked);
    }

    /// Prints the figures, keeps those of a long run for the page, and answers how many are not what was asked.
    pub(crate) fn done(&self) -> usize {
        let mut table = format!("{}: {} cores, {} GiB; {}\n", self.part, self.cores, self.memory_gib, self.versions.join(", "));
        let mut missed = 0;
        for figure in &self.figures {
            let Some(median) = figure.median() else { continue };
            let sorted = figure.sorted();
            let verdict = match (figure.asked, figure.met()) {
                (Some(asked), Some(met)) => {
                    missed += usize::from(!met);
                    let asked = match asked {
                        Asked::AtLeast(limit) => format!("at least {}", number(limit)),
                        Asked::AtMost(limit) => format!("at most {}", number(limit)),
                    };
                    format!("; {asked} asked{}", if met { "" } else { ": MISSED" })
                }
                _ => String::new(),
            };
            let _ = writeln!(
                table,
                "  {:<8} {:<58} {:>9} {:<9} [{} to {}] of {}{verdict}",
                figure.of,
                figure.what,
                number(median),
                figure.unit,
                number(sorted[0]),
                number(sorted[sorted.len() - 1]),
                sorted.len()
            );
        }
        println!("{table}");
        if Level::get() == Level::Long {
            let dir = directory();
            std::fs::create_dir_all(&dir).expect("target/ can be written");
            let text = serde_json::to_string_pretty(self).expect("numbers");
            std::fs::write(dir.join(format!("{}.json", self.part)), text).expect("target/ can be written");
        }
        missed
    }
}

/// Where the figures of the last runs are kept.
pub(crate) fn directory() -> PathBuf {
    target().join("bench")
}

/// Three digits that mean something.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        v if v >= 10_000.0 => format!("{:.0}k", value / 1000.0),
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}
