//! Reads every partition of the journal from its first entry to its end as of now, through the reader's filter, into the
//! temporary table that [`super::oracle`] compares.

use std::collections::HashSet;

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::SinkExt as _;
use serde::Deserialize;
use serde_json::value::RawValue;
use tillstream_schemas::Kind;
use tokio_postgres::{Client, CopyInSink};

use super::engagement::Expected;
use crate::delivery::filter::{Counts, Filter, FilterError, Verdict};
use crate::demo::DemoError;
use crate::journal::{From, Journal, Log};

/// What the partitions held, added up.
#[derive(Debug, Default)]
pub(super) struct JournalCounts {
    pub(super) filter: Counts,
    /// Entries of every kind, those that do not count included.
    pub(super) entries: u64,
    /// Capture runs that began in the middle of a transaction of the journal: the run before was killed inside it.
    pub(super) began_inside: u64,
}

/// The envelope as the comparison needs it: read here by its JSON alone, not by the pipeline's own parser.
#[derive(Deserialize)]
struct Envelope<'a> {
    id: &'a str,
    op: &'a str,
    #[serde(default)]
    schema: Option<&'a str>,
    #[serde(default)]
    table: Option<String>,
    #[serde(default, borrow)]
    key: Option<&'a RawValue>,
    #[serde(default, borrow)]
    after: Option<&'a RawValue>,
    #[serde(default)]
    unchanged: Vec<String>,
    #[serde(default)]
    xid: Option<u32>,
}

/// Rows of COPY text are collected up to so many bytes before they are sent.
const COPY_BYTES: usize = 256 << 10;

pub(super) async fn read(journal: &dyn Journal, source: &Client, facts: &mut Expected) -> Result<JournalCounts, DemoError> {
    let unavailable = |error: tokio_postgres::Error| DemoError::unavailable("copy events into the point of sale's session", error);
    let copy: CopyInSink<Bytes> =
        source.copy_in("COPY tillstream_ev (n, id, tbl, op, key, after, unchanged, xid) FROM STDIN").await.map_err(unavailable)?;
    tokio::pin!(copy);
    let mut counts = JournalCounts::default();
    let mut buffer = BytesMut::with_capacity(2 * COPY_BYTES);
    let mut n = 0u64;
    // A TRUNCATE stands in every partition under one id and counts once.
    let mut truncates = HashSet::new();
    for partition in 0..journal.partitions() {
        let log = Log::Data(partition);
        let failed = |error| DemoError::unavailable("read the journal", error);
        let Some(bounds) = journal.bounds(log).await.map_err(failed)? else { continue };
        let mut reader = journal.reader(log, From::First).await.map_err(failed)?;
        let mut filter = Filter::new();
        let mut read_to = None;
        let mut between_transactions = true;
        while read_to.is_none_or(|offset| offset < bounds.last.0) {
            let chunk = reader.next().await.map_err(failed)?;
            if let Some(last) = u64::from(chunk.records).checked_sub(1) {
                read_to = Some(chunk.first_offset.0 + last);
            }
            counts.entries += u64::from(chunk.records);
            filter
                .chunk(&chunk, |_, verdict| {
                    let Verdict::Pass(passed) = verdict else { return Ok(()) };
                    match passed.header.kind {
                        Kind::Fence => counts.began_inside += u64::from(!between_transactions),
                        Kind::End => between_transactions = true,
                        Kind::Event => between_transactions = false,
                        Kind::Read | Kind::Marker | Kind::Part => {}
                    }
                    if !matches!(passed.header.kind, Kind::Event | Kind::Read) {
                        return Ok(());
                    }
                    let event: Envelope<'_> = serde_json::from_slice(passed.body).map_err(Stop::Malformed)?;
                    if event.op == "message" || (event.op == "truncate" && !truncates.insert(event.id.to_owned())) {
                        return Ok(());
                    }
                    facts.see(event.id, event.op, event.schema.unwrap_or_default(), event.table.as_deref().unwrap_or_default());
                    n += 1;
                    copy_row(&mut buffer, n, &event);
                    Ok(())
                })
                .map_err(|stop| match stop {
                    Stop::Filter(error) => DemoError { code: error.code(), message: format!("partition {partition}: {error}"), exit: 1 },
                    Stop::Malformed(error) => {
                        DemoError { code: "journal.malformed_event", message: format!("partition {partition}: {error}"), exit: 1 }
                    }
                })?;
            if buffer.len() >= COPY_BYTES {
                copy.send(buffer.split().freeze()).await.map_err(unavailable)?;
            }
        }
        let (sum, one) = (&mut counts.filter, filter.counts());
        sum.events += one.events;
        sum.reads += one.reads;
        sum.ends += one.ends;
        sum.fences += one.fences;
        sum.fenced += one.fenced;
        sum.repeats += one.repeats;
        sum.foreign += one.foreign;
        sum.parts_dropped += one.parts_dropped;
        sum.lineages += one.lineages;
    }
    copy.send(buffer.freeze()).await.map_err(unavailable)?;
    copy.finish().await.map_err(unavailable)?;
    source.batch_execute("ANALYZE tillstream_ev").await.map_err(unavailable)?;
    Ok(counts)
}

enum Stop {
    Filter(FilterError),
    Malformed(serde_json::Error),
}

impl std::convert::From<FilterError> for Stop {
    fn from(error: FilterError) -> Self {
        Stop::Filter(error)
    }
}

fn copy_row(out: &mut BytesMut, n: u64, event: &Envelope<'_>) {
    out.put_slice(n.to_string().as_bytes());
    for field in [Some(event.id), event.table.as_deref(), Some(event.op), event.key.map(RawValue::get), event.after.map(RawValue::get)] {
        out.put_u8(b'\t');
        copy_text(out, field.filter(|text| *text != "null"));
    }
    out.put_slice(b"\t");
    copy_text(out, Some(&array_literal(&event.unchanged)));
    out.put_slice(b"\t");
    copy_text(out, event.xid.map(|xid| xid.to_string()).as_deref());
    out.put_u8(b'\n');
}

/// A field of COPY's text format.
fn copy_text(out: &mut BytesMut, text: Option<&str>) {
    let Some(text) = text else { return out.put_slice(b"\\N") };
    for byte in text.bytes() {
        match byte {
            b'\\' => out.put_slice(b"\\\\"),
            b'\n' => out.put_slice(b"\\n"),
            b'\r' => out.put_slice(b"\\r"),
            b'\t' => out.put_slice(b"\\t"),
            _ => out.put_u8(byte),
        }
    }
}

fn array_literal(names: &[String]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("\"{}\"", name.replace('\\', "\\\\").replace('"', "\\\""))).collect();
    format!("{{{}}}", quoted.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copy_rows_escape_what_copy_reads_otherwise() {
        let event: Envelope<'_> = serde_json::from_str(
            r#"{"id":"e1-0/1-0","op":"insert","table":"a b","key":{"k":"\n\\"},"after":null,"unchanged":["x\"y"],"xid":7}"#,
        )
        .expect("valid");
        let mut out = BytesMut::new();
        copy_row(&mut out, 3, &event);
        let expected = "3\te1-0/1-0\ta b\tinsert\t{\"k\":\"\\\\n\\\\\\\\\"}\t\\N\t{\"x\\\\\"y\"}\t7\n";
        assert_eq!(String::from_utf8_lossy(&out), expected);
    }
}
