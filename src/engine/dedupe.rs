//! Recognises an id that was taken before.
//!
//! A window of the last `capacity` ids: a ring says which is the oldest, a hash
//! table where one stands. What is held is not the id but its keyed 128-bit
//! SipHash (Aumasson and Bernstein, *SipHash*, INDOCRYPT 2012): 16 bytes instead
//! of up to 128, no allocation, and because the key is secret nobody can make
//! two ids collide on purpose. A Bloom filter would be smaller still, but it
//! errs towards "seen", which would lose events, and it cannot give back the
//! number the first one got.
//!
//! The table is open addressing with linear probing over indices into the ring
//! (4 bytes each, at most half full) and deletes by shifting back: it never
//! grows by tombstones, so its size is known from the window's.

use super::ids::Seq;

/// One remembered id.
#[derive(Debug, Clone, Copy)]
struct Seen {
    id: u128,
    /// 0: it had no number. Numbers start at 1.
    seq: u64,
}

/// A bounded memory of ids.
#[derive(Debug)]
pub(super) struct Window {
    capacity: usize,
    /// Ids that ring and table have room for now.
    sized_for: usize,
    /// Position of the oldest once the ring is full.
    oldest: usize,
    ring: Vec<Seen>,
    /// Ring index + 1; 0 is free. A power of two long, or empty.
    table: Vec<u32>,
}

impl Window {
    /// Remembers up to `capacity` ids; none at 0. Memory grows with use.
    pub(super) fn new(capacity: usize) -> Self {
        let capacity = capacity.min(u32::MAX as usize / 4);
        Self { capacity, sized_for: 0, oldest: 0, ring: Vec::new(), table: Vec::new() }
    }

    /// The number under which `id` was remembered.
    pub(super) fn find(&self, id: u128) -> Option<Option<Seq>> {
        if self.table.is_empty() {
            return None;
        }
        let mask = self.table.len() - 1;
        let mut at = id as usize & mask;
        while let Some(index) = self.table[at].checked_sub(1) {
            let seen = self.ring[index as usize];
            if seen.id == id {
                return Some((seen.seq != 0).then_some(Seq(seen.seq)));
            }
            at = (at + 1) & mask;
        }
        None
    }

    /// Remembers an `id` that [`Window::find`] does not know, and forgets the oldest if full.
    pub(super) fn remember(&mut self, id: u128, seq: Option<Seq>) {
        let seen = Seen { id, seq: seq.map_or(0, |seq| seq.0) };
        if self.ring.len() < self.capacity {
            self.grow();
            self.ring.push(seen);
            self.link(self.ring.len() - 1);
        } else if self.capacity > 0 {
            self.unlink(self.oldest);
            self.ring[self.oldest] = seen;
            self.link(self.oldest);
            self.oldest = (self.oldest + 1) % self.capacity;
        }
    }

    /// The ids with their numbers, oldest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u128, Option<Seq>)> {
        let (newer, older) = self.ring.split_at(self.oldest);
        let seen = older.iter().chain(newer);
        seen.map(|seen| (seen.id, (seen.seq != 0).then_some(Seq(seen.seq))))
    }

    /// Bytes held.
    pub(super) fn memory_bytes(&self) -> usize {
        self.ring.capacity() * size_of::<Seen>() + self.table.capacity() * size_of::<u32>()
    }

    /// Bytes a window of `capacity` holds at most.
    pub(super) fn memory_bound(capacity: usize) -> usize {
        capacity * size_of::<Seen>() + table_len(capacity) * size_of::<u32>()
    }

    /// Makes room for one more, in steps that double up to the capacity.
    fn grow(&mut self) {
        if self.ring.len() < self.sized_for {
            return;
        }
        self.sized_for = (self.ring.len() * 2).max(16).min(self.capacity);
        self.ring.reserve_exact(self.sized_for - self.ring.len());
        self.table = vec![0; table_len(self.sized_for)];
        for index in 0..self.ring.len() {
            self.link(index);
        }
    }

    fn link(&mut self, index: usize) {
        let mask = self.table.len() - 1;
        let mut at = self.ring[index].id as usize & mask;
        while self.table[at] != 0 {
            at = (at + 1) & mask;
        }
        self.table[at] = index as u32 + 1;
    }

    /// Takes a ring index out of the table and closes the hole: whatever behind
    /// it would no longer be reached from its home is moved forward
    /// (Knuth, *The Art of Computer Programming*, vol. 3, 6.4, algorithm R).
    fn unlink(&mut self, index: usize) {
        let mask = self.table.len() - 1;
        let mut hole = self.ring[index].id as usize & mask;
        while self.table[hole] != index as u32 + 1 {
            hole = (hole + 1) & mask;
        }
        let mut at = hole;
        loop {
            at = (at + 1) & mask;
            let Some(other) = self.table[at].checked_sub(1) else { break };
            let home = self.ring[other as usize].id as usize & mask;
            let from_home = at.wrapping_sub(home) & mask;
            let from_hole = at.wrapping_sub(hole) & mask;
            if from_home >= from_hole {
                self.table[hole] = self.table[at];
                hole = at;
            }
        }
        self.table[hole] = 0;
    }
}

/// Table length at which `ids` fill it at most half.
fn table_len(ids: usize) -> usize {
    (ids * 2).next_power_of_two()
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_oldest_id_is_forgotten_first() {
        let mut window = Window::new(2);
        for id in 1..=3u64 {
            window.remember(u128::from(id), Some(Seq(id)));
        }
        assert_eq!(window.find(1), None);
        assert_eq!(window.find(2), Some(Some(Seq(2))));
        assert_eq!(window.find(3), Some(Some(Seq(3))));
    }

    #[test]
    fn an_id_without_a_number_is_remembered_without_one() {
        let mut window = Window::new(2);
        window.remember(9, None);
        assert_eq!(window.find(9), Some(None));
    }

    #[test]
    fn a_window_of_nothing_remembers_nothing() {
        let mut window = Window::new(0);
        window.remember(1, Some(Seq(1)));
        assert_eq!(window.find(1), None);
        assert_eq!(window.memory_bytes(), 0);
    }

    proptest! {
        /// Few distinct low bits make long probe chains, wrap-around included.
        #[test]
        fn a_window_is_the_naive_queue(
            capacity in 1usize..40,
            ids in prop::collection::vec((0u128..4, 0u128..60), 0..300),
        ) {
            let mut window = Window::new(capacity);
            let mut naive: VecDeque<(u128, u64)> = VecDeque::new();
            for (n, (low, high)) in ids.into_iter().enumerate() {
                let id = (high << 64) | (low + (high % 3) * 30);
                let expected = naive.iter().find(|(seen, _)| *seen == id).map(|(_, seq)| *seq);
                prop_assert_eq!(window.find(id), expected.map(|seq| Some(Seq(seq))));
                if expected.is_none() {
                    window.remember(id, Some(Seq(n as u64 + 1)));
                    naive.push_back((id, n as u64 + 1));
                    if naive.len() > capacity {
                        naive.pop_front();
                    }
                }
                prop_assert!(window.memory_bytes() <= Window::memory_bound(capacity));
            }
            for (id, seq) in naive {
                prop_assert_eq!(window.find(id), Some(Some(Seq(seq))));
            }
        }
    }
}
