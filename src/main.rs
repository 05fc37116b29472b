//! Arguments → configuration → server → exit code; all of it is in [`tidegate::cli`].

use std::process::ExitCode;

/// Frames of many sizes are made on one thread and let go on another, which is
/// where mimalloc does better than the system's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    tidegate::cli::main()
}
