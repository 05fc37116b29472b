//! The mark of an event whose way is followed: who it is, for `trace` to note
//! its steps, and what a room did with it that no frame shows.
//!
//! An event is marked once, where it comes in, and carries its mark along. So
//! whoever handles events asks nothing but whether there is a mark, which for
//! all but a few events is one comparison with nothing.

use std::sync::Arc;

use super::ids::{RoomId, ShardId};
use super::stats::DropReason;
use super::time::Time;

/// By which way an event came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// `POST /v1/rooms/{room}/events`.
    Http,
    /// A gRPC stream.
    Grpc,
    /// A viewer's connection.
    Viewer,
}

impl Way {
    /// Name in traces.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Way::Http => "http",
            Way::Grpc => "grpc",
            Way::Viewer => "viewer",
        }
    }
}

/// One arrival of an event whose way is followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// Hash of room and id, the same everywhere and on every arrival.
    pub key: u128,
    /// The trace that its spans belong to: `key`, or the publisher's.
    pub trace: u128,
    /// The span that stands for this arrival.
    pub span: u64,
    /// The publisher's span that it came from.
    pub parent: Option<u64>,
    /// Where it is to go.
    pub room: RoomId,
    /// The publisher's id of it.
    pub id: Arc<str>,
    /// Name of its kind.
    pub kind: Arc<str>,
    /// How it came in.
    pub way: Way,
    /// On which shard.
    pub shard: ShardId,
    /// When.
    pub received: Time,
}

/// What became of an accepted event that does not travel by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It has become part of a total.
    Summed,
    /// A newer event of its key travels in its place.
    Overtaken,
    /// Nobody gets it.
    Dropped(DropReason),
}

/// A marked event and its [`Fate`].
pub type Fated = (Arc<Mark>, Fate);

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::time::Duration;

    use super::*;
    use crate::engine::event::Event;
    use crate::engine::ids::Epoch;
    use crate::engine::kind::Lane;
    use crate::engine::level::LevelKey;
    use crate::engine::outcome::Outcome;
    use crate::engine::room::Room;
    use crate::engine::settings::RoomSettings;
    use crate::engine::testing::{self, START, card, chat, combo, entrance, like, red_packet};

    fn mark(event: &mut Event) {
        event.mark = Some(Arc::new(Mark {
            key: 1,
            trace: 1,
            span: 1,
            parent: None,
            room: RoomId::new("r").expect("a name"),
            id: Arc::clone(&event.id),
            kind: Arc::clone(&event.kind.name),
            way: Way::Http,
            shard: ShardId(0),
            received: event.received,
        }));
    }

    #[test]
    fn an_accepted_event_travels_or_has_one_fate_and_every_fate_occurs() {
        let settings = RoomSettings {
            buffer_events: 24,
            frame_events: 6,
            flush_events: 24,
            ..testing::settings()
        };
        let id = RoomId::new("r").expect("a name");
        let mut room = Room::new(id, Epoch(1), LevelKey::from_seed(1), Arc::new(settings), START);
        room.set_online(9, START);
        let mut ends: HashMap<String, Vec<Option<Fate>>> = HashMap::new();
        let mut accepted = Vec::new();
        let mut now = START;
        for i in 0..2_000_u64 {
            // SplitMix64 (Steele et al., 2014).
            let mut draw = i.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            draw = (draw ^ (draw >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 32;
            let (id, key) = (format!("e{i}"), format!("k{}", draw % 3));
            let build = match draw % 12 {
                0 => red_packet(&id),
                1..4 => card(&id).key(&key),
                4 => like(&id).key(&key),
                5 => combo(&id).key(&key),
                6 | 7 => entrance(&id, 2),
                8 => chat(&id).ttl_ms(40),
                _ => chat(&id),
            };
            let mut event = build.user(&format!("u{}", draw % 7)).at(now).event();
            mark(&mut event);
            if matches!(room.publish(event, now), Outcome::Accepted { .. }) {
                accepted.push(id);
            }
            now = now + Duration::from_millis(draw % 4);
            // Now and then a frame takes long to go out, and the buffer fills.
            if i % 100 < 60 {
                room.frame_out(now);
            }
            let frame = if i == 1_999 { room.flush_now(now) } else { room.flush(now) };
            for event in frame.iter().flat_map(|frame| &frame.events) {
                ends.entry(event.event.id.to_string()).or_default().push(None);
            }
            for (mark, fate) in room.take_fates() {
                ends.entry(mark.id.to_string()).or_default().push(Some(fate));
            }
        }
        room.frame_out(now);
        for event in room.flush_now(now).iter().flat_map(|frame| &frame.events) {
            ends.entry(event.event.id.to_string()).or_default().push(None);
        }
        for (mark, fate) in room.take_fates() {
            ends.entry(mark.id.to_string()).or_default().push(Some(fate));
        }
        assert!(accepted.len() > 1_000);
        assert!(room.stats().accepted[Lane::Important.index()] > 0);
        for id in &accepted {
            assert_eq!(ends.get(id).map(Vec::len), Some(1), "{id}: {:?}", ends.get(id));
        }
        assert_eq!(ends.len(), accepted.len(), "what was refused has no end here");
        let dropped = |reason| Some(Fate::Dropped(reason));
        for end in [
            None,
            Some(Fate::Summed),
            Some(Fate::Overtaken),
            dropped(DropReason::SampledOut),
            dropped(DropReason::Expired),
            dropped(DropReason::FrameBudget),
            dropped(DropReason::BufferFull),
        ] {
            assert!(ends.values().flatten().any(|occurs| *occurs == end), "never {end:?}");
        }
    }
}
