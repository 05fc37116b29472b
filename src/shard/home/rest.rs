//! Rooms that nobody is in: put to sleep when the log knows them, woken when
//! somebody comes, forgotten in the end.
//!
//! Each room has its turn to be looked at. Nothing here, and nothing that is
//! done on a clock, walks over all rooms: with 100,000 of them, one walk held up
//! everything else on the shard for 20 ms (measured).

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use super::{HomeRoom, Homes};
use crate::engine::ids::RoomId;
use crate::engine::room::{Asleep, Restored};
use crate::engine::stats::RoomStats;
use crate::engine::time::Time;
use crate::log::Entry;

/// Rooms looked at in one go at most; the others have their turn in the next round.
const LOOKS: usize = 64;

/// Looks at an open room while it might fall asleep; it does so at most this
/// part of its time late.
const LOOKS_PER_IDLE: u32 = 8;

/// Looks at a sleeping room until it is forgotten, and words to the log in that
/// time, which forgets what it does not hear of.
const LOOKS_PER_RETENTION: u32 = 16;
const RENEWALS_PER_RETENTION: u32 = 4;

/// The sleeping rooms of a shard, and whose turn it is to be looked at.
#[derive(Debug, Default)]
pub(super) struct Rest {
    asleep: HashMap<RoomId, Sleeper>,
    bytes: usize,
    /// Every open room once, by when it is looked at.
    open: VecDeque<(Time, RoomId)>,
    /// Every sleeping room once, and entries of some that have woken since.
    sleeping: VecDeque<(Time, RoomId)>,
}

#[derive(Debug)]
struct Sleeper {
    room: Asleep,
    /// Its valid entry among those to be looked at.
    look: Time,
    /// When the log last heard of it.
    logged_at: Time,
}

impl Rest {
    /// Sleeping rooms.
    pub(super) fn len(&self) -> usize {
        self.asleep.len()
    }

    /// Bytes they hold.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn knows(&self, id: &RoomId) -> bool {
        self.asleep.contains_key(id)
    }

    /// A room was opened.
    pub(super) fn opened(&mut self, id: RoomId, look: Time) {
        self.open.push_back((look, id));
    }

    /// Where the numbers of each end.
    pub(super) fn ends(&self) -> impl Iterator<Item = Entry> {
        self.asleep.iter().map(|(id, Sleeper { room, .. })| Entry::Reserve {
            room: id.clone(),
            epoch: room.epoch(),
            seq: room.seq(),
        })
    }

    /// Somebody asks for a room. With it, when the log last heard of it.
    pub(super) fn wake(&mut self, id: &RoomId) -> Option<(Asleep, Time)> {
        let Sleeper { room, logged_at, .. } = self.asleep.remove(id)?;
        self.bytes -= room.memory_bytes();
        Some((room, logged_at))
    }

    /// When the next room is to be looked at.
    pub(super) fn next_look(&self) -> Option<Time> {
        let [open, sleeping] = [&self.open, &self.sleeping].map(|queue| queue.front());
        [open, sleeping].into_iter().flatten().map(|(at, _)| *at).min()
    }

    fn sleeps(&mut self, id: RoomId, sleeper: Sleeper) {
        self.bytes += sleeper.room.memory_bytes();
        self.sleeping.push_back((sleeper.look, id.clone()));
        self.asleep.insert(id, sleeper);
    }
}

impl Homes {
    /// Rooms of an earlier process, and when each was last used.
    pub(super) fn restore(&mut self, rooms: Vec<(RoomId, Restored, Time)>, now: Time) {
        let look = now + self.settings.retention / LOOKS_PER_RETENTION;
        for (id, restored, used) in rooms {
            let room = Asleep::restored(restored, self.level_key, used);
            self.rest.sleeps(id, Sleeper { room, look, logged_at: used });
        }
    }

    /// How often an open room is looked at.
    pub(super) fn look_interval(&self) -> Duration {
        let renewal = self.settings.retention / RENEWALS_PER_RETENTION;
        (self.settings.idle / LOOKS_PER_IDLE).min(renewal).max(Duration::from_millis(1))
    }

    /// Looks at the rooms whose turn it is.
    pub(super) fn look_after(&mut self, now: Time) {
        for _ in 0..LOOKS {
            let Some((_, id)) = self.rest.open.pop_front_if(|(at, _)| *at <= now) else { break };
            self.look_at_open(id, now);
        }
        let mut entries = Vec::new();
        for _ in 0..LOOKS {
            let Some(next) = self.rest.sleeping.pop_front_if(|(at, _)| *at <= now) else { break };
            entries.extend(self.look_at_sleeping(next, now));
        }
        self.tell_log(entries);
        self.submit(now);
    }

    fn look_at_open(&mut self, id: RoomId, now: Time) {
        let (idle, retention) = (self.settings.idle, self.settings.retention);
        let Some(home) = self.rooms.get_mut(&id) else { return };
        let silent = now.since(home.room.last_activity());
        let logged = home.room.last_reservation().is_some();
        if silent < idle || !home.is_quiet() {
            // The log forgets what it does not hear of, although a room may
            // live on talk alone.
            if logged && now.since(home.logged_at) >= retention / RENEWALS_PER_RETENTION {
                home.logged_at = now;
                home.room.renew_reservation();
                self.wants_log(id.clone());
            }
            self.rest.opened(id, now + self.look_interval());
            return;
        }
        self.settle(&id);
        let Some(home) = self.rooms.remove(&id) else { return };
        self.room_bytes -= home.counted_bytes;
        if !logged || silent >= retention {
            return;
        }
        let look = now + retention / LOOKS_PER_RETENTION;
        let sleeper = Sleeper { room: home.room.fall_asleep(), look, logged_at: home.logged_at };
        self.rest.sleeps(id, sleeper);
    }

    fn look_at_sleeping(&mut self, (at, id): (Time, RoomId), now: Time) -> Option<Entry> {
        let retention = self.settings.retention;
        let sleeper = self.rest.asleep.get_mut(&id).filter(|sleeper| sleeper.look == at)?;
        if now.since(sleeper.room.last_activity()) >= retention {
            self.rest.wake(&id);
            return None;
        }
        sleeper.look = now + retention / LOOKS_PER_RETENTION;
        self.rest.sleeping.push_back((sleeper.look, id.clone()));
        let due = now.since(sleeper.logged_at) >= retention / RENEWALS_PER_RETENTION;
        due.then(|| {
            sleeper.logged_at = now;
            Entry::Reserve { room: id, epoch: sleeper.room.epoch(), seq: sleeper.room.reserved() }
        })
    }

    /// Takes over what a room has counted since the last time.
    pub(super) fn settle(&mut self, id: &RoomId) {
        let Some(home) = self.rooms.get_mut(id) else { return };
        settle(home, &mut self.counted, &mut self.room_bytes);
    }
}

/// Takes over what a room has counted since the last time.
pub(super) fn settle(home: &mut HomeRoom, counted: &mut RoomStats, bytes: &mut usize) {
    counted.absorb(&home.room.take_stats());
    let held = home.room.memory_bytes();
    *bytes = *bytes - home.counted_bytes + held;
    home.counted_bytes = held;
}
