//! What somebody gets who comes back and says how far it had come.

use std::sync::Arc;

use super::super::event::Numbered;
use super::super::ids::{Epoch, ImportantNo, Seq};
use super::Room;

/// Where somebody's knowledge of a room ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Position {
    /// In which numbering.
    pub epoch: Epoch,
    /// Last sequence number a frame covered for it.
    pub seq: Seq,
    /// Last important number it has.
    pub important: ImportantNo,
}

/// What the room has for a position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resumed {
    /// `events` are everything that travelled after the position, in order of
    /// `seq`. Otherwise they are important ones only, in order.
    pub recovered: bool,
    /// What it missed.
    pub events: Vec<Arc<Numbered>>,
    /// Important events after the position and up to this number are not among
    /// them: memory has forgotten them. The position's own number if none is.
    pub missed_to: ImportantNo,
}

impl Room {
    /// What memory holds for somebody who comes back; at most `limit` events,
    /// the newest. `None`: the position is in no numbering of this room, and
    /// nothing is owed.
    #[must_use]
    pub fn resume(&self, from: Position, limit: usize) -> Option<Resumed> {
        let ahead = from.seq > self.flushed.seq || from.important > self.flushed.important;
        if from.epoch != self.epoch || ahead {
            return None;
        }
        let sequenced = self.history_after_seq(from.seq, limit);
        let mut owed = self.history_after_important(from.important, usize::MAX);
        let behind = owed.events.len().saturating_sub(limit);
        if sequenced.complete && !sequenced.more && owed.complete && behind == 0 {
            let events = united(sequenced.events, owed.events, from);
            return Some(Resumed { recovered: true, events, missed_to: from.important });
        }
        owed.events.drain(..behind);
        let first = owed.events.first().and_then(|event| event.important);
        let missed_to = match first {
            _ if owed.complete && behind == 0 => from.important,
            Some(first) => ImportantNo(first.0 - 1),
            None => self.flushed.important,
        };
        Some(Resumed { recovered: false, events: owed.events, missed_to })
    }
}

/// Both lists in order of `seq`: important events that the position's owner has
/// not, although their `seq` lies before it, come first, and those that it has,
/// although their `seq` lies behind it, are left out: they may have a stream of
/// their own.
fn united(
    sequenced: Vec<Arc<Numbered>>,
    important: Vec<Arc<Numbered>>,
    from: Position,
) -> Vec<Arc<Numbered>> {
    let mut events = important;
    events.retain(|event| event.seq <= Some(from.seq));
    let has = |event: &Arc<Numbered>| event.important.is_some_and(|it| it <= from.important);
    events.extend(sequenced.into_iter().filter(|event| !has(event)));
    events
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::ids::RoomId;
    use crate::engine::level::LevelKey;
    use crate::engine::settings::RoomSettings;
    use crate::engine::testing::{self, START, chat, red_packet};

    fn room(settings: RoomSettings) -> Room {
        let id = RoomId::new("r").unwrap();
        let mut room = Room::new(id, Epoch(7), LevelKey::from_seed(1), Arc::new(settings), START);
        for i in 1..=10 {
            let event =
                if i % 3 == 0 { red_packet(&format!("p{i}")) } else { chat(&format!("c{i}")) };
            room.publish(event.event(), START);
            room.flush_now(START);
            room.frame_out(START);
        }
        room
    }

    fn at(seq: u64, important: u64) -> Position {
        Position { epoch: Epoch(7), seq: Seq(seq), important: ImportantNo(important) }
    }

    fn seqs(resumed: &Resumed) -> Vec<u64> {
        resumed.events.iter().filter_map(|event| event.seq).map(|seq| seq.0).collect()
    }

    #[test]
    fn what_memory_holds_is_replayed_whole_and_in_order() {
        let room = room(testing::settings());
        let resumed = room.resume(at(7, 2), 100).unwrap();
        assert_eq!((resumed.recovered, seqs(&resumed)), (true, vec![8, 9, 10]));
        let behind = room.resume(at(7, 1), 100).unwrap();
        assert_eq!(seqs(&behind), [6, 8, 9, 10], "an important one missed before that");
        assert!(room.resume(at(10, 3), 100).unwrap().events.is_empty());
        let ahead = room.resume(at(4, 2), 100).unwrap();
        assert_eq!(seqs(&ahead), [5, 7, 8, 9, 10], "an important one came before its seq");
    }

    #[test]
    fn important_events_are_owed_when_the_rest_is_gone() {
        let room = room(RoomSettings { history_events: 1, ..testing::settings() });
        let resumed = room.resume(at(2, 0), 100).unwrap();
        assert_eq!((resumed.recovered, seqs(&resumed)), (false, vec![3, 6, 9]));
        assert_eq!(resumed.missed_to, ImportantNo(0));
        let limited = room.resume(at(2, 0), 2).unwrap();
        assert_eq!((seqs(&limited), limited.missed_to), (vec![6, 9], ImportantNo(1)));
    }

    #[test]
    fn what_is_forgotten_is_named() {
        let room = room(RoomSettings { history_important: 1, ..testing::settings() });
        let resumed = room.resume(at(5, 1), 100).unwrap();
        assert_eq!((resumed.recovered, resumed.missed_to), (false, ImportantNo(2)));
        let room = self::room(RoomSettings { history_important: 0, ..testing::settings() });
        let resumed = room.resume(at(5, 1), 100).unwrap();
        assert_eq!((resumed.events.len(), resumed.missed_to), (0, ImportantNo(3)));
    }

    #[test]
    fn a_position_in_another_numbering_is_none() {
        let room = room(testing::settings());
        assert_eq!(room.resume(Position { epoch: Epoch(8), ..at(1, 0) }, 9), None);
        assert_eq!(room.resume(at(11, 3), 9), None);
        assert_eq!(room.resume(at(10, 4), 9), None);
    }
}
