//! One lane's requests: how a batch becomes requests, and answers become outcomes. Knows no target; what is particular to one is its [`Api`].
//!
//! ```text
//!  batch ─member─▶ what is sent of each item ─limits─▶ lists ─request─▶ the target
//!                                                        ▲  halves ◀─ one of it is refused
//!                                                        └─────────────── answer ─▶ outcomes
//! ```

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use async_trait::async_trait;
use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde_json::Value;

use super::answer::{Answer, Meaning};
use super::client::{Request, Wire};
use crate::idempotency;
use crate::mapping::Mapping;
use crate::show::{Shown, Text, Unshown};
use crate::sink::{Batch, Item, Outcome, Reason, Sink, SinkError};

/// After so many failures in a row a list is halved, since one item may be what the target stumbles over. Before that
/// the very same list is repeated: a target that knows requests by their key and not by their items sees no new one.
const FAILED_LISTS_MAX: u32 = 3;

/// Bytes of a list beside its members: what an API wraps around them.
const WRAPPING_BYTES: usize = 1024;

/// What is sent of one item.
#[derive(Clone, Debug, Default)]
pub(crate) struct Member {
    /// The body, or the member of a list.
    pub(crate) text: String,
    /// Where it goes, when items decide.
    pub(crate) url: Option<Url>,
    /// Headers of its own; only where requests hold one item.
    pub(crate) headers: HeaderMap,
}

/// Why there is nothing to send of an item.
#[derive(Debug)]
pub(crate) enum Unsendable {
    /// It becomes a dead letter.
    Refuse(Reason),
    /// The connector cannot go on.
    Stop(SinkError),
}

/// A refusal that is found before anything is sent. `message` holds no value.
pub(crate) fn refuse(code: &str, message: impl Into<String>) -> Unsendable {
    Unsendable::Refuse(Reason { code: code.to_owned(), message: message.into() })
}

/// What one request may hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) items: usize,
    /// Of the whole body.
    pub(crate) bytes: usize,
    /// Of one item.
    pub(crate) item_bytes: usize,
}

impl Limits {
    /// One item a request, of any size that the journal takes.
    pub(crate) const SINGLE: Limits = Limits { items: 1, bytes: usize::MAX, item_bytes: usize::MAX };
}

/// What is particular to one target. Pure, but for the clock in `now`.
pub(crate) trait Api: fmt::Debug + Send + Sync + 'static {
    /// The way there.
    fn wire(&self) -> &Wire;

    /// Where a look whether anything answers goes.
    fn url(&self) -> &Url;

    /// What one request may hold.
    fn limits(&self) -> Limits;

    /// What is sent of an item: the same bytes on every attempt.
    fn member(&self, item: &Item) -> Result<Member, Unsendable>;

    /// The request for these members; of several, `key` names all of them in their order.
    fn request(&self, members: &[&Member], key: &str, now: SystemTime) -> Result<Request, SinkError>;

    /// What the block asks of an event by expressions.
    fn expressions(&self) -> Option<&Mapping> {
        None
    }

    /// What the answer means for the items with these keys.
    fn read(&self, answer: &Answer, _keys: &[&str]) -> Meaning {
        answer.meaning()
    }

    /// Whether all that a body holds of the row comes from the connector's `map`.
    fn is_of_map(&self) -> bool {
        false
    }

    /// Headers of [`request`](Self::request) that are others on every attempt.
    fn of_attempt(&self) -> &'static [&'static str] {
        &[]
    }

    /// The target knows requests by their key and not the items in them, so that an item must never come in another list while it is not known what
    /// became of the first.
    fn knows_lists_only(&self) -> bool {
        false
    }
}

/// One lane of a target. Requests go out one after another, over connections that all lanes share.
pub(crate) struct ListSink<A> {
    api: Arc<A>,
    /// Lists in a row that failed with a status that may be one item's fault.
    failed_lists: u32,
}

/// An item with what is sent of it.
struct Prepared<'b> {
    item: &'b Item,
    member: Result<Member, Reason>,
}

impl<A: Api> ListSink<A> {
    pub(crate) fn new(api: Arc<A>) -> ListSink<A> {
        ListSink { api, failed_lists: 0 }
    }

    /// The items up to one that the connector stops at.
    fn prepare<'b>(&self, batch: &'b Batch, limits: Limits) -> Result<Vec<Prepared<'b>>, SinkError> {
        let mut all: Vec<Prepared<'b>> = Vec::with_capacity(batch.items.len());
        for item in &batch.items {
            let member = match member(self.api.as_ref(), item, limits) {
                Ok(member) => Ok(member),
                Err(Unsendable::Refuse(reason)) => Err(reason),
                Err(Unsendable::Stop(error)) if all.is_empty() => return Err(error),
                Err(Unsendable::Stop(_)) => break,
            };
            all.push(Prepared { item, member });
        }
        Ok(all)
    }

    /// What of a range is sent, and the key that names it.
    fn sent<'p>(&self, all: &'p [Prepared<'_>], range: &Range<usize>, limits: Limits) -> (Vec<&'p Member>, Vec<&'p str>, String) {
        let sent = all[range.clone()].iter().filter_map(|p| Some((p.member.as_ref().ok()?, p.item.idempotency_key.as_str())));
        let (members, keys): (Vec<&Member>, Vec<&str>) = sent.unzip();
        let key = request_key(&keys, limits);
        (members, keys, key)
    }

    async fn send(&self, all: &[Prepared<'_>], range: &Range<usize>, limits: Limits) -> Result<Meaning, SinkError> {
        let (members, keys, key) = self.sent(all, range, limits);
        if members.is_empty() {
            return Ok(Meaning::Applied);
        }
        let answer = self.api.wire().send(self.api.request(&members, &key, SystemTime::now())?).await?;
        Ok(self.api.read(&answer, &keys))
    }
}

#[async_trait]
impl<A: Api> Sink for ListSink<A> {
    /// Whether anything answers.
    async fn check(&mut self) -> Result<(), SinkError> {
        self.api.wire().check(self.api.url()).await
    }

    async fn clock(&mut self) -> Result<Option<i64>, SinkError> {
        self.api.wire().clock(self.api.url()).await
    }

    async fn deliver(&mut self, batch: &Batch) -> Result<Vec<Outcome>, SinkError> {
        let (api, limits) = (self.api.clone(), self.api.limits());
        let all = self.prepare(batch, limits)?;
        let begun = Instant::now();
        let mut outcomes: Vec<Outcome> = Vec::with_capacity(all.len());
        // Ranges still to be sent, the next one last. Halves replace a list of which something is refused.
        let mut ranges = lists(&all, limits);
        ranges.reverse();
        let mut taken = 0;
        while let Some(range) = ranges.pop() {
            let over = begun.elapsed() >= api.wire().timeout || api.wire().is_paused() || (taken > 0 && api.knows_lists_only());
            if !outcomes.is_empty() && over {
                break;
            }
            // What was found wanting before anything is sent is said of it, whatever the target says of the others.
            let said = |outcome: &Outcome| {
                let of = |p: &Prepared<'_>| p.member.as_ref().err().map_or_else(|| outcome.clone(), |r| Outcome::Rejected(r.clone()));
                all[range.clone()].iter().map(of).collect::<Vec<_>>()
            };
            let sent = all[range.clone()].iter().filter(|p| p.member.is_ok()).count();
            match self.send(&all, &range, limits).await {
                Ok(Meaning::Applied) => {
                    self.failed_lists = 0;
                    taken += usize::from(sent > 0);
                    outcomes.extend(said(&Outcome::Delivered));
                }
                Ok(Meaning::Each(each)) if each.len() == sent => {
                    self.failed_lists = 0;
                    taken += 1;
                    let mut each = each.into_iter();
                    let of = |p: &Prepared<'_>| match &p.member {
                        Ok(_) => each.next().unwrap_or(Outcome::Delivered),
                        Err(reason) => Outcome::Rejected(reason.clone()),
                    };
                    outcomes.extend(all[range].iter().map(of));
                }
                Ok(Meaning::Each(_)) if !outcomes.is_empty() => break,
                Ok(Meaning::Each(_)) => {
                    return Err(SinkError::transient("http.no_result", "the answer holds other results than were asked for"));
                }
                Ok(Meaning::Item(Outcome::Retry(retry))) if range.len() > 1 => {
                    self.failed_lists += 1;
                    if self.failed_lists > FAILED_LISTS_MAX && !api.knows_lists_only() {
                        ranges.extend(halves(&range));
                    } else if outcomes.is_empty() {
                        return Err(SinkError::transient(&retry.reason.code, &retry.reason.message));
                    } else {
                        break;
                    }
                }
                Ok(Meaning::Item(outcome)) => outcomes.extend(said(&outcome)),
                Ok(Meaning::Pause(outcome)) => {
                    api.wire().pause(&outcome);
                    outcomes.extend(said(&outcome));
                    break;
                }
                Ok(Meaning::Refused(reason)) if sent == 1 => outcomes.extend(said(&Outcome::Rejected(reason))),
                Ok(Meaning::Refused(_)) => ranges.extend(halves(&range)),
                // What went well is reported; the rest meets the trouble again, as the first of its call.
                Ok(Meaning::Whole(_)) | Err(_) if !outcomes.is_empty() => break,
                Ok(Meaning::Whole(error)) | Err(error) => return Err(error),
            }
        }
        Ok(outcomes)
    }
}

/// What is sent of an item, unless there is nothing to send or too much.
fn member<A: Api>(api: &A, item: &Item, limits: Limits) -> Result<Member, Unsendable> {
    if let Some(Err(reason)) = &item.mapped {
        return Err(Unsendable::Refuse(reason.clone()));
    }
    let member = api.member(item)?;
    if member.text.len() > limits.item_bytes {
        let message = format!("{} bytes, and the target takes {} of one event", member.text.len(), limits.item_bytes);
        return Err(refuse("http.too_large", message));
    }
    Ok(member)
}

/// The key that names a request for items with these keys.
fn request_key(keys: &[&str], limits: Limits) -> String {
    match keys {
        [key] if limits.items == 1 => (*key).to_owned(),
        // The same members give the same key and the same bytes, however often and by whom they are sent.
        _ => idempotency::key(keys.iter().map(|key| key.as_bytes())),
    }
}

/// The request for an item alone.
pub(crate) fn show<A: Api>(api: &A, item: &Item) -> Result<Shown, Unshown> {
    let (limits, stops) = (api.limits(), |error: SinkError| Unshown::Stops(Reason::new(&error.code, &error.message)));
    let member = member(api, item, limits).map_err(|unsendable| match unsendable {
        Unsendable::Refuse(reason) => Unshown::Refused(reason),
        Unsendable::Stop(error) => stops(error),
    })?;
    let key = request_key(&[&item.idempotency_key], limits);
    let Request { method, url, headers, body } = api.request(&[&member], &key, SystemTime::UNIX_EPOCH).map_err(stops)?;
    let text = |name: &HeaderName, value: &HeaderValue| match value.to_str() {
        _ if api.of_attempt().contains(&name.as_str()) => Text::OfAttempt,
        Ok(text) if member.headers.contains_key(name) => Text::OfRow(text.to_owned()),
        Ok(text) if !value.is_sensitive() => Text::Fixed(text.to_owned()),
        // What a file says of a header is more often a secret than not.
        _ => Text::Secret,
    };
    let mut shown: Vec<(String, Text)> = headers.iter().map(|(name, value)| (name.as_str().to_owned(), text(name, value))).collect();
    shown.extend(api.wire().shown_auth());
    shown.sort_by(|a, b| a.0.cmp(&b.0));
    let to = if member.url.is_some() { Text::OfRow(url.to_string()) } else { Text::Fixed(url.to_string()) };
    let body = serde_json::from_slice(&body).unwrap_or_else(|_| Value::from(String::from_utf8_lossy(&body).into_owned()));
    Ok(Shown { method: method.to_string(), to, headers: shown, body, is_of_map: api.is_of_map() && item.mapped.is_some() })
}

/// Cuts the items into lists that keep the limits, in order. Deterministic: the same items give the same lists.
fn lists(all: &[Prepared<'_>], limits: Limits) -> Vec<Range<usize>> {
    let mut lists = Vec::new();
    let (mut begin, mut items, mut bytes) = (0, 0, WRAPPING_BYTES);
    for (n, prepared) in all.iter().enumerate() {
        let size = prepared.member.as_ref().map_or(0, |member| member.text.len() + 1);
        if n > begin && (items + 1 > limits.items || bytes.saturating_add(size) > limits.bytes) {
            lists.push(begin..n);
            (begin, items, bytes) = (n, 0, WRAPPING_BYTES);
        }
        items += 1;
        bytes = bytes.saturating_add(size);
    }
    if begin < all.len() {
        lists.push(begin..all.len());
    }
    lists
}

/// The halves of a range, the first one last.
fn halves(range: &Range<usize>) -> [Range<usize>; 2] {
    let middle = range.start + range.len() / 2;
    [middle..range.end, range.start..middle]
}
