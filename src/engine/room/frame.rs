//! Making a frame: when one is due and what goes into it.

use std::sync::Arc;

use super::super::budget::over_budget;
use super::super::event::{Frame, Numbered};
use super::super::ids::Seq;
use super::super::pending::Waiting;
use super::super::settings::Strain;
use super::super::stats::DropReason;
use super::super::time::Time;
use super::{Numbers, Room};

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
        self.pending.has_important()
            || self.is_small()
            || (self.is_full() && !self.strain.is_stretched())
    }

    /// Whether events wait for no company here.
    fn is_small(&self) -> bool {
        self.online.now < self.settings.small_room_viewers
    }

    /// Whether so much waits that a frame is made early.
    fn is_full(&self) -> bool {
        let load = self.pending.load();
        let stretch = self.strain.stretch.max(1) as usize;
        // Under strain they have their time.
        let totals = if stretch > 1 { 0 } else { self.merges.pending_totals() };
        load.events + totals >= self.settings.flush_events * stretch
            || load.bytes >= self.settings.flush_bytes * stretch
    }

    /// Whether a frame that is made now leaves the totals to a later one. Under strain
    /// they wait as long as anything else, whatever makes a frame before: a room with
    /// many gifts under way has hundreds of them, and they lose nothing by it.
    pub(super) fn holds_totals(&self, now: Time) -> bool {
        let due = self.open.absorbed_since.map(|since| self.tick_after(since));
        self.strain.is_stretched() && !self.is_small() && due.is_some_and(|due| due > now)
    }

    /// Whether a frame made now would say anything of events.
    pub(super) fn has_coverable(&self) -> bool {
        let Some(barrier) = self.staged.barrier() else { return self.has_open() };
        self.has_open()
            && (self.pending.has_before(barrier.order)
                || barrier.seq.0 > self.flushed.seq.0 + 1
                || self.open.absorbed.iter().any(|absorbed| *absorbed > 0))
    }

    /// When events of which the first came at `since` are flushed.
    pub(super) fn events_due(&self, since: Time) -> Time {
        let held = self.staged.held_until(self.settings.log_patience);
        match held.filter(|_| !self.pending.has_important()) {
            // What is being logged brings the flush forward when it is.
            Some(held) => held,
            None if self.flushes_at_once() => since,
            None if self.is_full() => {
                let next = self.allowance.next_frame(self.settings.flush_interval);
                since.max(next).min(self.tick_after(since))
            }
            None => self.tick_after(since),
        }
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
    /// but numbers and drops to announce. `hold`: the totals stay for a later one.
    pub(super) fn make_frame(&mut self, hold: bool, now: Time) -> Frame {
        self.staged.pass(self.settings.log_patience, now);
        let barrier = self.staged.barrier();
        let mut carried = self.take_events(barrier.map(|barrier| barrier.order), now);
        let totals = if hold {
            self.open.since = self.open.absorbed_since;
            Vec::new()
        } else {
            let open = std::mem::take(&mut self.open);
            if let Some(oldest) = open.absorbed_oldest {
                carried.stands_for(open.absorbed.iter().sum(), oldest);
            }
            count(&mut self.stats.merged, open.absorbed);
            self.merges.flush(now)
        };
        let first_seq = Seq(self.flushed.seq.0 + 1);
        let last_seq = barrier.map_or(self.given.seq, |barrier| Seq(barrier.seq.0 - 1));
        self.flushed = Numbers { seq: last_seq, important: self.committed };
        if barrier.is_some() || !self.pending.is_empty() {
            self.open.since.get_or_insert(now);
        }
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
            totals,
            dropped: self.drops.take(),
            online: self.take_online(now),
            ack: None,
            represents: carried.represents,
        }
    }

    /// Takes the buffer's events, as far as nothing is waited for, and sheds
    /// those that have expired or do not fit.
    fn take_events(&mut self, before: Option<u64>, now: Time) -> Carried {
        let mut waiting = self.pending.drain(before);
        self.merges.close_samples();
        waiting.retain(|waiting| {
            let live = waiting.is_important() || !waiting.has_expired(now);
            if !live {
                self.drop_kept(waiting, DropReason::Expired);
            }
            live
        });
        let strain =
            if self.is_small() { Strain { stretch: 1, ..self.strain } } else { self.strain };
        let left = self.allowance.refill(strain, self.settings.flush_interval, now);
        let budget = over_budget(&waiting, &self.settings, strain, left);
        self.allowance.spend(budget.used);
        let events = Vec::with_capacity(waiting.len() - budget.over.len());
        let mut over = budget.over.into_iter().peekable();
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
