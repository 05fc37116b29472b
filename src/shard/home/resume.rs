//! Coming into a room, anew or again: one answer per room, moment and
//! position, however many viewers come back at once.

use std::sync::Arc;

use super::{HomeRoom, Homes, SNAPSHOT_AGE};
use crate::engine::event::Frame;
use crate::engine::ids::{ImportantNo, RoomId, Seq, ShardId};
use crate::engine::room::{Position, Resumed};
use crate::engine::time::Time;
use crate::log::ReadAnswer;
use crate::shard::peers::{Entrance, Message, Path, Wanted};
use crate::wire::message::Recovery;
use crate::wire::shared::{Compression, SharedFrame, SharedSnapshot};

/// Positions whose answers are kept for the next who come from there. After a
/// cut most viewers of a room come from one or two.
const POSITIONS: usize = 32;

/// An answer that serves everyone who comes from the same position now.
pub(super) struct Cached {
    made: Time,
    entrance: Arc<Entrance>,
}

impl Homes {
    /// A shard has viewers that want to join, from a position or anew.
    pub fn subscribe(
        &mut self,
        id: &RoomId,
        (shard, formats): (ShardId, u8),
        resume: Option<Position>,
        path: &Arc<dyn Path>,
        now: Time,
    ) {
        let compression = self.settings.compression;
        let limit = self.settings.resume_events;
        let Some(home) = self.open(id, now) else {
            let refused = Message::SubscribeRefused { room: id.clone(), code: "too_many_rooms" };
            return path.send(shard, refused);
        };
        home.subscriber(shard).formats |= formats;
        let entrance = home.entrance(resume, limit, compression, now);
        let missed = entrance.snapshot.recovery().missed;
        if let (Some(from), Some((first, last))) = (resume, missed) {
            // The newest of them that may be sent at all.
            let newest = last.0.saturating_sub(limit.saturating_sub(entrance.events()) as u64);
            let after = ImportantNo(newest.max(first.0 - 1));
            let wanted = Wanted::Resume { shard, from };
            if after < last && self.read_log(id, after, limit, wanted, path) {
                return;
            }
        }
        path.send(shard, Message::Enter(entrance));
    }
}

impl HomeRoom {
    /// Where the room stands, for all who ask within a moment.
    pub(super) fn snapshot(&mut self, compression: Compression, now: Time) -> Arc<SharedSnapshot> {
        if let Some((made, snapshot)) = &self.snapshot
            && now.since(*made) < SNAPSHOT_AGE
        {
            return Arc::clone(snapshot);
        }
        let snapshot = self.room.snapshot(now);
        let snapshot = Arc::new(SharedSnapshot::new(snapshot, Recovery::default(), compression));
        self.snapshot = Some((now, Arc::clone(&snapshot)));
        snapshot
    }

    fn entrance(
        &mut self,
        resume: Option<Position>,
        limit: usize,
        compression: Compression,
        now: Time,
    ) -> Arc<Entrance> {
        self.entrances.retain(|cached| now.since(cached.made) < SNAPSHOT_AGE);
        let known = self.entrances.iter().find(|cached| cached.entrance.resume == resume);
        if let Some(cached) = known {
            return Arc::clone(&cached.entrance);
        }
        let resumed = resume.and_then(|from| Some((from, self.room.resume(from, limit)?)));
        let entrance = match resumed {
            Some((from, resumed)) => self.resumed(from, resumed, compression, now),
            None => Entrance { snapshot: self.snapshot(compression, now), resume, replay: None },
        };
        let entrance = Arc::new(entrance);
        if self.entrances.len() < POSITIONS {
            self.entrances.push(Cached { made: now, entrance: Arc::clone(&entrance) });
        }
        entrance
    }

    /// The same with what the log had before memory begins.
    pub(super) fn entrance_with(
        &mut self,
        from: Position,
        answer: ReadAnswer,
        limit: usize,
        compression: Compression,
        now: Time,
    ) -> Arc<Entrance> {
        let Some(mut resumed) = self.room.resume(from, limit) else {
            return self.entrance(None, limit, compression, now);
        };
        let mut events = answer.events;
        events.retain(|event| event.important <= Some(resumed.missed_to));
        let joins_up = events.last().and_then(|event| event.important) == Some(resumed.missed_to);
        if joins_up {
            let first = events.first().and_then(|event| event.important).unwrap_or_default();
            resumed.missed_to = ImportantNo(first.0 - 1);
            events.append(&mut resumed.events);
            resumed.events = events;
        }
        Arc::new(self.resumed(from, resumed, compression, now))
    }

    fn resumed(
        &mut self,
        from: Position,
        resumed: Resumed,
        compression: Compression,
        now: Time,
    ) -> Entrance {
        let Resumed { recovered, events, missed_to } = resumed;
        let missed =
            (missed_to > from.important).then(|| (ImportantNo(from.important.0 + 1), missed_to));
        let snapshot = self.room.snapshot(now);
        let (seq, important) = (snapshot.seq, snapshot.important);
        let first = if recovered { from.seq } else { seq };
        let replay = (first < seq || !events.is_empty()).then(|| {
            let (room, at) = (snapshot.room.clone(), (snapshot.epoch, seq));
            let frame = Frame {
                first_seq: Seq(first.0 + 1),
                ..Frame::beside(room, at, important, events, now)
            };
            Arc::new(SharedFrame::new(frame, compression))
        });
        let recovery = Recovery { recovered, missed, ..Recovery::default() };
        let snapshot = Arc::new(SharedSnapshot::new(snapshot, recovery, compression));
        Entrance { snapshot, resume: Some(from), replay }
    }
}
