//! Important events on their way to the log and back: batches, the publishers
//! who wait for them, and what becomes of both when the log fails.

use std::collections::VecDeque;
use std::sync::Arc;

use tracing::warn;

use super::{HomeRoom, Homes, traces};
use crate::engine::event::Numbered;
use crate::engine::ids::{ImportantNo, RoomId, ShardId};
use crate::engine::outcome::{Outcome, Refusal};
use crate::engine::room::{Offered, Restored};
use crate::engine::time::Time;
use crate::log::{Batch, Entry, LogFailure, Logged};
use crate::shard::intake::{CallerKey, Queued};
use crate::shard::journal::Journal;
use crate::shard::peers::Path;
use crate::shard::stats::ShardStats;

/// A batch on its way.
struct Ticket {
    number: u64,
    /// The first and last important number of each room in it.
    rooms: Vec<(RoomId, ImportantNo, ImportantNo)>,
}

/// Whoever waits for an event to be logged.
#[derive(Debug)]
pub(super) struct Waiter {
    important: ImportantNo,
    caller: CallerKey,
    answer: Outcome,
}

/// What a shard's rooms have with the log.
pub(super) struct Durable {
    journal: Arc<dyn Journal>,
    shard: ShardId,
    /// The log's, as of the last failure heard of.
    generation: u64,
    tickets: VecDeque<Ticket>,
    next_ticket: u64,
    /// Rooms with something to submit.
    unlogged: Vec<RoomId>,
    /// Woken rooms whose first numbers are being set aside, and since when.
    waking: VecDeque<(Time, RoomId)>,
}

impl Homes {
    /// Rooms go by way of a log from now on, and those it knows go on where
    /// they stopped. Call before anything else.
    pub fn attach(
        &mut self,
        shard: ShardId,
        journal: Arc<dyn Journal>,
        rooms: Vec<(RoomId, Restored, Time)>,
        now: Time,
    ) {
        self.restore(rooms, now);
        self.durable = Some(Durable {
            generation: journal.generation(),
            journal,
            shard,
            tickets: VecDeque::new(),
            next_ticket: 0,
            unlogged: Vec::new(),
            waking: VecDeque::new(),
        });
    }

    /// Offers an event to its room and sees to its answer.
    pub(super) fn take(&mut self, queued: Queued, now: Time) {
        let key = queued.key();
        let Some(home) = self.open(&queued.room, now) else {
            let refused = Refusal::TooManyRooms;
            self.intake.refused[refused.index()] += 1;
            traces::refused(self.tracer.as_deref_mut(), &queued.event, refused);
            return self.intake.done(key, Outcome::Rejected(refused));
        };
        if let Some(parked) = &mut home.waking {
            parked.push(queued);
            return;
        }
        let mark = queued.event.mark.clone();
        let offered = home.room.offer(queued.event, now);
        let decided = match offered {
            Offered::Done(outcome) => Some(outcome),
            Offered::Staged { answer, at_once: true, .. } => Some(answer),
            Offered::Staged { important, answer, .. } => {
                home.waiters.push(Waiter { important, caller: key, answer });
                None
            }
        };
        // Here and not by name: this is done for every event.
        let clean = !std::mem::replace(&mut home.dirty, true);
        let wants_log = home.room.wants_log();
        traces::offered(self.tracer.as_deref_mut(), mark.as_ref(), &offered);
        if let Some(outcome) = decided {
            self.intake.done(key, outcome);
        }
        if wants_log
            && let Some(durable) = &mut self.durable
            && durable.unlogged.last() != Some(&queued.room)
        {
            durable.unlogged.push(queued.room.clone());
        }
        if clean {
            self.dirty.push(queued.room);
        }
    }

    /// Hands everything that is staged to the log, in one batch.
    pub(super) fn submit(&mut self, now: Time) {
        let Some(durable) = self.durable.as_mut() else { return };
        let (mut entries, mut rooms) = (Vec::new(), Vec::new());
        for id in durable.unlogged.drain(..) {
            let Some(home) = self.rooms.get_mut(&id) else { continue };
            let (room, epoch) = (&id, home.room.epoch());
            let reserved = home.room.take_reservation();
            let events = home.room.take_unlogged();
            if reserved.is_none() && events.is_empty() {
                continue;
            }
            let number = |event: Option<&Arc<Numbered>>| event.and_then(|event| event.important);
            // Without events, what would come next: nothing of it is logged.
            let next = ImportantNo(home.room.important().0 + 1);
            let first = number(events.first()).unwrap_or(next);
            rooms.push((id.clone(), first, number(events.last()).unwrap_or_default()));
            // Before the events: what makes the log know a room must not be
            // there without it.
            entries.extend(reserved.map(|seq| Entry::Reserve { room: room.clone(), epoch, seq }));
            let events = events.into_iter();
            entries.extend(events.map(|event| Entry::Event { room: room.clone(), epoch, event }));
        }
        if entries.is_empty() {
            return;
        }
        let (shard, generation) = (durable.shard, durable.generation);
        durable.next_ticket += 1;
        let number = durable.next_ticket;
        match durable.journal.submit(Batch { shard, ticket: number, generation, entries }) {
            Ok(()) => durable.tickets.push_back(Ticket { number, rooms }),
            Err(failure) => {
                if failure != LogFailure::Queue {
                    durable.generation = durable.journal.generation();
                }
                self.lose(&rooms, now);
            }
        }
    }

    /// The log has decided on a batch.
    pub fn logged(&mut self, logged: &Logged, path: &dyn Path, stats: &mut ShardStats, now: Time) {
        let Some(durable) = self.durable.as_mut() else { return };
        if durable.tickets.front().is_none_or(|first| first.number != logged.ticket) {
            return; // Given up with an earlier one.
        }
        match logged.result {
            Ok(()) => {
                let rooms = durable.tickets.pop_front().map(|ticket| ticket.rooms);
                for (id, _, last) in rooms.unwrap_or_default() {
                    self.settle_logged(&id, last, now);
                }
            }
            Err(LogFailure::Invalid) => {
                // Of this batch alone: the log goes on, and so do the others.
                warn!("the log finds events out of order; they are refused");
                let lost = durable.tickets.pop_front().map(|ticket| ticket.rooms);
                self.lose(&lost.unwrap_or_default(), now);
            }
            Err(failure) => {
                warn!(failure = failure.code(), "the log has failed; important events are refused");
                // Whatever else is on its way was submitted before this was
                // known, and fails too.
                durable.generation = durable.journal.generation();
                let lost: Vec<_> =
                    durable.tickets.drain(..).flat_map(|ticket| ticket.rooms).collect();
                self.lose(&lost, now);
            }
        }
        self.answer(path);
        self.flush_dirty(path, stats, now);
    }

    fn settle_logged(&mut self, id: &RoomId, upto: ImportantNo, now: Time) {
        let Some(home) = self.rooms.get_mut(id) else { return };
        home.room.logged(upto, now);
        traces::logged(self.tracer.as_deref_mut(), id, upto);
        for waiter in home.waiters.extract_if(.., |waiter| waiter.important <= upto) {
            self.intake.done(waiter.caller, waiter.answer);
        }
        self.mark_dirty(id);
        self.awake(id, now);
    }

    /// What the first numbers of a woken room rest on is decided. A log that
    /// fails must not silence it.
    fn awake(&mut self, id: &RoomId, now: Time) {
        let Some(parked) = self.rooms.get_mut(id).and_then(|home| home.waking.take()) else {
            return;
        };
        parked.into_iter().for_each(|queued| self.take(queued, now));
        self.submit(now);
    }

    /// Nothing of these rooms from these numbers on was accepted.
    fn lose(&mut self, rooms: &[(RoomId, ImportantNo, ImportantNo)], now: Time) {
        for (id, first, _) in rooms {
            let Some(home) = self.rooms.get_mut(id) else { continue };
            home.room.log_failed(*first);
            traces::log_failed(self.tracer.as_deref_mut(), id, *first);
            for waiter in home.waiters.extract_if(.., |waiter| waiter.important >= *first) {
                let refused = Outcome::Rejected(Refusal::LogUnavailable);
                self.intake.done(waiter.caller, refused);
            }
            self.mark_dirty(id);
        }
        for (id, ..) in rooms {
            self.awake(id, now);
        }
    }

    /// A room that goes on after a restart gives no number before some are set
    /// aside: the first are told at once, and would be given again after a
    /// crash that is quicker than the log.
    pub(super) fn set_aside(&mut self, id: &RoomId, now: Time) {
        if let Some(durable) = &mut self.durable {
            durable.unlogged.push(id.clone());
            durable.waking.push_back((now, id.clone()));
        }
        self.submit(now);
    }

    /// A log that stalls must not silence woken rooms for longer than others.
    pub(super) fn wake_late(&mut self, now: Time) {
        let patience = self.settings.room.log_patience;
        let late = |durable: &mut Durable| {
            durable.waking.pop_front_if(|(since, _)| now.since(*since) >= patience)
        };
        while let Some((_, id)) = self.durable.as_mut().and_then(late) {
            self.awake(&id, now);
        }
    }

    /// A room has something for the log.
    pub(super) fn wants_log(&mut self, id: RoomId) {
        if let Some(durable) = &mut self.durable {
            durable.unlogged.push(id);
        }
    }

    /// Tells the log where each room's numbers end, so that none is skipped
    /// after an orderly end.
    pub fn reserve_exactly(&mut self) {
        let reserve = |(id, home): (&RoomId, &HomeRoom)| {
            let (room, epoch) = (id.clone(), home.room.epoch());
            home.room.last_reservation().map(|seq| Entry::Reserve { room, epoch, seq })
        };
        let open = self.rooms.iter().filter_map(reserve);
        let entries = open.chain(self.rest.ends()).collect();
        self.tell_log(entries);
    }

    /// Hands the log what no publisher waits for.
    pub(super) fn tell_log(&mut self, entries: Vec<Entry>) {
        let Some(durable) = self.durable.as_mut().filter(|_| !entries.is_empty()) else { return };
        durable.next_ticket += 1;
        let (shard, generation) = (durable.shard, durable.generation);
        let number = durable.next_ticket;
        match durable.journal.submit(Batch { shard, ticket: number, generation, entries }) {
            Ok(()) => durable.tickets.push_back(Ticket { number, rooms: Vec::new() }),
            Err(failure) => {
                warn!(failure = failure.code(), "numbers will be skipped at the next start");
            }
        }
    }

    /// Where the log can be asked for what memory has forgotten.
    pub(super) fn journal(&self) -> Option<Arc<dyn Journal>> {
        self.durable.as_ref().map(|durable| Arc::clone(&durable.journal))
    }
}
