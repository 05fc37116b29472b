//! Real-time priority, for what must not measure its own waiting.

/// Has this thread run before all those on its processors that have no such priority,
/// or a lower one (`SCHED_FIFO`). Returns whether that is allowed.
pub(crate) fn run_first(priority: u8) -> bool {
    let priority = libc::sched_param { sched_priority: priority.into() };
    // SAFETY: 0 is the calling thread, and the kernel copies `priority` during the call.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const priority) == 0 }
}
