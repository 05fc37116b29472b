//! A room as a well-behaved viewer holds it, without I/O: what it shows, what it
//! drops because it has it, what it holds back behind a hole, and what it says in
//! return.
//!
//! Calls: [`Model::connected`] once per connection, [`Model::joined`] when the
//! server says so, then [`Model::frame`], [`Model::gap`], [`Model::missed`] and
//! [`Model::failed`] as messages come. After each of them, and when
//! [`Model::next_deadline`] has come, [`Model::say`] until it gives nothing.
//!
//! Two numbers tell where a viewer stands, as they do for the server. `seq` says
//! where the ordered stream ends; what is missing of it is gone, and a notice says
//! so. Of the important events none may be missing: a frame names the latest, so
//! one look shows what to pull.
//!
//! Over WebSocket everything comes in one order. Over QUIC important events have
//! a stream of their own and sampled content comes in datagrams, and nothing
//! orders one against another ([`Source`]). So a number that a frame names may
//! still be on its way, and a hole counts as one only when nothing has moved for
//! a while; and `seq` may skip the numbers of important events without a loss.
//! What one viewer does with messages in any interleaving is the same: an
//! important event is known by its number, and shown once and in order.

mod message;
mod pulls;
mod receipts;
#[cfg(test)]
mod simulation;
mod tally;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

pub use message::{Asked, Entry, Header, Incoming, Joined, Position, Say, Shown, Source};
pub use tally::Tally;

use self::pulls::Pulls;
use self::receipts::Receipts;
use crate::engine::time::Time;

/// What a join says was missed and does not follow is pulled within this: many
/// may have come back at once.
const MISSED_SPREAD: Duration = Duration::from_secs(1);
/// Events beyond a hole that are kept while it is filled; the newest ones past
/// that are pulled.
const MAX_HELD: usize = 1_024;
/// Events that are kept when they came before their room's `joined`.
const MAX_EARLY: usize = 256;

/// Gives a number below its argument, uniformly; 0 for 0.
pub type Draw<'a> = &'a mut dyn FnMut(u64) -> u64;

/// Gets what is to be shown, in order.
pub type Show<'a, T> = &'a mut dyn FnMut(Shown<T>);

#[derive(Debug)]
struct Early<T> {
    header: Header,
    events: Vec<Incoming<T>>,
}

/// See the module's documentation. `T` is what becomes of an event that is held
/// back and shown.
#[derive(Debug)]
pub struct Model<T> {
    at: Option<Position>,
    /// Whether this connection is in the room.
    joined: bool,
    /// Whether important events have a stream of their own.
    split: bool,
    /// A uniform number by which the server draws samples.
    slot: u16,
    held: BTreeMap<u64, (u32, T)>,
    early: Vec<Early<T>>,
    /// The room's last important number that we heard of.
    newest: u64,
    /// What follows the last join covers numbers up to here.
    following: u64,
    pulls: Pulls,
    receipts: Receipts,
    tally: Tally,
}

impl<T> Default for Model<T> {
    fn default() -> Self {
        Self {
            at: None,
            joined: false,
            split: false,
            slot: 0,
            held: BTreeMap::new(),
            early: Vec::new(),
            newest: 0,
            following: 0,
            pulls: Pulls::default(),
            receipts: Receipts::default(),
            tally: Tally::default(),
        }
    }
}

impl<T> Model<T> {
    /// Where it stands; `None` before it joined for the first time.
    #[must_use]
    pub fn position(&self) -> Option<Position> {
        self.at
    }

    /// What went by.
    #[must_use]
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Whether this connection is in the room.
    #[must_use]
    pub fn is_joined(&self) -> bool {
        self.joined
    }

    /// Whether every important event that it heard of was shown, and what was to
    /// follow the last join has come.
    #[must_use]
    pub fn caught_up(&self) -> bool {
        self.at.is_some_and(|at| at.important >= self.newest && at.seq >= self.following)
    }

    /// Another connection: `slot` is `ack_slot` of its `welcome`; `split` whether
    /// important events have a stream of their own. What was asked or held on the
    /// last one is void: what is not within the position comes again.
    pub fn connected(&mut self, slot: u16, split: bool) {
        (self.joined, self.slot, self.split) = (false, slot, split);
        self.held.clear();
        self.early.clear();
        self.pulls.void();
        self.receipts.void();
    }

    /// The room was left.
    pub fn left(&mut self) {
        self.connected(self.slot, self.split);
    }

    /// It is in, or goes on from here.
    ///
    /// Another numbering than before that began later (epochs are ordered by when
    /// rooms were opened) is one of which it has nothing: all its important events
    /// came after what it knows. So when a server dies before anything of a room
    /// was logged, what was accepted since is not missed.
    pub fn joined(
        &mut self,
        joined: &Joined,
        now: Time,
        draw: Draw<'_>,
        show: Show<'_, T>,
    ) -> Entry {
        let Joined { epoch, seq, important, recovered, .. } = *joined;
        let mut missed = joined.missed;
        let entry = match &mut self.at {
            Some(at) if joined.rebased && self.joined && at.epoch == epoch => {
                at.seq = at.seq.max(seq);
                self.tally.rebased += 1;
                Entry::Rebased
            }
            Some(at) if at.epoch == epoch => {
                if important < at.important {
                    // What was shown was logged: no room may stand before that. Its
                    // numbers are given again, to other events.
                    self.tally.renumbered += 1;
                    at.important = important;
                    self.receipts.forget();
                }
                if recovered {
                    self.tally.recovered += 1;
                    Entry::Recovered
                } else {
                    self.tally.fresh += 1;
                    let skipped = (at.seq < seq).then_some((at.seq + 1, seq));
                    at.seq = seq;
                    Entry::Behind(skipped)
                }
            }
            Some(at) => {
                let nothing_shown = at.important == 0;
                self.tally.reborn += u64::from(nothing_shown);
                self.tally.renumbered += u64::from(!nothing_shown);
                let later = epoch > at.epoch;
                *at = Position { epoch, seq, important: if later { 0 } else { important } };
                missed |= at.important < important;
                self.receipts.forget();
                Entry::Renumbered
            }
            at => {
                *at = Some(Position { epoch, seq, important });
                Entry::First
            }
        };
        self.joined = true;
        self.following = seq;
        let Some(at) = self.at else { return entry };
        if entry == Entry::Rebased {
            self.newest = self.newest.max(important);
            // What is owed came before it, or is on a stream of its own.
            self.pulls.look(at.important, self.newest, false, self.split, now);
        } else {
            self.newest = important;
        }
        if missed {
            self.pulls.told(now + spread(draw, MISSED_SPREAD));
        }
        for Early { header, events } in std::mem::take(&mut self.early) {
            self.frame(&header, Source::Important, events, now, draw, show);
        }
        entry
    }

    /// A frame has come.
    pub fn frame(
        &mut self,
        header: &Header,
        source: Source,
        events: impl IntoIterator<Item = Incoming<T>>,
        now: Time,
        draw: Draw<'_>,
        show: Show<'_, T>,
    ) {
        let mut events = events.into_iter().peekable();
        let Some(before) = self.at.filter(|_| self.joined) else {
            match source {
                Source::Important => self.keep_early(*header, events.collect()),
                _ => self.tally.stray += 1,
            }
            return;
        };
        let control = source == Source::Control;
        if header.epoch != before.epoch {
            self.tally.stray += 1;
            self.tally.renumbered += u64::from(control);
            return;
        }
        if control && header.covers() {
            self.cover(before, header, show);
        }
        self.newest = self.newest.max(header.important);
        if control && !header.covers() {
            let first = events.peek().and_then(|event| event.important);
            if let Some(to) = self.pulls.given_up(first, before.important) {
                self.give_up(to, show);
            }
        }
        let mut last = None;
        let known = self.tally.dropped;
        let mut came = 0;
        for event in events {
            came += 1;
            last = event.important.max(last);
            self.event(event, before.seq, show);
        }
        // The second of an event and its copy asks for what the first has asked for.
        // What comes again on the control stream does so for want of an answer.
        let copy = !control && came > 0 && self.tally.dropped - known == came;
        if let Some(asked) = header.ack.filter(|_| !copy)
            && u32::from(self.slot) < 65_536 / asked.one_in.max(1)
        {
            self.receipts.asked(asked, last.unwrap_or(header.important), now, draw);
        }
        self.newest = self.newest.max(last.unwrap_or(0));
        let important = self.at.map_or(0, |at| at.important);
        let moved = important > before.important;
        self.pulls.look(important, self.newest, moved, self.split, now);
    }

    /// The frame's numbers, of which those of important events may be absent where
    /// these have a stream of their own.
    fn cover(&mut self, at: Position, header: &Header, show: Show<'_, T>) {
        if !self.split && header.first_seq > at.seq + 1 {
            self.tally.skipped += header.first_seq - at.seq - 1;
            show(Shown::Skipped { first_seq: at.seq + 1, last_seq: header.first_seq - 1 });
        }
        self.cover_to(header.last_seq);
    }

    fn cover_to(&mut self, seq: u64) {
        if let Some(at) = &mut self.at {
            at.seq = at.seq.max(seq);
        }
    }

    /// `seen`: the number up to which everything was covered before its frame.
    fn event(&mut self, incoming: Incoming<T>, seen: u64, show: Show<'_, T>) {
        let Some(at) = &mut self.at else { return };
        let Incoming { seq, important, hash, event } = incoming;
        match important {
            None if seq.is_some_and(|seq| seq <= seen) => self.tally.dropped += 1,
            None => show(Shown::Event(event)),
            Some(number) if number <= at.important || self.held.contains_key(&number) => {
                self.tally.dropped += 1;
            }
            Some(number) if number == at.important + 1 => {
                at.important = number;
                self.receipts.shown(number, hash);
                show(Shown::Event(event));
                self.catch_up(show);
            }
            Some(number) => {
                self.tally.held += 1;
                self.held.insert(number, (hash, event));
                if self.held.len() > MAX_HELD {
                    self.held.pop_last();
                }
            }
        }
    }

    /// Shows what was held back and is next.
    fn catch_up(&mut self, show: Show<'_, T>) {
        let Some(at) = &mut self.at else { return };
        while let Some(next) = self.held.first_entry().filter(|e| *e.key() == at.important + 1) {
            at.important += 1;
            let (hash, event) = next.remove();
            self.receipts.shown(at.important, hash);
            show(Shown::Event(event));
        }
    }

    /// Important events up to this number will not come any more; what came of
    /// them is shown.
    fn give_up(&mut self, to: u64, show: Show<'_, T>) {
        while let Some(at) = self.at.as_mut().filter(|at| at.important < to) {
            let held = self.held.keys().next().copied().filter(|first| *first <= to);
            let last = held.map_or(to, |first| first - 1);
            self.tally.lost += last - at.important;
            show(Shown::Lost { from: at.important + 1, to: last });
            at.important = last;
            self.receipts.forget();
            self.catch_up(show);
        }
        self.catch_up(show);
    }

    fn keep_early(&mut self, header: Header, events: Vec<Incoming<T>>) {
        let kept: usize = self.early.iter().map(|early| early.events.len().max(1)).sum();
        if kept + events.len() <= MAX_EARLY {
            self.early.push(Early { header, events });
        } else {
            // It will be missed, and pulled.
            self.tally.stray += 1;
        }
    }

    /// Numbers whose content only this viewer lost; important events are exempt.
    pub fn gap(&mut self, first_seq: u64, last_seq: u64) {
        if first_seq <= last_seq {
            self.cover_to(last_seq);
        }
    }

    /// The server gave up sending important events up to `to` again.
    pub fn missed(&mut self, to: u64, within_ms: u32, now: Time, draw: Draw<'_>) {
        let Some(at) = self.at else { return };
        if to > at.important {
            self.newest = self.newest.max(to);
            self.pulls.told(now + spread(draw, Duration::from_millis(within_ms.into())));
        } else {
            // It has them all, only its word was lost.
            self.receipts.acknowledge(to, now);
        }
    }

    /// A request about the room failed.
    pub fn failed(&mut self, code: &str, retry_after: Option<Duration>, now: Time) {
        match code {
            "history_gone" => self.pulls.gone(),
            "pull_limited" | "rate_limited" => {
                self.pulls.limited(now + retry_after.unwrap_or(MISSED_SPREAD));
            }
            _ => {}
        }
    }

    /// When [`Model::say`] has something to say.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Time> {
        let important = self.at.filter(|_| self.joined)?.important;
        [self.receipts.next_deadline(important), self.pulls.next_deadline()]
            .into_iter()
            .flatten()
            .min()
    }

    /// What is to be said now, one after the other.
    pub fn say(&mut self, now: Time, draw: Draw<'_>) -> Option<Say> {
        let important = self.at.filter(|_| self.joined)?.important;
        if let Some(say) = self.receipts.due(important, now) {
            match say {
                Say::Ack(_) => self.tally.acks += 1,
                _ => self.tally.digests += 1,
            }
            return Some(say);
        }
        let first_held = self.held.keys().next().copied();
        let (from, to) = self.pulls.due(important, self.newest, first_held, now, draw)?;
        self.tally.pulls += 1;
        // Who was missing something says when it has it.
        self.receipts.acknowledge(self.newest, now);
        Some(Say::Pull(from, to))
    }

    /// What to say before leaving: a digest of the newest hundred.
    #[must_use]
    pub fn farewell(&self) -> Option<Say> {
        let important = self.at.filter(|_| self.joined)?.important;
        self.receipts.digest(important.saturating_sub(99), important)
    }
}

/// A random part of `most`.
fn spread(draw: Draw<'_>, most: Duration) -> Duration {
    let micros = u64::try_from(most.as_micros()).unwrap_or(u64::MAX);
    Duration::from_micros(draw(micros))
}
