//! What a home tells its shard's recorder of events that are followed.

use std::sync::Arc;

use super::Homes;
use crate::engine::event::{Event, Numbered};
use crate::engine::ids::{ImportantNo, RoomId};
use crate::engine::mark::Mark;
use crate::engine::outcome::Refusal;
use crate::engine::room::{Offered, Room};
use crate::trace::{Again, Detail, Query, Recorder, View};
use crate::wire::Format;
use crate::wire::shared::SharedFrame;

type Tracer<'a> = Option<&'a mut Recorder>;

/// Names of the formats' sizes, in the order of [`Format::index`].
const BYTES: [&str; Format::COUNT] =
    ["json_bytes", "json_deflate_bytes", "proto_bytes", "proto_deflate_bytes", "stream_bytes"];

impl Homes {
    /// An event was refused before it came here.
    pub fn trace_refusal(&mut self, mark: &Arc<Mark>, why: &'static str) {
        if let Some(tracer) = &mut self.tracer {
            tracer.arrived(mark);
            tracer.refused(mark, why);
        }
    }

    /// What was noted on this shard.
    #[must_use]
    pub fn traces(&self, query: &Query) -> Vec<View> {
        self.tracer.as_ref().map(|tracer| tracer.views(query)).unwrap_or_default()
    }

    /// The intake has taken or refused a publish's events.
    pub(super) fn trace_offered(&mut self, marks: &[Arc<Mark>]) {
        if let Some(tracer) = &mut self.tracer {
            let refused = &self.intake.refused_marks;
            let waiting = self.intake.len();
            for mark in marks {
                tracer.arrived(mark);
                if !refused.iter().any(|(refused, _)| Arc::ptr_eq(refused, mark)) {
                    tracer.admitted(mark, waiting);
                }
            }
        }
        self.trace_shed();
    }

    /// The intake has refused some.
    pub(super) fn trace_shed(&mut self) {
        for (mark, refusal) in self.intake.refused_marks.drain(..) {
            if let Some(tracer) = &mut self.tracer {
                tracer.refused(&mark, refusal.code());
            }
        }
    }
}

/// Those of a publish's events that are followed.
pub(super) fn marks(events: &[Event]) -> Vec<Arc<Mark>> {
    events.iter().filter_map(|event| event.mark.clone()).collect()
}

/// An event's turn has come, and its room has answered.
pub(super) fn offered(tracer: Tracer<'_>, mark: Option<&Arc<Mark>>, offered: &Offered) {
    if let (Some(mark), Some(tracer)) = (mark, tracer) {
        tracer.taken(mark);
        tracer.answered(mark, offered);
    }
}

/// An event's turn has come, and it has no room.
pub(super) fn refused(tracer: Tracer<'_>, event: &Event, refusal: Refusal) {
    if let (Some(mark), Some(tracer)) = (&event.mark, tracer) {
        tracer.taken(mark);
        tracer.refused(mark, refusal.code());
    }
}

/// Somebody over HTTP gets these events of a room.
pub(super) fn read(tracer: &mut Option<Box<Recorder>>, events: &[Arc<Numbered>]) {
    if let Some(tracer) = tracer
        && tracer.is_following()
    {
        tracer.again(events, Again::Read, 1);
    }
}

/// A room's events up to a number are on disk.
pub(super) fn logged(tracer: Tracer<'_>, room: &RoomId, upto: ImportantNo) {
    if let Some(tracer) = tracer.filter(|tracer| tracer.is_logging()) {
        tracer.logged(room, upto);
    }
}

/// A room's events from a number on are lost.
pub(super) fn log_failed(tracer: Tracer<'_>, room: &RoomId, from: ImportantNo) {
    if let Some(tracer) = tracer.filter(|tracer| tracer.is_logging()) {
        tracer.log_failed(room, from);
    }
}

/// What became of events that are in no frame.
pub(super) fn fates(room: &mut Room, tracer: Tracer<'_>) {
    let fates = room.take_fates();
    if let Some(tracer) = tracer {
        fates.iter().for_each(|fated| tracer.fate(fated));
    }
}

/// A frame was made; gives the recorder back if it says anything of it.
pub(super) fn flushed<'a>(tracer: Tracer<'a>, frame: &SharedFrame) -> Tracer<'a> {
    let tracer = tracer.filter(|_| frame.is_marked())?;
    tracer.flushed(frame.frame());
    Some(tracer)
}

/// A frame has its bytes in the formats `used`, a bit each.
pub(super) fn encoded(tracer: Tracer<'_>, frame: &SharedFrame, used: u8) {
    let Some(tracer) = tracer else { return };
    let formats = Format::ALL.into_iter().filter(|format| used & 1 << format.index() != 0);
    let bytes = formats.map(|format| {
        let bytes = frame.prepare(format);
        (BYTES[format.index()], Detail::Count(bytes as u64))
    });
    tracer.encoded(frame.frame(), &bytes.collect::<Vec<_>>());
}
