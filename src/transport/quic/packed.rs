//! Values at rest, without the words of them that are zero.
//!
//! The state of a QUIC connection is 6.2 KB, of which an idle one uses half:
//! counters that stand at zero, empty queues, a path that it was never on. Which
//! words these are differs, and what is in them is `quinn-proto`'s, so they are
//! left out whatever they mean: a value that nobody works with is moved into as
//! many bytes as its other words take, with one bit for each word, and moved back
//! before it is used. In Rust a move is a copy of bytes, and nothing may point
//! into a value that can be moved.
//!
//! AVX-512 has instructions for this, and fewer lines have to come from memory
//! than of a whole value. Elsewhere values stay whole.

use std::mem::MaybeUninit;

use super::prefetch::prefetch;

/// Rooms for values in use that are kept for the next ones: as many as one turn
/// of a room's fan-out touches.
const SPARE: usize = 256;
/// Words by which a place grows, so that a value mostly finds its place again as
/// large as it left it.
const STEP: usize = 32;

/// Words of a line of the caches: as many as one instruction takes.
const LINE: usize = 8;

/// Whole lines, whatever a value's size.
#[repr(align(64))]
struct Lines<T>(T);

/// A value that is used now and then.
pub(super) struct Kept<T> {
    whole: Option<Box<Lines<T>>>,
    /// While it is not whole, its value is here. See [`pack`].
    packed: Box<[MaybeUninit<u64>]>,
}

/// What values are made whole in.
pub(super) struct Rooms<T> {
    spare: Vec<Box<MaybeUninit<Lines<T>>>>,
    scratch: Box<[MaybeUninit<u64>]>,
    /// Whether this processor packs.
    packs: bool,
}

impl<T> Kept<T> {
    const LINES: usize = size_of::<Lines<T>>() / (LINE * 8);
    /// Of the bits, one byte for each line.
    const HEAD: usize = Self::LINES.div_ceil(8);
    /// Most words that a packed value takes, and a line beyond: lines are written
    /// whole.
    const MOST: usize = Self::HEAD + (Self::LINES + 1) * LINE;

    /// A value in use.
    pub(super) fn new(value: T) -> Self {
        Self { whole: Some(Box::new(Lines(value))), packed: Box::default() }
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
        Self { spare: Vec::new(), scratch, packs: can_pack() }
    }
}

impl<T> Rooms<T> {
    /// Whether this processor packs.
    pub(super) fn packs(&self) -> bool {
        self.packs
    }

    /// The value, to be used.
    pub(super) fn take_up<'a>(&mut self, kept: &'a mut Kept<T>) -> &'a mut T {
        let Kept { whole, packed } = kept;
        &mut whole
            .get_or_insert_with(|| {
                let mut room = self.spare.pop().unwrap_or_else(Box::new_uninit);
                // SAFETY: what is not whole was packed by `lay_down`, from as many
                // lines, and `packed` is as it was left there; it is read as a value
                // once, for it is whole from now on.
                unsafe {
                    unpack(packed.as_ptr().cast(), Kept::<T>::LINES, room.as_mut_ptr().cast());
                    room.assume_init()
                }
            })
            .0
    }

    /// The value is not used for a while.
    pub(super) fn lay_down(&mut self, kept: &mut Kept<T>) {
        if !self.packs {
            return;
        }
        let Some(whole) = kept.whole.take() else { return };
        let from = Box::into_raw(whole);
        // SAFETY: `from` has as many lines, and `scratch` takes them all, with one
        // line beyond. The value is there from now on, and its room is only memory,
        // of the same size and alignment, which no one else has.
        let (words, room) = unsafe {
            let words = pack(from.cast(), Kept::<T>::LINES, self.scratch.as_mut_ptr().cast());
            (words, Box::from_raw(from.cast::<MaybeUninit<Lines<T>>>()))
        };
        if self.spare.len() < SPARE {
            self.spare.push(room);
        }
        let most = words.next_multiple_of(STEP);
        if kept.packed.len() != most {
            kept.packed = Box::new_uninit_slice(most);
        }
        kept.packed[..words].copy_from_slice(&self.scratch[..words]);
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

fn can_pack() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        std::arch::is_x86_feature_detected!("avx512f")
            && std::arch::is_x86_feature_detected!("popcnt")
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Writes one byte for each line, a bit for each of its words that is not zero,
/// then these words. Returns how many words were written.
///
/// # Safety
/// `from` has `lines` lines; `to` has room for a byte for each, in whole words,
/// and for one line more than they are. The processor packs ([`can_pack`]).
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,popcnt")]
unsafe fn pack(from: *const u8, lines: usize, to: *mut u8) -> usize {
    let head = lines.div_ceil(8);
    let mut end = to.wrapping_add(head * 8);
    // SAFETY: it reads the lines and writes within `to`. Bytes of a value that are
    // not initialized (its padding, variants that it is not) have some content
    // here, as everything has for instructions, and it does not matter which.
    unsafe {
        std::arch::asm!(
            "2:",
            "vmovdqu64 zmm0, [{from}]",
            "vptestmq k1, zmm0, zmm0",
            "vpcompressq zmm0{{k1}}{{z}}, zmm0",
            "vmovdqu64 [{end}], zmm0",
            "kmovw {bits:e}, k1",
            "mov byte ptr [{to}], {bits:l}",
            "popcnt {bits:e}, {bits:e}",
            "lea {end}, [{end} + 8 * {bits:r}]",
            "add {from}, 64",
            "inc {to}",
            "dec {lines}",
            "jnz 2b",
            from = inout(reg) from => _,
            lines = inout(reg) lines => _,
            to = inout(reg) to => _,
            end = inout(reg) end,
            bits = out(reg) _,
            out("zmm0") _,
            out("k1") _,
            options(nostack),
        );
    }
    (end.addr() - to.addr()) / 8
}

/// Writes lines again that were packed.
///
/// # Safety
/// `from` was written by [`pack`] of as many lines, and `to` has room for them.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,popcnt")]
unsafe fn unpack(from: *const u8, lines: usize, to: *mut u8) {
    // SAFETY: of the words, those are read that the bits say are there.
    unsafe {
        std::arch::asm!(
            "2:",
            "movzx {bits:e}, byte ptr [{from}]",
            "kmovw k1, {bits:e}",
            "vpexpandq zmm0{{k1}}{{z}}, [{words}]",
            "vmovdqu64 [{to}], zmm0",
            "popcnt {bits:e}, {bits:e}",
            "lea {words}, [{words} + 8 * {bits:r}]",
            "add {to}, 64",
            "inc {from}",
            "dec {lines}",
            "jnz 2b",
            from = inout(reg) from => _,
            lines = inout(reg) lines => _,
            to = inout(reg) to => _,
            words = inout(reg) from.wrapping_add(lines.div_ceil(8) * 8) => _,
            bits = out(reg) _,
            out("zmm0") _,
            out("k1") _,
            options(nostack),
        );
    }
}

#[cfg(not(target_arch = "x86_64"))]
unsafe fn pack(_: *const u8, _: usize, _: *mut u8) -> usize {
    unreachable!("only where `can_pack` says so")
}

#[cfg(not(target_arch = "x86_64"))]
unsafe fn unpack(_: *const u8, _: usize, _: *mut u8) {
    unreachable!("nothing was packed")
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use proptest::prelude::*;

    use super::*;

    /// Of no whole number of lines, with padding, and a pointer that is freed once.
    #[derive(Debug, Clone)]
    struct Thing<const N: usize> {
        flag: bool,
        words: [u64; N],
        shared: Rc<()>,
        name: Option<String>,
    }

    fn there_and_back<const N: usize>(rooms: &mut Rooms<Thing<N>>, words: [u64; N], named: bool) {
        let shared = Rc::new(());
        let name = named.then(|| format!("{words:?}"));
        let thing = Thing { flag: named, words, shared: Rc::clone(&shared), name: name.clone() };
        let mut kept = Kept::new(thing);
        for _ in 0..3 {
            rooms.lay_down(&mut kept);
            rooms.lay_down(&mut kept);
            let thing = rooms.take_up(&mut kept);
            assert_eq!((thing.flag, thing.words), (named, words));
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

    proptest! {
        #[test]
        fn a_value_is_what_it_was(
            words in prop::array::uniform32(prop_oneof![Just(0_u64), Just(0), any::<u64>()]),
            named in any::<bool>(),
        ) {
            let mut few = Rooms::default();
            let mut many = Rooms::default();
            there_and_back(&mut many, words, named);
            let start: [u64; 3] = [words[0], words[1], words[2]];
            there_and_back(&mut few, start, named);
            there_and_back(&mut few, [0; 3], named);
            there_and_back(&mut few, [u64::MAX; 3], named);
        }
    }

    #[test]
    fn a_value_at_rest_takes_its_words_and_a_bit_for_each() {
        let mut rooms = Rooms::default();
        if !rooms.packs {
            return;
        }
        let mut words = [0_u64; 1_000];
        words[..100].fill(u64::MAX);
        let mut kept = Kept::new(words);
        rooms.lay_down(&mut kept);
        assert!(kept.whole.is_none());
        assert_eq!(kept.packed.len(), (100 + 1_000_usize.div_ceil(64)).next_multiple_of(STEP));
        assert_eq!(rooms.spare.len(), 1);
        assert_eq!(*rooms.take_up(&mut kept), words);
        assert_eq!(rooms.spare.len(), 0, "the room is used again");
    }

    #[test]
    fn where_nothing_packs_values_stay_whole() {
        let mut rooms = Rooms { packs: false, ..Rooms::default() };
        let mut kept = Kept::new([7_u64; 20]);
        rooms.lay_down(&mut kept);
        assert!(kept.whole.is_some());
        assert_eq!(*rooms.take_up(&mut kept), [7; 20]);
    }
}
