//! Which process delivers which partition of which connector. Pure: every process computes it from the same log, and what
//! they disagree on for a moment the leases decide.

use std::collections::BTreeMap;

/// A connector, and who holds its partitions now.
#[derive(Clone, Debug)]
pub(super) struct Held<'a> {
    pub(super) connector: &'a str,
    /// By partition: the process, if one that lives holds it.
    pub(super) holders: Vec<Option<&'a str>>,
}

/// A process that lives.
#[derive(Clone, Debug)]
pub(super) struct Candidate<'a> {
    pub(super) nonce: &'a str,
    pub(super) connectors: &'a [String],
}

/// The process for each partition of each connector, in their order; `None` where no process has the connector.
///
/// Every connector's partitions are spread evenly over the processes that have it. Where they do not divide, the rest goes
/// to those that have the least to do so far. Nobody loses a partition unless it has more than its part.
pub(super) fn assign<'a>(connectors: &[Held<'a>], processes: &[Candidate<'a>]) -> Vec<Vec<Option<&'a str>>> {
    let mut loads: BTreeMap<&str, usize> = BTreeMap::new();
    let mut assigned = Vec::with_capacity(connectors.len());
    for Held { connector, holders } in connectors {
        let able: Vec<&str> = processes.iter().filter(|p| p.connectors.iter().any(|c| c == connector)).map(|p| p.nonce).collect();
        let Some(part) = holders.len().checked_div(able.len()) else {
            assigned.push(vec![None; holders.len()]);
            continue;
        };
        let holds = |nonce: &str| holders.iter().filter(|h| **h == Some(nonce)).count();
        // The least loaded first; among equals whoever would have to give one away, then by place.
        let mut order: Vec<usize> = (0..able.len()).collect();
        order.sort_by_key(|n| (loads.get(able[*n]).copied().unwrap_or(0), std::cmp::Reverse(holds(able[*n])), *n));
        let mut room = vec![part; able.len()];
        for n in order.iter().take(holders.len() % able.len()) {
            room[*n] += 1;
        }
        for (n, nonce) in able.iter().enumerate() {
            *loads.entry(nonce).or_default() += room[n];
        }
        let mut kept: Vec<Option<&str>> = Vec::with_capacity(holders.len());
        for holder in holders {
            let place = holder.and_then(|holder| able.iter().position(|nonce| *nonce == holder)).filter(|n| room[*n] > 0);
            kept.push(place.map(|n| {
                room[n] -= 1;
                able[n]
            }));
        }
        for partition in kept.iter_mut().filter(|p| p.is_none()) {
            // Rooms add up to the number of partitions.
            if let Some(n) = room.iter().position(|room| *room > 0) {
                room[n] -= 1;
                *partition = Some(able[n]);
            }
        }
        assigned.push(kept);
    }
    assigned
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [&str; 3] = ["inventory", "engagement", "webhook"];

    /// Assigns again and again, each time from what was assigned last, and answers the holders.
    fn settle<'a>(
        mut holders: Vec<Vec<Option<&'a str>>>,
        names: &[&'a str],
        processes: &[(&'a str, &'a [String])],
    ) -> Vec<Vec<Option<&'a str>>> {
        for round in 0..5 {
            let live: Vec<Candidate<'a>> = processes.iter().map(|(nonce, connectors)| Candidate { nonce, connectors }).collect();
            let lives = |h: &Option<&'a str>| h.filter(|h| live.iter().any(|c| c.nonce == *h));
            let held: Vec<Held<'a>> =
                names.iter().zip(&holders).map(|(connector, h)| Held { connector, holders: h.iter().map(lives).collect() }).collect();
            let next = assign(&held, &live);
            assert!(round == 0 || next == holders, "what was assigned once stays");
            holders = next;
        }
        holders
    }

    fn counts(holders: &[Vec<Option<&str>>], nonce: &str) -> Vec<usize> {
        holders.iter().map(|h| h.iter().filter(|h| **h == Some(nonce)).count()).collect()
    }

    #[test]
    fn partitions_are_spread_evenly_and_few_of_them_move() {
        let all: Vec<String> = ALL.iter().map(|s| (*s).to_owned()).collect();
        let processes: Vec<(&str, &[String])> = vec![("p1", &all), ("p2", &all), ("p3", &all)];
        let one = settle(vec![vec![None; 4]; 3], &ALL, &processes[..1]);
        assert_eq!(counts(&one, "p1"), [4, 4, 4]);
        let two = settle(one.clone(), &ALL, &processes[..2]);
        assert_eq!(counts(&two, "p2"), [2, 2, 2]);
        let three = settle(two.clone(), &ALL, &processes);
        let moved = two.iter().flatten().zip(three.iter().flatten()).filter(|(a, b)| a != b).count();
        assert_eq!(moved, 4, "a third of them");
        for p in ["p1", "p2", "p3"] {
            assert_eq!(counts(&three, p).iter().sum::<usize>(), 4, "{p}: {three:?}");
        }
        // The second one dies: only what it had goes elsewhere.
        let survivors = [processes[0], processes[2]];
        let after = settle(three.clone(), &ALL, &survivors);
        for (before, now) in three.iter().flatten().zip(after.iter().flatten()) {
            assert!(before == now || *before == Some("p2"));
        }
        assert_eq!((counts(&after, "p1"), counts(&after, "p3")), (vec![2, 2, 2], vec![2, 2, 2]));
    }

    #[test]
    fn connectors_of_one_partition_are_spread_over_processes_too() {
        let all: Vec<String> = ALL.iter().map(|s| (*s).to_owned()).collect();
        let processes: Vec<(&str, &[String])> = vec![("p1", &all), ("p2", &all), ("p3", &all), ("p4", &all)];
        let spread = settle(vec![vec![Some("p1")]; 3], &ALL, &processes);
        let mut holders: Vec<_> = spread.into_iter().flatten().collect();
        holders.dedup();
        assert_eq!(holders.len(), 3);
    }

    #[test]
    fn a_connector_goes_to_those_that_have_it() {
        let (old, new) = (vec!["inventory".to_owned()], vec!["inventory".to_owned(), "engagement".to_owned()]);
        let processes: Vec<(&str, &[String])> = vec![("p1", &old), ("p2", &new)];
        let spread = settle(vec![vec![None; 2]; 3], &ALL, &processes);
        assert_eq!((counts(&spread, "p1"), counts(&spread, "p2")), (vec![1, 0, 0], vec![1, 2, 0]));
    }
}
