//! Who gives way when all places are taken.
//!
//! Of the connections whose first request has not come, the oldest that has had
//! [`GRACE`]: a storm of honest clients, who need milliseconds, waits its turn,
//! and a thousand silent connections shut nobody out. Of HTTP connections that
//! are no viewers, the one that has been idle for longest, if for that long: a
//! caller that keeps connections for later is not to shut out one that has
//! something to say now.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::task::AbortHandle;

use super::accept::{Edge, Outcome};
use crate::engine::time::Time;
use crate::ingress::stats::EdgeStats;

/// A connection that has held its place, or been idle, for less does not give way.
pub const GRACE: Duration = Duration::from_secs(1);
/// Pause before the next look at who might give way.
const PAUSE: Duration = Duration::from_millis(50);

/// Connections whose first request has not come, oldest first, and some that
/// are past that.
#[derive(Default)]
pub(super) struct Unheard(VecDeque<(Time, Weak<Outcome>, AbortHandle)>);

impl Unheard {
    pub(super) fn push(&mut self, now: Time, outcome: &Rc<Outcome>, task: AbortHandle) {
        self.0.push_back((now, Rc::downgrade(outcome), task));
        while self.0.front().is_some_and(|(_, outcome, _)| !holds_place(outcome)) {
            self.0.pop_front();
        }
    }

    /// A place, when one is free or freed; `None` when the edge is closed.
    pub(super) async fn place(&mut self, edge: &Edge) -> Option<OwnedSemaphorePermit> {
        loop {
            if let Ok(permit) = Arc::clone(&edge.handshakes).try_acquire_owned() {
                return Some(permit);
            }
            self.give_way(edge);
            let free = Arc::clone(&edge.handshakes).acquire_owned();
            if let Ok(permit) = tokio::time::timeout(PAUSE, free).await {
                return permit.ok();
            }
        }
    }

    /// Ends the oldest connection that is still silent, if it has had its time.
    fn give_way(&mut self, edge: &Edge) {
        self.0.retain(|(_, outcome, _)| holds_place(outcome));
        let now = edge.clock.now();
        if self.0.front().is_some_and(|(since, ..)| now.since(*since) >= GRACE)
            && let Some((_, _, task)) = self.0.pop_front()
        {
            task.abort();
            edge.stats.handshake("gave_way");
        }
    }
}

fn holds_place(outcome: &Weak<Outcome>) -> bool {
    outcome.upgrade().is_some_and(|outcome| outcome.is_unheard())
}

/// One of the places of connections whose first request has not come.
pub(super) struct Place {
    stats: Arc<EdgeStats>,
    _permit: OwnedSemaphorePermit,
}

impl Place {
    pub(super) fn new(permit: OwnedSemaphorePermit, stats: &Arc<EdgeStats>) -> Self {
        stats.handshaking.fetch_add(1, Ordering::Relaxed);
        Self { stats: Arc::clone(stats), _permit: permit }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.stats.handshaking.fetch_sub(1, Ordering::Relaxed);
    }
}

/// HTTP connections that hold a place, and some that have ended.
#[derive(Default)]
pub struct Kept(RefCell<Vec<Weak<Outcome>>>);

impl Kept {
    /// From now on it holds a place.
    pub(super) fn add(&self, outcome: &Rc<Outcome>) {
        let mut kept = self.0.borrow_mut();
        if kept.len() == kept.capacity() {
            kept.retain(|outcome| outcome.strong_count() > 0);
        }
        kept.push(Rc::downgrade(outcome));
    }

    /// Ends as many of those that have been idle for longest as are waited for.
    /// Returns how many.
    fn give_way(&self, edge: &Edge) -> u64 {
        let mut wanted = edge.places.wanted();
        let before = edge.clock.now() - GRACE;
        let mut kept = self.0.borrow_mut();
        kept.retain(|outcome| outcome.strong_count() > 0);
        let idle = |outcome: &Weak<Outcome>| {
            let outcome = outcome.upgrade()?;
            let since = outcome.idle()?.0;
            (since <= before).then_some((since, outcome))
        };
        let mut idle: Vec<_> = kept.iter().filter_map(idle).collect();
        idle.sort_unstable_by_key(|(since, _)| *since);
        let mut ended = 0;
        for (_, outcome) in idle {
            if outcome.idle().is_some_and(|(_, place)| wanted.takes(&place)) {
                outcome.give_way.notify_one();
                ended += 1;
            }
        }
        ended
    }
}

/// As long as somebody waits for a place, looks for who might give it.
pub(super) async fn to_who_waits(edge: &Edge) {
    loop {
        edge.places.asked().await;
        while edge.places.counts().1 > 0 {
            let ended = edge.kept.give_way(edge);
            edge.stats.gave_way.fetch_add(ended, Ordering::Relaxed);
            tokio::time::sleep(PAUSE).await;
        }
    }
}
