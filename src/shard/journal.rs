//! The log as a home shard sees it.
//!
//! A trait with one answer today, the log of this process; with several
//! machines it is a stream that they share.

use std::fmt;

use crate::log::{Batch, Log, LogFailure, Read};

/// Makes important events durable.
pub trait Journal: Send + Sync + fmt::Debug {
    /// Never blocks; the result comes back as
    /// [`Message::Logged`](super::peers::Message::Logged).
    ///
    /// # Errors
    /// It cannot take the batch, of which then nothing is logged.
    fn submit(&self, batch: Batch) -> Result<(), LogFailure>;

    /// Changes whenever what was submitted before is lost.
    fn generation(&self) -> u64;

    /// Reads what memory has forgotten. Never blocks.
    ///
    /// # Errors
    /// As many reads wait as may.
    fn read(&self, request: Read) -> Result<(), LogFailure>;
}

impl Journal for Log {
    fn submit(&self, batch: Batch) -> Result<(), LogFailure> {
        Log::submit(self, batch)
    }

    fn generation(&self) -> u64 {
        Log::generation(self)
    }

    fn read(&self, request: Read) -> Result<(), LogFailure> {
        Log::read(self, request)
    }
}
