//! One lane's requests.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use reqwest::Response;
use reqwest::header::{HeaderValue, RETRY_AFTER};
use serde_json::Value;

use super::answer::{Meaning, again, item, meaning};
use super::body;
use super::config::{HttpConfig, Mode};
use crate::idempotency;
use crate::sink::{Batch, Class, Item, Outcome, Reason, Retry, Sink, SinkError};

/// After so many failures in a row a list is halved, since one item may be what the target stumbles over. Before that
/// the very same list is repeated: a target that knows requests by their key and not by their items sees no new one.
const FAILED_LISTS_MAX: u32 = 3;

/// The most of an answer that is read: results of the largest batch fit many times.
const ANSWER_MAX: usize = 8 << 20;

/// One lane of an HTTP target. Requests go out one after another, over connections that all lanes share.
pub(super) struct HttpSink {
    config: Arc<HttpConfig>,
    /// Lists in a row that failed with a status that may be one item's fault.
    failed_lists: u32,
}

/// An answer, read.
struct Answer {
    status: u16,
    retry_after: Option<String>,
    body: Option<Value>,
}

impl Answer {
    fn meaning(&self) -> Meaning {
        meaning(self.status, self.retry_after.as_deref(), self.body.as_ref(), SystemTime::now())
    }
}

impl HttpSink {
    pub(super) fn new(config: Arc<HttpConfig>) -> HttpSink {
        HttpSink { config, failed_lists: 0 }
    }

    fn write(&self, item: &Item, out: &mut String) -> Result<(), SinkError> {
        if let Some(Ok(mapped)) = &item.mapped {
            out.push_str(mapped);
            return Ok(());
        }
        let (schema, table) = (item.event.schema().unwrap_or_default(), item.event.table().unwrap_or_default());
        match self.config.tables.get(&(schema.to_owned(), table.to_owned())) {
            Some(columns) => body::write(item, columns, out),
            None => Err(SinkError {
                code: "http.table_not_listed".into(),
                message: format!("`columns` lists no table {schema}.{table}"),
                class: Class::Definite,
                after: None,
            }),
        }
    }

    async fn send(&self, key: &str, body: String) -> Result<Answer, SinkError> {
        let config = &self.config;
        let mut request = config.client.request(config.method.clone(), config.url.clone()).headers(config.headers.clone()).body(body);
        if let Some(header) = &config.idempotency_header {
            let key = HeaderValue::from_str(key).map_err(|_| failed("http.request", "the key cannot be written into a header"))?;
            request = request.header(header, key);
        }
        let response = request.send().await.map_err(|e| unknown(&e))?;
        let status = response.status().as_u16();
        let retry_after = response.headers().get(RETRY_AFTER).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let body = read(response).await?;
        Ok(Answer { status, retry_after, body: serde_json::from_slice(&body).ok() })
    }

    /// Whether any lane was asked for a pause that is not over. Delivery waits before a call; this ends one early.
    fn is_paused(&self) -> bool {
        let until = *self.config.paused_until.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| Instant::now() < until)
    }

    fn pause(&self, outcome: &Outcome) {
        if let Outcome::Retry(Retry { after: Some(after), .. }) = outcome {
            let mut until = self.config.paused_until.lock().unwrap_or_else(PoisonError::into_inner);
            let wanted = Instant::now() + *after;
            *until = Some(until.map_or(wanted, |u| u.max(wanted)));
        }
    }

    async fn single(&self, batch: &Batch) -> Result<Vec<Outcome>, SinkError> {
        let begun = Instant::now();
        let mut outcomes = Vec::with_capacity(batch.items.len());
        for item in &batch.items {
            if !outcomes.is_empty() && (begun.elapsed() >= self.config.timeout || self.is_paused()) {
                break;
            }
            if let Some(refused) = unsendable(item) {
                outcomes.push(refused);
                continue;
            }
            let mut text = String::new();
            let attempt = match self.write(item, &mut text) {
                Ok(()) => self.send(&item.idempotency_key, text).await,
                Err(error) => Err(error),
            };
            match attempt.map(|answer| answer.meaning()) {
                Ok(Meaning::Applied) => outcomes.push(Outcome::Delivered),
                Ok(Meaning::Item(outcome)) => outcomes.push(outcome),
                Ok(Meaning::Refused(reason)) => outcomes.push(Outcome::Rejected(reason)),
                Ok(Meaning::Pause(outcome)) => {
                    self.pause(&outcome);
                    outcomes.push(outcome);
                    break;
                }
                // What went well is reported; the rest meets the trouble again, as the first of its call.
                Ok(Meaning::Whole(_)) | Err(_) if !outcomes.is_empty() => break,
                Ok(Meaning::Whole(error)) | Err(error) => return Err(error),
            }
        }
        Ok(outcomes)
    }

    async fn list(&mut self, batch: &Batch) -> Result<Vec<Outcome>, SinkError> {
        let mut texts = Vec::with_capacity(batch.items.len());
        for item in &batch.items {
            let mut text = String::new();
            if unsendable(item).is_none() {
                self.write(item, &mut text)?;
            }
            texts.push(text);
        }
        let begun = Instant::now();
        let mut outcomes: Vec<Outcome> = Vec::with_capacity(batch.items.len());
        // Ranges still to be sent, the next one last. Halves replace a list of which something is refused.
        let whole = 0..batch.items.len();
        let mut ranges = vec![whole];
        while let Some(range) = ranges.pop() {
            if !outcomes.is_empty() && (begun.elapsed() >= self.config.timeout || self.is_paused()) {
                break;
            }
            let attempt = self.send_list(&batch.items, &texts, &range).await;
            match attempt.map(|answer| (answer.meaning(), answer)) {
                Ok((Meaning::Applied, answer)) => {
                    self.failed_lists = 0;
                    outcomes.extend(results(&batch.items[range], answer.body.as_ref()));
                }
                Ok((Meaning::Item(Outcome::Retry(retry)), _)) if range.len() > 1 => {
                    self.failed_lists += 1;
                    if self.failed_lists > FAILED_LISTS_MAX {
                        ranges.extend(halves(&range));
                    } else if outcomes.is_empty() {
                        return Err(failed(&retry.reason.code, &retry.reason.message));
                    } else {
                        break;
                    }
                }
                Ok((Meaning::Item(outcome), _)) => outcomes.extend(range.map(|_| outcome.clone())),
                Ok((Meaning::Pause(outcome), _)) => {
                    self.pause(&outcome);
                    outcomes.extend(range.map(|_| outcome.clone()));
                    break;
                }
                Ok((Meaning::Refused(reason), _)) if range.len() == 1 => outcomes.push(Outcome::Rejected(reason)),
                Ok((Meaning::Refused(_), _)) => ranges.extend(halves(&range)),
                Ok((Meaning::Whole(_), _)) | Err(_) if !outcomes.is_empty() => break,
                Ok((Meaning::Whole(error), _)) | Err(error) => return Err(error),
            }
        }
        Ok(outcomes)
    }

    async fn send_list(&self, items: &[Item], texts: &[String], range: &Range<usize>) -> Result<Answer, SinkError> {
        let texts: Vec<&str> = texts[range.clone()].iter().map(String::as_str).filter(|t| !t.is_empty()).collect();
        if texts.is_empty() {
            return Ok(Answer { status: 200, retry_after: None, body: None });
        }
        // The same members give the same key and the same bytes, however often and by whom they are sent.
        let key = idempotency::key(items[range.clone()].iter().map(|i| i.idempotency_key.as_bytes()));
        self.send(&key, format!("{{\"items\":[{}]}}", texts.join(","))).await
    }
}

/// The halves of a range, the first one last.
fn halves(range: &Range<usize>) -> [Range<usize>; 2] {
    let middle = range.start + range.len() / 2;
    [middle..range.end, range.start..middle]
}

/// Outcomes of a list that was taken: by item where the target tells, else all applied.
fn results(items: &[Item], body: Option<&Value>) -> Vec<Outcome> {
    let Some(results) = body.and_then(|b| b.get("results")).and_then(Value::as_array) else {
        return items.iter().map(|i| unsendable(i).unwrap_or(Outcome::Delivered)).collect();
    };
    let by_id: HashMap<&str, &Value> = results.iter().filter_map(|r| Some((r.get("id")?.as_str()?, r))).collect();
    let outcome = |i: &Item| {
        if let Some(refused) = unsendable(i) {
            return refused;
        }
        let result = by_id.get(i.idempotency_key.as_str());
        let status = result.and_then(|r| r.get("status")).and_then(Value::as_u64).and_then(|s| u16::try_from(s).ok());
        match status {
            Some(status) => item(status, result.and_then(|r| r.get("code"))),
            None => again(Reason { code: "http.no_result".into(), message: "the answer holds no status for the item".into() }, None),
        }
    };
    items.iter().map(outcome).collect()
}

/// Why there is nothing to send of an item.
fn unsendable(item: &Item) -> Option<Outcome> {
    match &item.mapped {
        Some(Ok(_)) => None,
        Some(Err(reason)) => Some(Outcome::Rejected(reason.clone())),
        None if body::has_table(&item.event) => None,
        None => Some(Outcome::Rejected(Reason { code: "http.no_table".into(), message: "a logical message belongs to no table".into() })),
    }
}

/// Reads an answer up to the bound.
async fn read(mut response: Response) -> Result<Vec<u8>, SinkError> {
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(|e| unknown(&e))? {
        if body.len() + piece.len() > ANSWER_MAX {
            let message = format!("the answer is longer than {ANSWER_MAX} bytes");
            return Err(SinkError { code: "http.answer_too_long".into(), message, class: Class::Definite, after: None });
        }
        body.extend_from_slice(&piece);
    }
    Ok(body)
}

/// No answer, so nothing is known. The library's words may hold the URL, so they are not repeated.
fn unknown(error: &reqwest::Error) -> SinkError {
    if error.is_timeout() {
        failed("http.timeout", "no answer in time")
    } else if error.is_connect() {
        failed("http.connect", "no connection")
    } else if error.is_builder() {
        SinkError { class: Class::Definite, ..failed("http.request", "the request cannot be made") }
    } else {
        failed("http.connection", "the connection broke before the answer was complete")
    }
}

fn failed(code: &str, message: &str) -> SinkError {
    SinkError { code: code.to_owned(), message: message.to_owned(), class: Class::Transient, after: None }
}

#[async_trait]
impl Sink for HttpSink {
    /// Whether anything answers. What it answers says nothing: few targets know OPTIONS.
    async fn check(&mut self) -> Result<(), SinkError> {
        let request = self.config.client.request(reqwest::Method::OPTIONS, self.config.url.clone()).timeout(Duration::from_secs(10));
        request.send().await.map(drop).map_err(|e| unknown(&e))
    }

    async fn deliver(&mut self, batch: &Batch) -> Result<Vec<Outcome>, SinkError> {
        match self.config.mode {
            Mode::Single => self.single(batch).await,
            Mode::Batch => self.list(batch).await,
        }
    }
}
