//! Reconciliation: a viewer's and the server's idea of what was received,
//! compared without sending it.
//!
//! A digest stands for the important events of a range of numbers: how many,
//! and the XOR of their hashes, in any order. An event's hash is FNV-1a with 32
//! bits (Fowler, Noll and Vo; draft-eastlake-fnv) over its important number in
//! decimal, a colon and its id: a few lines in any language, and no secret is
//! at stake. Two different sets pass for equal once in 2^32.

use super::event::Numbered;
use super::ids::ImportantNo;

/// Longest range that is compared, in numbers.
pub const MAX_RANGE: u64 = 1_000;

/// A digest of some important events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Digest {
    /// How many.
    pub count: u32,
    /// XOR of their hashes.
    pub xor: u32,
}

impl Digest {
    /// Adds one event. Adding it twice takes its hash out again, which the count
    /// shows.
    pub fn add(&mut self, important: ImportantNo, id: &str) {
        self.count = self.count.saturating_add(1);
        self.xor ^= hash(important, id);
    }

    /// Of events with an important number.
    #[must_use]
    pub fn of<'a>(events: impl IntoIterator<Item = &'a Numbered>) -> Self {
        let mut digest = Self::default();
        for event in events {
            if let Some(important) = event.important {
                digest.add(important, &event.event.id);
            }
        }
        digest
    }
}

/// One event's hash.
#[must_use]
pub fn hash(important: ImportantNo, id: &str) -> u32 {
    let number = important.0.to_string();
    let bytes = number.bytes().chain(*b":").chain(id.bytes());
    bytes.fold(0x811c_9dc5, |hash: u32, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_fnv_1a_and_clients_can_check_theirs_against_this() {
        // Of "1:a" and "42:red-packet-7", for the protocol's page.
        assert_eq!(hash(ImportantNo(1), "a"), 0x3424_79c9);
        assert_eq!(hash(ImportantNo(42), "red-packet-7"), 0x6d20_4359);
    }

    #[test]
    fn order_does_not_matter_and_a_repetition_shows() {
        let digest = |ids: &[(u64, &str)]| {
            let mut digest = Digest::default();
            ids.iter().for_each(|(no, id)| digest.add(ImportantNo(*no), id));
            digest
        };
        assert_eq!(digest(&[(1, "a"), (2, "b")]), digest(&[(2, "b"), (1, "a")]));
        assert_ne!(digest(&[(1, "a"), (2, "b")]), digest(&[(1, "b"), (2, "a")]));
        assert_ne!(digest(&[(1, "a"), (1, "a")]), digest(&[]));
        assert_ne!(digest(&[(1, "a")]), digest(&[(1, "a"), (2, "b"), (2, "b")]));
    }
}
