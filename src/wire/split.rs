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
