//! CoDel, RFC 8289, with the constants of its section 4: a target of 5 ms of
//! sojourn and an interval of 100 ms. It decides when a call is taken out of
//! the queue; a dropped call counts as refused, so its upstream hears of it.

use super::{Call, Controller, Fifo};
use crate::simulate::scenario::MS;

/// Section 4.4: acceptable standing sojourn time.
const TARGET: u64 = 5 * MS;
/// Section 4.3: how long the sojourn time must have been above it.
const INTERVAL: u64 = 100 * MS;

/// State of sections 5.3 to 5.6.
#[derive(Debug, Default)]
pub(super) struct Codel {
    queue: Fifo,
    /// When the sojourn time will have been above the target for an interval.
    first_above: Option<u64>,
    dropping: bool,
    drop_next: u64,
    /// Drops since dropping began.
    count: u32,
    /// `count` when dropping began last.
    last_count: u32,
}

impl Codel {
    /// The next call, and whether it may be dropped (section 5.5).
    fn dequeue(&mut self, now: u64) -> Option<(Call, bool)> {
        let Some(call) = self.queue.take() else {
            self.first_above = None;
            return None;
        };
        // The RFC exempts a queue of less than a packet's size; here: an empty one.
        if now - call.arrived < TARGET || self.queue.0.is_empty() {
            self.first_above = None;
            return Some((call, false));
        }
        let above = *self.first_above.get_or_insert(now + INTERVAL);
        Some((call, now >= above))
    }

    /// Section 5.3: drops come closer together with the square root of their number.
    fn after(&self, time: u64) -> u64 {
        time + (INTERVAL as f64 / f64::from(self.count).sqrt()) as u64
    }
}

impl Controller for Codel {
    fn offer(&mut self, call: Call, _now: u64, refused: &mut Vec<Call>) {
        self.queue.offer(call, refused);
    }

    fn take(&mut self, now: u64, refused: &mut Vec<Call>) -> Option<Call> {
        let Some((mut call, mut may_drop)) = self.dequeue(now) else {
            self.dropping = false;
            return None;
        };
        if self.dropping {
            if !may_drop {
                self.dropping = false;
            }
            while self.dropping && now >= self.drop_next {
                refused.push(call);
                self.count += 1;
                let Some(next) = self.dequeue(now) else {
                    self.dropping = false;
                    return None;
                };
                (call, may_drop) = next;
                if may_drop {
                    self.drop_next = self.after(self.drop_next);
                } else {
                    self.dropping = false;
                }
            }
        } else if may_drop {
            refused.push(call);
            let next = self.dequeue(now);
            self.dropping = true;
            // Dropping began again soon: go on from near the rate that held.
            let delta = self.count - self.last_count;
            let recent = now.saturating_sub(self.drop_next) < 16 * INTERVAL;
            self.count = if delta > 1 && recent { delta } else { 1 };
            self.drop_next = self.after(now);
            self.last_count = self.count;
            return next.map(|(call, _)| call);
        }
        Some(call)
    }
}
