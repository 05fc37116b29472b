//! What one viewer still has to get when its socket takes no more.
//!
//! The queue holds frames by reference and is bounded in frames and bytes. When
//! a bound is passed, content goes by worth, for the whole queue at once, so
//! that a viewer never sees likes of a second in which its chat was dropped:
//! first everything `sampled`, then everything `ordered`. What went is handed
//! out, so that the viewer can be told. Important content alone is never thinned; a viewer whose
//! important backlog passes the bound is [`Push::Overrun`] and is closed with a
//! code that makes it reconnect.
//!
//! The frame whose first bytes are already on the wire is never touched: the
//! stream would break in its middle.
//!
//! Contract: [`push`](Backlog::push) when the socket is not writable;
//! [`chunks`](Backlog::chunks) then [`advance`](Backlog::advance) when it is.
//! Whoever drives it asks [`take_lost`](Backlog::take_lost) after a push that
//! thinned, and tells the viewer with [`push_notice`](Backlog::push_notice).

use std::collections::VecDeque;

use bytes::Bytes;

/// How much of a frame a slow viewer still gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Cut {
    /// All of it.
    Full,
    /// Without sampled content.
    NoSampled,
    /// Only important content.
    ImportantOnly,
}

impl Cut {
    /// How many there are.
    pub const COUNT: usize = 3;
}

/// A frame as the backlog sees it: bytes for every cut, encoded once for all
/// viewers by whoever implements this.
pub trait Frame {
    /// The bytes of a cut; empty when nothing is left of the frame.
    fn bytes(&self, cut: Cut) -> Bytes;
}

/// Bounds of one viewer's backlog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Frames.
    pub frames: usize,
    /// Bytes, of the frames as queued.
    pub bytes: usize,
}

/// What a push did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Push {
    /// Queued whole.
    Queued,
    /// Queued, and the queue was cut down to this.
    Thinned(Cut),
    /// Past its bounds with important content alone: close it.
    Overrun,
}

struct Item<F> {
    /// The frame and what is sent of it; `None` for a message to this viewer
    /// alone, which is never thinned.
    frame: Option<(F, Cut)>,
    /// What is left to send.
    bytes: Bytes,
    /// Its first bytes are on the wire: it must be finished as it began.
    begun: bool,
}

/// See the module's documentation.
pub struct Backlog<F> {
    items: VecDeque<Item<F>>,
    bytes: usize,
    limits: Limits,
    /// Lost frames with the cut they were brought to, oldest first.
    lost: Vec<(F, Cut, Cut)>,
}

impl<F: Frame + Clone> Backlog<F> {
    /// An empty one.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { items: VecDeque::new(), bytes: 0, limits, lost: Vec::new() }
    }

    /// A message for this viewer alone, or the rest of one. It counts towards
    /// the bounds, but is not thinned.
    pub fn push_fixed(&mut self, bytes: Bytes, begun: bool) {
        self.bytes += bytes.len();
        self.items.push_back(Item { frame: None, bytes, begun });
    }

    /// The rest of a frame whose first bytes the socket took.
    pub fn push_begun(&mut self, frame: F, rest: Bytes) {
        self.bytes += rest.len();
        self.items.push_back(Item { frame: Some((frame, Cut::Full)), bytes: rest, begun: true });
    }

    /// Puts bytes before everything else that has not begun.
    pub fn push_notice(&mut self, bytes: Bytes) {
        self.bytes += bytes.len();
        let begun = usize::from(self.items.front().is_some_and(|item| item.begun));
        self.items.insert(begun, Item { frame: None, bytes, begun: false });
    }

    /// The next frame for this viewer.
    pub fn push(&mut self, frame: F) -> Push {
        let bytes = frame.bytes(Cut::Full);
        self.bytes += bytes.len();
        self.items.push_back(Item { frame: Some((frame, Cut::Full)), bytes, begun: false });
        let mut result = Push::Queued;
        for cut in [Cut::NoSampled, Cut::ImportantOnly] {
            if self.is_within_limits() {
                return result;
            }
            self.thin(cut);
            result = Push::Thinned(cut);
        }
        if self.is_within_limits() { result } else { Push::Overrun }
    }

    /// Whether nothing is queued.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Queued frames and messages.
    #[must_use]
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Queued bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// What to write next, oldest first, for one vectored write.
    pub fn chunks(&self) -> impl Iterator<Item = &[u8]> {
        self.items.iter().map(|item| item.bytes.as_ref())
    }

    /// `written` bytes of [`chunks`](Self::chunks) are on the wire. Hands every
    /// frame that was finished by that to `finished`.
    pub fn advance(&mut self, mut written: usize, mut finished: impl FnMut(&F, Cut)) {
        self.bytes -= written;
        while let Some(mut front) = self.items.pop_front() {
            if written < front.bytes.len() {
                if written > 0 {
                    front.bytes = front.bytes.slice(written..);
                    front.begun = true;
                }
                self.items.push_front(front);
                return;
            }
            written -= front.bytes.len();
            if let Some((frame, cut)) = &front.frame {
                finished(frame, *cut);
            }
        }
    }

    /// What thinning took since the last call: each frame, the cut it had and
    /// the cut it was brought to, oldest first.
    pub fn take_lost(&mut self) -> Vec<(F, Cut, Cut)> {
        std::mem::take(&mut self.lost)
    }

    fn is_within_limits(&self) -> bool {
        self.items.len() <= self.limits.frames && self.bytes <= self.limits.bytes
    }

    fn thin(&mut self, to: Cut) {
        for item in &mut self.items {
            let Some((frame, cut)) = &mut item.frame else { continue };
            if item.begun || *cut >= to {
                continue;
            }
            let thinner = frame.bytes(to);
            self.bytes = self.bytes - item.bytes.len() + thinner.len();
            self.lost.push((frame.clone(), *cut, to));
            item.bytes = thinner;
            *cut = to;
        }
        self.items.retain(|item| !item.bytes.is_empty());
    }
}

impl<F> std::fmt::Debug for Backlog<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Backlog")
            .field("items", &self.items.len())
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Sizes of the three cuts; content is the frame's number repeated.
    #[derive(Debug, Clone, Copy, PartialEq)]
    struct Sized(u8, [usize; 3]);

    impl Frame for Sized {
        fn bytes(&self, cut: Cut) -> Bytes {
            vec![self.0; self.1[cut as usize]].into()
        }
    }

    fn backlog(frames: usize, bytes: usize) -> Backlog<Sized> {
        Backlog::new(Limits { frames, bytes })
    }

    fn drain(backlog: &Backlog<Sized>) -> Vec<u8> {
        backlog.chunks().flatten().copied().collect()
    }

    #[test]
    fn sampled_content_goes_before_ordered_content() {
        let mut queue = backlog(10, 100);
        assert_eq!(queue.push(Sized(1, [60, 30, 0])), Push::Queued);
        assert_eq!(queue.push(Sized(2, [60, 30, 10])), Push::Thinned(Cut::NoSampled));
        assert_eq!(queue.bytes(), 60);
        assert_eq!(queue.push(Sized(3, [60, 60, 10])), Push::Thinned(Cut::ImportantOnly));
        assert_eq!(drain(&queue), [[2; 10], [3; 10]].concat());
        assert_eq!(queue.take_lost().len(), 6);
    }

    #[test]
    fn important_content_alone_past_the_bound_is_an_overrun() {
        let mut queue = backlog(2, 1_000);
        let important = Sized(1, [10, 10, 10]);
        assert_eq!(queue.push(important), Push::Queued);
        assert_eq!(queue.push(important), Push::Queued);
        assert_eq!(queue.push(important), Push::Overrun);
    }

    #[test]
    fn a_begun_frame_is_finished_as_it_began() {
        let mut queue = backlog(10, 100);
        queue.push(Sized(1, [50, 0, 0]));
        queue.advance(20, |_, _| ());
        queue.push_notice(Bytes::from_static(b"N"));
        queue.push(Sized(2, [90, 5, 0]));
        let expected = [vec![1; 30], b"N".to_vec(), vec![2; 5]].concat();
        assert_eq!(drain(&queue), expected);
        let mut finished = Vec::new();
        queue.advance(36, |frame, cut| finished.push((frame.0, cut)));
        assert_eq!(finished, [(1, Cut::Full), (2, Cut::NoSampled)]);
        assert!(queue.is_empty());
    }

    proptest! {
        #[test]
        fn the_queue_stays_within_its_bounds_and_important_content_is_kept(
            pushes in prop::collection::vec((0usize..40, 0usize..40, 0usize..20, 0usize..80), 1..200)
        ) {
            let mut queue = backlog(8, 200);
            let mut important = Vec::new();
            let mut sent: Vec<u8> = Vec::new();
            for (i, (sampled, ordered, kept, written)) in pushes.into_iter().enumerate() {
                let number = (i % 251) as u8 + 1;
                let frame = Sized(number, [kept + ordered + sampled, kept + ordered, kept]);
                let result = queue.push(frame);
                important.push((number, kept));
                if result == Push::Overrun {
                    break;
                }
                prop_assert!(queue.len() <= 8 && queue.bytes() <= 200);
                let written = written.min(queue.bytes());
                sent.extend(queue.chunks().flatten().copied().take(written).collect::<Vec<_>>());
                queue.advance(written, |_, _| ());
                prop_assert_eq!(queue.bytes(), queue.chunks().map(<[u8]>::len).sum::<usize>());
            }
            sent.extend(drain(&queue));
            for (number, kept) in important {
                let got = sent.iter().filter(|b| **b == number).count();
                prop_assert!(got >= kept, "frame {} sent {} of {} bytes", number, got, kept);
            }
        }
    }
}
