//! Writing control records from outside capture: delivery and operators.

use std::sync::Arc;

use tillstream_schemas::Lineage;

use super::ControlError;
use super::encode::{Stamp, digest, encode};
use super::member::Member;
use super::record::{Lease, Operator, Record, now_ms};
use super::replay::{each_record, replay};
use super::state::{State, Stored};
use crate::journal::{From, Journal, JournalError, Log, Offset, ProducerName, PublishId, Reader};

/// The producer name under which delivery of one connector writes for one partition. Few and lasting: a broker
/// remembers 255 names a stream.
#[must_use]
pub fn delivery_producer(pipeline: &str, connector: &str, partition: u16) -> ProducerName {
    ProducerName(format!("tillstream/{pipeline}/delivery/{connector}/{partition}"))
}

/// The producer name under which a process that delivers says that it lives.
#[must_use]
pub fn member_producer(pipeline: &str, slot: u16) -> ProducerName {
    ProducerName(format!("tillstream/{pipeline}/member/{slot}"))
}

/// The producer name under which operators' commands write.
#[must_use]
pub fn operator_producer(pipeline: &str) -> ProducerName {
    ProducerName(format!("tillstream/{pipeline}/operator"))
}

/// A record was read back from the control log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proof {
    /// Where it stands (of a record in pieces, its last piece).
    pub offset: Offset,
}

/// Appends records under one producer name and one lease (an operator's token is a lease too).
///
/// Ids are `lease << 40 | count`, so a later owner outranks an earlier one, whose records a broker then drops *and
/// confirms*. What must not be lost is therefore stored with [`store_proven`](Self::store_proven), which believes
/// only what it reads back. A writer begins with a record that announces its lease, proven too: see
/// [`take_lease`](Self::take_lease) and [`take_operator`](Self::take_operator).
pub struct Writer {
    journal: Arc<dyn Journal>,
    writer: Box<dyn crate::journal::Writer>,
    stamp: Stamp,
    claim: Claim,
    count: u64,
    read_back: ReadBack,
}

/// Reads behind the writer, from the state that the lease was chosen by: whatever happened since is seen.
struct ReadBack {
    reader: Box<dyn Reader>,
    next: Offset,
    /// The highest lease of a rival seen after a record of ours: the next proof fails.
    rival: Option<u32>,
}

/// Who holds a lease that a record announces.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Claim {
    Delivery { connector: String, partition: u16, lease: u32, nonce: String },
    Member { slot: u16, lease: u32, nonce: String },
    Operator { token: u32, nonce: String },
}

impl Claim {
    fn lease(&self) -> u32 {
        match self {
            Claim::Delivery { lease, .. } | Claim::Member { lease, .. } => *lease,
            Claim::Operator { token, .. } => *token,
        }
    }

    fn of(record: &Record) -> Option<Claim> {
        match record {
            Record::Lease(l) => {
                let (connector, nonce) = (l.connector.clone(), l.nonce.clone());
                Some(Claim::Delivery { connector, partition: l.partition, lease: l.lease, nonce })
            }
            Record::Member(m) => Some(Claim::Member { slot: m.slot, lease: m.lease, nonce: m.nonce.clone() }),
            Record::Operator(o) => Some(Claim::Operator { token: o.token, nonce: o.nonce.clone() }),
            _ => None,
        }
    }

    /// The lease of another owner that ends this one: a higher one, or the same one under another nonce.
    fn ended_by(&self, other: &Claim) -> Option<u32> {
        match (self, other) {
            (
                Claim::Delivery { connector, partition, lease, nonce },
                Claim::Delivery { connector: c, partition: p, lease: other_lease, nonce: other_nonce },
            ) if connector == c && partition == p => {
                (other_lease > lease || (other_lease == lease && other_nonce != nonce)).then_some(*other_lease)
            }
            (Claim::Member { slot, lease, nonce }, Claim::Member { slot: s, lease: other_lease, nonce: other_nonce }) if slot == s => {
                (other_lease > lease || (other_lease == lease && other_nonce != nonce)).then_some(*other_lease)
            }
            (Claim::Operator { token, nonce }, Claim::Operator { token: other, nonce: other_nonce }) => {
                (other > token || (other == token && other_nonce != nonce)).then_some(*other)
            }
            _ => None,
        }
    }
}

impl Writer {
    /// Takes over one partition of one connector: announces the next lease and reads the log back until the
    /// announcement or a rival's is seen; a rival means the next number.
    ///
    /// # Errors
    /// Those of the journal.
    #[allow(clippy::too_many_arguments)] // Each of them stands in the record.
    pub async fn take_lease(
        journal: Arc<dyn Journal>,
        pipeline: &str,
        source: &str,
        state: &State,
        connector: &str,
        partition: u16,
        owner: &str,
        member: &str,
    ) -> Result<(Writer, Lease), ControlError> {
        let name = delivery_producer(pipeline, connector, partition);
        let held = state.lease(connector, partition).map_or(0, |l| l.lease);
        let make = |lease| {
            let (connector, owner, member) = (connector.to_owned(), owner.to_owned(), member.to_owned());
            Record::Lease(Lease { connector, partition, lease, nonce: nonce(), owner, member, released: false, at_ms: now_ms() })
        };
        match Writer::announce(journal, &name, source, state.next(), held + 1, make).await? {
            (writer, Record::Lease(lease)) => Ok((writer, lease)),
            _ => unreachable!("announces what it made"),
        }
    }

    /// As [`take_lease`](Self::take_lease), for a slot among the processes that deliver.
    ///
    /// # Errors
    /// Those of the journal.
    pub async fn take_member(
        journal: Arc<dyn Journal>,
        pipeline: &str,
        source: &str,
        state: &State,
        slot: u16,
        make: impl Fn(u32) -> Member,
    ) -> Result<(Writer, Member), ControlError> {
        let held = state.member(slot).map_or(0, |m| m.lease);
        let name = member_producer(pipeline, slot);
        match Writer::announce(journal, &name, source, state.next(), held + 1, |lease| Record::Member(make(lease))).await? {
            (writer, Record::Member(member)) => Ok((writer, member)),
            _ => unreachable!("announces what it made"),
        }
    }

    /// As [`take_lease`](Self::take_lease), for an operator's command; `who` names user, host and command.
    ///
    /// # Errors
    /// Those of the journal.
    pub async fn take_operator(
        journal: Arc<dyn Journal>,
        pipeline: &str,
        source: &str,
        state: &State,
        who: &str,
    ) -> Result<Writer, ControlError> {
        let name = operator_producer(pipeline);
        let make = |token| Record::Operator(Operator { token, nonce: nonce(), who: who.to_owned(), at_ms: now_ms() });
        Ok(Writer::announce(journal, &name, source, state.next(), state.operator() + 1, make).await?.0)
    }

    async fn announce(
        journal: Arc<dyn Journal>,
        name: &ProducerName,
        source: &str,
        from: Offset,
        mut lease: u32,
        make: impl Fn(u32) -> Record,
    ) -> Result<(Writer, Record), ControlError> {
        loop {
            let record = make(lease);
            let claim = Claim::of(&record).expect("announcements claim a lease");
            let writer = journal.writer(name).await?;
            let from_log = if from == Offset(0) { From::First } else { From::Offset(from) };
            let reader = journal.reader(Log::Control, from_log).await?;
            let stamp = Stamp { token: 0, writer: name.0.clone(), source: source.to_owned(), lineage: Lineage::default() };
            let read_back = ReadBack { reader, next: from, rival: None };
            let mut writer = Writer { journal: journal.clone(), writer, stamp, claim, count: 0, read_back };
            match writer.store_proven(&record).await {
                Ok(_) => return Ok((writer, record)),
                Err(ControlError::Rival { lease: theirs, .. }) => lease = theirs.max(lease) + 1,
                // This journal tells at once that the number is taken.
                Err(ControlError::Journal(JournalError::Fenced)) => lease += 1,
                Err(e) => return Err(e),
            }
        }
    }

    /// The lease it writes under.
    #[must_use]
    pub fn lease(&self) -> u32 {
        self.claim.lease()
    }

    /// Hands a record over and does not wait for its confirm; waits only for room.
    ///
    /// # Errors
    /// Those of the journal.
    pub async fn append(&mut self, record: &Record) -> Result<PublishId, ControlError> {
        let mut id = PublishId::new(self.lease(), self.count);
        for batch in encode(record, &self.stamp, self.journal.batch_bytes_max()) {
            id = PublishId::new(self.lease(), self.count);
            self.count += 1;
            self.writer.append(Log::Control, id, batch).await?;
        }
        Ok(id)
    }

    /// Appends a record and waits until the journal confirms it. A fenced-off writer is confirmed and dropped: enough
    /// for what may be lost (a checkpoint repeats), not for what may not.
    ///
    /// # Errors
    /// Those of the journal.
    pub async fn store(&mut self, record: &Record) -> Result<(), ControlError> {
        let id = self.append(record).await?;
        while self.writer.confirmed(Log::Control) < id {
            self.writer.progress().await?;
        }
        Ok(())
    }

    /// The highest confirmed id.
    #[must_use]
    pub fn confirmed(&self) -> PublishId {
        self.writer.confirmed(Log::Control)
    }

    /// Resolves when [`confirmed`](Self::confirmed) has moved. Cancel-safe.
    ///
    /// # Errors
    /// Those of the journal.
    pub async fn progress(&mut self) -> Result<(), ControlError> {
        Ok(self.writer.progress().await?)
    }

    /// Stores a record and reads the control log until the record itself is seen.
    ///
    /// # Errors
    /// [`ControlError::Rival`] when another owner's announcement is seen first: the record does not count and this
    /// writer must stop. Those of the journal.
    pub async fn store_proven(&mut self, record: &Record) -> Result<Proof, ControlError> {
        self.store(record).await?;
        let whole = digest(&record.to_json());
        loop {
            if let Some(lease) = self.read_back.rival {
                return Err(ControlError::Rival { name: self.stamp.writer.clone(), lease });
            }
            let chunk = match self.read_back.reader.next().await {
                Ok(chunk) => chunk,
                Err(JournalError::Expired { .. }) => return self.prove_by_state().await,
                Err(error) => return Err(error.into()),
            };
            let mut proof = None;
            each_record(&chunk, self.read_back.next, |Stored { offset, record: read, .. }| {
                self.read_back.next = Offset(offset.0 + 1);
                let own = match &read {
                    Record::Piece(p) => p.writer == self.stamp.writer && p.whole == whole && p.index + 1 == p.count,
                    read => read == record,
                };
                if own && self.read_back.rival.is_none() {
                    proof = Some(Proof { offset });
                }
                if let Some(lease) = Claim::of(&read).and_then(|other| self.claim.ended_by(&other)) {
                    self.read_back.rival = Some(lease.max(self.read_back.rival.unwrap_or(0)));
                }
                Ok(())
            })?;
            // A rival after our own record ends this writer, but the record counts.
            if let Some(proof) = proof {
                return Ok(proof);
            }
        }
    }

    /// Retention has overtaken the reader since the last proof. The state tells as well: while it names this writer's
    /// own announcement, nothing was dropped, and what was confirmed before it was read is part of it.
    async fn prove_by_state(&mut self) -> Result<Proof, ControlError> {
        let state = replay(self.journal.as_ref()).await?;
        let held = match &self.claim {
            Claim::Delivery { connector, partition, .. } => {
                state.lease(connector, *partition).and_then(|lease| Claim::of(&Record::Lease(lease.clone())))
            }
            Claim::Member { slot, .. } => state.member(*slot).and_then(|member| Claim::of(&Record::Member(member.clone()))),
            // Operators' announcements are not kept beyond their number.
            Claim::Operator { token, .. } if state.operator() <= *token => Some(self.claim.clone()),
            Claim::Operator { .. } => None,
        };
        if held.as_ref() != Some(&self.claim) {
            let lease = held.map_or(state.operator(), |claim| claim.lease());
            return Err(ControlError::Rival { name: self.stamp.writer.clone(), lease });
        }
        let reader = self.journal.reader(Log::Control, From::Offset(state.next())).await?;
        self.read_back = ReadBack { reader, next: state.next(), rival: None };
        Ok(Proof { offset: Offset(state.next().0.saturating_sub(1)) })
    }
}

/// Sixty-four random bits: tells processes apart that picked the same number at the same moment.
pub(super) fn nonce() -> String {
    format!("{:016x}", rand::random::<u64>())
}
