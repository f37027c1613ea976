//! The program `tillstream`: the built-in kinds of sink and the command line.

use std::process::ExitCode;

use tillstream_connectors::registry::Registry;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    tillstream::cli::run(Registry::built_in())
}
