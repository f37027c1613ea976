//! What Tillstream costs and how fast it is, beside the limit of its server and its peer, on the same contents in the same minutes.
//!
//! Every part runs in a short form with the other tests, so that none of them rots, and judges nothing there but that the figures are
//! there. `tests/bench.sh` runs the long form on a machine that does nothing else, keeps the figures as JSON, and writes `BENCHMARKS.md`.

mod capture;
mod costs;
mod debezium;
mod discard;
pub(crate) mod figures;
mod instructions;
mod latency;
mod memory;
mod page;
mod process;
mod shop;
