//! A few rows of a table as events, for whoever wants to look at them: read as a backfill would, written nowhere.

use std::sync::Arc;

use bytes::Bytes;
use tillstream_schemas::event_id::ReadId;
use tillstream_schemas::{Lsn, Position};

use super::plan;
use super::read::{Session, Unread, joined};
use super::request::refused;
use super::spec::Refused;
use super::sql::Choice;
use crate::capture::encode;
use crate::capture::read_rows::{ReadChunk, ReadRow};
use crate::config;

/// Reads the first rows of a table by its key: at most `rows`, each as the body of a `read` event, and the partition of its live events. They are as of
/// `epoch`'s newest position that the server tells.
///
/// # Errors
/// The source cannot be read, or not this table.
pub async fn sample(
    source: &config::Source,
    pipeline: &str,
    table: &config::SourceTable,
    (epoch, partitions): (u32, u16),
    rows: u32,
) -> Result<Vec<(u16, Bytes)>, Refused> {
    let session = Session::open(source, pipeline).await.map_err(refused)?;
    session.walk().await.map_err(refused)?;
    let publication = plan::publication(&session, source).await.map_err(refused)?;
    let described = plan::describe(&session, &publication, table, &source.columns, &Choice::default()).await.map_err(refused)?;
    let chunked = described.map_err(|refusal| Refused { code: refusal.code, what: refusal.message })?;
    let upto = session.seen_upto().await.map_err(refused)?;
    let mut sampled: Vec<(u16, Bytes)> = Vec::new();
    for (number, part) in (0..).zip(plan::sources(&session, &chunked).await.map_err(refused)?) {
        let left = rows.saturating_sub(u32::try_from(sampled.len()).unwrap_or(u32::MAX));
        if left == 0 {
            break;
        }
        let Some(bound) = session.keys(&chunked.bound(&part)).await.map_err(refused)?.pop() else { continue };
        let read = session.chunk(&chunked, &part, None, &bound, left).await.map_err(|unread| match unread {
            Unread::TooSlow => Refused { code: "backfill.too_slow", what: "reading a few rows takes too long".to_owned() },
            Unread::Failed(failure) => refused(failure),
        })?;
        let (read, ..) = joined(read, chunked.schema.columns.len());
        let name = format!("{}.{}", table.schema, table.table);
        let first = ReadId { epoch, job: "preview".to_owned(), table: name, chunk: number, attempt: 0, row: 0 };
        let as_of = Position::new(epoch, Lsn(upto.0), 0);
        let chunk = Arc::new(ReadChunk::new(chunked.schema.clone(), read.clone(), None, first, as_of));
        for row in 0..u32::try_from(read.len()).unwrap_or(u32::MAX) {
            let row = ReadRow { chunk: chunk.clone(), row, gone: false };
            let mut body = Vec::new();
            encode::read(&mut body, &row);
            sampled.push((encode::partition_of_read(&row, partitions), body.into()));
        }
    }
    Ok(sampled)
}
