//! A room as an earlier process left it in the log.

use std::sync::Arc;

use super::super::event::Numbered;
use super::super::ids::{Epoch, ImportantNo, RoomId, Seq};
use super::super::kind::Merge;
use super::super::level::{LevelKey, Use};
use super::super::settings::RoomSettings;
use super::super::time::Time;
use super::{Numbers, Room};

/// What the log knows of a room.
#[derive(Debug, Clone, Default)]
pub struct Restored {
    /// Its numbering, which goes on.
    pub epoch: Epoch,
    /// The highest sequence number that may have been given.
    pub seq: Seq,
    /// The last important number given.
    pub important: ImportantNo,
    /// Ids of important events with their numbers, oldest first.
    pub ids: Vec<(Arc<str>, Seq)>,
    /// The newest important events, oldest first.
    pub tail: Vec<Arc<Numbered>>,
}

impl Room {
    /// A room whose numbering goes on where an earlier process stopped. Its
    /// important history is what `restored` brings; `latest` state is made of
    /// it. Totals begin anew.
    #[must_use]
    pub fn restored(
        id: RoomId,
        restored: &Restored,
        level_key: LevelKey,
        settings: Arc<RoomSettings>,
        now: Time,
    ) -> Self {
        let mut room = Self::new(id, restored.epoch, level_key, settings, now);
        let Restored { seq, important, .. } = *restored;
        room.go_on_after(Numbers { seq, important });
        for (id, seq) in &restored.ids {
            let id = level_key.hash128(Use::EventId, [id]);
            if room.sequenced_ids.find(id).is_none() {
                room.sequenced_ids.remember(id, Some(*seq));
            }
        }
        let first = restored.tail.first().and_then(|event| event.important);
        let before = first.map_or(important, |first| ImportantNo(first.0 - 1));
        room.history.begin_after(seq, before);
        for event in &restored.tail {
            room.history.push_restored(event);
            room.restore_state(event, now);
        }
        room
    }

    fn restore_state(&mut self, event: &Arc<Numbered>, now: Time) {
        let over = event.event.expires().is_some_and(|expires| expires <= now);
        if over || !matches!(event.event.kind.merge, Merge::Latest(_)) {
            return;
        }
        let order = self.pending.next_order();
        // What finds no room was refused it before, too.
        if self.merges.admit(&event.event, order, now, &self.settings).is_ok() {
            self.merges.carried(event, order);
        }
    }
}
