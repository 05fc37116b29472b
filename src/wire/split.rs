//! A frame taken apart by lanes, for transports that carry lanes side by side:
//! what is important on a stream of its own, what is sampled in a datagram, and
//! the rest in order. Each part is a frame and is encoded once for everyone.

use std::sync::Arc;

use super::shared::{Compression, SharedFrame};
use crate::engine::event::{DroppedKind, Frame, Numbered, Total};
use crate::engine::ids::Seq;
use crate::engine::kind::Lane;

/// The parts of a frame. Together `important`, `ordered` and `sampled` say what
/// the frame says; so do `important` and `rest`, for viewers that take no
/// datagrams.
#[derive(Debug)]
pub struct Split {
    /// The important events, in a frame that covers no numbers.
    pub important: Option<Arc<SharedFrame>>,
    /// What is neither important nor sampled, with the frame's numbers.
    pub ordered: Option<Arc<SharedFrame>>,
    /// What is sampled, in a frame that covers no numbers.
    pub sampled: Option<Arc<SharedFrame>>,
    /// `ordered` and `sampled` in one.
    pub rest: Option<Arc<SharedFrame>>,
}

impl Split {
    /// Takes a frame apart. A frame whose numbers all belong to important events
    /// leaves nothing in order: their own part says them.
    #[must_use]
    pub fn new(frame: &Frame, compression: Compression) -> Self {
        let events = |lane: Lane| -> Vec<Arc<Numbered>> {
            frame.events.iter().filter(|e| e.event.kind.lane == lane).cloned().collect()
        };
        let (important, ordered, sampled) =
            (events(Lane::Important), events(Lane::Ordered), events(Lane::Sampled));
        let (loose, firm): (Vec<Total>, Vec<Total>) =
            frame.totals.iter().cloned().partition(|t| t.kind.lane == Lane::Sampled);
        let (lost_loose, lost): (Vec<DroppedKind>, Vec<DroppedKind>) =
            frame.dropped.iter().cloned().partition(|d| d.kind.lane == Lane::Sampled);
        let has_order = !ordered.is_empty() || !firm.is_empty() || !lost.is_empty();
        let is_sampled = !sampled.is_empty() || !loose.is_empty() || !lost_loose.is_empty();
        // A count of viewers alone is worth a datagram, but not beside a message
        // that can carry it.
        let alone = frame.online.is_some() && !has_order;
        let has_sample = is_sampled || alone;

        let carried = important.len() as u64;
        let beyond = frame.represents.saturating_sub(carried);
        // What was merged into totals is counted with the samples, if there are.
        let in_order = if has_sample { beyond.min(ordered.len() as u64) } else { beyond };
        let beside = Frame {
            first_seq: Seq(frame.last_seq.0 + 1),
            events: Vec::new(),
            totals: Vec::new(),
            dropped: Vec::new(),
            online: None,
            ack: None,
            ..frame.clone()
        };
        let share = |frame: Frame| Arc::new(SharedFrame::new(frame, compression));
        let rest = (has_order || has_sample).then(|| Frame {
            events: merged(&ordered, &sampled, frame),
            ack: None,
            represents: beyond,
            ..frame.clone()
        });
        let important = (!important.is_empty()).then(|| Frame {
            events: important,
            ack: frame.ack,
            represents: carried,
            ..beside.clone()
        });
        let online = frame.online;
        let ordered = has_order.then(|| Frame {
            events: ordered,
            totals: firm,
            dropped: lost,
            online: online.filter(|_| !is_sampled),
            ack: None,
            represents: in_order,
            ..frame.clone()
        });
        let sampled = has_sample.then(|| Frame {
            events: sampled,
            totals: loose,
            dropped: lost_loose,
            online,
            represents: beyond - in_order,
            ..beside
        });
        Self {
            important: important.map(share),
            ordered: ordered.map(share),
            sampled: sampled.map(share),
            rest: rest.map(share),
        }
    }
}

/// Both in the order of the frame.
fn merged(
    ordered: &[Arc<Numbered>],
    sampled: &[Arc<Numbered>],
    frame: &Frame,
) -> Vec<Arc<Numbered>> {
    if sampled.is_empty() {
        return ordered.to_vec();
    }
    let kept = |e: &&Arc<Numbered>| e.event.kind.lane != Lane::Important;
    frame.events.iter().filter(kept).cloned().collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{self, COMPRESSION, event};
    use super::*;

    fn frame(lanes: &[Lane], totals: &[Lane], dropped: &[Lane], online: Option<u32>) -> Frame {
        let event = |(lane, seq): (&Lane, u64)| event(*lane, &seq.to_string(), seq, seq);
        let events: Vec<_> = lanes.iter().zip(1..).map(event).collect();
        Frame {
            totals: totals.iter().copied().map(testing::total).collect(),
            dropped: dropped.iter().copied().map(testing::dropped).collect(),
            online,
            represents: (lanes.len() + 3 * totals.len()) as u64,
            ..testing::frame(events, 1, lanes.len() as u64)
        }
    }

    fn lanes() -> impl Strategy<Value = Vec<Lane>> {
        prop::collection::vec(prop::sample::select(Lane::ALL.to_vec()), 0..6)
    }

    fn seqs<'a>(parts: impl IntoIterator<Item = &'a Option<Arc<SharedFrame>>>) -> Vec<String> {
        let parts = parts.into_iter().flatten();
        let events = parts.flat_map(|part| part.frame().events.iter());
        let mut ids: Vec<String> = events.map(|e| e.event.id.to_string()).collect();
        ids.sort_unstable();
        ids
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_nothing_comes_twice(
            (events, totals, dropped) in (lanes(), lanes(), lanes()),
            online in prop::option::of(1_u32..9),
        ) {
            let frame = frame(&events, &totals, &dropped, online);
            let split = Split::new(&frame, COMPRESSION);
            let mut all: Vec<String> = frame.events.iter().map(|e| e.event.id.to_string()).collect();
            all.sort_unstable();
            let three = [&split.important, &split.ordered, &split.sampled];
            let two = [&split.important, &split.rest];
            for parts in [&three[..], &two[..]] {
                prop_assert_eq!(seqs(parts.iter().copied()), all.clone());
                let sum = |count: fn(&Frame) -> usize| -> usize {
                    parts.iter().copied().flatten().map(|part| count(part.frame())).sum()
                };
                prop_assert_eq!(sum(|f| f.totals.len()), totals.len());
                prop_assert_eq!(sum(|f| f.dropped.len()), dropped.len());
                let told = parts.iter().copied().flatten().any(|part| part.frame().online.is_some());
                prop_assert_eq!(told, online.is_some());
                let stands_for: u64 =
                    parts.iter().copied().flatten().map(|part| part.frame().represents).sum();
                let carried = parts.iter().any(|part| part.is_some());
                prop_assert_eq!(stands_for, if carried { frame.represents } else { 0 });
            }
        }

        #[test]
        fn each_part_holds_its_lane_and_only_what_is_in_order_covers_numbers(
            (events, totals) in (lanes(), lanes()),
        ) {
            let frame = frame(&events, &totals, &[], None);
            let Split { important, ordered, sampled, rest } = Split::new(&frame, COMPRESSION);
            let covers = |part: &Option<Arc<SharedFrame>>| {
                part.as_ref().is_some_and(|p| p.frame().first_seq <= p.frame().last_seq)
            };
            prop_assert!(!covers(&important) && !covers(&sampled));
            prop_assert_eq!(covers(&ordered), ordered.is_some() && !events.is_empty());
            let lane = |part: &Option<Arc<SharedFrame>>, lane| {
                let mut events = part.iter().flat_map(|p| p.frame().events.iter());
                events.all(|e| e.event.kind.lane == lane)
            };
            prop_assert!(lane(&important, Lane::Important));
            prop_assert!(lane(&ordered, Lane::Ordered));
            prop_assert!(lane(&sampled, Lane::Sampled));
            prop_assert_eq!(rest.is_some(), ordered.is_some() || sampled.is_some());
        }
    }

    #[test]
    fn the_count_of_viewers_needs_a_datagram_only_where_nothing_else_goes() {
        let beside = Split::new(&frame(&[Lane::Ordered], &[], &[], Some(5)), COMPRESSION);
        assert!(beside.sampled.is_none());
        assert_eq!(beside.ordered.expect("talk").frame().online, Some(5));
        let alone = Split::new(&frame(&[Lane::Important], &[], &[], Some(5)), COMPRESSION);
        assert!(alone.ordered.is_none());
        assert_eq!(alone.sampled.expect("a count").frame().online, Some(5));
    }
}
