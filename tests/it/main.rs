//! Every integration test of Tillstream, in one binary: `tests/run.sh` starts what it needs and runs it.

// As the program has it, so that what is measured here is what it does.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

mod backfill;
#[path = "../bench/mod.rs"]
mod bench;
mod cases;
mod cli;
mod cli_files;
mod conformance;
mod console;
mod contract;
mod coverage;
mod delivery;
mod doctor;
mod e2e;
mod events;
mod faults;
mod harness;
mod identity;
mod matrix;
mod model;
mod mutations;
mod origin;
mod own_connector;
mod pgoutput_writer;
mod policies;
mod schema;
mod setup;
mod sinks;
mod slot;
mod streaming;
mod telemetry;
mod tidy;
mod types;
mod wire;
