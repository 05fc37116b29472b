//! Waits for the sockets of one shard and turns what they bring into calls.
//!
//! One readiness queue for all viewers, edge-triggered, so a viewer costs no
//! task, no timer and no system call while it is quiet. The queue's descriptor
//! is itself watched by the shard's runtime ([`Reader::ready`]).

use std::collections::HashMap;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::decode::{Decoder, Inbound, Rules};
use crate::clock::Clock;
use crate::engine::time::Time;
use crate::shard::Shard;
use crate::shard::connection::ViewerKey;
use crate::shard::secure::Brought;
use crate::wire::close::CloseReason;
use crate::wire::deflate::Inflater;
use crate::wire::frame;

/// Sockets looked at in one go, before a look at the clock.
const EVENTS: usize = 16;
/// How long sockets are looked at before the shard's other work has its turn, and the
/// same while requests wait to be read. A socket that takes bytes again is written all
/// that waits: 256 of them took 12 to 19 ms (measured, while 15,000 viewers who had come
/// at once were behind).
const TURN: Duration = Duration::from_millis(2);
const SHORT_TURN: Duration = Duration::from_micros(500);
/// The shard's one read buffer, in bytes.
const SCRATCH: usize = 64 * 1024;
/// Buffers read from one socket before the next one has its turn.
const READS: usize = 4;

/// Whoever is told what viewers say.
pub trait Listener {
    /// A connection was opened.
    fn opened(&mut self, shard: &mut Shard, key: ViewerKey);
    /// A whole message came. Pings, pongs and closes are dealt with already.
    fn message(&mut self, shard: &mut Shard, key: ViewerKey, message: Inbound<'_>);
    /// A ping came; false if it is one too many.
    fn ping(&mut self, shard: &mut Shard, key: ViewerKey) -> bool;
}

struct Unfinished {
    generation: u32,
    since: Time,
    decoder: Decoder,
}

/// See the module's documentation.
pub struct Reader {
    clock: Clock,
    queue: AsyncFd<OwnedFd>,
    events: Vec<Event>,
    scratch: Vec<u8>,
    /// What came over TLS, in plain.
    plain: Vec<u8>,
    inflater: Inflater,
    /// Connections in the middle of a message, by row.
    unfinished: HashMap<u32, Unfinished>,
    /// Sockets that had more to read when their turn was over.
    again: Vec<ViewerKey>,
    max_message: usize,
    message_timeout: Duration,
    next_sweep: Time,
}

impl Reader {
    /// Call within the shard's runtime.
    ///
    /// # Errors
    /// When the kernel gives no readiness queue.
    pub fn new(clock: Clock, max_message: usize, message_timeout: Duration) -> io::Result<Self> {
        let queue = epoll::create(CreateFlags::CLOEXEC)?;
        // SAFETY: an `OwnedFd` is open and the same until it is dropped, and the
        // `AsyncFd` owns it; nothing takes it out again.
        let queue = unsafe { AsyncFd::register_with_interest(queue, Interest::READABLE) }
            .map_err(io::Error::from)?;
        Ok(Self {
            clock,
            queue,
            events: Vec::with_capacity(EVENTS),
            scratch: vec![0; SCRATCH],
            plain: Vec::new(),
            inflater: Inflater::default(),
            unfinished: HashMap::new(),
            again: Vec::new(),
            max_message,
            message_timeout,
            next_sweep: Time::default(),
        })
    }

    /// Watches a viewer's socket from now on; `leftover` was read from it with
    /// the handshake.
    pub fn watch(
        &mut self,
        shard: &mut Shard,
        key: ViewerKey,
        leftover: &[u8],
        listener: &mut dyn Listener,
        now: Time,
    ) {
        let Some(stream) = shard.viewers.stream(key.index) else { return };
        // Edge-triggered, so that one registration lasts: the kernel signals
        // "writable" only after it has refused a write.
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        let data = EventData::new_u64(u64::from(key.generation) << 32 | u64::from(key.index));
        if epoll::add(self.queue.get_ref(), stream, data, flags).is_err() {
            return shard.close(key, CloseReason::Broken);
        }
        listener.opened(shard, key);
        if !leftover.is_empty() {
            self.take(shard, key, leftover, listener, now);
        }
    }

    /// Resolves when [`turn`](Self::turn) may have something to do.
    ///
    /// # Errors
    /// When the runtime is shutting down.
    pub async fn ready(&mut self) -> io::Result<()> {
        // Cleared before the queue is emptied: what comes in between makes it
        // ready again.
        self.queue.readable().await?.clear_ready();
        Ok(())
    }

    /// Deals with sockets that bring something, for about [`TURN`]; less when `pressed`.
    /// Returns whether there may be more.
    ///
    /// # Errors
    /// The readiness queue's own.
    pub fn turn(
        &mut self,
        shard: &mut Shard,
        listener: &mut dyn Listener,
        pressed: bool,
    ) -> io::Result<bool> {
        let turn = if pressed { SHORT_TURN } else { TURN };
        let begun = self.clock.now();
        let mut now = begun;
        while self.step(shard, listener, now)? {
            now = self.clock.now();
            if now.since(begun) >= turn {
                return Ok(true);
            }
        }
        Ok(!self.again.is_empty())
    }

    /// The same with up to [`EVENTS`] sockets. Returns whether there may be more.
    fn step(
        &mut self,
        shard: &mut Shard,
        listener: &mut dyn Listener,
        now: Time,
    ) -> io::Result<bool> {
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        let events = spare_capacity(&mut self.events);
        match epoll::wait(self.queue.get_ref(), events, Some(&at_once)) {
            Err(rustix::io::Errno::INTR) | Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        let full = self.events.len() >= EVENTS;
        let mut ready: Vec<ViewerKey> = std::mem::take(&mut self.again);
        for event in self.events.drain(..) {
            let (data, flags) = (event.data.u64(), event.flags);
            let key = ViewerKey { index: data as u32, generation: (data >> 32) as u32 };
            if flags.contains(EventFlags::OUT) {
                shard.writable(key);
            }
            let ends = EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR;
            if flags.intersects(EventFlags::IN | ends) {
                ready.push(key);
            }
        }
        for key in ready {
            match shard.viewers.is_secure(key.index) {
                false => self.read(shard, key, listener, now),
                true => self.read_secure(shard, key, listener, now),
            }
        }
        if now >= self.next_sweep {
            self.sweep(shard, now);
        }
        shard.settle(now);
        Ok(full)
    }

    fn read(&mut self, shard: &mut Shard, key: ViewerKey, listener: &mut dyn Listener, now: Time) {
        let mut scratch = std::mem::take(&mut self.scratch);
        for turn in 0.. {
            if shard.viewers.get(key).is_none() {
                break;
            }
            if turn == READS {
                self.again.push(key);
                break;
            }
            let Some(mut stream) = shard.viewers.stream(key.index) else { break };
            match stream.read(&mut scratch) {
                Ok(0) => {
                    shard.hung_up(key);
                    break;
                }
                Ok(read) => {
                    if shard.viewers.is_open(key) {
                        self.take(shard, key, &scratch[..read], listener, now);
                    }
                    if read < scratch.len() {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => {
                    shard.hung_up(key);
                    break;
                }
            }
        }
        self.scratch = scratch;
    }

    /// The same over TLS.
    fn read_secure(
        &mut self,
        shard: &mut Shard,
        key: ViewerKey,
        listener: &mut dyn Listener,
        now: Time,
    ) {
        let mut scratch = std::mem::take(&mut self.scratch);
        let mut plain = std::mem::take(&mut self.plain);
        for turn in 0.. {
            if shard.viewers.get(key).is_none() {
                break;
            }
            if turn == READS {
                self.again.push(key);
                break;
            }
            plain.clear();
            let brought = shard.viewers.receive(key.index, &mut scratch, &mut plain);
            // Also of what was said before an end or a mistake.
            if !plain.is_empty() && shard.viewers.is_open(key) {
                self.take(shard, key, &plain, listener, now);
            }
            match brought {
                Ok(brought) if brought.closed && shard.viewers.is_open(key) => {
                    shard.hung_up(key);
                    break;
                }
                Ok(Brought { read: 0, .. }) => {
                    shard.hung_up(key);
                    break;
                }
                Ok(brought) if !brought.more => break,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => {
                    shard.hung_up(key);
                    break;
                }
            }
        }
        self.scratch = scratch;
        // A flood's buffer is given back.
        plain.shrink_to(SCRATCH);
        self.plain = plain;
    }

    fn take(
        &mut self,
        shard: &mut Shard,
        key: ViewerKey,
        bytes: &[u8],
        listener: &mut dyn Listener,
        now: Time,
    ) {
        let known = self.unfinished.remove(&key.index);
        let known = known.filter(|unfinished| unfinished.generation == key.generation);
        let (mut decoder, since) =
            known.map_or_else(|| (Decoder::default(), now), |u| (u.decoder, u.since));
        let deflate = shard.viewers.row(key.index).format.is_deflate();
        let rules = Rules { deflate, max_message: self.max_message };
        let mut delivered = false;
        let result = decoder.feed(bytes, rules, &mut self.inflater, &mut |message| {
            delivered = true;
            heard(shard, key, message, listener);
            shard.viewers.is_open(key)
        });
        match result {
            Err(reason) => shard.close(key, reason),
            Ok(()) if !decoder.is_idle() && shard.viewers.is_open(key) => {
                let since = if delivered { now } else { since };
                let unfinished = Unfinished { generation: key.generation, since, decoder };
                self.unfinished.insert(key.index, unfinished);
            }
            Ok(()) => {}
        }
    }

    /// Once a second: whoever began a message must finish it in time.
    fn sweep(&mut self, shard: &mut Shard, now: Time) {
        self.next_sweep = now + Duration::from_secs(1);
        let timeout = self.message_timeout;
        self.unfinished.retain(|index, unfinished| {
            let key = ViewerKey { index: *index, generation: unfinished.generation };
            if !shard.viewers.is_open(key) {
                return false;
            }
            let late = now.since(unfinished.since) >= timeout;
            if late {
                shard.close(key, CloseReason::MessageTimeout);
            }
            !late
        });
        if self.unfinished.is_empty() {
            self.unfinished = HashMap::new();
        }
    }
}

fn heard(shard: &mut Shard, key: ViewerKey, message: Inbound<'_>, listener: &mut dyn Listener) {
    match message {
        Inbound::Ping(payload) => {
            if listener.ping(shard, key) {
                shard.send(key, frame::pong(payload));
            }
        }
        Inbound::Pong => {
            listener.ping(shard, key);
        }
        Inbound::Close(code) => {
            let answer = match code {
                Some(code) => frame::close_with(code, b""),
                None => frame::close_empty(),
            };
            shard.send(key, answer);
            shard.close(key, CloseReason::Peer);
        }
        Inbound::Text(_) | Inbound::Binary(_) => listener.message(shard, key, message),
    }
}
