//! A replay as the owner of a partition takes it up: delivery goes back to an earlier place and reads on from there, and up to where it stood passes
//! over what is not meant.
//!
//! ```text
//!            from ─────── to                stood
//!  journal  ──┼────────────┼──────────────────┼──────────▶
//!  bounded    │ delivered  │   passed over    │ as ever           (and of `row` alone, where one is named)
//!  unbounded  │ delivered                     │ as ever
//! ```
//!
//! One reader goes through all of it, so an event meets the rows that stood beside it then, its row's events keep their order, and progress is the
//! checkpoint itself: whoever starts again goes on in the midst of the replay. Pure.

use std::collections::HashSet;

use super::settlement::Point;
use super::start::{Skipped, Start};
use crate::control::{ReplayRequested, ReplayTaken, Spot};
use crate::journal::Offset;

/// What is passed over while a replay is under way.
#[derive(Debug)]
pub(super) struct Again {
    until: Offset,
    to: Option<Offset>,
    row: Option<u64>,
    /// Open dead letters, by name: those are redriven, and delivered once by that.
    parked: HashSet<String>,
}

impl Again {
    /// Of a request up to the place where delivery stood.
    pub(super) fn new(request: &ReplayRequested, taken: &ReplayTaken, parked: HashSet<String>) -> Again {
        // Without a beginning nothing is meant.
        let to = if request.from.is_some() { request.to } else { Some(Offset(0)) };
        Again { until: taken.until.offset, to, row: request.row(), parked }
    }

    /// Whether the event at this offset was settled before and is not meant.
    pub(super) fn passes_over(&self, offset: Offset, row: u64) -> bool {
        offset < self.until && (self.to.is_some_and(|to| offset >= to) || self.row.is_some_and(|meant| meant != row))
    }

    /// Whether the output of this name, of the event of this id, waits among the dead letters.
    pub(super) fn is_parked(&self, offset: Offset, event: &str, letter: impl FnOnce() -> String) -> bool {
        offset < self.until && !self.parked.is_empty() && (self.parked.contains(event) || self.parked.contains(&letter()))
    }
}

impl From<Point> for Spot {
    fn from(point: Point) -> Spot {
        Spot { offset: point.offset, position: point.position, token: point.token }
    }
}

impl From<Spot> for Point {
    fn from(spot: Spot) -> Point {
        Point { offset: spot.offset, position: spot.position, token: spot.token }
    }
}

/// A request that is taken up.
pub(super) struct Taken {
    pub(super) start: Start,
    pub(super) skipped: Skipped,
    pub(super) replay: ReplayTaken,
    /// Whether reading begins elsewhere than it would have.
    pub(super) moves: bool,
}

/// Takes up a request where delivery would begin at `start`, with `skipped` settled above it. `under_way` is the replay in the midst of which that is: the
/// later request takes its place.
pub(super) fn take(request: &ReplayRequested, start: Start, skipped: Skipped, under_way: Option<ReplayTaken>, lease: u32) -> Taken {
    let here = match &start {
        Start::First => Point::default(),
        Start::At(point) => *point,
    };
    let until = under_way.map_or(here, |taken| taken.until.into());
    let to = match request.from {
        Some(from) if !request.is_bounded() => from.into(),
        Some(from) if from.offset < until.offset => from.into(),
        // It would deliver that by itself.
        Some(_) | None => until,
    };
    let replay = ReplayTaken { number: request.number, lease, until: until.into(), found: here.offset };
    if to == here && under_way.is_none() {
        return Taken { start, skipped, replay, moves: false };
    }
    // What was settled of the stretch is meant to come again, and of everything when delivery goes on from there.
    let skipped = if request.is_bounded() { skipped.from(until.offset) } else { skipped.from(Offset(u64::MAX)) };
    Taken { start: Start::At(to), skipped, replay, moves: true }
}

/// Whether a start at `here`, stored under a lease, stands in the midst of a replay. What an earlier owner stored, as a target brings back that was restored
/// from a backup, does not.
pub(super) fn is_under_way(taken: &ReplayTaken, here: &Start, lease: u32) -> bool {
    matches!(here, Start::At(point) if point.offset < taken.until.offset) && lease >= taken.lease
}

/// Whether a transactional target's marks, stored under this lease, were to be moved by a replay and were not: its owner ended in between.
pub(super) fn is_unmoved(taken: &ReplayTaken, here: &Start, lease: u32) -> bool {
    let offset = if let Start::At(point) = here { point.offset } else { Offset(0) };
    lease < taken.lease && offset == taken.found
}

#[cfg(test)]
mod tests {
    use super::*;
    use tillstream_schemas::{Lsn, Position};

    fn point(offset: u64) -> Point {
        Point { offset: Offset(offset), position: Position::new(1, Lsn(offset), 0), token: 1 }
    }

    fn request(from: Option<u64>, to: Option<u64>, row: Option<u64>) -> ReplayRequested {
        let row = row.map(|row| format!("{row:016x}"));
        let from = from.map(|offset| point(offset).into());
        ReplayRequested { connector: "c".into(), partition: 0, number: 7, from, to: to.map(Offset), row, by: "op".into(), at_ms: 1 }
    }

    fn taken(request: &ReplayRequested, here: u64, under_way: Option<ReplayTaken>) -> (u64, u64, bool) {
        let taken = take(request, Start::At(point(here)), Skipped::Ledger(vec![(3, 4), (102, 104)]), under_way, 2);
        let Start::At(start) = taken.start else { panic!("a place") };
        (start.offset.0, taken.replay.until.offset.0, taken.skipped.has(Offset(103), 0))
    }

    #[test]
    fn a_bounded_replay_passes_over_what_is_not_meant_up_to_where_delivery_stood() {
        let request = request(Some(10), Some(20), Some(5));
        assert_eq!(taken(&request, 100, None), (10, 100, true));
        let mut taken = take(&request, Start::At(point(100)), Skipped::Ledger(Vec::new()), None, 2);
        let again = Again::new(&request, &taken.replay, HashSet::from(["e1".to_owned(), "e2#x".to_owned()]));
        let over: Vec<u64> = [10, 19, 20, 99, 100].into_iter().filter(|o| again.passes_over(Offset(*o), 5)).collect();
        assert_eq!(over, [20, 99]);
        assert!(again.passes_over(Offset(10), 6) && !again.passes_over(Offset(100), 6));
        let parked = |offset, event, letter: &str| again.is_parked(Offset(offset), event, || letter.to_owned());
        assert!(parked(10, "e1", "e1#y") && parked(10, "e2", "e2#x") && !parked(10, "e2", "e2#y") && !parked(100, "e1", "e1"));
        // In its midst, under its lease or a later one.
        assert!(is_under_way(&taken.replay, &Start::At(point(99)), 2) && !is_under_way(&taken.replay, &Start::At(point(99)), 1));
        assert!(!is_under_way(&taken.replay, &Start::At(point(100)), 3) && !is_under_way(&taken.replay, &Start::First, 3));
        // Before its marks were moved there.
        assert!(is_unmoved(&taken.replay, &Start::At(point(100)), 1) && !is_unmoved(&taken.replay, &Start::At(point(100)), 2));
        assert!(!is_unmoved(&taken.replay, &Start::At(point(60)), 1) && !is_unmoved(&taken.replay, &Start::First, 1));
        taken.replay.until.offset = Offset(0);
        assert!(!is_under_way(&taken.replay, &Start::At(point(0)), 3));
    }

    #[test]
    fn an_unbounded_replay_moves_back_or_on_and_delivers_everything_from_there() {
        assert_eq!(taken(&request(Some(10), None, None), 100, None), (10, 100, false));
        assert_eq!(taken(&request(Some(200), None, None), 100, None), (200, 100, false));
    }

    #[test]
    fn what_was_not_delivered_yet_is_left_to_the_ordinary_flow() {
        let bounded = request(Some(100), Some(120), None);
        assert_eq!(taken(&bounded, 100, None), (100, 100, true));
        let own = Skipped::Own { own: vec![Offset(130)], since: Offset(0) };
        let taken = take(&bounded, Start::First, own, None, 2);
        assert!(matches!(taken.start, Start::First) && !taken.moves && taken.skipped.has(Offset(5), 0));
    }

    #[test]
    fn a_later_request_takes_the_place_of_the_one_under_way() {
        let before = ReplayTaken { number: 6, lease: 1, until: point(100).into(), found: Offset(100) };
        assert_eq!(taken(&request(Some(10), Some(20), None), 50, Some(before)), (10, 100, true));
        // Giving up goes on where delivery stood.
        let end = request(None, None, None);
        assert_eq!(taken(&end, 50, Some(before)), (100, 100, true));
        assert_eq!(taken(&end, 50, None), (50, 50, true));
        let again = Again::new(&end, &before, HashSet::new());
        assert!(again.passes_over(Offset(60), 1) && !again.passes_over(Offset(100), 1));
    }

    #[test]
    fn the_lanes_own_marks_count_again_behind_the_stretch() {
        let own = Skipped::Own { own: vec![Offset(130)], since: Offset(0) };
        let taken = take(&request(Some(10), Some(20), None), Start::At(point(100)), own, None, 2);
        let skipped: Vec<u64> = [10, 99, 100, 129, 130].into_iter().filter(|o| taken.skipped.has(Offset(*o), 0)).collect();
        assert_eq!(skipped, [100, 129]);
    }
}
