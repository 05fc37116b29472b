//! Values at rest, without the words of them that are zero.
//!
//! The state of a QUIC connection is 6.4 KB, of which an idle one uses half:
//! counters that stand at zero, empty queues, a path that it was never on. Which
//! words these are differs, and what is in them is `quinn-proto`'s, so they are
//! left out whatever they mean: a value that nobody works with is moved into as
//! many words as it has that are not zero, with one bit for each word, and moved
//! back before it is used. In Rust a move is a copy of bytes, and nothing may point
//! into a value that can be moved.
//!
//! Bytes that a value does not use (padding, variants that it is not) have no
//! value in Rust, and may not be compared with zero. `freeze` gives them one.

use std::mem::MaybeUninit;

use super::prefetch::prefetch;

/// Rooms for values in use that are kept for the next ones: as many as one turn
/// of a room's fan-out touches.
const SPARE: usize = 256;
/// Words by which a place grows, so that a value mostly finds its place again as
/// large as it left it.
const STEP: usize = 32;
/// Words that share a word of bits.
const BLOCK: usize = u64::BITS as usize;

/// Eight bytes of a value. Copied as such, they stay what they are: also half of
/// something, a pointer, or nothing.
type Word = MaybeUninit<u64>;

/// Whole lines of the caches, and so whole words, whatever a value's size.
#[repr(align(64))]
struct Lines<T>(T);

/// A value that is used now and then.
pub(super) struct Kept<T> {
    whole: Option<Box<Lines<T>>>,
    /// While it is not whole, its value is here. See [`pack`].
    packed: Box<[Word]>,
}

/// What values are made whole in.
pub(super) struct Rooms<T> {
    spare: Vec<Box<MaybeUninit<Lines<T>>>>,
    scratch: Box<[Word]>,
    /// Whether it packs.
    packs: bool,
}

impl<T> Kept<T> {
    const WORDS: usize = size_of::<Lines<T>>() / size_of::<Word>();
    /// Most words that a packed value takes, and one beyond: what is not counted is
    /// written before that is known.
    const MOST: usize = Self::WORDS.div_ceil(BLOCK) + Self::WORDS + 1;

    /// A value in use.
    pub(super) fn new(value: T) -> Self {
        Self { whole: Some(Box::new(Lines(value))), packed: Box::default() }
    }

    /// The value, while it is whole.
    pub(super) fn whole(&self) -> Option<&T> {
        self.whole.as_ref().map(|lines| &lines.0)
    }

    /// It stays whole, and needs no other place.
    pub(super) fn stay(&mut self) {
        if self.whole.is_some() && !self.packed.is_empty() {
            self.packed = Box::default();
        }
    }

    /// Asks for its memory, without waiting for it.
    pub(super) fn prefetch(&self) {
        match &self.whole {
            Some(whole) => prefetch(&**whole),
            None => prefetch(&*self.packed),
        }
    }
}

impl<T> Default for Rooms<T> {
    fn default() -> Self {
        let scratch = Box::new_uninit_slice(Kept::<T>::MOST);
        Self { spare: Vec::new(), scratch, packs: CAN_FREEZE }
    }
}

impl<T> Rooms<T> {
    /// Whether values at rest take less memory here.
    pub(super) fn packs(&self) -> bool {
        self.packs
    }

    /// The value, to be used.
    pub(super) fn take_up<'a>(&mut self, kept: &'a mut Kept<T>) -> &'a mut T {
        let Kept { whole, packed } = kept;
        &mut whole.get_or_insert_with(|| self.unpacked(packed)).0
    }

    /// # Panics
    /// When nothing was packed there.
    fn unpacked(&mut self, packed: &[Word]) -> Box<Lines<T>> {
        assert!(!packed.is_empty(), "a value is whole or packed");
        let mut room = self.spare.pop().unwrap_or_else(Box::new_uninit);
        let words = room.as_mut_ptr().cast::<Word>();
        // SAFETY: the room has so many words, aligned as lines are, and nobody else
        // has it. What is not whole was packed by `lay_down`, and its place has not
        // been touched since. The words are the value's again, and nobody reads
        // them as a value twice: it is whole from now on.
        unsafe {
            unpack(packed, std::slice::from_raw_parts_mut(words, Kept::<T>::WORDS));
            room.assume_init()
        }
    }

    /// The value is not used for a while.
    pub(super) fn lay_down(&mut self, kept: &mut Kept<T>) {
        if !self.packs {
            return;
        }
        let Some(whole) = kept.whole.take() else { return };
        // As long as it is neither here nor there it has no owner, and whatever
        // happened would not drop it twice.
        let mut packed = std::mem::take(&mut kept.packed);
        let lines = Box::into_raw(whole);
        // SAFETY: the room is that of a value, aligned as lines are, and nobody else
        // has it. Afterwards the value is in `scratch`, and the room is memory, of the
        // same size and alignment.
        let (words, room) = unsafe {
            let value = std::slice::from_raw_parts_mut(lines.cast::<Word>(), Kept::<T>::WORDS);
            let words = pack(value, &mut self.scratch);
            (words, Box::from_raw(lines.cast::<MaybeUninit<Lines<T>>>()))
        };
        if self.spare.len() < SPARE {
            self.spare.push(room);
        }
        let most = words.next_multiple_of(STEP);
        if packed.len() != most {
            packed = Box::new_uninit_slice(most);
        }
        packed[..words].copy_from_slice(&self.scratch[..words]);
        kept.packed = packed;
    }
}

impl<T> Drop for Kept<T> {
    fn drop(&mut self) {
        if self.whole.is_none() && !self.packed.is_empty() {
            // It is dropped where it is whole.
            Rooms { spare: Vec::new(), scratch: Box::default(), packs: false }.take_up(self);
        }
    }
}

/// Whether there is a [`freeze`] for this processor.
const CAN_FREEZE: bool = cfg!(any(target_arch = "x86_64", target_arch = "aarch64"));

/// Bytes of these words that have no value get one: whichever is there.
///
/// To the compiler, inline assembly that is given a pointer may have written what
/// is behind it; so from here on all of it is initialized, and what was has kept its
/// value. No instruction is needed for that.
fn freeze(words: &mut [Word]) {
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    // SAFETY: nothing is done.
    unsafe {
        std::arch::asm!("/* {0} */", in(reg) words.as_mut_ptr(), options(nostack, preserves_flags));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = words;
}

/// Writes a bit for each word that says whether it is zero, then those that are
/// not. Returns how many words were written.
fn pack(value: &mut [Word], to: &mut [Word]) -> usize {
    freeze(value);
    let blocks = value.chunks(BLOCK);
    let mut end = blocks.len();
    for (head, block) in blocks.enumerate() {
        let mut there = 0;
        for (bit, word) in block.iter().enumerate() {
            // SAFETY: it has been frozen.
            let used = unsafe { word.assume_init() } != 0;
            to[end] = *word;
            end += usize::from(used);
            there |= u64::from(used) << bit;
        }
        to[head] = Word::new(there);
    }
    end
}

/// Writes words again that were packed.
///
/// # Safety
/// [`pack`] made `packed` of as many words.
// SAFETY: `lay_down` packs, and nothing else is unpacked.
unsafe fn unpack(packed: &[Word], value: &mut [Word]) {
    let blocks = value.chunks_mut(BLOCK);
    let (heads, words) = packed.split_at(blocks.len());
    let mut words = words.iter();
    for (head, block) in heads.iter().zip(blocks) {
        block.fill(Word::new(0));
        // SAFETY: the caller's promise; `pack` writes all of the bits.
        let mut there = unsafe { head.assume_init() };
        while there != 0
            && let Some(word) = words.next()
        {
            block[there.trailing_zeros() as usize] = *word;
            there &= there - 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::rc::Rc;

    use proptest::prelude::*;

    use super::*;

    /// Of no whole number of lines, with padding, unused variants, and a pointer
    /// that is freed once.
    #[derive(Debug, Clone)]
    struct Thing<const N: usize> {
        flag: bool,
        words: [u64; N],
        small: Result<u16, u64>,
        shared: Rc<()>,
        name: Option<String>,
    }

    fn there_and_back<const N: usize>(rooms: &mut Rooms<Thing<N>>, words: [u64; N], named: bool) {
        let shared = Rc::new(());
        let name = named.then(|| format!("{words:?}"));
        let small = if named { Ok(7) } else { Err(words[0]) };
        let thing =
            Thing { flag: named, words, small, shared: Rc::clone(&shared), name: name.clone() };
        let mut kept = Kept::new(thing);
        for _ in 0..3 {
            rooms.lay_down(&mut kept);
            rooms.lay_down(&mut kept);
            let thing = rooms.take_up(&mut kept);
            assert_eq!((thing.flag, thing.words, thing.small), (named, words, small));
            assert_eq!(thing.name, name);
            assert!(Rc::ptr_eq(&thing.shared, &shared));
            thing.words.reverse();
            rooms.take_up(&mut kept).words.reverse();
        }
        assert_eq!(Rc::strong_count(&shared), 2);
        rooms.lay_down(&mut kept);
        drop(kept);
        assert_eq!(Rc::strong_count(&shared), 1, "dropped once, at rest");
    }

    fn whole<T>() -> Rooms<T> {
        Rooms { packs: false, ..Rooms::default() }
    }

    proptest! {
        #[test]
        fn a_value_is_what_it_was(
            words in prop::array::uniform32(prop_oneof![Just(0_u64), Just(0), any::<u64>()]),
            named in any::<bool>(),
        ) {
            for mut many in [Rooms::default(), whole()] {
                there_and_back(&mut many, words, named);
            }
            for mut few in [Rooms::default(), whole()] {
                there_and_back(&mut few, [words[0], words[1], words[2]], named);
                there_and_back(&mut few, [0; 3], named);
                there_and_back(&mut few, [u64::MAX; 3], named);
            }
        }

        /// Also where the bits of one block are full, and where a byte of a word
        /// alone is not zero.
        #[test]
        fn every_pattern_of_words_comes_back(
            bits in prop::collection::vec(any::<bool>(), 320..=320),
            byte in 0_u32..8,
        ) {
            let mut rooms = Rooms::<[u64; 320]>::default();
            let patterns: [&dyn Fn(usize) -> bool; 5] = [
                &|_| false,
                &|_| true,
                &|word| word % 2 == 0,
                &|word| word % 2 == 1,
                &|word| bits[word],
            ];
            for pattern in patterns {
                let value = std::array::from_fn(|word| u64::from(pattern(word)) << (byte * 8));
                let mut kept = Kept::new(value);
                rooms.lay_down(&mut kept);
                prop_assert_eq!(kept.whole().is_none(), rooms.packs());
                prop_assert_eq!(*rooms.take_up(&mut kept), value);
            }
        }
    }

    #[test]
    fn a_value_at_rest_takes_its_words_and_a_bit_for_each() {
        let mut rooms = Rooms::default();
        if !rooms.packs() {
            return;
        }
        let mut words = [0_u64; 1_000];
        words[..100].fill(u64::MAX);
        let mut kept = Kept::new(words);
        rooms.lay_down(&mut kept);
        assert!(kept.whole().is_none());
        assert_eq!(kept.packed.len(), (100 + 1_000_usize.div_ceil(64)).next_multiple_of(STEP));
        assert_eq!(rooms.spare.len(), 1);
        assert_eq!(*rooms.take_up(&mut kept), words);
        assert_eq!(rooms.spare.len(), 0, "the room is used again");
        kept.stay();
        assert_eq!(kept.packed.len(), 0, "it has one place");
        assert_eq!(*rooms.take_up(&mut kept), words);
    }

    #[test]
    fn a_value_whose_user_panics_is_dropped_once() {
        let shared = Rc::new(());
        let mut rooms = Rooms::default();
        let mut kept = Kept::new(Rc::clone(&shared));
        rooms.lay_down(&mut kept);
        let panicked = catch_unwind(AssertUnwindSafe(move || {
            assert_eq!(Rc::strong_count(rooms.take_up(&mut kept)), 2);
            // Its place still has the words of it, and they mean nothing.
            panic!("while it is in use");
        }));
        assert!(panicked.is_err());
        assert_eq!(Rc::strong_count(&shared), 1);
    }

    #[test]
    fn where_nothing_packs_values_stay_whole() {
        let mut rooms = whole();
        let mut kept = Kept::new([7_u64; 20]);
        rooms.lay_down(&mut kept);
        assert!(kept.whole().is_some());
        assert_eq!(*rooms.take_up(&mut kept), [7; 20]);
    }
}
