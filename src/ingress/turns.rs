//! Requests wait for their turn before their body is read.
//!
//! A runtime gives every connection that has something the same turn, so a
//! caller with 500 connections had 500 turns before another had its first, and
//! each took the time of reading a batch. Here a shard reads for
//! `ingress.slice_us` at a time, and who goes first is decided by
//! [`engine::turns`](crate::engine::turns). A flow is what one application sends
//! to one room: neither an application that serves all rooms, nor a room that
//! all applications write to, holds up the rest.

use std::hash::BuildHasher as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};

use crate::engine::ids::RoomId;
use crate::engine::turns::Turns as Order;

/// What a request costs beside its bytes: its head, its answer and the system
/// calls of both. Set, not learned (measured: 66 us of the thread's own time for
/// one of 20 events, its bytes included); requests without a body must not be
/// free.
const REQUEST: Duration = Duration::from_micros(35);
/// What a byte costs before one was read, in nanoseconds.
const BYTE: f64 = 20.0;
/// Weight of a request in what is learned, per KiB of its body; and at most.
const LEARN: (f64, f64) = (0.01, 0.2);

/// See the module's documentation. One per shard.
#[derive(Debug)]
pub struct Turns {
    state: Mutex<State>,
    hasher: foldhash::fast::RandomState,
    /// For a worker that sleeps.
    more: Notify,
}

#[derive(Debug)]
struct State {
    order: Order<oneshot::Sender<()>>,
    /// What a byte costs, in nanoseconds: a moving average.
    byte: f64,
}

impl State {
    /// What so many bytes cost.
    fn reading(&self, bytes: usize) -> Duration {
        Duration::from_nanos((self.byte * bytes as f64) as u64)
    }
}

impl Turns {
    /// Reads for `slice` at a time.
    #[must_use]
    pub fn new(slice: Duration) -> Self {
        let state = State { order: Order::new(slice), byte: BYTE };
        let hasher = foldhash::fast::RandomState::default();
        Self { state: Mutex::new(state), hasher, more: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until a request of this application with about so many bytes for
    /// that room is to be read.
    pub async fn wait(&self, application: &str, room: &RoomId, bytes: usize) -> Turn<'_> {
        let flow = self.hasher.hash_one((application, room.as_str()));
        let (go, gone) = oneshot::channel();
        let at_once = {
            let mut state = self.state();
            let cost = REQUEST + state.reading(bytes);
            state.order.ask(flow, cost, || go)
        };
        if !at_once {
            self.more.notify_one();
            // A worker that ends lets everybody go.
            let _ = gone.await;
        }
        Turn { turns: self, flow, bytes }
    }

    /// Returns when somebody waits, perhaps since long ago.
    pub async fn asked(&self) {
        self.more.notified().await;
    }

    /// The worker's turn for requests. Returns how many still wait.
    pub fn turn(&self) -> usize {
        let mut state = self.state();
        state.order.begin();
        while let Some(go) = state.order.let_go() {
            // Whose caller has left takes no time, but that is only known now.
            let _ = go.send(());
        }
        state.order.waiting()
    }
}

/// A request that is being read.
#[derive(Debug)]
#[must_use = "say what was read in it"]
pub struct Turn<'a> {
    turns: &'a Turns,
    flow: u64,
    bytes: usize,
}

impl Turn<'_> {
    /// It had so many bytes, and reading them took so long.
    pub fn read(self, bytes: usize, took: Duration) {
        let mut state = self.turns.state();
        if bytes > self.bytes {
            let more = state.reading(bytes - self.bytes);
            state.order.charge(self.flow, more);
        }
        if bytes > 0 {
            let weight = (LEARN.0 * bytes as f64 / 1024.0).min(LEARN.1);
            // A thread that lost its processor says nothing of the cost.
            let seen = (took.as_nanos() as f64 / bytes as f64).min(10.0 * state.byte);
            state.byte += weight * (seen - state.byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::{Pin, pin};
    use std::task::{Context, Poll, Waker};

    use super::*;

    const SLICE: Duration = Duration::from_millis(2);

    fn room(name: &str) -> RoomId {
        RoomId::new(name).expect("a name")
    }

    fn poll<F: Future>(future: Pin<&mut F>) -> Option<F::Output> {
        match future.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(ready) => Some(ready),
            Poll::Pending => None,
        }
    }

    #[test]
    fn a_flooded_room_waits_and_another_does_not() {
        let turns = Turns::new(SLICE);
        let (hot, small) = (room("hot"), room("small"));
        let mut flood: Vec<_> = (0..50).map(|_| Box::pin(turns.wait("im", &hot, 50_000))).collect();
        let read = flood.iter_mut().filter_map(|wait| poll(wait.as_mut())).count();
        assert_eq!(read, 2, "a millisecond each");
        let beside = poll(pin!(turns.wait("im", &small, 100)));
        assert!(beside.is_some(), "the same application");
        assert!(turns.turn() > 0, "more wait");
        // Callers that leave are passed over in the end.
        drop(flood);
        while turns.turn() > 0 {}
    }

    #[test]
    fn what_reading_costs_is_learned_and_what_was_not_told_is_charged() {
        let turns = Turns::new(SLICE);
        let hot = room("hot");
        for _ in 0..1_000 {
            let turn = poll(pin!(turns.wait("im", &hot, 10_000))).expect("a turn's first");
            turn.read(10_000, Duration::from_micros(50));
            turns.turn();
        }
        let byte = turns.state().byte;
        assert!((byte - 5.0).abs() < 0.1, "{byte} ns");
        let turn = poll(pin!(turns.wait("im", &hot, 0))).expect("a turn's first");
        turn.read(1_000_000, Duration::from_millis(5));
        assert!(poll(pin!(turns.wait("im", &hot, 0))).is_none(), "5 ms of 2 are used");
    }

    #[test]
    fn a_worker_that_sleeps_hears_of_who_waits() {
        let turns = Turns::new(SLICE);
        let hot = room("hot");
        let mut asked = Box::pin(turns.asked());
        let first = poll(pin!(turns.wait("im", &hot, 1_000_000)));
        assert!(first.is_some() && poll(asked.as_mut()).is_none(), "nobody waits");
        let mut second = Box::pin(turns.wait("im", &hot, 1));
        assert!(poll(second.as_mut()).is_none());
        assert!(poll(asked.as_mut()).is_some());
        turns.turn();
        assert!(poll(second.as_mut()).is_some());
    }
}
