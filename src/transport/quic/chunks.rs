//! A table of large things, by index.
//!
//! Allocators round up: a connection of 6.2 KB takes 7 KB of its own. Side by
//! side, many in one allocation, they take what they are. A chunk is let go when
//! nobody is left in it; indexes of those who left are given to the next
//! (`quinn-proto` gives the latest first), so chunks stay full.

/// Things in one allocation: 0.4 MB of connections.
const CHUNK: usize = 64;

/// See the module's documentation.
pub(super) struct Chunks<T> {
    chunks: Vec<Option<Chunk<T>>>,
}

struct Chunk<T> {
    /// [`CHUNK`] of them.
    slots: Box<[Option<T>]>,
    taken: usize,
}

impl<T> Default for Chunks<T> {
    fn default() -> Self {
        Self { chunks: Vec::new() }
    }
}

impl<T> Chunks<T> {
    /// What is at `index`.
    pub(super) fn get(&self, index: u32) -> Option<&T> {
        let (chunk, slot) = place(index);
        self.chunks.get(chunk)?.as_ref()?.slots[slot].as_ref()
    }

    /// The same, to change it.
    pub(super) fn get_mut(&mut self, index: u32) -> Option<&mut T> {
        let (chunk, slot) = place(index);
        self.chunks.get_mut(chunk)?.as_mut()?.slots[slot].as_mut()
    }

    /// Puts something at `index`, instead of what was there.
    pub(super) fn put(&mut self, index: u32, thing: T) {
        let (chunk, slot) = place(index);
        if self.chunks.len() <= chunk {
            self.chunks.resize_with(chunk + 1, || None);
        }
        let chunk = self.chunks[chunk].get_or_insert_with(|| Chunk {
            slots: std::iter::repeat_with(|| None).take(CHUNK).collect(),
            taken: 0,
        });
        chunk.taken += usize::from(chunk.slots[slot].replace(thing).is_none());
    }

    /// Drops what is at `index`. Returns whether there was something.
    pub(super) fn remove(&mut self, index: u32) -> bool {
        let (at, slot) = place(index);
        let Some(Some(chunk)) = self.chunks.get_mut(at) else { return false };
        let was = std::mem::take(&mut chunk.slots[slot]).is_some();
        chunk.taken -= usize::from(was);
        if chunk.taken == 0 {
            self.chunks[at] = None;
        }
        was
    }

    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.chunks.iter().flatten().flat_map(|chunk| chunk.slots.iter().flatten())
    }
}

fn place(index: u32) -> (usize, usize) {
    (index as usize / CHUNK, index as usize % CHUNK)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::rc::Rc;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against a map; and what is held is what is in it.
        #[test]
        fn it_holds_what_was_put_in_until_it_is_removed(
            steps in prop::collection::vec((0_u32..300, any::<bool>()), 0..400),
        ) {
            let mut chunks = Chunks::default();
            let mut model = BTreeMap::new();
            let token = Rc::new(());
            for (step, (index, put)) in steps.into_iter().enumerate() {
                if put {
                    chunks.put(index, (step, Rc::clone(&token)));
                    model.insert(index, step);
                } else {
                    prop_assert_eq!(chunks.remove(index), model.remove(&index).is_some());
                }
                let at = |chunks: &mut Chunks<(usize, _)>| chunks.get_mut(index).map(|it| it.0);
                prop_assert_eq!(at(&mut chunks), model.get(&index).copied());
            }
            for index in 0..310 {
                prop_assert_eq!(chunks.get(index).map(|it| it.0), model.get(&index).copied());
            }
            prop_assert_eq!(chunks.iter().count(), model.len());
            prop_assert_eq!(Rc::strong_count(&token), model.len() + 1);
            let live = chunks.chunks.iter().flatten().count();
            let wanted = model.keys().map(|index| place(*index).0).collect::<Vec<_>>();
            prop_assert_eq!(live, wanted.chunk_by(|a, b| a == b).count(), "empty chunks are gone");
        }
    }
}
