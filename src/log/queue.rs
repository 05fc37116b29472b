//! What waits for the writer.
//!
//! One lock, held to push and to take everything at once, never while the disk
//! works. The state of the log is under the same lock: so a batch is refused,
//! or its writer sees it, but nothing falls between.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::engine::time::Time;

use super::stats::LogState;
use super::{Batch, LogFailure};

/// A batch with the bytes it may need on the disk.
pub(super) struct Waiting {
    pub(super) batch: Batch,
    pub(super) bytes: usize,
}

#[derive(Default)]
struct Inner {
    waiting: VecDeque<Waiting>,
    bytes: usize,
    closed: bool,
    state: LogState,
}

/// See the module.
pub(super) struct Queue {
    inner: Mutex<Inner>,
    wake: Condvar,
    generation: AtomicU64,
    limit: usize,
}

/// What the writer finds.
pub(super) enum Taken {
    /// In order of submission; not empty.
    Group(Vec<Waiting>),
    /// Nothing came in time.
    Nothing,
    /// Nothing will come any more.
    Closed,
}

impl Queue {
    pub(super) fn new(limit: usize) -> Self {
        Self { inner: Mutex::default(), wake: Condvar::new(), generation: AtomicU64::new(0), limit }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    pub(super) fn state(&self) -> LogState {
        self.lock().state
    }

    /// Batches waiting, and bytes.
    pub(super) fn len(&self) -> (usize, usize) {
        let inner = self.lock();
        (inner.waiting.len(), inner.bytes)
    }

    pub(super) fn push(&self, batch: Batch, bytes: usize) -> Result<(), LogFailure> {
        let mut inner = self.lock();
        if inner.closed {
            return Err(LogFailure::Closed);
        }
        if batch.generation != self.generation() {
            return Err(LogFailure::Stale);
        }
        if let LogState::Failing { why, .. } = inner.state {
            return Err(why);
        }
        if inner.bytes.saturating_add(bytes) > self.limit {
            return Err(LogFailure::Queue);
        }
        inner.bytes += bytes;
        inner.waiting.push_back(Waiting { batch, bytes });
        // The writer sleeps only while nothing waits.
        let first = inner.waiting.len() == 1;
        drop(inner);
        if first {
            self.wake.notify_one();
        }
        Ok(())
    }

    /// Everything that waits, up to a number of bytes but one batch at least;
    /// waits for it if need be.
    pub(super) fn take(&self, most: usize, patience: Duration) -> Taken {
        let idle = |inner: &mut Inner| inner.waiting.is_empty() && !inner.closed;
        let waited = self.wake.wait_timeout_while(self.lock(), patience, idle);
        let (mut inner, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if inner.waiting.is_empty() {
            return if inner.closed { Taken::Closed } else { Taken::Nothing };
        }
        let mut bytes = 0;
        let mut count = 0;
        for waiting in &inner.waiting {
            bytes += waiting.bytes;
            if bytes > most && count > 0 {
                bytes -= waiting.bytes;
                break;
            }
            count += 1;
        }
        inner.bytes -= bytes;
        if count == inner.waiting.len() {
            return Taken::Group(std::mem::take(&mut inner.waiting).into());
        }
        Taken::Group(inner.waiting.drain(..count).collect())
    }

    /// Ends a generation: nothing is taken until [`Queue::recover`], and what
    /// waits comes back.
    pub(super) fn fail(&self, why: LogFailure, now: Time) -> VecDeque<Waiting> {
        let mut inner = self.lock();
        self.generation.fetch_add(1, Ordering::Release);
        let since = match inner.state {
            LogState::Writable => now,
            LogState::Failing { since, .. } => since,
        };
        inner.state = LogState::Failing { why, since };
        inner.bytes = 0;
        std::mem::take(&mut inner.waiting)
    }

    /// The attempt to go on failed again.
    pub(super) fn still_failing(&self, why: LogFailure, now: Time) {
        let mut inner = self.lock();
        let since = match inner.state {
            LogState::Writable => now,
            LogState::Failing { since, .. } => since,
        };
        inner.state = LogState::Failing { why, since };
    }

    /// There is a segment to write to again.
    pub(super) fn recover(&self) {
        self.lock().state = LogState::Writable;
    }

    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.wake.notify_all();
    }
}
