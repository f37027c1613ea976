//! How many outputs of an event are under way: it is settled when all of them are. Pure.

use std::collections::HashMap;

use super::settlement::Sequence;

/// Outputs of a transaction that makes facts of its own: its groups together.
pub(super) const GROUPS_OUTPUTS_MAX: usize = 10_000;

/// Outputs under way of events that have several.
#[derive(Debug, Default)]
pub(super) struct Outputs {
    left: HashMap<Sequence, usize>,
    under_way: usize,
}

impl Outputs {
    /// An event has so many, one or more.
    pub(super) fn expect(&mut self, sequence: Sequence, outputs: usize) {
        // One is the rule, and needs no note.
        if outputs > 1 {
            self.left.insert(sequence, outputs);
            self.under_way += outputs;
        }
    }

    /// One of them is settled; whether it was the last.
    pub(super) fn settle(&mut self, sequence: Sequence) -> bool {
        let Some(left) = self.left.get_mut(&sequence) else { return true };
        *left -= 1;
        self.under_way -= 1;
        let last = *left == 0;
        if last {
            self.left.remove(&sequence);
        }
        last
    }

    /// Those under way of events that had several.
    pub(super) fn under_way(&self) -> usize {
        self.under_way
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_settled_with_its_last_output() {
        let mut outputs = Outputs::default();
        outputs.expect(Sequence(1), 1);
        outputs.expect(Sequence(2), 3);
        assert!(outputs.settle(Sequence(1)));
        assert_eq!([outputs.settle(Sequence(2)), outputs.settle(Sequence(2))], [false, false]);
        assert_eq!(outputs.under_way(), 1);
        assert!(outputs.settle(Sequence(2)));
        assert_eq!(outputs.under_way(), 0);
    }
}
