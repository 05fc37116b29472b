//! What waits to be sent: which room's batch goes next, and what is in it.
//!
//! The interface takes events of one room in one request, so events wait in
//! lines by room. A line is ready when it has a batch full, when its oldest event
//! has waited for as long as waiting can make the batch better, or at once when
//! it holds an event of tier 0. Of the lines that are ready the one with the most
//! important event goes first, and within a line the most important events do;
//! among equals the earlier. A room has one request under way at most, so that
//! what is accepted keeps its order, and so that batches grow by themselves when
//! answers take longer.
//!
//! When something has to give way it is the least important that waits, and of
//! equals the newest of a room; rooms take turns in that.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::time::Duration;

use crate::engine::ids::{RoomId, Tier};
use crate::engine::time::Time;

/// Bounds of one batch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Events; at least one is always taken.
    pub(super) events: usize,
    /// Bytes; a larger event goes alone.
    pub(super) bytes: usize,
    /// Longest wait for a batch to fill.
    pub(super) linger: Duration,
}

/// Where an event stands: its tier, and its place in the order of arrival, which
/// no other has.
pub(super) type Rank = (Tier, u64);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// In neither set: a request is under way, or there is nothing to send.
    Aside,
    Lingering(Time),
    Ready(Rank),
}

struct Line<T> {
    waiting: BTreeMap<Rank, (usize, T)>,
    bytes: usize,
    place: Place,
    busy: bool,
}

impl<T> Line<T> {
    fn worst(&self) -> Option<Tier> {
        self.waiting.last_key_value().map(|((tier, _), _)| *tier)
    }
}

/// See the module's documentation.
///
/// [`take`](Self::take) makes a room busy until [`free`](Self::free). Rooms
/// without events and without a request under way cost nothing.
pub(super) struct Queue<T> {
    /// May be changed at any time.
    pub(super) limits: Limits,
    rooms: HashMap<RoomId, Line<T>>,
    lingering: BTreeSet<(Time, RoomId)>,
    ready: BTreeSet<(Rank, RoomId)>,
    /// Rooms by the tier of the least important that waits there.
    worst: BTreeMap<Tier, BTreeSet<RoomId>>,
    /// Where something gave way last.
    gave_way: Option<RoomId>,
    len: usize,
}

impl<T> Queue<T> {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            rooms: HashMap::new(),
            lingering: BTreeSet::new(),
            ready: BTreeSet::new(),
            worst: BTreeMap::new(),
            gave_way: None,
            len: 0,
        }
    }

    /// Events that wait here.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn push(&mut self, room: &RoomId, rank: Rank, bytes: usize, item: T, now: Time) {
        let line = self.rooms.entry(room.clone()).or_insert_with(|| Line {
            waiting: BTreeMap::new(),
            bytes: 0,
            place: Place::Aside,
            busy: false,
        });
        let worst = line.worst();
        line.bytes += bytes;
        let before = line.waiting.insert(rank, (bytes, item));
        debug_assert!(before.is_none(), "ranks are unique");
        self.len += 1;
        let now_worst = line.worst();
        self.rank(room, worst, now_worst);
        self.settle(room, now);
    }

    /// Tier of the least important that waits.
    pub(super) fn worst(&self) -> Option<Tier> {
        self.worst.last_key_value().map(|(tier, _)| *tier)
    }

    /// Takes the least important out that waits.
    pub(super) fn pop_worst(&mut self) -> Option<T> {
        let (_, rooms) = self.worst.last_key_value()?;
        let after = self.gave_way.take().map_or(Bound::Unbounded, Bound::Excluded);
        let next = rooms.range((after, Bound::Unbounded)).next().or_else(|| rooms.first());
        let room = next?.clone();
        let line = self.rooms.get_mut(&room)?;
        let worst = line.worst();
        let (_, (bytes, item)) = line.waiting.pop_last()?;
        line.bytes -= bytes;
        self.len -= 1;
        let now_worst = line.worst();
        self.rank(&room, worst, now_worst);
        if now_worst.is_none() {
            self.step_aside(&room);
        }
        self.gave_way = Some(room);
        Some(item)
    }

    /// A room's least important has become another.
    fn rank(&mut self, room: &RoomId, before: Option<Tier>, after: Option<Tier>) {
        if before == after {
            return;
        }
        if let Some(tier) = before
            && let Some(rooms) = self.worst.get_mut(&tier)
        {
            rooms.remove(room);
            if rooms.is_empty() {
                self.worst.remove(&tier);
            }
        }
        if let Some(tier) = after {
            self.worst.entry(tier).or_default().insert(room.clone());
        }
    }

    /// The last of a line gave way: there is nothing to send.
    fn step_aside(&mut self, room: &RoomId) {
        let Some(line) = self.rooms.get_mut(room) else { return };
        match std::mem::replace(&mut line.place, Place::Aside) {
            Place::Lingering(time) => drop(self.lingering.remove(&(time, room.clone()))),
            Place::Ready(rank) => drop(self.ready.remove(&(rank, room.clone()))),
            Place::Aside => {}
        }
        if !line.busy {
            self.rooms.remove(room);
        }
    }

    /// When [`take`](Self::take) has something that it has not now.
    pub(super) fn next_due(&self) -> Option<Time> {
        self.lingering.first().map(|(time, _)| *time)
    }

    /// The next batch, in the order in which it should be sent.
    pub(super) fn take(&mut self, now: Time) -> Option<(RoomId, Vec<T>)> {
        while let Some((time, room)) = self.lingering.first()
            && *time <= now
        {
            let room = room.clone();
            self.settle(&room, now);
        }
        let (_, room) = self.ready.pop_first()?;
        let line = self.rooms.get_mut(&room)?;
        line.place = Place::Aside;
        line.busy = true;
        let worst = line.worst();
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while let Some(first) = line.waiting.first_entry() {
            let size = first.get().0;
            let full = batch.len() >= self.limits.events || bytes + size > self.limits.bytes;
            if full && !batch.is_empty() {
                break;
            }
            bytes += size;
            batch.push(first.remove().1);
        }
        line.bytes -= bytes;
        self.len -= batch.len();
        let now_worst = line.worst();
        self.rank(&room, worst, now_worst);
        Some((room, batch))
    }

    /// The room's request is over.
    pub(super) fn free(&mut self, room: &RoomId, now: Time) {
        let Some(line) = self.rooms.get_mut(room) else { return };
        line.busy = false;
        if line.waiting.is_empty() {
            self.rooms.remove(room);
            return;
        }
        self.settle(room, now);
    }

    /// Nothing lingers any more.
    pub(super) fn hurry(&mut self, now: Time) {
        self.limits.linger = Duration::ZERO;
        while let Some((_, room)) = self.lingering.first() {
            let room = room.clone();
            self.settle(&room, now);
        }
    }

    /// Takes out everything that waits.
    pub(super) fn drain(&mut self) -> Vec<T> {
        self.lingering.clear();
        self.ready.clear();
        self.worst.clear();
        self.len = 0;
        let lines = self.rooms.drain().flat_map(|(_, line)| line.waiting.into_values());
        lines.map(|(_, item)| item).collect()
    }

    /// Puts the room's line where it belongs.
    fn settle(&mut self, room: &RoomId, now: Time) {
        let Some(line) = self.rooms.get_mut(room) else { return };
        let Some(&head) = line.waiting.keys().next() else { return };
        if line.busy {
            return;
        }
        let until = match line.place {
            Place::Lingering(until) => until.min(now + self.limits.linger),
            _ => now + self.limits.linger,
        };
        let due = matches!(line.place, Place::Ready(_))
            || head.0 == Tier(0)
            || line.waiting.len() >= self.limits.events
            || line.bytes >= self.limits.bytes
            || until <= now;
        let place = if due { Place::Ready(head) } else { Place::Lingering(until) };
        if place == line.place {
            return;
        }
        match line.place {
            Place::Lingering(time) => drop(self.lingering.remove(&(time, room.clone()))),
            Place::Ready(rank) => drop(self.ready.remove(&(rank, room.clone()))),
            Place::Aside => {}
        }
        match place {
            Place::Lingering(time) => drop(self.lingering.insert((time, room.clone()))),
            Place::Ready(rank) => drop(self.ready.insert((rank, room.clone()))),
            Place::Aside => {}
        }
        line.place = place;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LINGER: Duration = Duration::from_millis(5);

    fn at(millis: u64) -> Time {
        Time::from_millis(1_000_000 + millis)
    }

    fn room(name: &str) -> RoomId {
        RoomId::new(name).unwrap()
    }

    fn queue(events: usize, bytes: usize) -> Queue<u64> {
        Queue::new(Limits { events, bytes, linger: LINGER })
    }

    fn push(queue: &mut Queue<u64>, name: &str, tier: u8, order: u64, bytes: usize, now: Time) {
        queue.push(&room(name), (Tier(tier), order), bytes, order, now);
    }

    #[test]
    fn a_batch_waits_until_it_is_full_or_old_or_holds_what_cannot_wait() {
        let mut q = queue(3, 1_000);
        push(&mut q, "a", 3, 1, 10, at(0));
        push(&mut q, "a", 3, 2, 10, at(1));
        assert_eq!((q.take(at(4)), q.next_due()), (None, Some(at(5))));
        assert_eq!(q.take(at(5)), Some((room("a"), vec![1, 2])));
        push(&mut q, "b", 3, 3, 400, at(5));
        push(&mut q, "b", 3, 4, 600, at(5));
        assert_eq!(q.take(at(5)), Some((room("b"), vec![3, 4])), "full by bytes");
        for order in 5..9 {
            push(&mut q, "c", 3, order, 1, at(5));
        }
        assert_eq!(q.take(at(5)), Some((room("c"), vec![5, 6, 7])), "full by events");
        push(&mut q, "d", 3, 10, 1, at(5));
        push(&mut q, "d", 0, 11, 1, at(5));
        assert_eq!(q.take(at(5)), Some((room("d"), vec![11, 10])), "tier 0 goes at once");
    }

    #[test]
    fn a_room_has_one_request_under_way_and_its_next_batch_grows_meanwhile() {
        let mut q = queue(10, 1_000);
        push(&mut q, "a", 0, 1, 1, at(0));
        assert!(q.take(at(0)).is_some());
        for order in 2..5 {
            push(&mut q, "a", 3, order, 1, at(1));
        }
        assert_eq!((q.take(at(100)), q.next_due()), (None, None));
        q.free(&room("a"), at(100));
        assert_eq!(q.take(at(105)), Some((room("a"), vec![2, 3, 4])));
        q.free(&room("a"), at(110));
        assert!(q.rooms.is_empty(), "nothing is kept of a room at rest");
    }

    #[test]
    fn the_room_with_the_most_important_event_goes_first() {
        let mut q = queue(10, 1_000);
        push(&mut q, "chat", 3, 1, 1, at(0));
        push(&mut q, "likes", 5, 2, 1, at(0));
        push(&mut q, "gifts", 1, 3, 1, at(0));
        push(&mut q, "chat", 0, 4, 1, at(0));
        let order: Vec<_> = std::iter::from_fn(|| q.take(at(5))).map(|(_, batch)| batch).collect();
        assert_eq!(order, [vec![4, 1], vec![3], vec![2]]);
    }

    #[test]
    fn an_event_larger_than_a_batch_goes_alone() {
        let mut q = queue(10, 100);
        for (order, bytes) in [(1, 60), (2, 500), (3, 60)] {
            push(&mut q, "a", 3, order, bytes, at(0));
        }
        for wanted in [1, 2, 3] {
            assert_eq!(q.take(at(5)), Some((room("a"), vec![wanted])));
            q.free(&room("a"), at(0));
        }
    }

    #[test]
    fn in_a_hurry_nothing_lingers() {
        let mut q = queue(10, 100);
        push(&mut q, "a", 3, 1, 1, at(0));
        q.hurry(at(0));
        push(&mut q, "b", 3, 2, 1, at(0));
        assert!(q.take(at(0)).is_some() && q.take(at(0)).is_some());
    }

    #[test]
    fn the_least_important_gives_way_and_rooms_take_turns() {
        let mut q = queue(10, 1_000);
        for (order, (name, tier)) in
            [("a", 5), ("a", 5), ("b", 5), ("b", 1), ("c", 3)].into_iter().enumerate()
        {
            push(&mut q, name, tier, order as u64, 1, at(0));
        }
        assert_eq!(q.worst(), Some(Tier(5)));
        let out: Vec<_> = std::iter::from_fn(|| q.pop_worst()).collect();
        // Of tier 5: the newest of a, the one of b, what is left of a.
        assert_eq!(out, [1, 2, 0, 4, 3]);
        assert!(q.rooms.is_empty() && q.worst.is_empty(), "nothing is kept of a room at rest");
        assert!(q.ready.is_empty() && q.lingering.is_empty() && q.len() == 0);
    }

    #[test]
    fn a_line_whose_last_event_gave_way_is_not_sent() {
        let mut q = queue(10, 1_000);
        push(&mut q, "a", 0, 1, 1, at(0));
        assert_eq!(q.pop_worst(), Some(1));
        assert_eq!((q.take(at(99)), q.next_due()), (None, None));
        // Of a room with a request under way, too.
        push(&mut q, "a", 0, 2, 1, at(0));
        assert_eq!(q.take(at(0)), Some((room("a"), vec![2])));
        push(&mut q, "a", 3, 3, 1, at(0));
        assert_eq!(q.pop_worst(), Some(3));
        q.free(&room("a"), at(1));
        assert!(q.take(at(99)).is_none() && q.rooms.is_empty());
    }

    proptest! {
        #[test]
        fn everything_comes_out_once_and_equals_of_a_room_in_order(
            pushes in prop::collection::vec((0..4u8, 0..3u8, 1..200usize, 0..4u64, any::<bool>()), 1..200),
        ) {
            let mut q = queue(4, 300);
            let mut tiers = HashMap::new();
            let (mut now, mut out, mut busy, mut gave_way) = (0, Vec::new(), Vec::new(), 0);
            for (order, (name, tier, bytes, passes, take)) in pushes.iter().enumerate() {
                now += passes;
                tiers.insert(order as u64, (*name, *tier));
                push(&mut q, &name.to_string(), *tier, order as u64, *bytes, at(now));
                if bytes % 7 == 0 {
                    let worst = q.worst();
                    let out_of = q.pop_worst().map(|order| (order, tiers.remove(&order)));
                    let tier = out_of.and_then(|(_, of)| of).map(|(_, tier)| Tier(tier));
                    prop_assert_eq!(tier, worst);
                    gave_way += usize::from(worst.is_some());
                }
                if *take && let Some((name, batch)) = q.take(at(now)) {
                    prop_assert!(!busy.contains(&name), "one request for each room");
                    prop_assert!(!batch.is_empty() && batch.len() <= 4);
                    out.extend(batch);
                    busy.push(name);
                }
                if passes % 2 == 1 && let Some(name) = busy.pop() {
                    q.free(&name, at(now));
                }
            }
            for name in busy {
                q.free(&name, at(now));
            }
            while q.len() > 0 {
                let (name, batch) = q.take(at(now + 5)).expect("nothing is stuck");
                out.extend(batch);
                q.free(&name, at(now));
            }
            let mut last = HashMap::new();
            for order in &out {
                let before = last.insert(tiers[order], *order);
                prop_assert!(before.is_none_or(|before| before < *order));
            }
            prop_assert_eq!(out.len() + gave_way, pushes.len());
            prop_assert!(q.worst.is_empty());
            prop_assert!(q.rooms.is_empty() && q.ready.is_empty() && q.lingering.is_empty());
        }
    }
}
