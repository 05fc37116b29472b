//! What a frame says about the events that the room shed, and a gap notice about
//! those that one viewer lost: how many of which kind.
//!
//! Unknown names are kinds too, so a publisher could make the list as long as it
//! likes. From [`MAX_KINDS`] on, further kinds are counted together under the
//! name [`OTHER`]: the sum stays exact and only the names are lost.

use std::sync::Arc;

use super::event::DroppedKind;
use super::kind::Kind;

/// Kinds that one list names.
pub const MAX_KINDS: usize = 64;

/// Name under which the rest is counted.
pub(super) const OTHER: &str = "other";

/// Bytes allowed for one entry whose kind nobody else holds.
const ENTRY_BYTES: usize = 384;

/// Drops since the last frame or notice.
#[derive(Debug, Default)]
pub struct Drops {
    kinds: Vec<DroppedKind>,
}

impl Drops {
    /// Counts `count` dropped events of a kind.
    pub fn add(&mut self, kind: &Arc<Kind>, count: u64) {
        let same = |d: &&mut DroppedKind| Arc::ptr_eq(&d.kind, kind) || *d.kind.name == *kind.name;
        if let Some(dropped) = self.kinds.iter_mut().find(same) {
            dropped.count += count;
        } else if self.kinds.len() < MAX_KINDS {
            self.kinds.push(DroppedKind { kind: Arc::clone(kind), count });
        } else {
            self.add_other(kind, count);
        }
    }

    /// Hands out the list, in order of each kind's first drop.
    #[must_use]
    pub fn take(&mut self) -> Vec<DroppedKind> {
        std::mem::take(&mut self.kinds)
    }

    /// What was counted so far.
    #[must_use]
    pub fn list(&self) -> &[DroppedKind] {
        &self.kinds
    }

    /// Bytes held.
    pub(super) fn memory_bytes(&self) -> usize {
        self.kinds.len() * ENTRY_BYTES
    }

    /// Bytes held at most.
    pub(super) fn memory_bound() -> usize {
        (MAX_KINDS + 1) * ENTRY_BYTES
    }

    fn add_other(&mut self, kind: &Kind, count: u64) {
        // A kind may really have that name: one frame names it once.
        match self.kinds.iter_mut().find(|dropped| *dropped.kind.name == *OTHER) {
            Some(other) => other.count += count,
            None => {
                let kind = Arc::new(Kind { name: OTHER.into(), ..kind.clone() });
                self.kinds.push(DroppedKind { kind, count });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::testing::chat;

    #[test]
    fn the_list_is_bounded_and_its_sum_exact() {
        let mut drops = Drops::default();
        for round in 0..2 {
            for i in 0..200 {
                let kind = chat("c").kind(|k| k.name = format!("k{i}").into()).event().kind;
                drops.add(&kind, 1 + round);
            }
        }
        assert!(drops.memory_bytes() <= Drops::memory_bound());
        let list = drops.take();
        assert_eq!(list.len(), MAX_KINDS + 1);
        assert_eq!(list.iter().map(|d| d.count).sum::<u64>(), 600);
        assert_eq!((&*list[64].kind.name, list[64].count), (OTHER, 3 * 136));
        assert!(drops.take().is_empty());
    }

    #[test]
    fn a_kind_that_is_really_called_other_is_named_once() {
        let mut drops = Drops::default();
        for name in (0..100).map(|i| if i == 3 { OTHER.into() } else { format!("k{i}") }) {
            drops.add(&chat("c").kind(|k| k.name = name.into()).event().kind, 1);
        }
        let list = drops.take();
        assert_eq!(list.iter().filter(|d| &*d.kind.name == OTHER).count(), 1);
        assert_eq!(list.iter().map(|d| d.count).sum::<u64>(), 100);
    }
}
