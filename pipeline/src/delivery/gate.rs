//! What stands between the lanes of a connector and its target: pauses, the circuit breaker, the budget of events a
//! second, and how many calls may be in the air at once.
//!
//! ```text
//!             FAILURES_MAX in a row                    its delay is over
//!   closed ──────────────────────────▶ open ──────────────────────────▶ half open: one call, a small batch
//!      ▲                                ▲                                    │        │
//!      │                                └──────────── it failed ─────────────┘        │
//!      └───────────────────────────────────── the target took something ──────────────┘
//! ```
//!
//! While the breaker is open no lane calls, so a target that is away costs no attempt and fills no dead letters: its
//! events stay in the journal. One gate serves all lanes and partitions of a connector within a process. It decides
//! when, never what.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::stats::{Breaker, ConnectorStats};
use crate::config;
use crate::control::now_ms;
use crate::retry::Delays;

/// Failures in a row, over all lanes, after which the target counts as away: enough that a target which fails one call
/// in twenty is not, few enough that a dead one is asked little.
const FAILURES_MAX: u32 = 5;
/// Events of a batch that is cut while the target is in doubt.
const PROBE_ITEMS: usize = 10;
/// The longest pause that is taken from a target: a wrong clock or a date far ahead must not stop a connector for days.
const PAUSE_MAX: Duration = Duration::from_secs(3600);
/// A target that takes so many times as long as it can, and longer by [`SLOWER_BY`], has more calls than it can serve.
const SLOWER_TIMES: f64 = 4.0;
const SLOWER_BY: f64 = 0.2;
/// Sizes of batches are told apart by powers of two, since a large one takes longer by right.
const SIZES: usize = 18;

/// What a call told of its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// It is there: it took something, had it already, or refused it for good.
    Taken,
    /// It is away, or took nothing of what it had not refused before.
    Failed,
    /// Nothing: an event that had failed before failed again, which may be its own fault.
    Nothing,
    /// It wants a pause.
    Busy(Duration),
}

/// Why a call has to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    Rate,
    Pause,
    Calls,
    Breaker,
}

/// The gate of one connector. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Gate(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Most calls at once, before the target has its say.
    calls_max: f64,
    rate: Option<config::Rate>,
    /// Most items of one request; a call may make several.
    items_per_request: usize,
    stats: Arc<ConnectorStats>,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug)]
struct State {
    paused_until: Option<Instant>,
    breaker: Breaker,
    failures: u32,
    /// When an open breaker lets a probe through.
    probe_at: Instant,
    delays: Delays,
    /// Calls that the target seems to bear.
    window: f64,
    lowered_at: Option<Instant>,
    flying: usize,
    /// Shortest call in seconds, by size of the batch; forgotten slowly.
    floor: [Option<f64>; SIZES],
    slower: f64,
    /// Of the connector's partitions, the part that this process serves.
    share: f64,
    tokens: f64,
    filled_at: Instant,
    taken: u64,
}

impl Gate {
    pub(super) fn new(connector: &config::Connector, partitions: u16, stats: Arc<ConnectorStats>) -> Gate {
        let lanes = usize::from(connector.delivery.lanes.get()) * usize::from(partitions.max(1));
        let calls_max = connector.delivery.in_flight.map_or(lanes, |most| most.min(lanes)).max(1) as f64;
        let now = Instant::now();
        stats.calls_allowed.store(calls_max as u64, Ordering::Relaxed);
        stats.calls_max.store(calls_max as u64, Ordering::Relaxed);
        stats.lanes.store(u64::from(connector.delivery.lanes.get()), Ordering::Relaxed);
        stats.batch_items.store(connector.delivery.batch_items_max as u64, Ordering::Relaxed);
        let rate_milli = connector.delivery.rate.map_or(0, |rate| (rate.per_second() * 1000.0).ceil() as u64);
        stats.rate_milli.store(rate_milli, Ordering::Relaxed);
        Gate(Arc::new(Inner {
            calls_max,
            rate: connector.delivery.rate,
            items_per_request: connector.target.plan().items_per_request.max(1),
            stats,
            state: Mutex::new(State {
                paused_until: None,
                breaker: Breaker::Closed,
                failures: 0,
                probe_at: now,
                delays: Delays::new(connector.retry.base, connector.retry.max),
                window: calls_max,
                lowered_at: None,
                flying: 0,
                floor: [None; SIZES],
                slower: 1.0,
                share: 1.0,
                tokens: 0.0,
                filled_at: now,
                taken: 0,
            }),
            changed: Notify::new(),
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Most events that a batch cut now may have: few while the target is in doubt, and no more than a quarter of a
    /// second's budget.
    pub(super) fn items_max(&self) -> usize {
        let state = self.state();
        let doubt = if state.breaker == Breaker::Closed { usize::MAX } else { PROBE_ITEMS };
        self.per_second(&state).map_or(doubt, |rate| doubt.min(burst(rate) as usize))
    }

    /// Whether no call may be made at present but one that probes.
    pub(super) fn is_open(&self) -> bool {
        self.state().breaker != Breaker::Closed
    }

    /// Counts the calls in which the target took something: evidence that it is there.
    pub(super) fn taken(&self) -> u64 {
        self.state().taken
    }

    /// The part of the connector's partitions that this process serves, and so its part of the budget.
    pub(super) fn set_share(&self, share: f64) {
        self.state().share = share;
    }

    fn per_second(&self, state: &State) -> Option<f64> {
        self.0.rate.map(|rate| rate.per_second() * state.share)
    }

    /// Waits until a call with so many events may be made. Cancel-safe.
    pub(super) async fn enter(&self, items: usize) -> Pass {
        loop {
            let changed = self.0.changed.notified();
            tokio::pin!(changed);
            // Registered before the look, so that no change is missed.
            changed.as_mut().enable();
            match self.try_enter(items, Instant::now()) {
                Ok(probe) => return Pass { gate: self.clone(), began: Instant::now(), items, probe, heard: None, requests: 1 },
                Err((why, until)) => {
                    let asked = Instant::now();
                    match until {
                        Some(until) => tokio::select! {
                            () = changed => {}
                            () = tokio::time::sleep_until(until) => {}
                        },
                        None => changed.await,
                    }
                    let waits = &self.0.stats.waits;
                    let counter = match why {
                        Why::Rate => &waits.rate,
                        Why::Pause => &waits.pause,
                        Why::Calls => &waits.calls,
                        Why::Breaker => &waits.breaker,
                    };
                    ConnectorStats::time(counter, asked);
                }
            }
        }
    }

    /// Takes a place, and says whether it is a probe's; else why not, and until when to wait, if that is known.
    fn try_enter(&self, items: usize, now: Instant) -> Result<bool, (Why, Option<Instant>)> {
        let mut state = self.state();
        if let Some(until) = state.paused_until.filter(|until| *until > now) {
            return Err((Why::Pause, Some(until)));
        }
        match state.breaker {
            Breaker::Open if state.probe_at > now => return Err((Why::Breaker, Some(state.probe_at))),
            Breaker::HalfOpen => return Err((Why::Breaker, None)),
            Breaker::Open => {}
            Breaker::Closed if state.flying as f64 >= state.window.floor().max(1.0) => return Err((Why::Calls, None)),
            Breaker::Closed => {}
        }
        if let Some(rate) = self.per_second(&state).filter(|rate| *rate > 0.0) {
            let gained = (now - state.filled_at).as_secs_f64() * rate;
            state.tokens = (state.tokens + gained).min(burst(rate));
            state.filled_at = now;
            // A batch may take the bucket below nothing; the next one waits for it.
            let wanted = (items as f64).min(burst(rate));
            if state.tokens + 1e-6 < wanted {
                return Err((Why::Rate, Some(now + Duration::from_secs_f64((wanted - state.tokens) / rate))));
            }
            state.tokens -= items as f64;
        }
        let probe = state.breaker == Breaker::Open;
        if probe {
            self.turn(&mut state, Breaker::HalfOpen);
        }
        state.flying += 1;
        Ok(probe)
    }

    fn turn(&self, state: &mut State, to: Breaker) {
        if state.breaker == Breaker::Closed {
            ConnectorStats::add(&self.0.stats.breaker_opened, 1);
        }
        state.breaker = to;
        self.0.stats.set_breaker(to);
    }

    fn leave(&self, pass: &Pass, now: Instant) {
        let mut state = self.state();
        state.flying -= 1;
        let open = |state: &mut State| {
            state.probe_at = now + state.delays.next_delay();
            self.turn(state, Breaker::Open);
        };
        match pass.heard {
            Some(Heard::Taken) => {
                state.taken += 1;
                state.failures = 0;
                if state.breaker != Breaker::Closed {
                    tracing::info!(connector = self.0.stats.name(), "the target is back");
                    state.delays.reset();
                    self.turn(&mut state, Breaker::Closed);
                }
                self.measure(&mut state, pass, now, true);
            }
            Some(Heard::Busy(after)) => {
                ConnectorStats::add(&self.0.stats.pauses, 1);
                let until = now + after.min(PAUSE_MAX);
                state.paused_until = Some(state.paused_until.map_or(until, |p| p.max(until)));
                let until_ms = now_ms() + i64::try_from(after.min(PAUSE_MAX).as_millis()).unwrap_or(0);
                self.0.stats.paused_until_ms.fetch_max(until_ms, Ordering::Relaxed);
                // The requests before the one that met the limit were taken.
                self.raise(&mut state, pass.requests - 1);
                self.lower(&mut state, 0.7, pass.began, now);
                // It answers, so it is there.
                state.failures = 0;
                if pass.probe {
                    state.delays.reset();
                    self.turn(&mut state, Breaker::Closed);
                }
            }
            Some(Heard::Failed) => {
                state.failures += 1;
                // An error that comes at once says nothing of load; one that was waited for does.
                self.measure(&mut state, pass, now, false);
                if pass.probe || (state.breaker == Breaker::Closed && state.failures >= FAILURES_MAX) {
                    if state.breaker == Breaker::Closed {
                        tracing::warn!(
                            connector = self.0.stats.name(),
                            failures = state.failures,
                            "the target is away, delivery pauses and probes"
                        );
                    }
                    open(&mut state);
                }
            }
            // A call that was given up told nothing.
            Some(Heard::Nothing) | None if pass.probe => open(&mut state),
            Some(Heard::Nothing) | None => {}
        }
        self.0.stats.calls_allowed.store(state.window as u64, Ordering::Relaxed);
        drop(state);
        self.0.changed.notify_waiters();
    }

    /// Fewer calls at once; what several calls in the air at the same moment say counts once.
    fn lower(&self, state: &mut State, factor: f64, began: Instant, now: Instant) {
        if state.lowered_at.is_none_or(|at| at < began) {
            state.window = (state.window * factor).max(1.0);
            state.lowered_at = Some(now);
        }
    }

    /// One call more for each time that as many requests as there may be calls went well.
    fn raise(&self, state: &mut State, requests: u32) {
        state.window = (state.window * state.window + 2.0 * f64::from(requests)).sqrt().min(self.0.calls_max);
    }

    /// Time and luck are those of requests: a call that makes fifty meets fifty times the trouble of one that makes one.
    fn measure(&self, state: &mut State, pass: &Pass, now: Instant, good: bool) {
        let took = (now - pass.began).as_secs_f64() / f64::from(pass.requests);
        let size = (pass.items.min(self.0.items_per_request).max(1).ilog2() as usize).min(SIZES - 1);
        let floor = state.floor[size].map_or(took, |floor| if good { took.min(floor * 1.01) } else { floor }).max(1e-6);
        if good {
            state.floor[size] = Some(floor);
        }
        let times = if took - floor > SLOWER_BY { took / floor } else { 1.0 };
        state.slower += (times - state.slower) * 0.2;
        if state.slower > SLOWER_TIMES {
            self.lower(state, 0.9, pass.began, now);
        } else if good {
            self.raise(state, pass.requests);
        }
    }
}

/// Events that may go at once: a quarter of a second's budget, and one at least.
fn burst(per_second: f64) -> f64 {
    (per_second / 4.0).floor().max(1.0)
}

/// Leave to make one call.
#[derive(Debug)]
pub(super) struct Pass {
    gate: Gate,
    began: Instant,
    items: usize,
    probe: bool,
    heard: Option<Heard>,
    /// Requests that were made, at least 1.
    requests: u32,
}

impl Pass {
    /// The call has ended, with an answer for so many items.
    pub(super) fn ended(mut self, heard: Heard, answered: usize) {
        let requests = answered.div_ceil(self.gate.0.items_per_request).max(1);
        self.requests = u32::try_from(requests).unwrap_or(u32::MAX);
        self.heard = Some(heard);
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let gate = self.gate.clone();
        gate.leave(self, Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(lanes: u16, rate: Option<config::Rate>) -> Gate {
        gate_of(lanes, rate, usize::MAX)
    }

    fn gate_of(lanes: u16, rate: Option<config::Rate>, items_per_request: usize) -> Gate {
        let inner = Inner {
            calls_max: f64::from(lanes),
            rate,
            items_per_request,
            stats: super::super::Stats::new(["c"]).connectors()[0].clone(),
            state: Mutex::new(State {
                paused_until: None,
                breaker: Breaker::Closed,
                failures: 0,
                probe_at: Instant::now(),
                delays: Delays::steady(Duration::from_secs(1), Duration::from_secs(8)),
                window: f64::from(lanes),
                lowered_at: None,
                flying: 0,
                floor: [None; SIZES],
                slower: 1.0,
                share: 1.0,
                tokens: 0.0,
                filled_at: Instant::now(),
                taken: 0,
            }),
            changed: Notify::new(),
        };
        Gate(Arc::new(inner))
    }

    async fn call(gate: &Gate, takes: Duration, heard: Heard) -> Duration {
        let asked = Instant::now();
        let pass = gate.enter(1).await;
        let waited = asked.elapsed();
        tokio::time::advance(takes).await;
        pass.ended(heard, 1);
        waited
    }

    const MS: Duration = Duration::from_millis(1);

    #[tokio::test(start_paused = true)]
    async fn a_target_that_is_away_is_asked_seldom_and_one_call_brings_it_back() {
        let gate = gate(4, None);
        for _ in 0..FAILURES_MAX {
            assert_eq!(call(&gate, MS, Heard::Failed).await, Duration::ZERO);
        }
        assert!(gate.is_open() && gate.items_max() == PROBE_ITEMS);
        let mut waited = Vec::new();
        for _ in 0..4 {
            waited.push(call(&gate, MS, Heard::Failed).await.as_secs_f64().round() as u64);
        }
        assert!(waited.is_sorted() && waited[0] >= 1 && waited[3] > waited[0], "{waited:?}");
        let probe = gate.enter(1).await;
        // Nobody else while the probe is in the air.
        assert!(tokio::time::timeout(Duration::from_secs(60), gate.enter(1)).await.is_err());
        probe.ended(Heard::Taken, 1);
        assert!(!gate.is_open());
        assert_eq!(call(&gate, MS, Heard::Taken).await, Duration::ZERO);
        assert_eq!(gate.0.stats.breaker_opened.load(Ordering::Relaxed), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn one_event_that_keeps_failing_opens_nothing() {
        let gate = gate(1, None);
        for _ in 0..100 {
            call(&gate, MS, Heard::Nothing).await;
        }
        assert!(!gate.is_open());
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_is_given_up_leaves_the_breaker_to_the_next_one() {
        let gate = gate(1, None);
        for _ in 0..FAILURES_MAX {
            call(&gate, MS, Heard::Failed).await;
        }
        drop(gate.enter(1).await);
        assert!(gate.is_open());
        call(&gate, MS, Heard::Taken).await;
        assert!(!gate.is_open());
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_holds_everyone_and_lets_fewer_calls_go_at_once() {
        let gate = gate(8, None);
        call(&gate, MS, Heard::Busy(Duration::from_secs(7))).await;
        let waited = call(&gate, MS, Heard::Taken).await;
        assert!(waited >= Duration::from_secs(7) && waited < Duration::from_secs(8), "{waited:?}");
        assert!(gate.state().window < 6.0);
        for _ in 0..50 {
            call(&gate, MS, Heard::Taken).await;
        }
        assert!(gate.state().window > 7.9, "it comes back: {}", gate.state().window);
    }

    #[tokio::test(start_paused = true)]
    async fn one_limit_among_many_requests_does_not_leave_a_single_call() {
        let gate = gate_of(32, None, 1);
        // Of eighty requests one meets a limit: every second call of fifty, after thirty.
        for _ in 0..200 {
            for (heard, answered) in [(Heard::Taken, 50), (Heard::Busy(Duration::ZERO), 30)] {
                let pass = gate.enter(50).await;
                tokio::time::advance(100 * MS).await;
                pass.ended(heard, answered);
            }
        }
        assert!(gate.state().window > 10.0, "{}", gate.state().window);
        // A target that takes nothing else is asked by one.
        for _ in 0..30 {
            call(&gate, MS, Heard::Busy(Duration::ZERO)).await;
        }
        assert!(gate.state().window < 1.5, "{}", gate.state().window);
    }

    #[tokio::test(start_paused = true)]
    async fn a_target_that_becomes_slow_gets_fewer_calls_and_a_large_batch_is_not_slow() {
        let gate = gate(8, None);
        for _ in 0..20 {
            call(&gate, 5 * MS, Heard::Taken).await;
        }
        let large = gate.enter(4_000).await;
        tokio::time::advance(900 * MS).await;
        large.ended(Heard::Taken, 4_000);
        assert!(gate.state().window > 7.9);
        for _ in 0..20 {
            call(&gate, 900 * MS, Heard::Taken).await;
        }
        assert!(gate.state().window < 3.0, "{}", gate.state().window);
    }

    #[tokio::test(start_paused = true)]
    async fn the_budget_is_kept_over_time_and_shared_by_processes() {
        let gate = gate(8, Some(config::Rate { events: 20, per: Duration::from_secs(1) }));
        for (share, expected) in [(1.0, 20.0), (0.5, 10.0)] {
            gate.set_share(share);
            let (begun, mut events) = (Instant::now(), 0);
            while begun.elapsed() < Duration::from_secs(100) {
                let items = gate.items_max().min(7);
                gate.enter(items).await.ended(Heard::Taken, items);
                events += items;
            }
            let rate = events as f64 / begun.elapsed().as_secs_f64();
            assert!((rate - expected).abs() < expected * 0.05, "{rate} at a share of {share}");
        }
    }
}
