//! New joins wait in line while the shard is overloaded: the last rung of the
//! ladder. Who waits too long, or finds the line full, is sent away with a time
//! to come back.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

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

/// See the module's documentation. The first place is never an empty one.
#[derive(Debug, Default)]
pub(super) struct Line {
    /// Who has withdrawn leaves its place empty: others keep theirs.
    places: VecDeque<Option<Held>>,
    /// Number of the first place, counted from the line's beginning.
    first: u64,
    /// Numbers of the places that each viewer has.
    viewers: HashMap<ViewerKey, SmallVec<[u64; 1]>, foldhash::fast::RandomState>,
    waiting: usize,
}

impl Line {
    /// Joins that wait.
    pub(super) fn len(&self) -> usize {
        self.waiting
    }

    /// Places taken, by those who have withdrawn as well.
    fn taken(&self) -> usize {
        self.places.len()
    }

    fn front(&self) -> Option<&Held> {
        self.places.front()?.as_ref()
    }

    fn push(&mut self, held: Held) {
        let number = self.first + self.places.len() as u64;
        self.viewers.entry(held.key).or_default().push(number);
        self.places.push_back(Some(held));
        self.waiting += 1;
    }

    fn pop(&mut self) -> Option<Held> {
        let held = self.places.front_mut()?.take()?;
        let number = self.first;
        self.forget(held.key, number);
        self.waiting -= 1;
        self.close_up();
        Some(held)
    }

    /// Takes a viewer's joins of a room out. Returns whether there were any. It
    /// looks at that viewer's places only: in a storm many leave while many wait.
    pub(super) fn withdraw(&mut self, key: ViewerKey, room: &RoomId) -> bool {
        let Some(numbers) = self.viewers.get(&key).cloned() else { return false };
        let before = self.waiting;
        for number in numbers {
            let place = self.places.get_mut((number - self.first) as usize);
            let Some(place) = place.filter(|p| p.as_ref().is_some_and(|h| h.room == *room)) else {
                continue;
            };
            *place = None;
            self.waiting -= 1;
            self.forget(key, number);
        }
        self.close_up();
        self.waiting < before
    }

    /// Takes a number out of a viewer's.
    fn forget(&mut self, key: ViewerKey, number: u64) {
        let Some(numbers) = self.viewers.get_mut(&key) else { return };
        numbers.retain(|of| *of != number);
        if numbers.is_empty() {
            self.viewers.remove(&key);
        }
    }

    /// Takes the empty places at the front away.
    fn close_up(&mut self) {
        while matches!(self.places.front(), Some(None)) {
            self.places.pop_front();
            self.first += 1;
        }
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
        if self.held.taken() >= self.settings.hold.most {
            return Err(self.overloaded());
        }
        let Entry { user, speaker, resume, acks } = how;
        let (room, user) = (room.clone(), Arc::clone(user));
        self.held.push(Held { key, room, user, speaker, resume, acks, since: now });
        count(&mut self.stats.joins, &JOIN_RESULTS, "held");
        Ok(())
    }

    /// Lets in who may enter now, and sends away who has waited too long.
    /// Returns whether more can be let in at once.
    pub(super) fn release_joins(&mut self, now: Time) -> bool {
        let holding = self.homes.intake.ladder().holds_joins();
        for _ in 0..RELEASED {
            let Some(front) = self.held.front() else { return false };
            let late = now.since(front.since) >= self.settings.hold.patience;
            if holding && !late {
                return false;
            }
            let Some(held) = self.held.pop() else { return false };
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
        self.held.front().map(|held| held.since + self.settings.hold.patience)
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn held(viewer: u32, room: &str) -> Held {
        Held {
            key: ViewerKey { index: viewer, generation: 1 },
            room: RoomId::new(room).expect("a name"),
            user: Arc::from("u"),
            speaker: Speaker { any_kind: false, client: 0 },
            resume: None,
            acks: false,
            since: Time::from_millis(0),
        }
    }

    fn take(line: &mut Line) -> Vec<(u32, String)> {
        std::iter::from_fn(|| line.pop()).map(|h| (h.key.index, h.room.to_string())).collect()
    }

    #[test]
    fn who_withdraws_leaves_the_line_and_all_others_keep_their_order() {
        let mut line = Line::default();
        for (viewer, room) in [(1, "a"), (2, "a"), (1, "b"), (1, "a"), (3, "a")] {
            line.push(held(viewer, room));
        }
        let key = |index| ViewerKey { index, generation: 1 };
        let room = RoomId::new("a").expect("a name");
        assert!(line.withdraw(key(1), &room), "both of its joins of the room");
        assert!(!line.withdraw(key(1), &room) && !line.withdraw(key(9), &room));
        assert!(!line.withdraw(ViewerKey { index: 2, generation: 2 }, &room), "another viewer");
        assert_eq!(line.len(), 3);
        let left = [(2, "a"), (1, "b"), (3, "a")].map(|(viewer, room)| (viewer, room.to_owned()));
        assert_eq!(take(&mut line), left);
        assert!(line.viewers.is_empty() && line.taken() == 0, "nothing is kept of an empty line");
    }

    proptest! {
        #[test]
        fn the_line_is_a_queue_from_which_some_are_taken_out(
            steps in prop::collection::vec((0..4u8, 0..5u32, 0..3u8), 0..200),
        ) {
            let (mut line, mut model) = (Line::default(), VecDeque::new());
            for (what, viewer, room) in steps {
                let room = room.to_string();
                match what {
                    0 | 1 => {
                        line.push(held(viewer, &room));
                        model.push_back((viewer, room));
                    }
                    2 => {
                        let popped = line.pop().map(|h| (h.key.index, h.room.to_string()));
                        prop_assert_eq!(popped, model.pop_front());
                    }
                    _ => {
                        let before = model.len();
                        model.retain(|of| *of != (viewer, room.clone()));
                        let key = ViewerKey { index: viewer, generation: 1 };
                        let id = RoomId::new(&room).expect("a name");
                        prop_assert_eq!(line.withdraw(key, &id), model.len() < before);
                    }
                }
                prop_assert_eq!(line.len(), model.len());
                let front = line.front().map(|h| (h.key.index, h.room.to_string()));
                prop_assert_eq!(front.as_ref(), model.front());
            }
            prop_assert_eq!(take(&mut line), Vec::from(model));
            prop_assert!(line.viewers.is_empty());
        }
    }
}
