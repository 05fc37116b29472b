//! The queue of one viewer: frames by reference, cut by worth, and messages to
//! it alone.
//!
//! A cut is made for the whole queue at once, so that a viewer never sees likes
//! of a second in which its chat was dropped. What the socket has taken by part
//! is never touched: the stream would break in its middle.

use std::collections::VecDeque;

use bytes::Bytes;

use super::super::ids::{RoomId, Seq};
use super::super::time::Time;
use super::ladder::Load;
use super::{Cut, Frame};

/// Places in a queue that are always kept; beyond them there are at most four times as
/// many as are needed. Thousands fall behind together, and each is kept for seconds after
/// it has caught up: the places of 17,900 were 35 MiB while two thirds of the queues were
/// empty (measured).
const SPARE: usize = 2;

/// A room's state, made for this viewer to go on from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Newest totals.
    Totals,
    /// All of it, as it was after this number.
    Whole(Seq),
}

/// What an item is.
enum Sort<F> {
    /// A frame, what is sent of it, and when it was queued.
    Frame(F, Cut, Time),
    /// A message that nothing takes away: an answer, a ping, a close frame.
    Fixed,
    /// Tells what was lost of a room, from this number on.
    Notice(RoomId, Seq),
    /// See [`State`].
    State(RoomId, State),
}

struct Item<F> {
    sort: Sort<F>,
    /// What is left to send.
    bytes: Bytes,
    /// Its first bytes are on the wire: it must be finished as it began.
    begun: bool,
}

/// What went over the wire.
pub(super) enum Passed<'a, F> {
    /// A frame has, whole.
    Frame(&'a F, Cut),
    /// A notice has begun to: it cannot be changed any more.
    Notice(&'a RoomId, Seq),
    /// A room's whole state has begun to.
    Whole(&'a RoomId),
    /// The rest needs no account.
    Other,
}

/// What a rebase takes away.
pub(super) enum Taken<F> {
    Frame(F, Cut),
    State(RoomId, State),
}

/// See the module's documentation.
pub(super) struct Backlog<F> {
    items: VecDeque<Item<F>>,
    /// All of it.
    bytes: usize,
    /// Of frames that have not begun.
    waiting_frames: usize,
    waiting_bytes: usize,
}

impl<F: Frame> Backlog<F> {
    pub(super) fn new() -> Self {
        Self { items: VecDeque::new(), bytes: 0, waiting_frames: 0, waiting_bytes: 0 }
    }

    pub(super) fn push_fixed(&mut self, bytes: Bytes, begun: bool) {
        self.push(Sort::Fixed, bytes, begun);
    }

    /// The rest of a frame whose first bytes the socket took.
    pub(super) fn push_begun(&mut self, frame: F, rest: Bytes, now: Time) {
        self.push(Sort::Frame(frame, Cut::Full, now), rest, true);
    }

    pub(super) fn push_frame(&mut self, frame: F, cut: Cut, bytes: Bytes, now: Time) {
        self.waiting_frames += 1;
        self.waiting_bytes += bytes.len();
        self.push(Sort::Frame(frame, cut, now), bytes, false);
    }

    /// A room's state, in place of an older one that has not begun.
    pub(super) fn push_state(&mut self, room: &RoomId, state: State, bytes: Bytes) {
        self.remove(|sort| matches!(sort, Sort::State(of, _) if of == room));
        self.push(Sort::State(room.clone(), state), bytes, false);
    }

    /// Tells of what was lost of a room from `first` on: behind the room's frames
    /// before that number, before everything else of the room.
    pub(super) fn push_notice(&mut self, room: RoomId, first: Seq, bytes: Bytes) {
        let behind = |item: &Item<F>| match &item.sort {
            _ if item.begun => false,
            Sort::Frame(frame, ..) => {
                let content = frame.content();
                content.room == room && content.last_seq >= first
            }
            Sort::State(of, State::Whole(seq)) => *of == room && *seq >= first,
            Sort::State(..) | Sort::Fixed | Sort::Notice(..) => false,
        };
        let at = self.items.iter().position(behind).unwrap_or(self.items.len());
        self.bytes += bytes.len();
        self.make_place();
        self.items.insert(at, Item { sort: Sort::Notice(room, first), bytes, begun: false });
    }

    fn push(&mut self, sort: Sort<F>, bytes: Bytes, begun: bool) {
        self.bytes += bytes.len();
        self.make_place();
        self.items.push_back(Item { sort, bytes, begun });
    }

    /// One more place, twice as many as there were if there is none.
    fn make_place(&mut self) {
        if self.items.len() == self.items.capacity() {
            self.items.reserve_exact(self.items.len().max(SPARE));
        }
    }

    /// Gives back places that were needed once.
    fn fit(&mut self) {
        if self.items.capacity() > SPARE.max(4 * self.items.len()) {
            self.items.shrink_to(SPARE.max(2 * self.items.len()));
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes of messages that nothing takes away.
    pub(super) fn fixed_bytes(&self) -> usize {
        let fixed = self.items.iter().filter(|item| matches!(item.sort, Sort::Fixed));
        fixed.map(|item| item.bytes.len()).sum()
    }

    /// Whether anything has yet to begin.
    pub(super) fn has_unbegun(&self) -> bool {
        self.items.back().is_some_and(|item| !item.begun)
    }

    pub(super) fn load(&self) -> Load {
        let oldest = self.items.iter().find_map(|item| match item.sort {
            Sort::Frame(_, _, queued) if !item.begun => Some(queued),
            _ => None,
        });
        Load { frames: self.waiting_frames, bytes: self.waiting_bytes, oldest }
    }

    /// What to write next, oldest first, for one vectored write.
    pub(super) fn chunks(&self) -> impl Iterator<Item = &Bytes> {
        self.items.iter().map(|item| &item.bytes)
    }

    /// `written` bytes of [`chunks`](Self::chunks) are on the wire.
    pub(super) fn advance(&mut self, mut written: usize, mut passed: impl FnMut(Passed<'_, F>)) {
        self.bytes -= written;
        while written > 0
            && let Some(front) = self.items.front_mut()
        {
            if !std::mem::replace(&mut front.begun, true) {
                match &front.sort {
                    Sort::Frame(..) => {
                        self.waiting_frames -= 1;
                        self.waiting_bytes -= front.bytes.len();
                    }
                    Sort::Notice(room, first) => passed(Passed::Notice(room, *first)),
                    Sort::State(room, State::Whole(_)) => passed(Passed::Whole(room)),
                    Sort::Fixed | Sort::State(..) => {}
                }
            }
            if written < front.bytes.len() {
                front.bytes = front.bytes.slice(written..);
                break;
            }
            written -= front.bytes.len();
            let Some(item) = self.items.pop_front() else { break };
            passed(match &item.sort {
                Sort::Frame(frame, cut, _) => Passed::Frame(frame, *cut),
                _ => Passed::Other,
            });
        }
        self.fit();
    }

    /// Cuts every frame that has not begun down to `to`. `lost` gets each with
    /// the cut it had and whether nothing is left of it.
    pub(super) fn thin(&mut self, to: Cut, mut lost: impl FnMut(&F, Cut, bool)) {
        for item in &mut self.items {
            let Sort::Frame(frame, cut, _) = &mut item.sort else { continue };
            if item.begun || *cut >= to {
                continue;
            }
            let thinner = frame.bytes(to);
            self.bytes = self.bytes - item.bytes.len() + thinner.len();
            self.waiting_bytes = self.waiting_bytes - item.bytes.len() + thinner.len();
            self.waiting_frames -= usize::from(thinner.is_empty());
            lost(frame, *cut, thinner.is_empty());
            item.bytes = thinner;
            *cut = to;
        }
        self.items.retain(|item| !item.bytes.is_empty());
        self.fit();
    }

    /// Takes away everything that has not begun, but for fixed messages.
    pub(super) fn take_all(&mut self) -> Vec<Taken<F>> {
        let mut taken = Vec::new();
        let items = std::mem::take(&mut self.items);
        for item in items {
            if item.begun || matches!(item.sort, Sort::Fixed) {
                self.items.push_back(item);
                continue;
            }
            self.bytes -= item.bytes.len();
            match item.sort {
                Sort::Frame(frame, cut, _) => taken.push(Taken::Frame(frame, cut)),
                Sort::State(room, state) => taken.push(Taken::State(room, state)),
                Sort::Fixed | Sort::Notice(..) => {}
            }
        }
        (self.waiting_frames, self.waiting_bytes) = (0, 0);
        taken
    }

    /// Takes away notices that have not begun.
    pub(super) fn remove_notices(&mut self) {
        self.remove(|sort| matches!(sort, Sort::Notice(..)));
    }

    /// Takes away what was meant to help the viewer of a room, but for frames.
    pub(super) fn forget(&mut self, room: &RoomId) {
        self.remove(|sort| match sort {
            Sort::Notice(of, _) | Sort::State(of, _) => of == room,
            Sort::Frame(..) | Sort::Fixed => false,
        });
    }

    /// Not for frames, which are counted.
    fn remove(&mut self, which: impl Fn(&Sort<F>) -> bool) {
        let bytes = &mut self.bytes;
        self.items.retain(|item| {
            let goes = !item.begun && which(&item.sort);
            *bytes -= if goes { item.bytes.len() } else { 0 };
            !goes
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::event;
    use super::*;

    /// There are none.
    #[derive(Clone)]
    enum NoFrame {}

    impl Frame for NoFrame {
        fn content(&self) -> &event::Frame {
            match *self {}
        }

        fn bytes(&self, _: Cut) -> Bytes {
            match *self {}
        }
    }

    #[test]
    fn places_that_were_needed_once_are_given_back() {
        let mut backlog = Backlog::<NoFrame>::new();
        for _ in 0..100 {
            backlog.push_fixed(Bytes::from_static(b"ping"), false);
        }
        for left in (0..100).rev() {
            backlog.advance(4, |_| {});
            assert_eq!(backlog.len(), left);
            assert!(backlog.items.capacity() <= SPARE.max(4 * left), "{left} left");
        }
        assert!(backlog.items.capacity() <= SPARE);
    }
}
