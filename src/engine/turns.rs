//! Whose request is read next, when there are more of them than a turn of the
//! shard reads.
//!
//! Start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996): each request
//! is of a *flow* and costs so much. It starts, in virtual time, where its flow's
//! last one ended or, if that lies in the past, now; the earliest start goes
//! first. So a flow that asks for little never waits behind those that ask for
//! more than their share, however many requests these have.
//!
//! Memory must not grow with what callers name, so flows are told apart by hashes: a
//! flow has a cell in each of [`ROWS`] rows, and ended where the earliest of them says
//! (a count-min sketch with conservative update: Estan and Varghese, SIGCOMM 2002).
//! With one row a room that shared its cell with a flood had its events read 28 ms late
//! instead of 4, in one run of 25; to share all three is next to impossible.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::time::Duration;

/// Rows of cells, each found by 16 bits of the flow's hash of their own.
const ROWS: usize = 3;
/// Cells of a row; 8 bytes each.
const CELLS: usize = 4_096;

/// See the module's documentation. `T` waits.
#[derive(Debug)]
pub struct Turns<T> {
    /// Work of one turn, in nanoseconds.
    slice: i64,
    /// What is left of it. Below zero: lent to flows within their share.
    left: i64,
    /// Virtual time: the start of what was let go last.
    now: u64,
    /// The latest end of any flow.
    latest: u64,
    /// Where each flow's last request ends: no earlier than its earliest cell says.
    ends: [Box<[u64]>; ROWS],
    waiting: BinaryHeap<Reverse<Waiting<T>>>,
    order: u64,
}

#[derive(Debug)]
struct Waiting<T> {
    start: u64,
    order: u64,
    cost: i64,
    item: T,
}

impl<T> Waiting<T> {
    fn place(&self) -> (u64, u64) {
        (self.start, self.order)
    }
}

impl<T> PartialEq for Waiting<T> {
    fn eq(&self, other: &Self) -> bool {
        self.place() == other.place()
    }
}

impl<T> Eq for Waiting<T> {}

impl<T> PartialOrd for Waiting<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Waiting<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.place().cmp(&other.place())
    }
}

impl<T> Turns<T> {
    /// Nobody waits. `slice`: work of one turn.
    #[must_use]
    pub fn new(slice: Duration) -> Self {
        let slice = nanos(slice) as i64;
        Self {
            slice,
            left: slice,
            now: 0,
            latest: 0,
            ends: std::array::from_fn(|_| vec![0; CELLS].into()),
            waiting: BinaryHeap::new(),
            order: 0,
        }
    }

    /// A request of this flow, which will cost so much. Returns whether it may go
    /// on at once; if not, `item` makes what waits for [`let_go`](Self::let_go).
    ///
    /// What is within its flow's share goes on although the turn's work is done,
    /// for as much again; what comes then waits before all that is beyond its
    /// share.
    pub fn ask(&mut self, flow: u64, cost: Duration, item: impl FnOnce() -> T) -> bool {
        let cost = nanos(cost);
        let start = self.extend(flow, cost);
        let cost = cost as i64;
        let modest = start == self.now && self.left > -self.slice;
        if modest || (self.waiting.is_empty() && self.left > 0) {
            self.left -= cost;
            self.now = start;
            return true;
        }
        self.order += 1;
        self.waiting.push(Reverse(Waiting { start, order: self.order, cost, item: item() }));
        false
    }

    /// A request of this flow turned out to cost so much more.
    pub fn charge(&mut self, flow: u64, cost: Duration) {
        let cost = nanos(cost);
        self.extend(flow, cost);
        self.left = self.left.saturating_sub(cost as i64);
    }

    /// The flow asks for so much more. Returns where that starts.
    fn extend(&mut self, flow: u64, cost: u64) -> u64 {
        let cell = |row: usize| (flow >> (16 * row)) as usize % CELLS;
        let end = (0..ROWS).map(|row| self.ends[row][cell(row)]).min().unwrap_or(0);
        let start = end.max(self.now);
        for (row, ends) in self.ends.iter_mut().enumerate() {
            let end = &mut ends[cell(row)];
            *end = (*end).max(start + cost);
        }
        self.latest = self.latest.max(start + cost);
        start
    }

    /// A turn begins: so much work may be done again.
    pub fn begin(&mut self) {
        self.left = self.slice;
        if self.waiting.is_empty() {
            // Nobody waits for what somebody used too much.
            self.now = self.latest;
        }
    }

    /// Who may go on, as long as there is work left in this turn.
    pub fn let_go(&mut self) -> Option<T> {
        if self.left <= 0 {
            return None;
        }
        let Reverse(first) = self.waiting.pop()?;
        self.left -= first.cost;
        self.now = self.now.max(first.start);
        Some(first.item)
    }

    /// How many wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }
}

/// At most about a quarter of an hour, so that sums stay far from any limit.
fn nanos(time: Duration) -> u64 {
    time.as_nanos().min(1 << 40) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLI: Duration = Duration::from_millis(1);

    /// One turn: who goes on.
    fn turn(turns: &mut Turns<u64>) -> Vec<u64> {
        turns.begin();
        std::iter::from_fn(|| turns.let_go()).collect()
    }

    #[test]
    fn a_turn_is_bounded_and_the_rest_waits_in_order() {
        let mut turns = Turns::new(2 * MILLI);
        let at_once = (0..6).filter(|n| turns.ask(1, MILLI, || *n)).count();
        assert_eq!((at_once, turns.waiting()), (2, 4));
        assert_eq!(turn(&mut turns), [2, 3]);
        assert_eq!(turn(&mut turns), [4, 5]);
        assert_eq!((turn(&mut turns).len(), turns.waiting()), (0, 0));
    }

    #[test]
    fn a_flow_that_asks_for_little_goes_on_at_once() {
        let mut turns = Turns::new(2 * MILLI);
        for n in 0..100 {
            turns.ask(1, MILLI, || n);
        }
        for n in 0..20 {
            assert!(turns.ask(2, MILLI / 10, || 1_000 + n), "it has used nothing");
            assert_eq!(turn(&mut turns).len(), 2, "and the others have their turn");
        }
    }

    #[test]
    fn flows_that_ask_for_much_get_the_same() {
        let mut turns = Turns::new(2 * MILLI);
        // Flow 1 has ten times the requests, flow 2 requests of twice the cost.
        for n in 0..400 {
            turns.ask(1, MILLI, || n);
        }
        for n in 0..40 {
            turns.ask(2, 2 * MILLI, || 1_000 + n);
        }
        let mut served = [0_u32; 2];
        for _ in 0..40 {
            for n in turn(&mut turns) {
                served[usize::from(n >= 1_000)] += if n >= 1_000 { 2 } else { 1 };
            }
        }
        assert!(served[0].abs_diff(served[1]) <= 4, "{served:?} ms");
    }

    #[test]
    fn what_is_within_its_share_cannot_stretch_a_turn_beyond_twice() {
        let mut turns = Turns::new(2 * MILLI);
        let at_once = (0..100).filter(|flow| turns.ask(*flow, MILLI, || *flow)).count();
        assert_eq!(at_once, 4, "a slice, and one that is lent");
        // Somebody who asked for more waits behind them.
        turns.ask(0, MILLI, || 1_000);
        let mut order = Vec::new();
        while turns.waiting() > 0 {
            order.extend(turn(&mut turns));
        }
        assert_eq!((order.len(), order.last()), (97, Some(&1_000)));
    }

    #[test]
    fn who_shares_a_cell_with_a_flood_is_not_taken_for_it() {
        let mut turns = Turns::new(2 * MILLI);
        for n in 0..100 {
            turns.ask(0x0001_0002_0003, MILLI, || n);
        }
        for flow in [0x0001_0002_0004, 0x0001_0005_0003, 0x0006_0002_0003] {
            turns.begin();
            assert!(turns.ask(flow, MILLI / 10, || 1_000), "{flow:x}");
        }
        turns.begin();
        assert!(!turns.ask(0x0001_0002_0003, MILLI / 10, || 1_000), "the flood itself");
    }

    #[test]
    fn an_idle_moment_forgives() {
        let mut turns = Turns::new(2 * MILLI);
        assert!(turns.ask(1, 100 * MILLI, || 0));
        turns.begin();
        assert!(turns.ask(1, MILLI, || 1), "nobody waited for it");
        assert!(turns.ask(2, MILLI, || 2));
    }
}
