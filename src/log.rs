//! The durable log of important events.
//!
//! Segments of our own, appended to by one thread: what waits is written and
//! synced together (`writer`), and only then do publishers hear `accepted`. Each
//! record carries its check (`format`, `record`), an index in memory says where
//! each retained event stands (`index`), and a thread of its own reads them
//! (`reader`). Opening the log reads it back (`layout`, `recovery`) and says what
//! was found ([`Report`]). docs/log.md draws the format, tells why this is no
//! B-tree, and what it costs.
//!
//! The calling contract:
//! - A room that is in use submits something, an event or a reservation, at
//!   least once within [`Retention::age`], or it is forgotten.
//! - Important numbers of a numbering rise from submission to submission. A
//!   refused one may be given again, in the new generation.
//! - Sequence numbers are given out only up to what a reservation that was
//!   answered with success allows.
//! - After a failure everything that was waiting fails too, since its numbers
//!   build on those that failed: callers take their numbers back, ask for the
//!   [`Log::generation`], and submit under the new one.

mod disk;
mod format;
mod index;
mod layout;
mod queue;
mod reader;
mod record;
mod recovery;
mod report;
mod settings;
mod stats;
mod writer;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use thiserror::Error;

use crate::clock::Clock;
use crate::engine::event::Numbered;
use crate::engine::ids::{Epoch, ImportantNo, RoomId, Seq, ShardId};
use crate::engine::time::Time;

pub use disk::{Disk, DiskFile, RealDisk};
pub use record::KindOf;
pub use report::{Damage, DamageKind, Former, Lost, Recovered, Renumbered, Report, RestoredRoom};
pub use settings::{LogSettings, Retention};
pub use stats::{Failures, LogState, LogStats, SYNC_BOUNDS_US, SyncTimes};

use format::MAX_BODY;
use index::Index;
use layout::LayoutError;
use queue::Queue;
use reader::Reader;
use record::{event_bound, numbering_bound};
use writer::Writer;

/// Something to be made durable.
#[derive(Debug, Clone)]
pub enum Entry {
    /// An important event.
    Event {
        /// Whose.
        room: RoomId,
        /// Of which numbering.
        epoch: Epoch,
        /// The event; it has both numbers.
        event: Arc<Numbered>,
    },
    /// Sequence numbers up to `seq` may be in use: none of them is given again
    /// after a restart. A lower one takes a higher one back, which a clean stop
    /// does to leave no gap.
    Reserve {
        /// Whose.
        room: RoomId,
        /// Of which numbering.
        epoch: Epoch,
        /// The highest.
        seq: Seq,
    },
}

/// What is made durable and answered together.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Who is told.
    pub shard: ShardId,
    /// The submitter's own name for it.
    pub ticket: u64,
    /// [`Log::generation`] when its numbers were given.
    pub generation: u64,
    /// In order.
    pub entries: Vec<Entry>,
}

/// What became of a batch. Each shard hears of its batches in the order in
/// which it submitted them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Logged {
    /// From the batch.
    pub shard: ShardId,
    /// From the batch.
    pub ticket: u64,
    /// Durable, or not.
    pub result: Result<(), LogFailure>,
}

/// Why something was not made durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum LogFailure {
    /// The system refused a write.
    #[error("the log could not be written")]
    Write,
    /// The system failed to sync: what was written may be gone.
    #[error("the log could not be synced")]
    Sync,
    /// The disk or the quota is full.
    #[error("the disk of the log is full")]
    Full,
    /// Submitted in a generation that has failed.
    #[error("an earlier write to the log failed")]
    Stale,
    /// The log is closed.
    #[error("the log is closed")]
    Closed,
    /// Too much waits already.
    #[error("the log is behind")]
    Queue,
    /// An event without numbers, out of order, or larger than any record: a
    /// fault of the submitter. It concerns this batch alone.
    #[error("the log takes no such event")]
    Invalid,
}

impl LogFailure {
    /// For answers and metrics.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::Write => "log_write",
            Self::Sync => "log_sync",
            Self::Full => "log_full",
            Self::Stale => "log_stale",
            Self::Closed => "log_closed",
            Self::Queue => "log_queue",
            Self::Invalid => "log_invalid",
        }
    }
}

/// Asks for retained events of one numbering.
pub struct Read {
    /// Whose.
    pub room: RoomId,
    /// Of which numbering.
    pub epoch: Epoch,
    /// Those after this one.
    pub after: ImportantNo,
    /// At most so many; one at least.
    pub max_events: usize,
    /// At most so many bytes of records; one event at least.
    pub max_bytes: usize,
    /// Called once, on the reader's thread.
    pub reply: Box<dyn FnOnce(ReadAnswer) + Send>,
}

impl fmt::Debug for Read {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { room, epoch, after, .. } = self;
        write!(f, "Read({room} {epoch:?} after {after:?})")
    }
}

/// The answer to a [`Read`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReadAnswer {
    /// Oldest first.
    pub events: Vec<Arc<Numbered>>,
    /// No event is missing between `after` and the last of them: neither gone
    /// by retention nor lost by damage.
    pub complete: bool,
    /// More follow.
    pub more: bool,
}

/// Why a log cannot be opened.
#[derive(Debug, Error)]
pub enum LogError {
    /// Another process uses it.
    #[error("{0}: the log is in use by another process")]
    Locked(String),
    /// The directory cannot be read or written.
    #[error("{0}: {1}")]
    Directory(String, io::Error),
    /// A later version wrote it.
    #[error(
        "{directory}: segment {segment} has format {version}, this version knows up to {known}"
    )]
    Version {
        /// Where.
        directory: String,
        /// Which file.
        segment: u32,
        /// Its format.
        version: u32,
        /// The latest known here.
        known: u32,
    },
    /// A setting is out of its range.
    #[error("{0}")]
    Settings(&'static str),
}

/// Time as the log sees it: counted on from what it was opened with.
#[derive(Debug, Clone, Copy)]
struct Ticker {
    clock: Clock,
    started: Time,
    base: Time,
}

impl Ticker {
    fn new(base: Time) -> Self {
        let clock = Clock::start();
        Self { clock, started: clock.now(), base }
    }

    fn now(&self) -> Time {
        self.base + self.clock.now().since(self.started)
    }
}

/// What the threads share. Whoever takes both locks takes the index first.
struct Shared {
    queue: Queue,
    index: Mutex<Index>,
    stats: Mutex<LogStats>,
}

impl Shared {
    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stats(&self) -> MutexGuard<'_, LogStats> {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The log; see the module for how to call it. Dropping it closes it.
pub struct Log {
    shared: Arc<Shared>,
    reads: Mutex<Option<SyncSender<Read>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Held until the threads have ended.
    lock: Mutex<Option<Box<dyn Send + Sync>>>,
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Log({:?})", self.state())
    }
}

impl Log {
    /// Opens the log in its directory, creating it if need be, and reads back
    /// what it holds. `done` hears what became of each batch, on the writer's
    /// thread; it must be quick and must not submit.
    ///
    /// A full disk is no error here: the log opens `Failing` and tries on.
    ///
    /// # Errors
    /// [`LogError`]. Damage is none: it is in the report.
    pub fn open(
        settings: LogSettings,
        kinds: KindOf,
        now: Time,
        done: Box<dyn Fn(Logged) + Send>,
    ) -> Result<(Self, Recovered), LogError> {
        let disk = RealDisk::open(&settings.directory)
            .map_err(|error| LogError::Directory(name(&settings), error))?;
        Self::open_on(Arc::new(disk), settings, kinds, now, done)
    }

    /// Like [`Log::open`], on another disk; the directory is only a name then.
    ///
    /// # Errors
    /// See [`Log::open`].
    pub fn open_on(
        disk: Arc<dyn Disk>,
        settings: LogSettings,
        kinds: KindOf,
        now: Time,
        done: Box<dyn Fn(Logged) + Send>,
    ) -> Result<(Self, Recovered), LogError> {
        check(&settings)?;
        let directory = |error| LogError::Directory(name(&settings), error);
        let lock = disk.lock().map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => LogError::Locked(name(&settings)),
            _ => directory(error),
        })?;
        let restored = recovery::restore(disk.as_ref(), &settings, &kinds, now);
        let restored = restored.map_err(|error| match error {
            LayoutError::Io(error) => directory(error),
            LayoutError::Newer { segment, version } => {
                let (directory, known) = (name(&settings), format::VERSION);
                LogError::Version { directory, segment, version, known }
            }
        })?;
        let damaged = &restored.recovered.report.damaged;
        let stats = LogStats {
            damaged_stretches: damaged.len() as u64,
            damaged_bytes: damaged.iter().map(|damage| damage.bytes).sum(),
            ..LogStats::default()
        };
        let shared = Arc::new(Shared {
            queue: Queue::new(settings.queue_bytes),
            index: Mutex::new(restored.index),
            stats: Mutex::new(stats),
        });
        let store = restored.store.unwrap_or_else(rand::random);
        let (read_queue, kept) = (settings.read_queue, name(&settings));
        let mut writer = Writer::new(
            Arc::clone(&disk),
            settings,
            Arc::clone(&shared),
            done,
            Ticker::new(now),
            store,
        );
        writer.previous = restored.last;
        writer.next = restored.next;
        writer
            .start(&restored.garbage)
            .map_err(|error| LogError::Directory(kept.clone(), error))?;
        let files = HashMap::new();
        let reader = Reader { disk, kinds, store, shared: Arc::clone(&shared), files };
        let (reads, requests) = sync_channel(read_queue);
        let log = Self {
            shared,
            reads: Mutex::new(Some(reads)),
            threads: Mutex::default(),
            lock: Mutex::new(Some(lock)),
        };
        let failed = |error| LogError::Directory(kept.clone(), error);
        log.run("log-writer", move || writer.run()).map_err(failed)?;
        log.run("log-reader", move || reader.run(&requests)).map_err(failed)?;
        Ok((log, restored.recovered))
    }

    fn run(&self, name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let thread = thread::Builder::new().name(name.to_owned()).spawn(body)?;
        self.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
        Ok(())
    }

    /// Hands a batch to the writer. Never waits for the disk.
    ///
    /// # Errors
    /// Any [`LogFailure`]; the batch is not answered by `done` then.
    pub fn submit(&self, batch: Batch) -> Result<(), LogFailure> {
        let sizes = batch.entries.iter().map(|entry| match entry {
            Entry::Event { room, event, .. } => event_bound(room, &event.event),
            Entry::Reserve { room, .. } => numbering_bound(room),
        });
        let (bytes, largest) = sizes.fold((0, 0), |(sum, most), size| (sum + size, size.max(most)));
        let result = if largest > MAX_BODY {
            Err(LogFailure::Invalid)
        } else {
            self.shared.queue.push(batch, bytes)
        };
        if let Err(failure) = result {
            self.shared.stats().failures.count(failure);
        }
        result
    }

    /// The generation under which numbers are given now.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.shared.queue.generation()
    }

    /// Asks for retained events. Never waits for the disk.
    ///
    /// # Errors
    /// `Queue` when too many reads wait, `Closed`; `reply` is not called then.
    pub fn read(&self, request: Read) -> Result<(), LogFailure> {
        let reads = self.reads.lock().unwrap_or_else(PoisonError::into_inner);
        let sender = reads.as_ref().ok_or(LogFailure::Closed)?;
        sender.try_send(request).map_err(|error| match error {
            TrySendError::Full(_) => {
                self.shared.stats().reads_refused += 1;
                LogFailure::Queue
            }
            TrySendError::Disconnected(_) => LogFailure::Closed,
        })
    }

    /// A picture of the counters.
    #[must_use]
    pub fn stats(&self) -> LogStats {
        let (queue_batches, queue_bytes) = self.shared.queue.len();
        let state = self.state();
        let index = self.shared.index();
        LogStats {
            state,
            queue_batches,
            queue_bytes,
            rooms: index.rooms(),
            events: index.tally.events,
            event_bytes: index.tally.bytes,
            segments: index.tally.segments.len(),
            segment_bytes: index.segment_bytes(),
            ..*self.shared.stats()
        }
    }

    /// Whether it takes anything.
    #[must_use]
    pub fn state(&self) -> LogState {
        self.shared.queue.state()
    }

    /// Takes no more, makes durable and answers what waits, and ends.
    pub fn close(self) {
        self.stop();
    }

    /// [`Log::close`] for those who share it: everything submitted later is
    /// refused with `Closed`.
    pub fn stop(&self) {
        self.shared.queue.close();
        *self.reads.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let threads: Vec<_> =
            self.threads.lock().unwrap_or_else(PoisonError::into_inner).drain(..).collect();
        for thread in threads {
            // A thread that panicked has said so itself.
            let _ = thread.join();
        }
        *self.lock.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.stop();
    }
}

fn name(settings: &LogSettings) -> String {
    settings.directory.display().to_string()
}

fn check(settings: &LogSettings) -> Result<(), LogError> {
    let rules = [
        ((1 << 10..=1 << 30).contains(&settings.segment_bytes), "segments have 1 KiB to 1 GiB"),
        ((1..=256 << 20).contains(&settings.group_bytes), "groups have 1 byte to 256 MiB"),
        (settings.ahead_bytes <= 64 << 20, "up to 64 MiB are filled ahead"),
        ((1..=1 << 20).contains(&settings.read_queue), "1 to 1,048,576 reads may wait"),
        (!settings.first_pause.is_zero(), "attempts are some time apart"),
        (!settings.retention.age.is_zero(), "events are retained for some time"),
    ];
    match rules.iter().find(|(holds, _)| !holds) {
        Some((_, rule)) => Err(LogError::Settings(rule)),
        None => Ok(()),
    }
}
