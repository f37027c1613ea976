//! Kills, cuts and bad input: nothing lost, nothing doubled, order kept.

mod absent;
mod kills;
