//! The sink `jsonl`.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use serde_json::{Value, json};
use tillstream_connectors::conformance::{Fact, Fault, Keeps, NotApplicable, Subject, Trouble};
use tillstream_connectors::registry::{Registry, Target};

use super::over_http::fact;
use crate::harness::scratch;

/// Files of lines.
pub(super) struct Lines {
    dir: PathBuf,
    target: Arc<dyn Target>,
}

impl Lines {
    pub(super) fn new() -> Lines {
        let dir = scratch("conformance");
        let target = Registry::built_in().get("jsonl").expect("built in").validate(&json!({"dir": dir}), false).expect("valid");
        Lines { dir, target }
    }
}

#[async_trait]
impl Subject for Lines {
    fn name(&self) -> String {
        "jsonl".into()
    }

    fn target(&self) -> Arc<dyn Target> {
        self.target.clone()
    }

    fn keeps(&self) -> Keeps {
        Keeps::Facts
    }

    fn excused(&self, fault: Fault) -> Option<NotApplicable> {
        (fault == Fault::Partial).then_some(NotApplicable("a file takes every line"))
    }

    async fn arm(&mut self, trouble: Trouble) -> Result<(), NotApplicable> {
        match trouble {
            Trouble::None => Ok(()),
            _ => Err(NotApplicable("a file gives no answer that could be lost, late or wrong")),
        }
    }

    async fn reached(&mut self) -> bool {
        false
    }

    async fn idle(&mut self) -> bool {
        true
    }

    async fn effects(&mut self) -> Vec<Fact> {
        let mut facts = Vec::new();
        let files = std::fs::read_dir(&self.dir).expect("a directory").flatten();
        for path in files.map(|file| file.path()).filter(|path| path.extension().is_some_and(|e| e == "jsonl")) {
            let text = std::fs::read_to_string(path).expect("readable");
            // A line that is being written has no end yet.
            let whole = text.rfind('\n').map_or("", |end| &text[..end]);
            facts.extend(whole.lines().map(|line| {
                let event: Value = serde_json::from_str(line).expect("JSON lines");
                fact(&event["after"]).expect("a fact")
            }));
        }
        facts
    }
}
