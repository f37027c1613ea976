//! A small sink that is right, and six that are wrong in one thing each.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use reqwest::Client;
use serde_json::{Value, json};
use tillstream_connectors::conformance::Fault;
use tillstream_connectors::idempotency;
use tillstream_connectors::registry::{SinkPlan, Target};
use tillstream_connectors::sandbox::{Sandbox, Settings};
use tillstream_connectors::sink::{Batch, Class, Idempotency, Item, LaneId, OnDelete, Outcome, Reason, Retry, Sink, SinkError};

use super::over_http::{Form, OverHttp, fact};

/// What is wrong with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mistake {
    None,
    /// Every attempt has another key.
    NewKeys,
    /// One key names a whole batch, however it was cut.
    BatchKey,
    /// What the answer says of single items is not read.
    IgnoresResults,
    /// A list that is answered 200 without results counts as applied.
    TrustsSuccess,
    /// Its ledger says that an item is done before it is sent.
    CommitsFirst,
    /// Items of a batch go out in another order.
    Reorders,
}

impl Mistake {
    /// All that are mistakes.
    pub(super) const ALL: [Mistake; 6] =
        [Mistake::NewKeys, Mistake::BatchKey, Mistake::IgnoresResults, Mistake::TrustsSuccess, Mistake::CommitsFirst, Mistake::Reorders];

    /// The faults that it must not withstand.
    pub(super) fn fails(self) -> Vec<Fault> {
        match self {
            Mistake::None => vec![],
            // Whatever was applied and is sent again is applied again, and no key comes with another body.
            Mistake::NewKeys => {
                vec![Fault::Duplicates, Fault::LostAnswer, Fault::Failure, Fault::Slow, Fault::Kill, Fault::OtherBody]
            }
            // The same batch is known; the same items in another batch are not. One reused key takes the others with it.
            Mistake::BatchKey => vec![Fault::Duplicates, Fault::Kill, Fault::OtherBody],
            Mistake::IgnoresResults => vec![Fault::Partial, Fault::FalseSuccess, Fault::OtherBody],
            Mistake::TrustsSuccess => vec![Fault::FalseSuccess],
            // What was not applied at first is never sent again.
            Mistake::CommitsFirst => vec![
                Fault::Partial,
                Fault::PauseSeconds,
                Fault::PauseDate,
                Fault::Failure,
                Fault::Kill,
                Fault::FalseSuccess,
                Fault::OtherBody,
            ],
            Mistake::Reorders => vec![Fault::Reorder],
        }
    }
}

/// The target of the example.
#[derive(Debug)]
pub(super) struct Example {
    plan: SinkPlan,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    mistake: Mistake,
    url: String,
    client: Client,
    attempts: AtomicU64,
    /// Outlives the process, as a database would.
    ledger: Mutex<HashSet<String>>,
}

/// The form in which the example speaks.
static FORM: Form = Form {
    map: |fact, note, item| Some(json!({"id": item.idempotency_key, "row": fact.row, "change": fact.change, "note": note.text()})),
    fact,
    list: true,
    excused: &[],
};

impl Example {
    pub(super) async fn subject(mistake: Mistake) -> OverHttp {
        let sandbox = Sandbox::start(([127, 0, 0, 1], 0).into(), Settings::default()).await.expect("listens");
        let timeout = Duration::from_millis(500);
        // Only sinks of this kind are given two changes of a row in one batch.
        let idempotency = if mistake == Mistake::Reorders { Idempotency::Version } else { Idempotency::Key };
        let plan = SinkPlan::new(idempotency, timeout);
        let client = Client::builder().timeout(timeout).no_proxy().retry(reqwest::retry::never()).build().expect("a client");
        let url = sandbox.url("/http/events");
        let shared = Shared { mistake, url, client, attempts: AtomicU64::new(0), ledger: Mutex::default() };
        let target = Arc::new(Example { plan, shared: Arc::new(shared) });
        let name = if mistake == Mistake::None { "example".to_owned() } else { format!("wrong: {mistake:?}") };
        OverHttp { name, sandbox, target, form: &FORM, armed_at: 0 }
    }
}

impl Target for Example {
    fn plan(&self) -> &SinkPlan {
        &self.plan
    }

    fn build(&self, _lane: LaneId, _on_delete: OnDelete) -> Box<dyn Sink> {
        Box::new(ExampleSink(self.shared.clone()))
    }
}

struct ExampleSink(Arc<Shared>);

fn unknown(code: &str) -> SinkError {
    SinkError { code: code.into(), message: "not known what became of it".into(), class: Class::Transient, after: None }
}

fn again(after: Option<Duration>) -> Outcome {
    Outcome::Retry(Retry { reason: Reason { code: "example.again".into(), message: "not this time".into() }, after })
}

/// Seconds, or a date.
fn pause(text: &str) -> Option<Duration> {
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
    Duration::try_from(date.duration_since(jiff::Timestamp::now())).ok()
}

impl ExampleSink {
    /// What is sent of an item under the key of this attempt.
    fn body(&self, item: &Item, key: &str) -> Option<Value> {
        let Some(Ok(mapped)) = &item.mapped else { return None };
        let mut body: Value = serde_json::from_str(mapped).expect("maps give JSON");
        let fields = body.as_object_mut().expect("an object");
        match self.0.mistake {
            Mistake::BatchKey => drop(fields.remove("id")),
            _ => drop(fields.insert("id".into(), key.into())),
        }
        Some(body)
    }

    async fn send(&self, items: &[(String, &Item)]) -> Result<Vec<Outcome>, SinkError> {
        let mistake = self.0.mistake;
        let mut bodies: Vec<Value> = items.iter().filter_map(|(key, item)| self.body(item, key)).collect();
        if mistake == Mistake::Reorders {
            bodies.reverse();
        }
        let name = idempotency::key(items.iter().map(|(key, _)| key.as_bytes()));
        let request = self.0.client.post(&self.0.url).header("idempotency-key", name).json(&json!({"items": bodies}));
        let response = request.send().await.map_err(|_| unknown("example.connection"))?;
        let status = response.status().as_u16();
        let after = response.headers().get("retry-after").and_then(|v| v.to_str().ok()).and_then(pause);
        let answer: Value = response.json().await.map_err(|_| unknown("example.connection"))?;
        let results = answer["results"].as_array().cloned().unwrap_or_default();
        let outcome = |n: usize, key: &str| {
            let of_item = |r: &&Value| r["id"].as_str() == Some(key);
            let result = if mistake == Mistake::BatchKey { results.get(n) } else { results.iter().find(of_item) };
            match result.map(|r| (r["status"].as_u64(), r["code"].as_str().unwrap_or_default())) {
                Some((Some(200..=299), _)) => Outcome::Delivered,
                Some((Some(409), _)) => Outcome::Absorbed,
                Some((Some(422), code)) => refused(code),
                None if mistake == Mistake::TrustsSuccess => Outcome::Delivered,
                _ => again(None),
            }
        };
        match status {
            200..=299 if mistake == Mistake::IgnoresResults => Ok(items.iter().map(|_| Outcome::Delivered).collect()),
            200..=299 => Ok(items.iter().enumerate().map(|(n, (key, _))| outcome(n, key)).collect()),
            429 => Ok(items.iter().map(|_| again(after)).collect()),
            422 => Ok(items.iter().map(|_| refused(answer["error"]["code"].as_str().unwrap_or_default())).collect()),
            _ => Err(unknown("example.status")),
        }
    }
}

fn refused(code: &str) -> Outcome {
    let code = if code == "idempotency_key_reused" { "example.key_reused" } else { "example.refused" };
    Outcome::Rejected(Reason { code: code.into(), message: "the target refuses it".into() })
}

#[async_trait]
impl Sink for ExampleSink {
    async fn check(&mut self) -> Result<(), SinkError> {
        Ok(())
    }

    async fn deliver(&mut self, batch: &Batch) -> Result<Vec<Outcome>, SinkError> {
        let mistake = self.0.mistake;
        let mut outcomes: Vec<Option<Outcome>> = Vec::with_capacity(batch.items.len());
        let mut sent = Vec::new();
        for item in &batch.items {
            let known = mistake == Mistake::CommitsFirst && !self.0.ledger.lock().expect("sound").insert(item.idempotency_key.clone());
            outcomes.push(match &item.mapped {
                Some(Err(reason)) => Some(Outcome::Rejected(reason.clone())),
                _ if known => Some(Outcome::Absorbed),
                _ => {
                    let attempt = self.0.attempts.fetch_add(1, Ordering::Relaxed);
                    let key = &item.idempotency_key;
                    sent.push((if mistake == Mistake::NewKeys { format!("{key}{attempt}") } else { key.clone() }, item));
                    None
                }
            });
        }
        let mut answers = if sent.is_empty() { Vec::new() } else { self.send(&sent).await? }.into_iter();
        Ok(outcomes.into_iter().map(|known| known.unwrap_or_else(|| answers.next().unwrap_or_else(|| again(None)))).collect())
    }
}
