//! What a shard tells its recorder of events that are followed: here as one
//! that has viewers, in `home::traces` as the home of rooms.

use std::sync::Arc;

use super::Shard;
use super::peers::Placement as _;
use super::room::{Job, LocalRoom};
use crate::engine::confirm::Remedy;
use crate::engine::ids::{ImportantNo, RoomId};
use crate::engine::mark::Mark;
use crate::engine::time::Time;
use crate::trace::{Again, Recorder, Written};
use crate::wire::shared::SharedFrame;

impl Shard {
    /// Steps of events that are followed are noted from now on. Call before
    /// anything else.
    pub fn attach_recorder(&mut self, recorder: Recorder) {
        self.homes.tracer = Some(Box::new(recorder));
    }

    /// An event that is followed was refused before it reached its home.
    pub fn trace_refusal(&self, mark: Arc<Mark>, why: &'static str) {
        self.peers.trace_refusal(mark, why);
    }

    /// Frames that have gone out.
    pub(super) fn trace_written(&mut self) {
        for (job, ended) in self.fanout.marked.drain(..) {
            let Job { frame, begun, end, whole, gone, .. } = job;
            let Some(tracer) = &mut self.homes.tracer else { continue };
            if end == 0 {
                continue;
            }
            // Whoever has left, and whose socket broke, waits for nothing.
            let backlogged = (end as u32).saturating_sub(whole + gone);
            let at_home = self.peers.home_of(&frame.frame().room) == self.id;
            let begun = begun.unwrap_or(ended);
            let written = Written { begun, ended, whole, backlogged, at_home };
            tracer.written(frame.frame(), written);
        }
    }

    /// Frames with what slow viewers were owed.
    pub(super) fn trace_rebased(&mut self) {
        for frame in self.rebases.marked.drain(..) {
            again(&mut self.homes.tracer, &frame, Again::Rebased, 1);
        }
    }

    /// Ends the counting of acknowledgements and of events sent again. The
    /// shard's seconds are often enough for that.
    pub(super) fn tick_traces(&mut self, now: Time) {
        if let Some(tracer) = &mut self.homes.tracer
            && tracer.is_counting()
        {
            tracer.tick(now);
        }
    }
}

/// A room's frame begins to go out.
pub(super) fn begun(tracer: &mut Option<Box<Recorder>>, room: &LocalRoom) {
    let frame = room.job.as_ref().map(|job| &job.frame).filter(|frame| frame.is_marked());
    if let (Some(tracer), Some(frame)) = (tracer, frame) {
        tracer.expect_receipts(frame.frame());
    }
}

/// A viewer has acknowledged `new` further numbers, up to `upto`.
pub(super) fn confirmed(
    tracer: &mut Option<Box<Recorder>>,
    room: &RoomId,
    new: u64,
    upto: ImportantNo,
) {
    if let Some(tracer) = tracer
        && new > 0
        && tracer.awaits_receipts()
    {
        tracer.confirmed(room, ImportantNo(upto.0.saturating_sub(new)), upto);
    }
}

/// So many viewers more have got a frame's events again.
pub(super) fn again(
    tracer: &mut Option<Box<Recorder>>,
    frame: &SharedFrame,
    how: Again,
    viewers: u64,
) {
    if frame.is_marked()
        && viewers > 0
        && let Some(tracer) = tracer
    {
        tracer.again(&frame.frame().events, how, viewers);
    }
}

/// Viewers of a room that were behind got these remedies, one each.
pub(super) fn remedied(tracer: &mut Option<Box<Recorder>>, room: &LocalRoom, remedies: &[Remedy]) {
    let Some(tracer) = tracer else { return };
    let carried = |remedy: &Remedy| match remedy {
        Remedy::Carry(after) => Some(*after),
        Remedy::Missed(..) => None,
    };
    if let Some(lowest) = remedies.iter().filter_map(carried).min() {
        let events = room.confirmations.after(lowest);
        for event in events.iter().filter(|event| event.event.mark.is_some()) {
            let got = |after: &ImportantNo| event.important > Some(*after);
            let viewers = remedies.iter().filter_map(carried).filter(got).count();
            tracer.again(std::slice::from_ref(event), Again::Carried, viewers as u64);
        }
    }
    for remedy in remedies {
        if let Remedy::Missed(from, to) = remedy {
            tracer.missed((&room.id, room.stands_at.0), (*from, *to), Again::Silent);
        }
    }
}
