//! Every integration test of Tillstream, in one binary: `tests/run.sh` starts what it needs and runs it.

mod backfill;
mod cli;
mod contract;
mod delivery;
mod e2e;
mod events;
mod faults;
mod harness;
mod identity;
mod matrix;
mod model;
mod pgoutput_writer;
mod slot;
mod tidy;
mod wire;
