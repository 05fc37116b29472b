//! A viewer's program, written from the protocol alone and believing nothing:
//! every number is compared, what comes twice is thrown away, what came too
//! early is held back, and what is missing is pulled.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tidegate::engine::confirm::Slot;
use tidegate::engine::event::{Frame, Numbered, Snapshot};
use tidegate::engine::ids::{Epoch, ImportantNo, Seq};
use tidegate::engine::kind::{Lane, Merge};
use tidegate::engine::room::Position;

/// From the server, as far as these promises go.
#[derive(Debug, Clone)]
pub(crate) enum Message {
    Joined {
        snapshot: Arc<Snapshot>,
        recovered: bool,
        missed: Option<(u64, u64)>,
    },
    Frame(Arc<Frame>),
    /// Told to pull.
    Missed {
        to: u64,
        within_ms: u32,
    },
    /// The answer to a pull; unless it is complete, error `history_gone` stands
    /// before it on the same stream.
    Pulled {
        frame: Arc<Frame>,
        complete: bool,
    },
}

/// What it does with a message.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    /// Important events given to the user, in order.
    pub(crate) shown: Vec<Arc<Numbered>>,
    /// Important numbers that it stops waiting for, first and last.
    pub(crate) given_up: Option<(u64, u64)>,
    /// Numbers that frames covered, and the ordered events that came with them.
    pub(crate) covered: Option<(u64, u64, Vec<Arc<Numbered>>)>,
    /// Numbers that a fresh start passed over.
    pub(crate) passed_over: bool,
    /// A frame's numbers do not follow those before.
    pub(crate) hole: Option<(u64, u64)>,
    /// A total does not go on from where it stood: kind and key.
    pub(crate) odd_total: Option<String>,
    pub(crate) duplicates: u64,
    pub(crate) held_back: u64,
    /// The numbering is another one than before.
    pub(crate) new_epoch: bool,
    /// Acknowledge within this.
    pub(crate) ack: Option<Duration>,
    /// See whether something must be pulled, within this.
    pub(crate) check: Option<Duration>,
}

/// Of a key's newest value: its number, and its id unless it was cleared.
type Value = (u64, Option<Arc<str>>);

#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) slot: Slot,
    epoch: Option<Epoch>,
    /// On this connection.
    joined: bool,
    seq: u64,
    /// It has everything important up to here.
    pub(crate) have: u64,
    /// The room's last, as it was told.
    latest: u64,
    held: BTreeMap<u64, Arc<Numbered>>,
    /// What a stream of its own brought before `joined`.
    early: Vec<Arc<Frame>>,
    /// Last numbers of the pulls on this connection that are not yet filled.
    pulls: Vec<u64>,
    arrivals: u64,
    pub(crate) sums: BTreeMap<String, i64>,
    pub(crate) state: BTreeMap<(Arc<str>, Arc<str>), Value>,
}

/// How long an event may be behind its number before it is asked for.
const GRACE: Duration = Duration::from_millis(300);

impl Client {
    pub(crate) fn new(slot: Slot) -> Self {
        Self {
            slot,
            epoch: None,
            joined: false,
            seq: 0,
            have: 0,
            latest: 0,
            held: BTreeMap::new(),
            early: Vec::new(),
            pulls: Vec::new(),
            arrivals: 0,
            sums: BTreeMap::new(),
            state: BTreeMap::new(),
        }
    }

    pub(crate) fn epoch(&self) -> Option<Epoch> {
        self.epoch
    }

    pub(crate) fn latest(&self) -> u64 {
        self.latest
    }

    /// The connection is gone; where to go on from.
    pub(crate) fn cut(&mut self) -> Option<Position> {
        self.joined = false;
        self.pulls.clear();
        self.early.clear();
        let (seq, important) = (Seq(self.seq), ImportantNo(self.have));
        self.epoch.map(|epoch| Position { epoch, seq, important })
    }

    pub(crate) fn receive(&mut self, message: &Message) -> Heard {
        let mut heard = Heard::default();
        match message {
            Message::Joined { snapshot, recovered, missed } => {
                self.joined(snapshot, *recovered, &mut heard);
                self.latest = self.latest.max(missed.map_or(0, |(_, to)| to));
                for frame in std::mem::take(&mut self.early) {
                    self.frame(&frame, &mut heard);
                }
            }
            Message::Frame(frame) if self.joined => self.frame(frame, &mut heard),
            Message::Frame(frame) => self.early.push(Arc::clone(frame)),
            Message::Missed { to, within_ms } => {
                self.latest = self.latest.max(*to);
                heard.check = Some(Duration::from_millis(u64::from(*within_ms)));
            }
            Message::Pulled { frame, complete } => {
                if !complete {
                    self.give_up(frame, &mut heard);
                }
                self.frame(frame, &mut heard);
            }
        }
        if self.latest > self.have && heard.check.is_none() {
            heard.check = Some(GRACE);
        }
        heard
    }

    /// What to pull now, first and last.
    pub(crate) fn pull(&mut self) -> Option<(u64, u64)> {
        if !self.joined || self.latest <= self.have {
            return None;
        }
        let to = self.held.keys().next().map_or(self.latest, |first| first - 1);
        self.pulls.push(to);
        Some((self.have + 1, to))
    }

    fn joined(&mut self, snapshot: &Snapshot, recovered: bool, heard: &mut Heard) {
        let known = self.epoch == Some(snapshot.epoch);
        self.joined = true;
        let total = |t: &tidegate::engine::event::Total| (name(t), t.sum);
        self.sums = snapshot.totals.iter().map(total).collect();
        self.state.clear();
        for event in &snapshot.state {
            self.value(event);
        }
        if !known {
            heard.new_epoch = true;
            (self.epoch, self.have) = (Some(snapshot.epoch), snapshot.important.0);
            (self.seq, self.latest) = (snapshot.seq.0, snapshot.important.0);
            return self.held.clear();
        }
        self.latest = self.latest.max(snapshot.important.0);
        if !recovered {
            // What lies between is announced as missed by that word.
            heard.passed_over = snapshot.seq.0 > self.seq;
            self.seq = snapshot.seq.0;
        }
    }

    fn frame(&mut self, frame: &Frame, heard: &mut Heard) {
        if self.epoch != Some(frame.epoch) {
            return;
        }
        self.latest = self.latest.max(frame.important.0);
        let important = frame.events.iter().filter(|event| event.important.is_some());
        for event in important {
            let number = event.important.unwrap_or_default().0;
            if number <= self.have || self.held.contains_key(&number) {
                heard.duplicates += 1;
            } else {
                heard.held_back += u64::from(number > self.have + 1);
                self.held.insert(number, Arc::clone(event));
            }
        }
        self.advance(heard);
        if frame.ack.is_some_and(|asked| asked.concerns(self.slot)) {
            let within = frame.ack.map_or(0, |asked| asked.within_ms);
            heard.ack = Some(Duration::from_millis(u64::from(within)));
        }
        self.rest(frame, heard);
    }

    /// What was asked for begins with what is left of it. With nothing left
    /// only the shortest of the pulls is known to be concerned.
    fn give_up(&mut self, frame: &Frame, heard: &mut Heard) {
        let first = frame.events.first().and_then(|event| event.important);
        let Some(to) = first.map(|first| first.0 - 1).or(self.pulls.iter().copied().min()) else {
            return;
        };
        if to > self.have && self.epoch == Some(frame.epoch) {
            heard.given_up = Some((self.have + 1, to));
            self.have = to;
        }
        self.held = self.held.split_off(&(self.have + 1));
    }

    fn advance(&mut self, heard: &mut Heard) {
        while let Some(event) = self.held.remove(&(self.have + 1)) {
            self.have += 1;
            self.value(&event);
            heard.shown.push(event);
        }
        self.pulls.retain(|to| *to > self.have);
    }

    /// Everything in a frame but its important events.
    fn rest(&mut self, frame: &Frame, heard: &mut Heard) {
        let (first, last) = (frame.first_seq.0, frame.last_seq.0);
        let mut ordered = Vec::new();
        for event in frame.events.iter().filter(|event| event.important.is_none()) {
            let Some(seq) = event.seq else {
                self.value(event);
                continue;
            };
            if seq.0 > self.seq {
                self.value(event);
                ordered.push(Arc::clone(event));
            } else {
                heard.duplicates += 1;
            }
        }
        for total in &frame.totals {
            let key = name(total);
            let before = self.sums.insert(key.clone(), total.sum).unwrap_or(0);
            if before + total.delta != total.sum {
                heard.odd_total = Some(key);
            }
        }
        if first > last {
            return;
        }
        if first > self.seq + 1 {
            heard.hole = Some((self.seq + 1, first - 1));
        }
        if last > self.seq {
            heard.covered = Some((self.seq + 1, last, ordered));
            self.seq = last;
        }
    }

    fn value(&mut self, event: &Arc<Numbered>) {
        let kind = &event.event.kind;
        if !matches!(kind.merge, Merge::Latest(_)) {
            return;
        }
        self.arrivals += 1;
        let number = match kind.lane {
            Lane::Important => event.important.map_or(0, |number| number.0),
            Lane::Ordered => event.seq.map_or(0, |seq| seq.0),
            Lane::Sampled => self.arrivals,
        };
        let key = (Arc::clone(&kind.name), event.event.key.clone().unwrap_or_default());
        let id = (!event.event.payload.is_null()).then(|| Arc::clone(&event.event.id));
        if self.state.get(&key).is_none_or(|(known, _)| *known < number) {
            self.state.insert(key, (number, id));
        }
    }
}

/// Names a total.
pub(crate) fn name(total: &tidegate::engine::event::Total) -> String {
    format!("{}/{}/{}", total.kind.name, total.user.as_deref().unwrap_or_default(), total.key)
}
