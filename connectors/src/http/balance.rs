//! Several endpoints of one target: which one the next request goes to, and which are left out for a while.
//!
//! The cost of an endpoint is its latency (an average that follows rises at once and forgets them over seconds: peak
//! EWMA, as in Finagle) times the requests it has in the air. An endpoint that takes no connection, or fails three times
//! in a row, is left out; when its time is over one request tries it, and its success brings it back. One endpoint is
//! always tried, however bad all of them are: that a target is away as a whole is for delivery to find.
//!
//! Decides where; whether to repeat is decided elsewhere. Time is handed in.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use reqwest::Url;

/// How long a rise of the latency is remembered.
const FORGETS: Duration = Duration::from_secs(10);
/// Failures in a row after which an endpoint is left out.
const FAILURES_MAX: u32 = 3;
/// How long it is left out first; twice as long each time after that.
const OUT: Duration = Duration::from_secs(2);
const OUT_MAX: Duration = Duration::from_secs(120);
/// What an endpoint costs of which nothing is known: little, so that it is tried soon.
const UNKNOWN: f64 = 0.001;

/// The endpoints of one target, shared by its lanes.
#[derive(Debug)]
pub(crate) struct Endpoints {
    urls: Vec<Url>,
    states: Mutex<Vec<State>>,
}

#[derive(Clone, Debug)]
struct State {
    /// Seconds.
    latency: f64,
    measured_at: Option<Instant>,
    in_air: u32,
    failures: u32,
    /// Left out until then.
    out_until: Option<Instant>,
    /// How often in a row it was.
    times_out: u32,
    /// One request is finding out whether it is back.
    tried: bool,
}

impl Endpoints {
    /// At least one.
    pub(crate) fn new(urls: Vec<Url>) -> Arc<Endpoints> {
        let fresh = State { latency: UNKNOWN, measured_at: None, in_air: 0, failures: 0, out_until: None, times_out: 0, tried: false };
        Arc::new(Endpoints { states: Mutex::new(vec![fresh; urls.len()]), urls })
    }

    /// All of them.
    pub(crate) fn urls(&self) -> &[Url] {
        &self.urls
    }

    fn states(&self) -> MutexGuard<'_, Vec<State>> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The endpoint for the next request, without those in `not` unless nothing else is left.
    pub(crate) fn pick(self: &Arc<Self>, not: &[usize], now: Instant) -> Chosen {
        let mut states = self.states();
        let all = 0..states.len();
        let due = |s: &State| s.out_until.is_some_and(|until| until <= now) && !s.tried;
        let tries = all.clone().find(|n| due(&states[*n]) && !not.contains(n));
        let sound = || all.clone().filter(|n| states[*n].out_until.is_none() && !not.contains(n));
        let cost = |n: &usize| {
            let s = &states[*n];
            // What was learnt long ago counts for little, so that nobody is shunned for ever.
            let since = s.measured_at.map_or(0.0, |at| (now - at).as_secs_f64());
            s.latency * (-since / FORGETS.as_secs_f64()).exp() * f64::from(s.in_air + 1)
        };
        let cheapest = sound().min_by(|a, b| cost(a).total_cmp(&cost(b)));
        // Whoever was left out longest, when nothing better is there.
        let least_bad = || all.clone().filter(|n| !not.contains(n)).min_by_key(|n| states[*n].out_until);
        let chosen = tries.or(cheapest).or_else(least_bad).unwrap_or(0);
        let state = &mut states[chosen];
        state.tried |= state.out_until.is_some();
        state.in_air += 1;
        Chosen { endpoints: self.clone(), index: chosen, began: now, ended: false }
    }

    fn leave(&self, index: usize, began: Instant, how: Option<How>, now: Instant) {
        let mut states = self.states();
        let state = &mut states[index];
        state.in_air = state.in_air.saturating_sub(1);
        let took = (now - began).as_secs_f64();
        match how {
            // Given up: nothing was learnt.
            None => state.tried = false,
            Some(How::Answered) => {
                let since = state.measured_at.map_or(FORGETS, |at| now - at).as_secs_f64();
                let old = if took > state.latency { 0.0 } else { (-since / FORGETS.as_secs_f64()).exp() };
                state.latency = state.latency * old + took * (1.0 - old);
                state.measured_at = Some(now);
                if state.out_until.is_some() {
                    // What it was like before says nothing any more.
                    state.latency = took;
                    tracing::info!(host = host(&self.urls[index]), "the endpoint is back");
                }
                (state.failures, state.out_until, state.times_out, state.tried) = (0, None, 0, false);
            }
            Some(how @ (How::Failed | How::NoConnection)) => {
                state.failures += 1;
                state.latency = state.latency.max(took);
                state.measured_at = Some(now);
                let out = how == How::NoConnection || state.failures >= FAILURES_MAX || state.out_until.is_some();
                if out {
                    if state.out_until.is_none() {
                        tracing::warn!(host = host(&self.urls[index]), "the endpoint fails and is left out");
                    }
                    let time = OUT.saturating_mul(1 << state.times_out.min(16)).min(OUT_MAX);
                    state.out_until = Some(now + time);
                    state.times_out += 1;
                }
                state.tried = false;
            }
        }
    }
}

fn host(url: &Url) -> String {
    format!("{}:{}", url.host_str().unwrap_or("-"), url.port_or_known_default().unwrap_or_default())
}

/// How a request ended, for the endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    /// It is there, whatever it said of the request.
    Answered,
    /// No answer, or 502, 503, 504.
    Failed,
    /// It takes no connection, so that nothing was sent.
    NoConnection,
}

/// An endpoint that a request goes to.
#[derive(Debug)]
pub(crate) struct Chosen {
    endpoints: Arc<Endpoints>,
    pub(crate) index: usize,
    began: Instant,
    ended: bool,
}

impl Chosen {
    pub(crate) fn url(&self) -> &Url {
        &self.endpoints.urls[self.index]
    }

    pub(crate) fn ended(mut self, how: How, now: Instant) {
        self.ended = true;
        self.endpoints.leave(self.index, self.began, Some(how), now);
    }
}

impl Drop for Chosen {
    fn drop(&mut self) {
        if !self.ended {
            self.endpoints.leave(self.index, self.began, None, self.began);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    struct Bench {
        endpoints: Arc<Endpoints>,
        now: Instant,
        asked: Vec<usize>,
    }

    impl Bench {
        fn new(count: usize) -> Bench {
            let urls = (0..count).map(|n| format!("https://h{n}.example/").parse().expect("a URL"));
            Bench { endpoints: Endpoints::new(urls.collect()), now: Instant::now(), asked: vec![0; count] }
        }

        /// One request, which takes what `answers` says; answers where it went.
        fn ask(&mut self, answers: impl Fn(usize) -> (How, Duration)) -> usize {
            let chosen = self.endpoints.pick(&[], self.now);
            let index = chosen.index;
            let (how, took) = answers(index);
            self.now += took;
            chosen.ended(how, self.now);
            self.asked[index] += 1;
            index
        }
    }

    #[test]
    fn what_is_slow_gets_little_and_what_has_much_in_the_air_too() {
        let mut bench = Bench::new(3);
        for _ in 0..300 {
            bench.ask(|n| (How::Answered, if n == 1 { 200 * MS } else { 10 * MS }));
        }
        assert!(bench.asked[1] < 10, "{:?}", bench.asked);
        let held: Vec<Chosen> = (0..10).map(|_| bench.endpoints.pick(&[], bench.now)).collect();
        let of = |n: usize| held.iter().filter(|c| c.index == n).count();
        assert!(of(0) >= 4 && of(2) >= 4, "{} {} {}", of(0), of(1), of(2));
    }

    #[test]
    fn one_that_takes_no_connection_is_left_out_and_comes_back() {
        let mut bench = Bench::new(3);
        let dead = |n: usize| if n == 0 { (How::NoConnection, MS) } else { (How::Answered, 5 * MS) };
        for _ in 0..200 {
            bench.ask(dead);
        }
        assert_eq!(bench.asked[0], 1, "asked once, within a second");
        for _ in 0..20_000 {
            bench.ask(dead);
        }
        let asked = bench.asked[0];
        assert!((3..=8).contains(&asked), "and seldom after that: {asked}");
        bench.now += OUT_MAX;
        for _ in 0..3_000 {
            bench.ask(|_| (How::Answered, 5 * MS));
        }
        assert!(bench.asked[0] > asked + 500, "back among the others: {:?}", bench.asked);
    }

    #[test]
    fn three_errors_are_enough_however_fast_they_come() {
        let mut bench = Bench::new(2);
        for _ in 0..300 {
            bench.ask(|n| if n == 0 { (How::Failed, Duration::ZERO) } else { (How::Answered, 10 * MS) });
        }
        assert!((3..=6).contains(&bench.asked[0]), "and a few times to see whether it is back: {:?}", bench.asked);
    }

    #[test]
    fn with_all_of_them_gone_somebody_is_asked_still() {
        let mut bench = Bench::new(3);
        for _ in 0..50 {
            bench.ask(|_| (How::NoConnection, MS));
        }
        assert_eq!(bench.asked.iter().sum::<usize>(), 50);
        let back = bench.ask(|_| (How::Answered, MS));
        assert_eq!(bench.ask(|_| (How::Answered, MS)), back, "the first that answers is used");
    }

    #[test]
    fn one_request_at_a_time_tries_an_endpoint_that_was_left_out() {
        let mut bench = Bench::new(2);
        bench.ask(|_| (How::NoConnection, MS));
        bench.now += OUT;
        let first = bench.endpoints.pick(&[], bench.now);
        let second = bench.endpoints.pick(&[], bench.now);
        assert_eq!((first.index, second.index), (0, 1));
        drop(first);
        assert_eq!(bench.endpoints.pick(&[], bench.now).index, 0, "a trial that was given up is made again");
    }
}
