//! What was found when the log was opened.

use std::fmt;
use std::sync::Arc;

use crate::engine::event::Numbered;
use crate::engine::ids::{Epoch, ImportantNo, RoomId, Seq};
use crate::engine::time::Time;

/// What is wrong with a stretch of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DamageKind {
    /// A record's body does not match its check; its length was intact.
    Record,
    /// No record begins where one should; the next one found is behind it.
    Bytes,
    /// The segment ends sooner than its successor says.
    Cut,
    /// The file is gone.
    Missing,
    /// The system does not let it be read.
    Unreadable,
    /// One of two copies of the header; nothing is lost by it.
    HeaderCopy,
    /// Both copies of the header; records are still recognised.
    Header,
    /// Valid, but of another log, or under another segment's name; or nothing
    /// says which log it is of. Left alone.
    Foreign,
    /// A record that passes its check and makes no sense: a fault of a writer.
    Content,
}

impl DamageKind {
    const fn text(self) -> &'static str {
        match self {
            Self::Record => "a damaged record",
            Self::Bytes => "damaged bytes",
            Self::Cut => "missing at the end",
            Self::Missing => "the file is missing",
            Self::Unreadable => "unreadable",
            Self::HeaderCopy => "one copy of the header is damaged",
            Self::Header => "the header is damaged",
            Self::Foreign => "not of this log",
            Self::Content => "a record without sense",
        }
    }
}

/// A damaged stretch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Damage {
    /// In which segment.
    pub segment: u32,
    /// Where it begins.
    pub offset: u64,
    /// How long it is; 0 where that is not known.
    pub bytes: u64,
    /// What is wrong.
    pub what: DamageKind,
}

/// Important events known to be missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// Whose.
    pub room: RoomId,
    /// Of which numbering.
    pub epoch: Epoch,
    /// The first.
    pub from: ImportantNo,
    /// The last.
    pub to: ImportantNo,
}

/// A room that had to begin a new numbering: the damaged stretch may have held
/// higher numbers than those that are left, and none may be used twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Renumbered {
    /// Which room.
    pub room: RoomId,
    /// Its numbering until then; what is left of it stays readable.
    pub former: Epoch,
    /// The last important number that is known of it.
    pub important: ImportantNo,
    /// The new one.
    pub epoch: Epoch,
}

/// What opening the log found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Segments read.
    pub segments: usize,
    /// Records read, of any sort.
    pub records: u64,
    /// Events retained.
    pub events: u64,
    /// A write that was never finished, cut off the end: a crash's usual trace.
    /// Nothing in it had been acknowledged.
    pub cut_tail_bytes: u64,
    /// The last segment could not be synced: what a crash left unsynced in it
    /// may still be lost with the machine's next failure.
    pub unsynced: bool,
    /// Damaged stretches.
    pub damaged: Vec<Damage>,
    /// Events that are retained by the rules and missing by the numbers.
    pub lost: Vec<Lost>,
    /// Rooms that could not keep their numbering.
    pub renumbered: Vec<Renumbered>,
}

impl Report {
    /// Whether everything that was acknowledged and is still retained is there.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.damaged.is_empty() && self.lost.is_empty() && !self.unsynced
    }
}

/// Lines of one sort that are printed.
const SHOWN: usize = 20;

fn list<T>(
    f: &mut fmt::Formatter<'_>,
    items: &[T],
    mut line: impl FnMut(&mut fmt::Formatter<'_>, &T) -> fmt::Result,
) -> fmt::Result {
    for item in items.iter().take(SHOWN) {
        f.write_str("\n  ")?;
        line(f, item)?;
    }
    if items.len() > SHOWN {
        write!(f, "\n  and {} more such", items.len() - SHOWN)?;
    }
    Ok(())
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { segments, records, events, .. } = self;
        write!(f, "{segments} segments, {records} records, {events} events retained")?;
        if self.cut_tail_bytes > 0 {
            write!(f, "\n  unfinished write of {} bytes cut off", self.cut_tail_bytes)?;
        }
        if self.unsynced {
            f.write_str("\n  the last segment could not be synced")?;
        }
        list(f, &self.damaged, |f, d| {
            let what = d.what.text();
            write!(f, "segment {} offset {}: {what}, {} bytes", d.segment, d.offset, d.bytes)
        })?;
        list(f, &self.lost, |f, l| {
            write!(f, "room {} epoch {}: ", l.room, l.epoch.0)?;
            write!(f, "important events {} to {} are lost", l.from.0, l.to.0)
        })?;
        list(f, &self.renumbered, |f, r| {
            let (room, important) = (&r.room, r.important.0);
            write!(f, "room {room} begins a new numbering: ")?;
            write!(f, "epoch {} is known up to important event {important} only", r.former.0)
        })
    }
}

/// A room's former numbering, which it could not go on with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Former {
    /// Its name; reads of it are answered with what is left.
    pub epoch: Epoch,
    /// The last important number that is known of it.
    pub important: ImportantNo,
}

/// A room as the log remembers it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoredRoom {
    /// Which room.
    pub room: RoomId,
    /// Its numbering, to go on with.
    pub epoch: Epoch,
    /// Highest sequence number that may be in use.
    pub seq: Seq,
    /// Last important number.
    pub important: ImportantNo,
    /// When it was last heard of.
    pub last_used: Time,
    /// Ids of the newest events within [`super::Retention::age`] with their
    /// numbers, oldest first; at most [`super::LogSettings::ids_per_room`].
    pub ids: Vec<(Arc<str>, Seq)>,
    /// The newest events, oldest first and without a gap; at most
    /// [`super::LogSettings::tail_events`] and [`super::LogSettings::tail_bytes`].
    pub tail: Vec<Arc<Numbered>>,
    /// The numbering before this one, while events of it are retained.
    pub former: Option<Former>,
}

/// All that the log remembers.
#[derive(Debug, Clone, Default)]
pub struct Recovered {
    /// Rooms, in no particular order.
    pub rooms: Vec<RestoredRoom>,
    /// What was found, for the operator.
    pub report: Report,
}
