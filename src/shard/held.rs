//! New joins wait in line while the shard is overloaded: the last rung of the
//! ladder. Who waits too long, or finds the line full, is sent away with a time
//! to come back.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::connection::{Speaker, ViewerKey};
use super::stats::{JOIN_RESULTS, count};
use super::{Entry, JoinError, Shard};
use crate::engine::ids::RoomId;
use crate::engine::room::Position;
use crate::engine::time::Time;
use crate::wire::message::ServerMessage;

/// Joins let in at once when the line opens: each means a snapshot to send.
const RELEASED: usize = 256;

/// Limits of the line.
#[derive(Debug, Clone, Copy)]
pub struct HoldSettings {
    /// Joins that may wait.
    pub most: usize,
    /// How long each waits at most.
    pub patience: Duration,
}

/// A join that waits.
#[derive(Debug)]
struct Held {
    key: ViewerKey,
    room: RoomId,
    user: Arc<str>,
    speaker: Speaker,
    resume: Option<Position>,
    acks: bool,
    since: Time,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Line(VecDeque<Held>);

impl Line {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

impl Shard {
    /// Lets a join wait.
    pub(super) fn hold_join(
        &mut self,
        key: ViewerKey,
        room: &RoomId,
        how: Entry<'_>,
        now: Time,
    ) -> Result<(), JoinError> {
        if self.held.len() >= self.settings.hold.most {
            return Err(self.overloaded());
        }
        let Entry { user, speaker, resume, acks } = how;
        let (room, user) = (room.clone(), Arc::clone(user));
        self.held.0.push_back(Held { key, room, user, speaker, resume, acks, since: now });
        count(&mut self.stats.joins, &JOIN_RESULTS, "held");
        Ok(())
    }

    /// Lets in who may enter now, and sends away who has waited too long.
    /// Returns whether more can be let in at once.
    pub(super) fn release_joins(&mut self, now: Time) -> bool {
        let holding = self.homes.intake.ladder().holds_joins();
        for _ in 0..RELEASED {
            let Some(front) = self.held.0.front() else { return false };
            let late = now.since(front.since) >= self.settings.hold.patience;
            if holding && !late {
                return false;
            }
            let Some(held) = self.held.0.pop_front() else { return false };
            // Whoever left meanwhile waits for nothing.
            if !self.viewers.is_open(held.key) {
                continue;
            }
            let entered = if holding {
                Err(self.overloaded())
            } else {
                let Held { user, speaker, resume, acks, .. } = &held;
                self.enter(
                    held.key,
                    &held.room,
                    Entry { user, speaker: *speaker, resume: *resume, acks: *acks },
                )
            };
            if let Err(error) = entered {
                self.refuse_join(held.key, &held.room, error);
            }
        }
        !holding
    }

    /// When the next of those in line has waited too long.
    pub(super) fn next_late_join(&self) -> Option<Time> {
        self.held.0.front().map(|held| held.since + self.settings.hold.patience)
    }

    /// Tells a viewer why it is not in the room.
    pub fn refuse_join(&mut self, key: ViewerKey, room: &RoomId, error: JoinError) {
        count(&mut self.stats.joins, &JOIN_RESULTS, error.counter());
        let retry_after_ms = error.retry_after().map(|wait| wait.as_millis() as u64);
        let error = ServerMessage::Error {
            code: error.code(),
            reason: error.reason(),
            temporary: retry_after_ms.is_some(),
            room: Some(room.as_str()),
            retry_after_ms,
        };
        self.reply(key, &error);
    }

    fn overloaded(&mut self) -> JoinError {
        JoinError::Overloaded { retry_after: self.homes.intake.retry_after() }
    }
}
