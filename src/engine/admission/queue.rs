//! A short priority queue measured in work, from which the best is taken and
//! the worst evicted.
//!
//! Cells of the grid (B, U) are lists in order of arrival; a bitmap with a
//! summary finds the first and the last that is not empty. A second list through
//! all of them, in order of arrival, finds the oldest. Every operation takes the
//! same few steps, however many wait.

use super::Entry;
use crate::engine::priority::{CELLS, Priority};
use crate::engine::time::Time;

const NONE: u32 = u32::MAX;
const WORDS: usize = CELLS / 64;

#[derive(Clone, Copy)]
struct List {
    head: u32,
    tail: u32,
}

struct Node<T> {
    entry: Option<Entry<T>>,
    /// Neighbours in the list of the cell.
    next: u32,
    previous: u32,
    /// Neighbours in the order of arrival of all.
    newer: u32,
    older: u32,
    cell: u32,
    since: Time,
}

/// What comes out.
pub(super) struct Waiting<T> {
    /// The beginning of the cell it stood in.
    pub(super) place: Priority,
    /// When it was put in.
    pub(super) since: Time,
    pub(super) entry: Entry<T>,
}

/// See the module's documentation.
pub(super) struct WorkQueue<T> {
    lists: Box<[List]>,
    words: [u64; WORDS],
    /// Words that are not zero, a bit each.
    summary: [u64; WORDS / 64],
    nodes: Vec<Node<T>>,
    free: u32,
    oldest: u32,
    newest: u32,
    len: usize,
    work: f64,
}

impl<T> WorkQueue<T> {
    pub(super) fn new() -> Self {
        Self {
            lists: vec![List { head: NONE, tail: NONE }; CELLS].into_boxed_slice(),
            words: [0; WORDS],
            summary: [0; WORDS / 64],
            nodes: Vec::new(),
            free: NONE,
            oldest: NONE,
            newest: NONE,
            len: 0,
            work: 0.0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Estimated work of all that waits, in microseconds.
    pub(super) fn work(&self) -> f64 {
        self.work
    }

    /// `place`: where the entry stands here, which fairness may have moved.
    pub(super) fn push(&mut self, place: Priority, entry: Entry<T>, now: Time) {
        let cell = place.cell();
        self.work += entry.cost;
        self.len += 1;
        let tail = self.lists[cell].tail;
        let older = self.newest;
        let node = Node {
            entry: Some(entry),
            next: NONE,
            previous: tail,
            newer: NONE,
            older,
            cell: cell as u32,
            since: now,
        };
        let index = match self.free {
            NONE => {
                self.nodes.push(node);
                (self.nodes.len() - 1) as u32
            }
            free => {
                self.free = self.nodes[free as usize].next;
                self.nodes[free as usize] = node;
                free
            }
        };
        if tail == NONE {
            self.lists[cell].head = index;
            self.words[cell / 64] |= 1 << (cell % 64);
            self.summary[cell / 4096] |= 1 << (cell / 64 % 64);
        } else {
            self.nodes[tail as usize].next = index;
        }
        self.lists[cell].tail = index;
        match older {
            NONE => self.oldest = index,
            older => self.nodes[older as usize].newer = index,
        }
        self.newest = index;
    }

    /// When the oldest of all was put in.
    pub(super) fn oldest(&self) -> Option<Time> {
        Some(self.nodes.get(self.oldest as usize)?.since)
    }

    /// The oldest of all, which is the oldest of its cell as well.
    pub(super) fn pop_oldest(&mut self) -> Option<Waiting<T>> {
        let cell = self.nodes.get(self.oldest as usize)?.cell as usize;
        self.remove(cell, self.oldest)
    }

    /// What [`pop_best`](Self::pop_best) would give.
    pub(super) fn best(&self) -> Option<(Priority, &Entry<T>)> {
        let cell = self.best_cell()?;
        let entry = self.nodes[self.lists[cell].head as usize].entry.as_ref()?;
        Some((Priority::of_cell(cell), entry))
    }

    fn best_cell(&self) -> Option<usize> {
        let half = self.summary.iter().position(|bits| *bits != 0)?;
        let word = half * 64 + self.summary[half].trailing_zeros() as usize;
        Some(word * 64 + self.words[word].trailing_zeros() as usize)
    }

    /// The oldest of the most important.
    pub(super) fn pop_best(&mut self) -> Option<Waiting<T>> {
        let cell = self.best_cell()?;
        self.remove(cell, self.lists[cell].head)
    }

    /// The newest of the least important: whoever waits longest among equals
    /// is nearest to its turn.
    pub(super) fn pop_worst(&mut self) -> Option<Entry<T>> {
        let cell = self.worst_cell()?;
        Some(self.remove(cell, self.lists[cell].tail)?.entry)
    }

    /// What [`pop_worst`](Self::pop_worst) would give.
    pub(super) fn worst(&self) -> Option<(Priority, &Entry<T>)> {
        let cell = self.worst_cell()?;
        let entry = self.nodes[self.lists[cell].tail as usize].entry.as_ref()?;
        Some((Priority::of_cell(cell), entry))
    }

    fn worst_cell(&self) -> Option<usize> {
        let half = self.summary.iter().rposition(|bits| *bits != 0)?;
        let word = half * 64 + 63 - self.summary[half].leading_zeros() as usize;
        Some(word * 64 + 63 - self.words[word].leading_zeros() as usize)
    }

    fn remove(&mut self, cell: usize, index: u32) -> Option<Waiting<T>> {
        let node = &mut self.nodes[index as usize];
        let entry = node.entry.take()?;
        let (next, previous) = (node.next, node.previous);
        let (newer, older, since) = (node.newer, node.older, node.since);
        node.next = self.free;
        self.free = index;
        match previous {
            NONE => self.lists[cell].head = next,
            previous => self.nodes[previous as usize].next = next,
        }
        match next {
            NONE => self.lists[cell].tail = previous,
            next => self.nodes[next as usize].previous = previous,
        }
        match older {
            NONE => self.oldest = newer,
            older => self.nodes[older as usize].newer = newer,
        }
        match newer {
            NONE => self.newest = older,
            newer => self.nodes[newer as usize].older = older,
        }
        if self.lists[cell].head == NONE {
            self.words[cell / 64] &= !(1 << (cell % 64));
            if self.words[cell / 64] == 0 {
                self.summary[cell / 4096] &= !(1 << (cell / 64 % 64));
            }
        }
        self.len -= 1;
        // Exactly nothing when empty: sums of floats leave crumbs.
        self.work = if self.len == 0 { 0.0 } else { (self.work - entry.cost).max(0.0) };
        if self.len == 0 && self.nodes.capacity() > SPARE_NODES {
            self.nodes = Vec::new();
            self.free = NONE;
        }
        Some(Waiting { place: Priority::of_cell(cell), since, entry })
    }
}

/// An emptied queue keeps memory for this many entries.
const SPARE_NODES: usize = 4_096;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::engine::ids::Tier;

    fn entry(item: u32, tier: u8, level: u8) -> Entry<u32> {
        Entry {
            item,
            priority: Priority::new(Tier(tier), level, 0),
            room: 0,
            cost: 1.0,
            arrived: Time::default(),
            deadline: None,
        }
    }

    proptest! {
        #[test]
        fn behaves_as_a_sorted_list(
            steps in prop::collection::vec((0u8..5, 0u8..64, 0u8..128), 1..300)
        ) {
            let mut queue = WorkQueue::new();
            let mut model: Vec<(usize, u32)> = Vec::new();
            for (i, (step, tier, level)) in steps.into_iter().enumerate() {
                match step {
                    0 | 1 => {
                        let entry = entry(i as u32, tier, level);
                        model.push((entry.priority.cell(), entry.item));
                        model.sort_unstable();
                        queue.push(entry.priority, entry, Time::from_millis(i as u64));
                    }
                    2 => {
                        let best = (!model.is_empty()).then(|| model.remove(0).1);
                        prop_assert_eq!(queue.pop_best().map(|w| w.entry.item), best);
                    }
                    3 => {
                        let oldest = model.iter().map(|m| m.1).min();
                        let since = oldest.map(|item| Time::from_millis(item.into()));
                        prop_assert_eq!(queue.oldest(), since);
                        model.retain(|m| Some(m.1) != oldest);
                        let waiting = queue.pop_oldest();
                        prop_assert_eq!(waiting.as_ref().map(|w| w.since), since);
                        prop_assert_eq!(waiting.map(|w| w.entry.item), oldest);
                    }
                    _ => {
                        let worst = queue.worst().map(|(place, _)| place.cell());
                        prop_assert_eq!(worst, model.last().map(|(cell, _)| *cell));
                        prop_assert_eq!(queue.pop_worst().map(|e| e.item), model.pop().map(|m| m.1));
                    }
                }
                prop_assert_eq!(queue.len(), model.len());
                prop_assert!((queue.work() - model.len() as f64).abs() < 1e-9);
            }
        }
    }
}
