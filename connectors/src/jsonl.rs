//! The `jsonl` sink: a file of JSON lines for each lane, each event in it exactly once.
//!
//! ```text
//! lines ─append, sync─▶ CONNECTOR-P-L.jsonl        length and mark ─rename─▶ CONNECTOR-P-L.state
//! ```
//!
//! What lies behind the noted length was written by a process that ended before it could note it: whoever resumes cuts it off and is given the
//! same events again. One process holds the file at a time.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tillstream_schemas::Op;
use tokio::task::JoinHandle;

use crate::block::{Block, problem};
use crate::registry::{Kind, Problem, SinkPlan, Target};
use crate::show::{Shown, Text, Unshown};
use crate::sink::{Batch, Class, Idempotency, Item, LaneId, Mark, OnDelete, Outcome, Sink, SinkError};

/// Longest time of one call: a batch is a few megabytes, and a disk that takes longer is away.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// The kind `jsonl`.
#[derive(Debug, Default)]
pub struct JsonlKind;

impl Kind for JsonlKind {
    fn name(&self) -> &'static str {
        "jsonl"
    }

    fn keys(&self) -> &'static [&'static str] {
        &["dir"]
    }

    fn scaffold(&self) -> Option<crate::scaffold::Scaffold> {
        Some(crate::scaffold::JSONL)
    }

    fn validate(&self, block: &Value, _mapped: bool) -> Result<Arc<dyn Target>, Vec<Problem>> {
        let mut problems = Vec::new();
        let dir = Block::new(block, "", &["dir"], &mut problems).and_then(|block| {
            let dir = PathBuf::from(block.text("dir", Some("dir: /var/lib/tillstream/out"), &mut problems)?);
            if !dir.is_absolute() {
                let help = "write the whole path: a process may be started anywhere".to_owned();
                problems.push(problem("dir", "must be an absolute path", Some(help)));
            }
            Some(dir)
        });
        match dir {
            Some(dir) if problems.is_empty() => Ok(Arc::new(JsonlTarget::new(dir))),
            _ => Err(problems),
        }
    }
}

#[derive(Debug)]
struct JsonlTarget {
    dir: PathBuf,
    plan: SinkPlan,
}

impl JsonlTarget {
    fn new(dir: PathBuf) -> JsonlTarget {
        let plan = SinkPlan::new(Idempotency::Transactional, CALL_TIMEOUT);
        JsonlTarget { dir, plan }
    }
}

impl Target for JsonlTarget {
    fn plan(&self) -> &SinkPlan {
        &self.plan
    }

    fn build(&self, lane: LaneId, _on_delete: OnDelete) -> Box<dyn Sink> {
        Box::new(JsonlSink { dir: self.dir.clone(), lane, open: None, writing: None })
    }

    fn show(&self, item: &Item, _on_delete: OnDelete) -> Option<Result<Shown, Unshown>> {
        let body = match &item.mapped {
            Some(Err(reason)) => return Some(Err(Unshown::Refused(reason.clone()))),
            Some(Ok(body)) => serde_json::from_str(body),
            None => serde_json::from_slice(item.event.body()),
        };
        let shown = Shown {
            method: "append".to_owned(),
            to: Text::Fixed(self.dir.display().to_string()),
            headers: Vec::new(),
            body: body.unwrap_or_default(),
            is_of_map: item.mapped.is_some(),
        };
        Some(Ok(shown))
    }
}

/// One lane's file.
struct JsonlSink {
    dir: PathBuf,
    lane: LaneId,
    open: Option<Open>,
    /// A call that writes: one that was given up goes on, and the next call is its repetition.
    writing: Option<Writing>,
}

/// A call that writes.
struct Writing {
    task: JoinHandle<(Open, Result<(), SinkError>)>,
    /// Of its lines and mark.
    digest: [u8; 32],
}

/// A file that this process holds.
struct Open {
    file: File,
    state: PathBuf,
    /// Where the next line goes.
    length: u64,
    /// The last one that was noted.
    mark: Option<Mark>,
}

impl JsonlSink {
    /// The lane's file, taken by this process and cut to what was noted.
    fn open(&self) -> Result<Open, SinkError> {
        let LaneId { connector, partition, lane } = &self.lane;
        let path = |suffix: &str| self.dir.join(format!("{connector}-{partition}-{lane}.{suffix}"));
        let (lines, state) = (path("jsonl"), path("state"));
        let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&lines).map_err(|e| failed("open", &e))?;
        if file.try_lock().is_err() {
            return Err(SinkError {
                code: "jsonl.held".into(),
                message: "another process holds the file".into(),
                class: Class::Transient,
                after: None,
            });
        }
        let (length, mark) = noted(&state)?;
        let there = file.metadata().map_err(|e| failed("look at", &e))?.len();
        if there < length {
            return Err(SinkError {
                code: "jsonl.cut".into(),
                message: format!("the file has {there} bytes, and {length} were written: somebody cut or replaced it"),
                class: Class::Definite,
                after: None,
            });
        }
        file.set_len(length).map_err(|e| failed("cut", &e))?;
        Ok(Open { file, state, length, mark })
    }

    /// Appends lines and notes the mark, away from the runtime's threads.
    async fn write(&mut self, lines: Vec<u8>, mark: Option<Mark>) -> Result<(), SinkError> {
        let digest = Sha256::new().chain_update(&lines).chain_update(mark.as_ref().map_or(&[][..], |mark| &mark.0)).finalize().into();
        if let Some(before) = self.written().await?
            && before == digest
        {
            return Ok(());
        }
        let mut open = match self.open.take() {
            Some(open) => open,
            None => self.open()?,
        };
        let task = tokio::task::spawn_blocking(move || {
            let answer = open.write(&lines, mark);
            (open, answer)
        });
        self.writing = Some(Writing { task, digest });
        self.written().await.map(drop)
    }

    /// Waits for the call that writes, if there is one, and takes the file back from it; answers the digest of what it wrote.
    async fn written(&mut self) -> Result<Option<[u8; 32]>, SinkError> {
        let Some(Writing { task, digest }) = &mut self.writing else { return Ok(None) };
        let (ended, digest) = (task.await, *digest);
        self.writing = None;
        let (open, answer) = ended.map_err(|_| failed("write", &ErrorKind::Other.into()))?;
        self.open = Some(open);
        answer.map(|()| Some(digest))
    }
}

impl Open {
    fn write(&mut self, lines: &[u8], mark: Option<Mark>) -> Result<(), SinkError> {
        let end = self.length + lines.len() as u64;
        if !lines.is_empty() {
            // What a failed call left behind the last line goes first.
            let clean = self.file.set_len(self.length).and_then(|()| self.file.seek(SeekFrom::Start(self.length)));
            let written = clean.and_then(|_| self.file.write_all(lines)).and_then(|()| self.file.sync_data());
            written.map_err(|e| failed("write", &e))?;
        }
        if let Some(mark) = mark {
            let text = json!({ "length": end, "mark": BASE64.encode(&mark.0) }).to_string();
            let new = self.state.with_extension("new");
            let noted = File::create(&new).and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_data()));
            noted.and_then(|()| std::fs::rename(&new, &self.state)).map_err(|e| failed("note", &e))?;
            self.mark = Some(mark);
        }
        // Only now: a call that fails is repeated, and writes the same lines at the same place.
        self.length = end;
        Ok(())
    }
}

/// How long the file was, and the mark, when they were last noted.
fn noted(state: &Path) -> Result<(u64, Option<Mark>), SinkError> {
    let text = match std::fs::read(state) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok((0, None)),
        Err(error) => return Err(failed("read", &error)),
    };
    let read = || {
        let value: Value = serde_json::from_slice(&text).ok()?;
        Some((value["length"].as_u64()?, Mark(BASE64.decode(value["mark"].as_str()?).ok()?)))
    };
    let (length, mark) = read().ok_or_else(|| SinkError {
        code: "jsonl.damaged".into(),
        message: "the file beside the lines that says how far they go is damaged".into(),
        class: Class::Definite,
        after: None,
    })?;
    Ok((length, Some(mark)))
}

fn failed(what: &str, error: &std::io::Error) -> SinkError {
    let definite = matches!(
        error.kind(),
        ErrorKind::NotFound | ErrorKind::PermissionDenied | ErrorKind::NotADirectory | ErrorKind::ReadOnlyFilesystem
    );
    let class = if definite { Class::Definite } else { Class::Transient };
    SinkError { code: "jsonl.file".into(), message: format!("{what} the file: {}", error.kind()), class, after: None }
}

#[async_trait]
impl Sink for JsonlSink {
    async fn check(&mut self) -> Result<(), SinkError> {
        match std::fs::metadata(&self.dir) {
            Ok(dir) if dir.is_dir() && !dir.permissions().readonly() => Ok(()),
            Ok(_) => Err(failed("open", &ErrorKind::NotADirectory.into())),
            Err(error) => Err(failed("open", &error)),
        }
    }

    async fn resume(&mut self) -> Result<Option<Mark>, SinkError> {
        let open = match self.open.take() {
            Some(open) => open,
            None => self.open()?,
        };
        Ok(self.open.insert(open).mark.clone())
    }

    async fn deliver(&mut self, batch: &Batch) -> Result<Vec<Outcome>, SinkError> {
        let (mut lines, mut outcomes) = (Vec::new(), Vec::with_capacity(batch.items.len()));
        for item in &batch.items {
            let body: &[u8] = match &item.mapped {
                Some(Err(reason)) => {
                    outcomes.push(Outcome::Rejected(reason.clone()));
                    continue;
                }
                // It stands in every partition and is one event.
                None if item.event.op() == Op::Truncate && self.lane.partition > 0 => {
                    outcomes.push(Outcome::Absorbed);
                    continue;
                }
                Some(Ok(body)) => body.as_bytes(),
                None => item.event.body(),
            };
            // In JSON a line feed is white space, since texts may not hold one.
            lines.extend(body.iter().map(|byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { *byte }));
            lines.push(b'\n');
            outcomes.push(Outcome::Delivered);
        }
        // A refused event is no dead letter yet: the mark stays below it, and a process that ends now cuts these lines off and writes them again.
        let all = !outcomes.iter().any(|outcome| matches!(outcome, Outcome::Rejected(_)));
        let mark = all.then(|| batch.mark.clone());
        self.write(lines, mark).await?;
        Ok(outcomes)
    }
}

#[cfg(test)]
mod tests {
    use tillstream_schemas::{Event, Position};

    use super::*;
    use crate::sink::Reason;

    fn item(n: u32) -> Item {
        let body = format!(
            r#"{{"id":"e1-0/1-{n}","op":"insert","schema":"s","table":"t","key":{{"id":{n}}},"before":null,"after":{{"id":{n}}},
            "unchanged":[],"commit_lsn":"0/1","ordinal":{n},"xid":1,"committed_at":"2026-11-22T10:00:00.000000Z"}}"#
        );
        let event = Arc::new(Event::parse(body.into()).expect("an event"));
        Item { event, idempotency_key: n.to_string(), version: Position::NONE, mapped: Some(Ok(n.to_string().into())) }
    }

    fn sink(dir: &Path) -> Box<dyn Sink> {
        let target = JsonlKind.validate(&json!({"dir": dir}), true).expect("valid");
        target.build(LaneId { connector: "out".into(), partition: 0, lane: 1 }, OnDelete::Ignore)
    }

    fn batch(items: Vec<Item>, mark: u8) -> Batch {
        Batch { items, mark: Mark(vec![mark]) }
    }

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("tillstream-jsonl-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a directory");
        dir
    }

    #[tokio::test]
    async fn what_no_mark_covers_is_cut_off_and_written_again() {
        let dir = scratch("cut");
        let read = || std::fs::read_to_string(dir.join("out-0-1.jsonl")).expect("there");
        let mut one = sink(&dir);
        one.check().await.expect("a directory");
        assert_eq!(one.resume().await.expect("opens"), None);
        one.deliver(&batch(vec![item(1), item(2)], 1)).await.expect("written");
        let refused = Item { mapped: Some(Err(Reason { code: "c".into(), message: "m".into() })), ..item(4) };
        let outcomes = one.deliver(&batch(vec![item(3), refused, item(5)], 2)).await.expect("written");
        assert!(matches!(outcomes[..], [Outcome::Delivered, Outcome::Rejected(_), Outcome::Delivered]));
        assert_eq!(read(), "1\n2\n3\n5\n");

        let mut other = sink(&dir);
        assert_eq!(other.resume().await.expect_err("held").code, "jsonl.held");
        drop(one);
        assert_eq!(other.resume().await.expect("opens"), Some(Mark(vec![1])));
        assert_eq!(read(), "1\n2\n", "the mark stayed below the refused one");
        other.deliver(&batch(vec![item(3), item(5)], 3)).await.expect("written");
        other.deliver(&batch(Vec::new(), 4)).await.expect("noted");
        drop(other);
        assert_eq!(sink(&dir).resume().await.expect("opens"), Some(Mark(vec![4])));
        assert_eq!(read(), "1\n2\n3\n5\n");

        std::fs::write(dir.join("out-0-1.jsonl"), "1\n").expect("written");
        assert_eq!(sink(&dir).resume().await.expect_err("shorter than noted").code, "jsonl.cut");
        std::fs::write(dir.join("out-0-1.state"), "{").expect("written");
        assert_eq!(sink(&dir).resume().await.expect_err("no JSON").code, "jsonl.damaged");
        std::fs::remove_dir_all(&dir).expect("removed");
        assert_eq!(sink(&dir).check().await.expect_err("no directory").class, Class::Definite);
    }

    #[test]
    fn a_relative_directory_is_refused() {
        assert_eq!(JsonlKind.validate(&json!({"dir": "out"}), false).expect_err("relative")[0].path, "dir");
        assert_eq!(JsonlKind.validate(&json!({}), false).expect_err("missing")[0].path, "dir");
    }
}
