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

mod pulls;
mod receipts;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

use self::pulls::Pulls;
use self::receipts::Receipts;
use crate::engine::digest::{self, Digest};
use crate::engine::ids::ImportantNo;
use crate::engine::time::Time;
use crate::wire::proto::v1;

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

/// What brought a frame. Nothing orders one of these against another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The WebSocket, or the control stream.
    Control,
    /// The stream of important events.
    Important,
    /// A datagram: may be lost, and overtaken.
    Datagram,
}

/// Where a viewer's knowledge ends, for `resume`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Numbering.
    pub epoch: u64,
    /// Last number that was covered.
    pub seq: u64,
    /// Everything important up to here was shown.
    pub important: u64,
}

/// `joined`, without its state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Joined {
    /// Numbering.
    pub epoch: u64,
    /// The room's last sequence number.
    pub seq: u64,
    /// Its last important number.
    pub important: u64,
    /// What was missed follows.
    pub recovered: bool,
    /// It replaces what the viewer holds of a room that it is in.
    pub rebased: bool,
    /// Some important events do not follow and are to be pulled.
    pub missed: bool,
}

/// What a frame says beside its content.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Header {
    /// Numbering.
    pub epoch: u64,
    /// First number it covers.
    pub first_seq: u64,
    /// Last one; one less than the first if it covers none.
    pub last_seq: u64,
    /// The room's last important number.
    pub important: u64,
    /// How its important events are to be acknowledged.
    pub ack: Option<Asked>,
}

impl Header {
    fn covers(&self) -> bool {
        self.first_seq <= self.last_seq
    }
}

/// How important events are to be acknowledged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Asked {
    /// Viewers whose slot is below 65,536 ÷ this.
    pub one_in: u32,
    /// Each after a random delay below this, in milliseconds.
    pub within_ms: u32,
    /// With a digest of what came from this number on.
    pub digest_from: Option<u64>,
}

/// An event as it comes in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incoming<T> {
    /// Its number, if it has one.
    pub seq: Option<u64>,
    /// Its number among the important events, if it is one.
    pub important: Option<u64>,
    /// Of an important one: [`digest::hash`].
    pub hash: u32,
    /// What is handed through.
    pub event: T,
}

/// What is to be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shown<T> {
    /// An event: an important one once and in order of its number; an ordered one
    /// once and in order of `seq`, in a frame's own order beside the others.
    Event(T),
    /// Numbers went by without a notice, which no server of ours does.
    Skipped {
        /// First.
        first_seq: u64,
        /// Last.
        last_seq: u64,
    },
    /// Important events that the server no longer has.
    Lost {
        /// First.
        from: u64,
        /// Last.
        to: u64,
    },
}

/// What a viewer says to its room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Say {
    /// It has everything up to here.
    Ack(u64),
    /// Send these again, first and last.
    Pull(u64, u64),
    /// What it received of these.
    Digest {
        /// First.
        from: u64,
        /// Last.
        to: u64,
        /// Of them.
        digest: Digest,
    },
}

/// What a `joined` meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// The room begins here.
    First,
    /// It goes on where it was left.
    Recovered,
    /// These numbers went by and will not come; none if nothing did.
    Behind(Option<(u64, u64)>),
    /// Another numbering than before.
    Renumbered,
    /// The viewer was slow, and goes on from here.
    Rebased,
}

/// What went by that should not, or might.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Events that came again and were dropped by their number.
    pub dropped: u64,
    /// Important events held back behind a hole.
    pub held: u64,
    /// Pulls.
    pub pulls: u64,
    /// Acknowledgements.
    pub acks: u64,
    /// Digests.
    pub digests: u64,
    /// Numbers that went by without a notice.
    pub skipped: u64,
    /// Important events that the server no longer had.
    pub lost: u64,
    /// Times the numbering was another one than that of events that were shown,
    /// or went back.
    pub renumbered: u64,
    /// Times a room of which nothing important was known began anew.
    pub reborn: u64,
    /// Joins that were recovered in full.
    pub recovered: u64,
    /// Joins with a position that began anew.
    pub fresh: u64,
    /// Times the viewer was slow and went on from the present state.
    pub rebased: u64,
    /// Frames for a room that was not joined, or of another numbering.
    pub stray: u64,
}

impl Tally {
    /// Adds another one.
    pub fn absorb(&mut self, other: &Tally) {
        self.dropped += other.dropped;
        self.held += other.held;
        self.pulls += other.pulls;
        self.acks += other.acks;
        self.digests += other.digests;
        self.skipped += other.skipped;
        self.lost += other.lost;
        self.renumbered += other.renumbered;
        self.reborn += other.reborn;
        self.recovered += other.recovered;
        self.fresh += other.fresh;
        self.rebased += other.rebased;
        self.stray += other.stray;
    }
}

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
        for event in events {
            last = event.important.max(last);
            self.event(event, before.seq, show);
        }
        if let Some(asked) = header.ack
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

impl<T> Incoming<T> {
    /// From an event of the protocol, and what is handed through for it.
    #[must_use]
    pub fn of(event: &v1::Event, handed: T) -> Self {
        let hash = event.important.map_or(0, |no| digest::hash(ImportantNo(no), &event.id));
        Self { seq: event.seq, important: event.important, hash, event: handed }
    }
}

impl From<&v1::Joined> for Joined {
    fn from(joined: &v1::Joined) -> Self {
        Self {
            epoch: joined.epoch,
            seq: joined.seq,
            important: joined.important,
            recovered: joined.recovered,
            rebased: joined.rebased,
            missed: joined.missed.as_ref().is_some_and(|missed| missed.from <= missed.to),
        }
    }
}

impl From<&v1::Frame> for Header {
    fn from(frame: &v1::Frame) -> Self {
        let asked = |ack: &v1::AckAsked| Asked {
            one_in: ack.one_in,
            within_ms: ack.within_ms,
            digest_from: ack.digest_from,
        };
        Self {
            epoch: frame.epoch,
            first_seq: frame.first_seq,
            last_seq: frame.last_seq,
            important: frame.important,
            ack: frame.ack.as_ref().map(asked),
        }
    }
}

/// A random part of `most`.
fn spread(draw: Draw<'_>, most: Duration) -> Duration {
    let micros = u64::try_from(most.as_micros()).unwrap_or(u64::MAX);
    Duration::from_micros(draw(micros))
}
