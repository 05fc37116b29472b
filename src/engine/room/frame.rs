//! Making a frame: when one is due and what goes into it.

use std::sync::Arc;

use super::super::budget::over_budget;
use super::super::event::{Frame, Numbered};
use super::super::ids::Seq;
use super::super::pending::Waiting;
use super::super::stats::DropReason;
use super::super::time::Time;
use super::Room;

/// The events of a frame in the making.
#[derive(Debug)]
struct Carried {
    events: Vec<Arc<Numbered>>,
    represents: u64,
    oldest: Option<Time>,
}

impl Carried {
    fn stands_for(&mut self, events: u64, oldest: Time) {
        self.represents += events;
        self.oldest = Some(self.oldest.map_or(oldest, |so_far| so_far.min(oldest)));
    }
}

impl Room {
    /// Whether anything was accepted that no frame has covered.
    pub(super) fn has_open(&self) -> bool {
        self.open.since.is_some()
    }

    /// Whether to flush without waiting for company.
    pub(super) fn flushes_at_once(&self) -> bool {
        let load = self.pending.load();
        let stretch = self.strain.stretch.max(1) as usize;
        self.pending.has_important()
            || self.online.now < self.settings.small_room_viewers
            || load.events + self.merges.pending_totals() >= self.settings.flush_events * stretch
            || load.bytes >= self.settings.flush_bytes * stretch
    }

    /// When events that began to wait at `since` are flushed.
    pub(super) fn tick_after(&self, since: Time) -> Time {
        self.ticks.after(since) + self.settings.flush_interval * (self.strain.stretch.max(1) - 1)
    }

    /// When the viewer count alone makes a frame. An empty room has nobody to tell.
    pub(super) fn online_due(&self) -> Option<Time> {
        let interval = self.settings.online_interval;
        if !self.online.differs() || self.online.now == 0 || interval.is_zero() {
            return None;
        }
        let tick = self.ticks.after(self.online.changed);
        Some(self.online.sent_at.map_or(tick, |sent_at| tick.max(sent_at + interval)))
    }

    /// Empties the buffer into a frame, which may come out with nothing in it
    /// but numbers and drops to announce.
    pub(super) fn make_frame(&mut self, now: Time) -> Frame {
        let mut carried = self.take_events(now);
        let open = std::mem::take(&mut self.open);
        if let Some(oldest) = open.absorbed_oldest {
            carried.stands_for(open.absorbed.iter().sum(), oldest);
        }
        count(&mut self.stats.merged, open.absorbed);
        let first_seq = Seq(self.flushed.seq.0 + 1);
        self.flushed = self.given;
        self.going_out = true;
        self.stats.frames += 1;
        Frame {
            room: self.id.clone(),
            epoch: self.epoch,
            first_seq,
            last_seq: self.flushed.seq,
            important: self.flushed.important,
            time: now,
            oldest: carried.oldest.unwrap_or(now),
            events: carried.events,
            totals: self.merges.flush(now),
            dropped: self.drops.take(),
            online: self.take_online(now),
            represents: carried.represents,
        }
    }

    /// Takes the buffer's events and sheds those that have expired or do not fit.
    fn take_events(&mut self, now: Time) -> Carried {
        let mut waiting = self.pending.drain();
        self.merges.close_samples();
        waiting.retain(|waiting| {
            let live = waiting.is_important() || !waiting.has_expired(now);
            if !live {
                self.drop_kept(waiting, DropReason::Expired);
            }
            live
        });
        let mut over = over_budget(&waiting, &self.settings, self.strain).into_iter().peekable();
        let events = Vec::with_capacity(waiting.len() - over.len());
        let mut carried = Carried { events, represents: 0, oldest: None };
        for (index, waiting) in waiting.into_iter().enumerate() {
            if over.next_if_eq(&index).is_some() {
                self.drop_kept(&waiting, DropReason::FrameBudget);
            } else {
                self.carry(waiting, &mut carried);
            }
        }
        carried
    }

    fn carry(&mut self, waiting: Waiting, carried: &mut Carried) {
        self.merges.carried(&waiting.event, waiting.rank.order);
        self.history.push(&waiting.event);
        self.stats.carried[waiting.event.event.kind.lane.index()] += 1;
        count(&mut self.stats.merged, waiting.overtaken);
        carried.stands_for(1 + waiting.overtaken.iter().sum::<u64>(), waiting.oldest);
        carried.events.push(waiting.event);
    }

    fn take_online(&mut self, now: Time) -> Option<u32> {
        if !self.online.differs() {
            return None;
        }
        (self.online.sent, self.online.sent_at) = (self.online.now, Some(now));
        self.online.told_apart = false;
        Some(self.online.now)
    }
}

fn count(into: &mut [u64; 3], lanes: [u64; 3]) {
    for (into, lane) in into.iter_mut().zip(lanes) {
        *into += lane;
    }
}
