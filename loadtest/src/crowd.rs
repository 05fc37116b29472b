//! Viewers that come back: a thread with many connections, each with a client's
//! model of its room. Unlike the viewers of [`worker`](crate::worker), which are
//! made to cost little, these parse what they get, acknowledge as told, pull
//! what is missing, reconnect with jitter and resume; and they keep what they
//! showed, so that it can be compared with what was accepted.

mod place;
mod ring;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use mio::{Poll, Token, Waker};
use tidegate::viewer::room::Tally;

use crate::hist::Recorded;
use crate::run::{Deadline, Progress};
use crate::sys;

/// Ages at which arrival is told, in microseconds: the server's horizons.
pub(crate) const HORIZONS_US: [u64; 3] = [1_000_000, 3_000_000, 10_000_000];

const WAKER: Token = Token(usize::MAX);

/// What a viewer does with important events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Behaviour {
    /// Acknowledges them as told.
    Acknowledges,
    /// Reads them, and is silent.
    Silent,
    /// Stops reading once it has joined.
    Deaf,
}

/// Who they are and where they go.
pub(crate) struct Plan {
    /// The server.
    pub(crate) addr: SocketAddr,
    /// HS256 secret.
    pub(crate) secret: String,
    /// Rooms, and how many viewers each has.
    pub(crate) rooms: Vec<(String, u32)>,
    /// One for each viewer, room after room.
    pub(crate) behaviours: Vec<Behaviour>,
    /// Connections begun per second, the first time.
    pub(crate) connect_rate: u64,
    /// A lost connection is made anew within this, in microseconds, drawn anew
    /// and doubled each time.
    pub(crate) backoff_us: u64,
    /// Up to this.
    pub(crate) max_backoff_us: u64,
    /// Second and third number of the loopback addresses to connect from.
    pub(crate) source: [u8; 2],
    /// Added to the thread's nice value.
    pub(crate) nice: i32,
    /// Of all draws.
    pub(crate) seed: u64,
}

/// What the thread is told.
enum Order {
    /// Close all connections; each is made anew within so many microseconds.
    Cut { within_us: u64 },
    /// Important numbers of the rooms, for [`Crowd::behind`].
    Target(Vec<u64>),
    /// End.
    Finish,
}

/// What the thread says while it runs.
#[derive(Default)]
struct Shared {
    live: AtomicU32,
    behind: AtomicU32,
    returning: AtomicU32,
    /// When the last one of those that were cut off had caught up.
    returned_us: AtomicU64,
    reconnected: AtomicU64,
    processor_ns: AtomicU64,
}

/// What one viewer saw.
#[derive(Debug)]
pub(crate) struct Seen {
    /// Index into [`Plan::rooms`].
    pub(crate) room: usize,
    /// The important number at its first join; `None`: it never came in.
    pub(crate) base: Option<u64>,
    /// Which of the publisher's events were shown, in order.
    pub(crate) shown: Vec<u32>,
}

/// What all of them saw.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// One for each viewer.
    pub(crate) viewers: Vec<Seen>,
    /// Connections that ended, by reason.
    pub(crate) closed: BTreeMap<String, u64>,
    /// Errors the server told, by code.
    pub(crate) errors: BTreeMap<String, u64>,
    /// Numbers seen with two events, in words.
    pub(crate) conflicts: Vec<String>,
    /// Connections made anew.
    pub(crate) reconnected: u64,
    /// Frames with room content.
    pub(crate) frames: u64,
    /// Notices of what only one viewer lost.
    pub(crate) gaps: u64,
    /// Viewers told to pull.
    pub(crate) missed: u64,
    /// Their models' counts, added up.
    pub(crate) tally: Tally,
    /// Per room: events shown by acknowledging viewers within each horizon.
    pub(crate) reached: Vec<[u64; 3]>,
    /// From beginning to reconnect after a cut to having caught up.
    pub(crate) comebacks: Recorded,
}

/// Every crowd of a process connects from addresses of its own, and so do the
/// crowds of processes beside it, away from those of [`fleet`](crate::fleet).
pub(crate) fn source() -> [u8; 2] {
    static CROWDS: AtomicU8 = AtomicU8::new(0);
    let process = u8::try_from(std::process::id() % 32).unwrap_or(0);
    [220 + process, CROWDS.fetch_add(1, Ordering::Relaxed)]
}

/// The thread.
pub(crate) struct Crowd {
    orders: Sender<Order>,
    waker: Waker,
    shared: Arc<Shared>,
    thread: JoinHandle<Result<Outcome>>,
}

impl Crowd {
    /// Starts the thread; its viewers begin to connect at once.
    pub(crate) fn start(plan: Plan) -> Result<Crowd> {
        sys::raise_descriptor_limit();
        let poll = Poll::new()?;
        let waker = Waker::new(poll.registry(), WAKER)?;
        let (orders, inbox) = channel();
        let shared = Arc::new(Shared::default());
        let ring = ring::Ring::new(plan, poll, inbox, Arc::clone(&shared))?;
        let thread = std::thread::Builder::new().name("crowd".into()).spawn(move || ring.run())?;
        Ok(Crowd { orders, waker, shared, thread })
    }

    /// Viewers that are in their rooms now.
    pub(crate) fn live(&self) -> u32 {
        self.shared.live.load(Ordering::Relaxed)
    }

    /// Connections made anew so far.
    pub(crate) fn reconnected(&self) -> u64 {
        self.shared.reconnected.load(Ordering::Relaxed)
    }

    /// Nanoseconds of processor time that the thread has used.
    pub(crate) fn processor_ns(&self) -> u64 {
        self.shared.processor_ns.load(Ordering::Relaxed)
    }

    /// Viewers that were cut off and have not caught up, and when the last one
    /// that has did so.
    pub(crate) fn returning(&self) -> (u32, u64) {
        let returning = self.shared.returning.load(Ordering::Acquire);
        (returning, self.shared.returned_us.load(Ordering::Relaxed))
    }

    /// Waits until so many are in their rooms.
    pub(crate) fn wait_live(
        &self,
        wanted: u32,
        deadline: Deadline,
        progress: &mut Progress,
    ) -> Result<()> {
        while self.live() < wanted {
            deadline.check("joining")?;
            self.check()?;
            progress.tell(&format!("{} viewers joined", self.live()));
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Closes all connections; each comes back within so long, at random.
    pub(crate) fn cut(&self, within_us: u64) -> Result<()> {
        self.tell(Order::Cut { within_us })
    }

    /// Waits until every viewer was shown what its room has, by these important
    /// numbers, or time is over; returns how many were not.
    pub(crate) fn settle(
        &self,
        numbers: Vec<u64>,
        deadline: Deadline,
        progress: &mut Progress,
    ) -> Result<u32> {
        self.shared.behind.store(u32::MAX, Ordering::Relaxed);
        self.tell(Order::Target(numbers))?;
        loop {
            let behind = self.shared.behind.load(Ordering::Relaxed);
            if behind == 0 || deadline.left().is_zero() {
                return Ok(behind);
            }
            self.check()?;
            if behind != u32::MAX {
                progress.tell(&format!("{behind} viewers are behind"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// An error if the thread has ended.
    pub(crate) fn check(&self) -> Result<()> {
        if self.thread.is_finished() { Err(anyhow!("the viewers' thread ended")) } else { Ok(()) }
    }

    /// Ends it; what everybody saw.
    pub(crate) fn finish(self) -> Result<Outcome> {
        // A thread that has ended says why below.
        let _ = self.tell(Order::Finish);
        self.thread.join().map_err(|_| anyhow!("the viewers' thread panicked"))?
    }

    fn tell(&self, order: Order) -> Result<()> {
        self.orders.send(order).map_err(|_| anyhow!("the viewers' thread ended"))?;
        self.waker.wake().context("waking the viewers' thread")
    }
}
