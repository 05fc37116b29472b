//! Past the per-process limit of open files: a descriptor table of its own for
//! each shard thread.
//!
//! The limit is one of the table, not of the process, and a thread may have its
//! own (`unshare(CLONE_FILES)`, Linux). Everything a shard's sockets need
//! happens on its own thread, so it is enough that what threads share was
//! opened before the tables part: the runtimes with the descriptors that wake
//! them, the signal pipe, the standard streams. These have the same numbers in
//! all tables for ever, because nobody closes them.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Descriptors a table is grown for at most: 8 MiB of it.
const MAX_GROWN: i32 = 1 << 20;

/// Gives the calling thread its own descriptor table, a copy of the process's.
///
/// # Errors
/// The system call's; Linux gives none for this flag but lack of memory.
pub fn separate() -> io::Result<()> {
    // SAFETY: the danger is a descriptor number that one thread opens and
    // another uses, in a table where it names something else. Called at the
    // start of a shard's thread, before it opens anything; sockets opened later
    // never leave the thread (`Arrival` stays on its local task set), and what
    // is shared was opened before, under the same number in every copy.
    unsafe { unshare_unsafe(UnshareFlags::FILES) }.map_err(io::Error::from)
}

/// Makes the calling thread's descriptor table as large as it may become. The
/// kernel doubles a table when it is full, and where threads share it every
/// thread that opens something waits some milliseconds for that (seen with
/// strace: `accept4` 5 to 8 ms at descriptors 256, 512, … 8192).
pub fn grow_table(limit: usize) {
    let Some(last) = limit.checked_sub(1).and_then(|n| i32::try_from(n).ok()) else { return };
    // Closed again at once; the table stays. A refusal costs only those waits.
    drop(rustix::io::fcntl_dupfd_cloexec(std::io::stdin(), last.min(MAX_GROWN)));
}

/// Raises the soft limit of open files to the hard one and returns it.
#[must_use]
pub fn raise_limit() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    // A refusal leaves the old limit, which is then what holds.
    let current =
        if setrlimit(Resource::Nofile, raised).is_ok() { limit.maximum } else { limit.current };
    current.map_or(usize::MAX, |most| usize::try_from(most).unwrap_or(usize::MAX))
}
