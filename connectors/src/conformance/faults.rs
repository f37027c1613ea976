//! The faults, one after another, each on rows and a lane of its own.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::drive::{Lane, Settled};
use super::{Fact, Fault, Keeps, NotApplicable, Note, PATIENCE, Row, Subject, Trouble, Verdict, item};
use crate::sink::{Batch, Idempotency, Item, Mark, Outcome, Reason};

/// Items of a batch: enough to cut it in many ways.
const ITEMS: u32 = 6;
/// Rows that a fault has for itself.
const ROWS: u32 = 1000;

/// How long an effect may take that nobody waits for any more.
const LATE: Duration = Duration::from_secs(2);

/// How an item has to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Delivered or absorbed, with its effect in the target.
    Applied,
    /// Refused, and no effect.
    Refused,
}

enum Stop {
    NotApplicable(&'static str),
    Failed(String),
}

impl From<String> for Stop {
    fn from(why: String) -> Stop {
        Stop::Failed(why)
    }
}

impl From<NotApplicable> for Stop {
    fn from(why: NotApplicable) -> Stop {
        Stop::NotApplicable(why.0)
    }
}

/// Puts a sink through every fault and judges what its target did.
pub async fn run(subject: &mut dyn Subject) -> Row {
    let mut verdicts = Vec::with_capacity(Fault::ALL.len());
    for (n, fault) in (0u16..).zip(Fault::ALL) {
        let verdict = match one(subject, n, fault).await {
            Ok(()) => Verdict::Ok,
            Err(Stop::NotApplicable(why)) => Verdict::NotApplicable(why),
            Err(Stop::Failed(why)) => Verdict::Failed(why),
        };
        verdicts.push((fault, verdict));
        // Whatever was armed and not met must not meet the next one.
        let _ = subject.arm(Trouble::None).await;
    }
    Row { name: subject.name(), verdicts }
}

async fn one(subject: &mut dyn Subject, number: u16, fault: Fault) -> Result<(), Stop> {
    if let Some(why) = subject.excused(fault) {
        return Err(why.into());
    }
    subject.arm(Trouble::None).await?;
    let lane = Lane::new(subject, number);
    let mut trial = Trial { lane, first_row: u32::from(number) * ROWS + 1, next_row: u32::from(number) * ROWS + 1, subject };
    match fault {
        Fault::Duplicates => trial.duplicates().await,
        Fault::Reorder => trial.reorder().await,
        Fault::LostAnswer => trial.under(&[Trouble::LostAnswer]).await.map(drop),
        Fault::Partial => trial.partial().await,
        Fault::PauseSeconds => trial.pause(Trouble::PauseSeconds).await,
        Fault::PauseDate => trial.pause(Trouble::PauseDate).await,
        Fault::Failure => trial.under(&[Trouble::Failure, Trouble::FailureApplied]).await.map(drop),
        Fault::Slow => trial.under(&[Trouble::Slow]).await.map(drop),
        Fault::Kill => trial.kill().await,
        Fault::FalseSuccess => trial.under(&[Trouble::FalseSuccess]).await.map(drop),
        Fault::OtherBody => trial.other_body().await,
        Fault::Unmappable => trial.unmappable().await,
    }
}

struct Trial<'a> {
    subject: &'a mut dyn Subject,
    lane: Lane,
    first_row: u32,
    next_row: u32,
}

impl Trial<'_> {
    /// Facts on new rows.
    fn facts(&mut self) -> Vec<Fact> {
        let rows = self.next_row..self.next_row + ITEMS;
        self.next_row += ITEMS;
        rows.map(|row| Fact { row, change: 1 }).collect()
    }

    fn items(&self, facts: &[Fact]) -> Vec<Item> {
        facts.iter().map(|fact| item(self.subject, *fact, Note::Plain)).collect()
    }

    /// Delivers items as one batch until they are settled, each as it has to be.
    async fn deliver(&mut self, items: Vec<Item>, ends: &[End]) -> Result<Settled, Stop> {
        let batch = self.lane.batch(items);
        self.deliver_batch(batch, ends).await
    }

    async fn deliver_batch(&mut self, batch: Batch, ends: &[End]) -> Result<Settled, Stop> {
        let settled = self.lane.settle(batch).await?;
        for (n, (outcome, end)) in settled.outcomes.iter().zip(ends).enumerate() {
            let right = match end {
                End::Applied => matches!(outcome, Outcome::Delivered | Outcome::Absorbed),
                End::Refused => matches!(outcome, Outcome::Rejected(_)),
            };
            if !right {
                return Err(Stop::Failed(format!("item {n} should have been {end:?} and ended as {outcome:?}")));
            }
        }
        Ok(settled)
    }

    /// The effects on this fault's rows: those wanted and no others, each once, none behind a later one of its row.
    async fn judge(&mut self, wanted: &[Fact]) -> Result<(), Stop> {
        let mut missing = Vec::new();
        let deadline = Instant::now() + PATIENCE;
        while !self.subject.idle().await {
            if Instant::now() > deadline {
                return Err(Stop::Failed("the target never came to rest".to_owned()));
            }
            sleep(Duration::from_millis(20)).await;
        }
        // A sink's own work, as a file that is being written, is not the target's.
        let deadline = Instant::now() + LATE;
        loop {
            let mine = self.first_row..self.first_row + ROWS;
            let effects: Vec<Fact> = self.subject.effects().await.into_iter().filter(|fact| mine.contains(&fact.row)).collect();
            for (n, fact) in effects.iter().enumerate() {
                let Fact { row, change } = fact;
                if !wanted.contains(fact) {
                    return Err(Stop::Failed(format!("change {change} of row {row} was applied and should not have been")));
                }
                if effects[..n].contains(fact) {
                    return Err(Stop::Failed(format!("change {change} of row {row} was applied twice")));
                }
                if effects[..n].iter().any(|before| before.row == *row && before.change > *change) {
                    return Err(Stop::Failed(format!("change {change} of row {row} was applied behind a later one")));
                }
            }
            let newest = |fact: &Fact| wanted.iter().all(|other| other.row != fact.row || other.change <= fact.change);
            let needed = wanted.iter().filter(|fact| self.subject.keeps() == Keeps::Facts || newest(fact));
            missing.clear();
            missing.extend(needed.filter(|fact| !effects.contains(fact)).copied());
            if missing.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                let Fact { row, change } = missing[0];
                return Err(Stop::Failed(format!("{} effects are missing, as change {change} of row {row}", missing.len())));
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// New facts under each trouble in turn.
    async fn under(&mut self, troubles: &[Trouble]) -> Result<Settled, Stop> {
        let mut all = Vec::new();
        let mut last = Settled::default();
        for trouble in troubles {
            let facts = self.facts();
            let items = self.items(&facts);
            self.subject.arm(*trouble).await?;
            last = self.deliver(items, &[End::Applied; ITEMS as usize]).await?;
            if last.repeats == 0 && *trouble != Trouble::PutOff {
                return Err(Stop::Failed(format!("took {trouble:?} for success")));
            }
            all.extend(facts);
            self.judge(&all).await?;
        }
        Ok(last)
    }

    /// Whether the sink's mark says that everything up to this one is applied.
    fn is_covered(&self, found: Option<&Mark>, mark: &Mark) -> bool {
        self.subject.target().plan().idempotency == Idempotency::Transactional && found.is_some_and(|found| found.0 >= mark.0)
    }

    /// Delivers again what a mark does not cover, as a process does that finds nothing in its ledger: cut in another way, and once as it was.
    async fn again(&mut self, facts: &[Fact], found: Option<&Mark>, mark: &Mark) -> Result<(), Stop> {
        if self.is_covered(found, mark) {
            return Ok(());
        }
        let transactional = self.subject.target().plan().idempotency == Idempotency::Transactional;
        // What a transactional target has taken is covered by its mark from then on.
        let cuts: &[usize] = if transactional { &[4, 2] } else { &[4, 2, 6] };
        let mut rest = facts;
        for cut in cuts {
            if rest.is_empty() {
                rest = facts;
            }
            let (head, tail) = rest.split_at((*cut).min(rest.len()));
            let items = self.items(head);
            self.deliver(items, &[End::Applied; ITEMS as usize]).await?;
            rest = tail;
        }
        Ok(())
    }

    async fn duplicates(&mut self) -> Result<(), Stop> {
        let facts = self.facts();
        let batch = self.lane.batch(self.items(&facts));
        let mark = batch.mark.clone();
        self.deliver_batch(batch, &[End::Applied; ITEMS as usize]).await?;
        for _ in 0..2 {
            let found = self.lane.restart(self.subject).await?;
            self.again(&facts, found.as_ref(), &mark).await?;
            self.judge(&facts).await?;
        }
        Ok(())
    }

    async fn reorder(&mut self) -> Result<(), Stop> {
        let first = self.facts();
        let second: Vec<Fact> = first.iter().map(|fact| Fact { change: 2, ..*fact }).collect();
        let mut all: Vec<Fact> = first.iter().chain(&second).copied().collect();
        let mode = self.subject.target().plan().idempotency;
        if matches!(mode, Idempotency::Transactional | Idempotency::Version) {
            // Such sinks may be given several changes of a row in one batch.
            let items = self.items(&all);
            self.deliver(items, &[End::Applied; 2 * ITEMS as usize]).await?;
        } else {
            for facts in [&first, &second] {
                let items = self.items(facts);
                self.deliver(items, &[End::Applied; ITEMS as usize]).await?;
            }
        }
        self.judge(&all).await?;
        if self.subject.keeps() == Keeps::Rows {
            let newer: Vec<Fact> = self.facts().iter().map(|fact| Fact { change: 3, ..*fact }).collect();
            let older: Vec<Fact> = newer.iter().map(|fact| Fact { change: 2, ..*fact }).collect();
            for facts in [&newer, &older] {
                let items = self.items(facts);
                self.deliver(items, &[End::Applied; ITEMS as usize]).await?;
            }
            all.extend(&newer);
            self.judge(&all).await?;
        }
        Ok(())
    }

    async fn partial(&mut self) -> Result<(), Stop> {
        let facts = self.facts();
        let mut items = self.items(&facts);
        items[2] = item(self.subject, facts[2], Note::Refused);
        let mut ends = [End::Applied; ITEMS as usize];
        ends[2] = End::Refused;
        self.subject.arm(Trouble::PutOff).await?;
        self.deliver(items, &ends).await?;
        let wanted: Vec<Fact> = facts.iter().enumerate().filter(|(n, _)| *n != 2).map(|(_, fact)| *fact).collect();
        self.judge(&wanted).await
    }

    async fn pause(&mut self, trouble: Trouble) -> Result<(), Stop> {
        let settled = self.under(&[trouble]).await?;
        // A date has whole seconds.
        let told = settled.pauses.iter().any(|pause| (Duration::from_millis(100)..=Duration::from_secs(4)).contains(pause));
        if told { Ok(()) } else { Err(Stop::Failed(format!("did not pass the pause on: {:?}", settled.pauses))) }
    }

    async fn kill(&mut self) -> Result<(), Stop> {
        let mut all = Vec::new();
        for trouble in [Some(Trouble::HangBefore), Some(Trouble::HangAfter), Some(Trouble::None), None] {
            let facts = self.facts();
            let batch = self.lane.batch(self.items(&facts));
            let mark = batch.mark.clone();
            match trouble {
                // At once: nothing or anything has been done.
                None => drop(timeout(Duration::ZERO, self.lane.sink().deliver(&batch)).await),
                // Between the answer and the ledger.
                Some(Trouble::None) => drop(self.deliver_batch(batch, &[End::Applied; ITEMS as usize]).await?),
                Some(trouble) => match self.subject.arm(trouble).await {
                    Ok(()) => self.give_up(&batch, &facts, trouble).await?,
                    // The other ways to be killed say enough.
                    Err(NotApplicable(_)) => continue,
                },
            }
            // The successor begins while the target may still work on what the killed process sent.
            let found = self.lane.restart(self.subject).await?;
            self.subject.arm(Trouble::None).await?;
            self.again(&facts, found.as_ref(), &mark).await?;
            all.extend(facts);
            self.judge(&all).await?;
        }
        Ok(())
    }

    /// Drops a call in the middle: once it has reached the target, or once it has had its effect.
    async fn give_up(&mut self, batch: &Batch, facts: &[Fact], trouble: Trouble) -> Result<(), Stop> {
        let (lane, subject) = (&mut self.lane, &mut *self.subject);
        let met = async {
            loop {
                let met = match trouble {
                    Trouble::HangAfter => subject.effects().await.iter().any(|fact| facts.contains(fact)),
                    _ => subject.reached().await,
                };
                if met {
                    return;
                }
                sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            // Whoever answers before is as dead with his answer as without.
            _ = lane.sink().deliver(batch) => Ok(()),
            met = timeout(PATIENCE, met) => met.map_err(|_| Stop::Failed("no call reached the target".to_owned())),
        }
    }

    async fn other_body(&mut self) -> Result<(), Stop> {
        if self.subject.target().plan().idempotency != Idempotency::Key {
            return Err(Stop::NotApplicable("its target knows no keys"));
        }
        let facts = self.facts();
        let items = self.items(&facts);
        self.deliver(items, &[End::Applied; ITEMS as usize]).await?;
        let mut items = self.items(&facts);
        items[3] = item(self.subject, facts[3], Note::Altered);
        let mut ends = [End::Applied; ITEMS as usize];
        ends[3] = End::Refused;
        let settled = self.deliver(items, &ends).await?;
        match &settled.outcomes[3] {
            Outcome::Rejected(reason) if reason.code.ends_with(".key_reused") => self.judge(&facts).await,
            other => Err(Stop::Failed(format!("is not named as a key that was reused: {other:?}"))),
        }
    }

    async fn unmappable(&mut self) -> Result<(), Stop> {
        let facts = self.facts();
        let reason = Reason { code: "conformance.unmappable".into(), message: "map.points: there is no such value".into() };
        let mut items = self.items(&facts);
        items[1].mapped = Some(Err(reason.clone()));
        let mut ends = [End::Applied; ITEMS as usize];
        ends[1] = End::Refused;
        let batch = self.lane.batch(items);
        let mark = batch.mark.clone();
        let settled = self.deliver_batch(batch, &ends).await?;
        if settled.outcomes[1] != Outcome::Rejected(reason) {
            return Err(Stop::Failed(format!("the reason was not passed on: {:?}", settled.outcomes[1])));
        }
        let wanted: Vec<Fact> = facts.iter().enumerate().filter(|(n, _)| *n != 1).map(|(_, fact)| *fact).collect();
        self.judge(&wanted).await?;
        let found = self.lane.restart(self.subject).await?;
        if self.is_covered(found.as_ref(), &mark) {
            return Err(Stop::Failed("its mark covers an event that is no dead letter yet".to_owned()));
        }
        Ok(())
    }
}
