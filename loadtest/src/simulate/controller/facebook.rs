//! Controlled delay with adaptive LIFO, from Ben Maurer, *Fail at Scale*, ACM
//! Queue 13(8), 2015: a call may wait 100 ms, but only 5 ms while the queue has
//! not been empty for 100 ms; and then the newest is served first.

use std::collections::VecDeque;

use super::{Call, Controller, QUEUE_BOUND};
use crate::simulate::scenario::MS;

/// The article's M: how long a call may wait under overload.
const STANDING: u64 = 5 * MS;
/// The article's N: how long otherwise, and for how long a queue may stand.
const BURST: u64 = 100 * MS;

/// Calls with the time at which each is given up.
#[derive(Debug, Default)]
pub(super) struct AdaptiveLifo {
    queue: VecDeque<(Call, u64)>,
    last_empty: u64,
}

impl AdaptiveLifo {
    fn overloaded(&self, now: u64) -> bool {
        !self.queue.is_empty() && now - self.last_empty > BURST
    }
}

impl Controller for AdaptiveLifo {
    fn offer(&mut self, call: Call, now: u64, refused: &mut Vec<Call>) {
        if self.queue.is_empty() {
            self.last_empty = now;
        }
        let patience = if self.overloaded(now) { STANDING } else { BURST };
        if self.queue.len() < QUEUE_BOUND {
            self.queue.push_back((call, now + patience));
        } else {
            refused.push(call);
        }
    }

    fn take(&mut self, now: u64, refused: &mut Vec<Call>) -> Option<Call> {
        while let Some((call, _)) = self.queue.pop_front_if(|(_, given_up)| *given_up < now) {
            refused.push(call);
        }
        let newest_first = self.overloaded(now);
        let mut taken = None;
        while let Some((call, given_up)) =
            if newest_first { self.queue.pop_back() } else { self.queue.pop_front() }
        {
            if given_up >= now {
                taken = Some(call);
                break;
            }
            refused.push(call);
        }
        if self.queue.is_empty() {
            self.last_empty = now;
        }
        taken
    }
}
