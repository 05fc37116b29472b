//! What a queue does that has outgrown its bound.

use std::time::Duration;

use super::{Admission, Entry, LEAST_CAPACITY, LONG_PATIENCE, Shed, tier};
use crate::engine::priority::Priority;
use crate::engine::time::Time;

/// A queue of nothing but safe tiers may be this many times as long, when no onset was a
/// moment ago. With four times, what was taken for safe at a load that has risen since
/// made the 99th percentile of all.
const SAFE_QUEUE: f64 = 2.0;
/// A queue that grows from its short bound to its long one faster than this is an
/// onset: of the default bounds, at 1.7 times the capacity. A slow rise finds a queue
/// full of what is safe, which would wait for long and lose nothing by going elsewhere.
const STEEP: Duration = Duration::from_millis(150);

impl<T> Admission<T> {
    /// Evicts until the queue keeps its bound, as far as it may at this moment.
    /// One entry may wait whatever it costs, or it could never be served.
    pub(super) fn bound(&mut self, now: Time, shed: &mut Vec<(Entry<T>, Shed)>) {
        let capacity = self.controller.capacity().max(LEAST_CAPACITY);
        let work = |bound: Duration| bound.as_micros() as f64 * capacity;
        let measured = self.controller.has_measured();
        let overfull = measured && self.queue.work() > work(self.settings.burst);
        if self.queue.work() <= work(self.short_bound) {
            self.kept_bound = now;
            self.controller.kept_bound(now);
        }
        if overfull && !self.strict {
            self.controller.overfull();
            if now.since(self.kept_bound) < STEEP {
                self.onset = Some(now);
            }
            // The first to be evicted must not be those who use little.
            self.share_out(true, now);
        }
        self.strict |= overfull || !self.level().is_open();
        let short = work(self.short_bound);
        let safe = if self.is_patient(now) { f64::from(LONG_PATIENCE) } else { SAFE_QUEUE };
        let long = if self.strict { safe * short } else { work(self.settings.burst) };
        while measured
            && self.allowance > 0
            && self.queue.len() > 1
            && self.queue.work() > short
            && let Some((place, worst)) = self.queue.worst()
        {
            // What the server will get to all the same only waits its turn.
            let fits = self.controller.safe().admits(place) || self.fairness.is_within(worst.room);
            let patient = !self.strict || fits;
            if patient && self.queue.work() <= long {
                break;
            }
            let better = self.place_now(place, worst);
            if self.settings.dry_run && better.is_none() {
                self.stats.would_shed[Shed::Evicted as usize][tier(worst)] += 1;
                break;
            }
            let Some(worst) = self.queue.pop_worst() else { return };
            match better {
                Some(better) => self.queue.push(better, worst, now),
                None => self.evict(worst, shed),
            }
        }
        if self.queue.len() > self.settings.max_entries
            && let Some(worst) = self.queue.pop_worst()
        {
            self.evict(worst, shed);
        }
    }

    fn evict(&mut self, worst: Entry<T>, shed: &mut Vec<(Entry<T>, Shed)>) {
        self.controller.evicted(worst.cost);
        self.refuse(worst, Shed::Evicted, shed);
    }

    /// Where an entry stands if it came before its room was known to keep to its share.
    fn place_now(&self, place: Priority, entry: &Entry<T>) -> Option<Priority> {
        if !self.fairness.is_within(entry.room) {
            return None;
        }
        let now = self.fairness.place(&self.settings, entry.room, entry.priority);
        (now.tier() < place.tier()).then_some(now)
    }
}
