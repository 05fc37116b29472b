//! Who is in a room: how many viewers, how many different users, and word of
//! those who come and go where that is wanted.

use std::sync::Arc;

use super::{Homes, Subscriber};
use crate::engine::event::{Event, Payload};
use crate::engine::ids::{RoomId, ShardId};
use crate::engine::kind::Kind;
use crate::engine::time::Time;
use crate::shard::room::Moves;

/// Kinds of the events that tell of users who came and left; without one,
/// nothing is told.
#[derive(Debug, Clone, Default)]
pub struct Announce {
    /// Of those who came.
    pub entered: Option<Arc<Kind>>,
    /// Of those who left.
    pub left: Option<Arc<Kind>>,
}

impl Homes {
    /// A shard's viewers of a room came or went.
    pub fn presence(
        &mut self,
        id: &RoomId,
        (shard, viewers, formats): (ShardId, u32, u8),
        moves: &Moves,
        now: Time,
    ) {
        let Some(home) = self.rooms.get_mut(id) else { return };
        if viewers == 0 {
            home.shards.retain(|s| s.shard != shard);
        } else {
            *home.subscriber(shard) = Subscriber { shard, viewers, formats };
        }
        let online = home.shards.iter().map(|s| s.viewers).sum();
        home.room.set_online(online, now);
        moves.visitors.iter().for_each(|visitor| home.room.visited(*visitor));
        let Announce { entered, left } = self.settings.announce.clone();
        for (kind, users) in [(entered, &moves.entered), (left, &moves.left)] {
            let Some(kind) = kind else { continue };
            for user in users {
                self.announce(id, &kind, user, now);
            }
        }
        self.mark_dirty(id);
    }

    /// Says in a room that somebody came or left. Goes past admission, since it
    /// is bounded by what joins are let in; the room merges and sheds it like
    /// any other of its kind.
    fn announce(&mut self, id: &RoomId, kind: &Arc<Kind>, user: &Arc<str>, now: Time) {
        let Some(home) = self.rooms.get_mut(id) else { return };
        self.announced += 1;
        let event = Event {
            id: format!("tidegate:{}:{}:{}", self.shard.0, now.as_micros(), self.announced).into(),
            kind: Arc::clone(kind),
            user: Arc::clone(user),
            payload: Payload { bytes: bytes::Bytes::from_static(b"null"), json: true },
            key: None,
            amount: None,
            ttl: None,
            received: now,
            mark: None,
        };
        // What the room refuses it has counted.
        let _ = home.room.publish(event, now);
    }
}
