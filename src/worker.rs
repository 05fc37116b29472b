//! One shard's thread: drives the shard, its transports and its part of the
//! HTTP interface on one single-threaded runtime.
//!
//! The loop gives each kind of work its turn, in this order, and bounds every
//! turn: messages of other threads ([`MAILBOX_TURN`]), new connections
//! ([`ARRIVALS_TURN`]), sockets that bring something ([`Reader::turn`],
//! [`Driver::turn`]), timers,
//! one slice of fan-out. Requests and handshakes are tasks of the same runtime
//! and run between two rounds ([`Tasks`]); what they may read in between is bounded too
//! ([`Turns`](crate::ingress::turns::Turns)).
//!
//! Tasks and their owners: the accept loop and every connection before its
//! upgrade belong to the thread's local task set, which ends with
//! [`Worker::run`]; a viewer is no task but a row of the shard.

pub mod accept;
pub mod descriptors;
pub mod doorway;
pub mod entrance;
pub mod give_way;
pub mod preface;
pub mod stream;
pub mod tasks;

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::task::{AbortHandle, spawn_local};

use self::accept::{Arrival, Edge};
use self::tasks::Tasks;
use crate::clock::Clock;
use crate::ingress::stats::EdgeStats;
use crate::shard::Shard;
use crate::shard::peers::{Inbox, Message};
use crate::transport::quic::driver::Driver;
use crate::transport::websocket::reader::{Listener, Reader};

/// Messages handled before the sockets get their turn.
const MAILBOX_TURN: usize = 256;
/// New viewers taken over before the sockets get their turn.
const ARRIVALS_TURN: usize = 64;
/// How long each of the two takes at most: 64 arrivals took 10 ms while 15,000 came at
/// once (measured).
const TURN: Duration = Duration::from_millis(2);

/// Limits of a worker's reading side.
#[derive(Debug, Clone, Copy)]
pub struct ReadLimits {
    /// Largest message, in bytes.
    pub max_message: usize,
    /// A message that was begun must be complete within this.
    pub message_timeout: Duration,
}

/// How often the lag is measured.
const LAG_EVERY: Duration = Duration::from_millis(50);

/// Measures how long tasks of this thread wait for their turn: requests are
/// such tasks, and lie in their sockets for that long before anybody sees them.
///
/// Only after work, and once more when it is over: to wake a thread that has
/// nothing to do twenty times a second took 4 ms of every second, a twentieth of
/// what 15,000 viewers with a frame a second cost.
async fn measure_lag(clock: Clock, stats: Arc<EdgeStats>, work: Rc<Notify>) {
    loop {
        work.notified().await;
        let due = clock.now() + LAG_EVERY;
        tokio::time::sleep_until(clock.instant(due).into()).await;
        // A timer is a millisecond late by its wheel.
        let late = clock.now().since(due).saturating_sub(Duration::from_millis(1));
        stats.lag_micros.store(late.as_micros() as u64, Ordering::Relaxed);
    }
}

/// Ends a task with its owner.
struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// See the module's documentation.
pub struct Worker<L> {
    shard: Shard,
    listener: L,
    clock: Clock,
    inbox: Inbox,
    arrivals: mpsc::UnboundedReceiver<Arrival>,
    edge: Rc<Edge>,
    reader: Reader,
    quic: Option<Driver>,
    draining: Arc<AtomicBool>,
}

impl<L: Listener> Worker<L> {
    /// Call within the thread's runtime.
    ///
    /// # Errors
    /// When the kernel gives no readiness queue.
    pub fn new(
        shard: Shard,
        listener: L,
        clock: Clock,
        inbox: Inbox,
        arrivals: mpsc::UnboundedReceiver<Arrival>,
        edge: Rc<Edge>,
        limits: ReadLimits,
    ) -> io::Result<Self> {
        let reader = Reader::new(clock, limits.max_message, limits.message_timeout)?;
        let draining = Arc::clone(&edge.draining);
        Ok(Self { shard, listener, clock, inbox, arrivals, edge, reader, quic: None, draining })
    }

    /// The shard; to attach what carries its viewers.
    pub fn shard_mut(&mut self) -> &mut Shard {
        &mut self.shard
    }

    /// Viewers come over QUIC, too.
    pub fn serve_quic(&mut self, quic: Driver) {
        self.quic = Some(quic);
    }

    /// Runs until the shard has drained, or the readiness queue fails.
    ///
    /// # Errors
    /// The readiness queue's.
    pub async fn run(mut self) -> io::Result<()> {
        let started = self.clock.now();
        let work = Rc::new(Notify::new());
        let probe = measure_lag(self.clock, Arc::clone(&self.edge.stats), Rc::clone(&work));
        let probe = spawn_local(probe);
        let _ended_with_the_worker = AbortOnDrop(probe.abort_handle());
        let metrics = tokio::runtime::Handle::current().metrics();
        // Requests and handshakes are work too: only the runtime knows when
        // the thread truly slept.
        let mut accounted = (started, metrics.worker_total_busy_duration(0));
        let tasks = Tasks::new(self.clock, tasks::TURN);
        let mut requests_wait = false;
        loop {
            let begun = self.clock.now();
            let worked = metrics.worker_total_busy_duration(0);
            let idle = begun.since(accounted.0).saturating_sub(worked - accounted.1);
            accounted = (begun, worked);
            let mut busy = self.take_messages();
            busy |= self.take_arrivals();
            busy |= self.reader.turn(&mut self.shard, &mut self.listener, requests_wait)?;
            if let Some(quic) = &mut self.quic {
                busy |= quic.turn(&mut self.shard, &mut self.listener, begun)?;
            }
            self.shard.tick(idle, requests_wait);
            let took_in = self.shard.take_in();
            if took_in {
                // The frames of its own rooms leave now, not a round later.
                self.take_messages();
            }
            busy |= took_in | self.shard.fan_out(took_in, requests_wait);
            self.shard.viewers.flush_carried();
            busy |= self.quic.as_ref().is_some_and(Driver::has_news);
            requests_wait = self.let_requests_go();
            busy |= requests_wait;
            self.edge.viewers.set(self.shard.viewers.sockets());
            let now = self.clock.now();
            self.shard.stats.busy_micros += now.since(begun).as_micros() as u64;
            if self.shard.is_drained() {
                if let Some(quic) = &self.quic {
                    quic.finish();
                }
                return Ok(());
            }
            if busy {
                work.notify_one();
                tasks.turn().await;
            } else if self.sleep(started).await? {
                work.notify_one();
            }
        }
    }

    /// Requests that waited for their turn are read once the thread's tasks run.
    /// Returns whether more wait.
    fn let_requests_go(&self) -> bool {
        let Some(api) = &self.edge.api else { return false };
        let waiting = api.turns.turn();
        self.edge.stats.waiting.store(waiting as u64, Ordering::Relaxed);
        waiting > 0
    }

    fn take_messages(&mut self) -> bool {
        let begun = self.clock.now();
        for _ in 0..MAILBOX_TURN {
            let Ok(message) = self.inbox.receiver.try_recv() else { return false };
            self.handle(message);
            if self.clock.now().since(begun) >= TURN {
                break;
            }
        }
        true
    }

    fn take_arrivals(&mut self) -> bool {
        let begun = self.clock.now();
        for _ in 0..ARRIVALS_TURN {
            let Ok(arrival) = self.arrivals.try_recv() else { return false };
            self.admit(arrival);
            if self.clock.now().since(begun) >= TURN {
                break;
            }
        }
        true
    }

    fn handle(&mut self, message: Message) {
        if let Message::Publish { events, .. } = &message {
            self.inbox.taken(events.len());
        }
        if matches!(message, Message::Flush(_)) {
            self.draining.store(true, Ordering::Relaxed);
            self.edge.stop_accepting();
            if let Some(quic) = &self.quic {
                quic.drain();
            }
        }
        self.shard.handle(message);
    }

    fn admit(&mut self, arrival: Arrival) {
        let now = self.clock.now();
        let key = match arrival.channel {
            None => self.shard.open(arrival.stream, arrival.format),
            Some(channel) => self.shard.open_secure(arrival.stream, channel, arrival.format),
        };
        let leftover = &arrival.leftover;
        self.reader.watch(&mut self.shard, key, leftover, &mut self.listener, now);
    }

    /// Until something comes, or the shard's next deadline. Returns whether
    /// something came.
    async fn sleep(&mut self, started: crate::engine::time::Time) -> io::Result<bool> {
        let mut deadline = self.clock.instant(self.shard.next_deadline(started));
        if let Some(at) = self.quic.as_ref().and_then(Driver::next_deadline) {
            deadline = deadline.min(at);
        }
        let datagrams = async {
            match &mut self.quic {
                Some(quic) => quic.ready().await,
                None => std::future::pending().await,
            }
        };
        let requests = async {
            match &self.edge.api {
                Some(api) => api.turns.asked().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            Some(message) = self.inbox.receiver.recv() => self.handle(message),
            Some(arrival) = self.arrivals.recv() => self.admit(arrival),
            ready = self.reader.ready() => ready?,
            stray = datagrams => stray?,
            () = requests => {}
            () = tokio::time::sleep_until(deadline.into()) => return Ok(false),
        }
        Ok(true)
    }
}
