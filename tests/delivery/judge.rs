//! The books of one room, kept from outside: which id every number names, what
//! travelled, what was announced as shed, what publishers were told, and what
//! each viewer was shown.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use tidegate::engine::event::{Event, Frame, Numbered, Snapshot};
use tidegate::engine::ids::{Epoch, Seq};
use tidegate::engine::kind::{Ack, Kind, Lane, Merge};
use tidegate::engine::room::Outcome;

use super::client::{Client, Heard, name};
use super::log::Log;

/// One room's books. A number belongs to a numbering.
#[derive(Debug, Default)]
pub(crate) struct Judge {
    /// What every sequence number names that anybody was told.
    names: BTreeMap<(u64, u64), Arc<str>>,
    important: BTreeMap<(u64, u64), Arc<str>>,
    /// Ordered events that a frame has carried.
    travelled: BTreeMap<(u64, u64), Arc<str>>,
    /// The first number an important event's publisher was told.
    answers: HashMap<Arc<str>, Seq>,
    /// Important events whose publisher counts on them.
    promised: Vec<Arc<str>>,
    /// Accepted ordered `append` events that no frame has covered.
    open: BTreeMap<u64, Arc<str>>,
    /// Of those that a frame covered and did not carry, by kind.
    holes: BTreeMap<Arc<str>, u64>,
    announced: BTreeMap<Arc<str>, u64>,
    /// What every total of this process should be.
    sums: BTreeMap<String, i64>,
    framed: Option<Seq>,
    /// Ids whose publisher heard that they never will be taken.
    refused: HashSet<Arc<str>>,
}

/// What a viewer was shown of one numbering.
#[derive(Debug, Default)]
pub(crate) struct Shown {
    base: u64,
    last: u64,
    given_up: Vec<(u64, u64)>,
    ids: Vec<(u64, Arc<str>)>,
}

impl Judge {
    /// A process has begun: what only memory held is gone, and everybody hears
    /// that by a fresh start.
    pub(crate) fn restarted(&mut self) {
        self.open.clear();
        self.holes.clear();
        self.announced.clear();
        self.sums.clear();
        self.framed = None;
    }

    /// A publisher is told; on the way to it that may still get lost.
    pub(crate) fn answered(&mut self, epoch: Epoch, event: &Event, outcome: Outcome) {
        let (Outcome::Accepted { seq } | Outcome::Duplicate { seq }) = outcome else { return };
        let Some(seq) = seq else { return };
        self.names_one(epoch, seq, &event.id);
        let kind = &event.kind;
        let fresh = matches!(outcome, Outcome::Accepted { .. });
        if kind.lane == Lane::Ordered && kind.merge == Merge::Append && fresh {
            self.open.insert(seq.0, Arc::clone(&kind.name));
        }
        // What is answered on receipt may be lost, and is then new when it comes again.
        if kind.lane == Lane::Important && kind.ack == Ack::Logged {
            let first = *self.answers.entry(Arc::clone(&event.id)).or_insert_with(|| {
                self.promised.push(Arc::clone(&event.id));
                seq
            });
            assert_eq!(first, seq, "{}: a repeated id gets its first number", event.id);
        }
    }

    /// A publisher has heard that its event will never be taken.
    pub(crate) fn refused(&mut self, id: &Arc<str>) {
        self.refused.insert(Arc::clone(id));
    }

    /// An event has become part of the room.
    pub(crate) fn counted(&mut self, event: &Event) {
        let Merge::Sum(by) = event.kind.merge else { return };
        let by_user = by == tidegate::engine::kind::MergeBy::UserKey;
        let user = if by_user { &*event.user } else { "" };
        let key = event.key.as_deref().unwrap_or_default();
        let total = self.sums.entry(format!("{}/{user}/{key}", event.kind.name)).or_default();
        *total += event.amount.unwrap_or(1);
    }

    fn names_one(&mut self, epoch: Epoch, seq: Seq, id: &Arc<str>) {
        let named = self.names.entry((epoch.0, seq.0)).or_insert_with(|| Arc::clone(id));
        assert_eq!(named, id, "{seq:?} of {epoch:?} names two events");
    }

    /// The room has made a frame.
    pub(crate) fn framed(&mut self, frame: &Frame) {
        let epoch = frame.epoch;
        if let Some(before) = self.framed {
            assert_eq!(frame.first_seq, Seq(before.0 + 1), "no gap between frames");
        }
        self.framed = Some(frame.last_seq);
        for event in &frame.events {
            assert!(!self.refused.contains(&event.event.id), "{} was refused", event.event.id);
            let Some(seq) = event.seq else { continue };
            self.names_one(epoch, seq, &event.event.id);
            match event.important {
                Some(number) => {
                    let id = Arc::clone(&event.event.id);
                    let named = self.important.insert((epoch.0, number.0), id);
                    assert_eq!(named, None, "{number:?} travels in one frame");
                }
                None => {
                    assert!(seq >= frame.first_seq && seq <= frame.last_seq, "within its frame");
                    let id = Arc::clone(&event.event.id);
                    assert_eq!(self.travelled.insert((epoch.0, seq.0), id), None, "travels once");
                    self.open.remove(&seq.0);
                }
            }
        }
        let later = self.open.split_off(&(frame.last_seq.0 + 1));
        for kind in std::mem::replace(&mut self.open, later).into_values() {
            *self.holes.entry(kind).or_default() += 1;
        }
        for dropped in &frame.dropped {
            let kind = &dropped.kind;
            let unlogged = kind.lane == Lane::Important && kind.ack == Ack::Received;
            assert!(kind.lane != Lane::Important || unlogged, "{} is never shed", kind.name);
            // What became part of a total or was overtaken leaves no hole.
            if kind.lane == Lane::Ordered && kind.merge == Merge::Append {
                *self.announced.entry(Arc::clone(&kind.name)).or_default() += dropped.count;
            }
        }
        for (kind, holes) in &self.holes {
            let announced = self.announced.get(kind).copied().unwrap_or(0);
            assert!(announced >= *holes, "{kind}: {holes} are missing, {announced} announced");
        }
    }

    /// Somebody comes back: what it is owed is sent or named, all of it.
    pub(crate) fn resumed(from: u64, sent: &[u64], missed: Option<(u64, u64)>, important: u64) {
        let named = missed.map_or(from, |(first, last)| {
            assert_eq!(first, from + 1, "what was missed begins where it left off");
            last
        });
        let owed = named + 1..=important;
        assert!(owed.eq(sent.iter().copied()), "from {from}: {sent:?} sent, {missed:?} named");
    }

    /// A viewer has taken a message.
    pub(crate) fn heard(&self, epoch: Epoch, shown: &mut Shown, heard: &Heard, have: u64) {
        assert_eq!(heard.hole, None, "a hole between frames is announced");
        assert_eq!(heard.odd_total, None, "a total goes on from where it stood");
        if heard.new_epoch {
            let base = have - heard.shown.len() as u64;
            *shown = Shown { base, last: base, ..Shown::default() };
        }
        if let Some((from, to)) = heard.given_up {
            assert_eq!(from, shown.last + 1);
            shown.given_up.push((from, to));
            shown.last = to;
        }
        for event in &heard.shown {
            let number = event.important.map_or(0, |number| number.0);
            assert_eq!(number, shown.last + 1, "important events in order, each once");
            let known = self.important.get(&(epoch.0, number));
            assert!(known.is_none_or(|id| *id == event.event.id), "{number} names two events");
            shown.last = number;
            shown.ids.push((number, Arc::clone(&event.event.id)));
        }
        let Some((from, to, events)) = &heard.covered else { return };
        let mut seen = events.iter().map(|event| {
            let seq = event.seq.map_or(0, |seq| seq.0);
            assert_eq!(event.event.kind.lane, Lane::Ordered);
            ((epoch.0, seq), &event.event.id)
        });
        let travelled = self.travelled.range((epoch.0, *from)..=(epoch.0, *to));
        for (key, id) in travelled {
            assert_eq!(seen.next(), Some((*key, id)), "ordered events of {from}..={to}");
        }
        assert_eq!(seen.next(), None, "nothing else");
    }

    /// A viewer gives numbers up: the log must have forgotten them.
    pub(crate) fn may_give_up(&self, room: usize, to: u64, log: &Log) {
        assert!(log.first(room) > to, "{to} is retained, and the viewer was told that it is not");
    }

    /// At the end, of a room with everything at rest.
    pub(crate) fn close(&self, room: usize, log: &Log) {
        assert!(self.open.is_empty(), "{:?} are in no frame", self.open);
        for (kind, announced) in &self.announced {
            let holes = self.holes.get(kind).copied().unwrap_or(0);
            assert_eq!(holes, *announced, "{kind}: what is announced is missing");
        }
        let stored = log.rooms.get(&room).map_or(&[][..], |stored| &stored.all);
        let mut logged: HashMap<&str, u64> = HashMap::new();
        for event in stored {
            *logged.entry(&event.event.id).or_default() += 1;
        }
        assert!(logged.values().all(|times| *times == 1), "an id is logged once");
        for id in &self.promised {
            assert!(logged.contains_key(&**id), "{id} was accepted and is not in the log");
        }
    }

    /// At the end, of a viewer that is there.
    pub(crate) fn close_viewer(
        &self,
        room: usize,
        log: &Log,
        client: &Client,
        shown: &Shown,
        snapshot: &Snapshot,
    ) {
        assert_eq!(client.epoch(), Some(snapshot.epoch));
        assert_eq!(client.have, snapshot.important.0, "it has everything");
        assert_eq!(shown.last, snapshot.important.0);
        let stored = log.rooms.get(&room).map_or(&[][..], |stored| &stored.all);
        let given_up = |n: u64| shown.given_up.iter().any(|(from, to)| (*from..=*to).contains(&n));
        let expected = stored.iter().filter_map(|event: &Arc<Numbered>| {
            let number = event.important.map_or(0, |number| number.0);
            let due = number > shown.base && !given_up(number);
            due.then(|| (number, Arc::clone(&event.event.id)))
        });
        assert!(expected.eq(shown.ids.iter().cloned()), "each event once, in order: {shown:?}");
        for total in &snapshot.totals {
            let key = name(total);
            assert_eq!(client.sums.get(&key), Some(&total.sum), "{key}");
        }
        assert_eq!(client.sums.len(), snapshot.totals.len());
        for event in &snapshot.state {
            let kind: &Arc<Kind> = &event.event.kind;
            let key = (Arc::clone(&kind.name), event.event.key.clone().unwrap_or_default());
            // Whoever was told that a value is gone knows that it has an older one.
            if event.important.is_some_and(|number| given_up(number.0)) {
                continue;
            }
            let value = client.state.get(&key).and_then(|(_, id)| id.as_ref());
            assert_eq!(value, Some(&event.event.id), "state of {key:?}");
        }
    }

    /// At the end: the totals are what went in since the process began.
    pub(crate) fn close_sums(&self, snapshot: &Snapshot) {
        let sums = snapshot.totals.iter().map(|total| (name(total), total.sum)).collect();
        assert_eq!(self.sums, sums);
    }
}
