//! The arrival rate against the truth: one room, everybody honest, some viewers
//! stalled, others that leave or never acknowledge. The world knows of every
//! viewer when it would confirm; the estimate hears of a sample.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tidegate::engine::confirm::{Arrival, Asked, Budget, Confirmations, HORIZONS, Settings};
use tidegate::engine::event::{Event, Frame, Numbered, Payload};
use tidegate::engine::ids::{Epoch, ImportantNo, RoomId, Seq};
use tidegate::engine::time::Time;

use super::rng::Rng;
use super::scenario::kinds;

const START: Time = Time::from_millis(1_700_000_000_000);

/// How many comparisons there were, and how many were within twice the
/// deviation that was told.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Within {
    pub(crate) all: u64,
    pub(crate) within: u64,
    /// Of all, those for which a sample was asked.
    pub(crate) sampled: u64,
    /// Of all, those where somebody was not reached in time.
    pub(crate) missed_some: u64,
}

#[derive(Debug)]
struct Viewer {
    slot: u16,
    acks: bool,
    /// Nothing reaches it before.
    stalled_until: Time,
    prone: bool,
    /// When it leaves.
    leaves: Time,
    there: bool,
}

/// What is owed to one viewer, for the truth.
#[derive(Debug)]
struct Due {
    viewer: usize,
    received: Time,
    confirms: Time,
}

#[derive(Debug)]
enum Step {
    Send(u64),
    Ack(usize, u64),
    Leave(usize),
    Chase,
}

pub(crate) struct Hall {
    rng: Rng,
    queue: BTreeMap<(Time, u64), Step>,
    queued: u64,
    room: Confirmations,
    acks: Budget,
    viewers: Vec<Viewer>,
    /// Who stands where in the room.
    members: Vec<usize>,
    due: Vec<Due>,
    told: [Arrival; HORIZONS.len()],
    sampled: bool,
}

/// Compares estimate and truth at every horizon.
pub(crate) fn run(seed: u64) -> Within {
    let mut hall = Hall::new(seed);
    while let Some(((now, _), step)) = hall.queue.pop_first() {
        hall.step(step, now);
    }
    hall.compare()
}

impl Hall {
    fn new(seed: u64) -> Self {
        let mut rng = Rng(seed);
        let stalled = *rng.pick(&[0, 1, 10]);
        let leavers = *rng.pick(&[0, 30]);
        let silent = *rng.pick(&[0, 40]);
        let settings = Settings { patience: Duration::from_secs(1), carries: 3, frames: 256 };
        let mut hall = Self {
            queue: BTreeMap::new(),
            queued: 0,
            room: Confirmations::new(settings),
            acks: Budget::new(*rng.pick(&[80, 200, 1_000]), START),
            viewers: Vec::new(),
            members: Vec::new(),
            due: Vec::new(),
            told: [Arrival::default(); HORIZONS.len()],
            sampled: false,
            rng,
        };
        for index in 0..hall.rng.between(20, 800) as usize {
            let rng = &mut hall.rng;
            let leaves = if rng.percent(leavers) { rng.between(0, 40_000) } else { 90_000 };
            let viewer = Viewer {
                slot: rng.next() as u16,
                acks: !rng.percent(silent),
                stalled_until: START,
                prone: rng.percent(stalled),
                leaves: START + Duration::from_millis(leaves),
                there: true,
            };
            hall.room.joined(viewer.slot, viewer.acks, ImportantNo(0));
            hall.queue(viewer.leaves, Step::Leave(index));
            hall.viewers.push(viewer);
            hall.members.push(index);
        }
        let mut at = START;
        for number in 1..=12 {
            at = at + Duration::from_millis(hall.rng.between(1_300, 3_000));
            hall.queue(at, Step::Send(number));
        }
        for tenth in 0..800 {
            hall.queue(START + Duration::from_millis(100 * tenth), Step::Chase);
        }
        hall
    }

    fn queue(&mut self, at: Time, step: Step) {
        self.queued += 1;
        self.queue.insert((at, self.queued), step);
    }

    fn step(&mut self, step: Step, now: Time) {
        match step {
            Step::Send(number) => self.send(number, now),
            Step::Ack(viewer, number) => {
                let member = self.members.iter().position(|member| *member == viewer);
                if let Some(index) = member {
                    self.room.acknowledged(index, ImportantNo(number), now, |_| ());
                }
            }
            Step::Leave(viewer) => {
                self.viewers[viewer].there = false;
                if let Some(index) = self.members.iter().position(|member| *member == viewer) {
                    self.room.left(index);
                    self.room.removed(index);
                    self.members.swap_remove(index);
                }
            }
            Step::Chase => {
                let (mut verdicts, mut remedies) = (Vec::new(), Vec::new());
                self.room.chase(now, &mut verdicts, &mut remedies);
                for verdict in verdicts {
                    self.told[verdict.horizon].absorb(&verdict.arrival);
                }
            }
        }
    }

    fn send(&mut self, number: u64, now: Time) {
        let received = now - Duration::from_millis(self.rng.between(0, 700));
        let Some(asked) = self.acks.ask(self.members.len() as u32, now) else { return };
        self.sampled |= asked.one_in > 1;
        self.room.sent(&frame(number, received, asked, now), self.members.len(), now);
        for viewer in self.members.clone() {
            self.receive(viewer, number, received, asked, now);
        }
    }

    fn receive(&mut self, index: usize, number: u64, received: Time, asked: Asked, now: Time) {
        let rng = &mut self.rng;
        let viewer = &mut self.viewers[index];
        if viewer.prone && viewer.stalled_until < now && rng.percent(40) {
            viewer.stalled_until = now + Duration::from_millis(rng.between(300, 15_000));
        }
        let arrives = (now + Duration::from_millis(rng.between(1, 300))).max(viewer.stalled_until);
        let delay = rng.between(0, u64::from(asked.within_ms)) + rng.between(1, 100);
        let confirms = arrives + Duration::from_millis(delay);
        if !viewer.acks {
            return;
        }
        let (concerned, leaves) = (asked.concerns(viewer.slot), viewer.leaves);
        self.due.push(Due { viewer: index, received, confirms });
        if concerned && confirms < leaves {
            self.queue(confirms, Step::Ack(index, number));
        }
    }

    fn compare(self) -> Within {
        let mut result = Within::default();
        for (horizon, told) in HORIZONS.iter().zip(self.told) {
            // Who leaves without having confirmed is not due any more, if the
            // verdict comes later: it does, some tenths of a second after the horizon.
            let due = self.due.iter().filter(|due| {
                let leaves = self.viewers[due.viewer].leaves;
                due.confirms < leaves || leaves > due.received + *horizon
            });
            let (mut all, mut confirmed) = (0_u64, 0_u64);
            for due in due {
                all += 1;
                confirmed += u64::from(due.confirms.since(due.received) <= *horizon);
            }
            if all == 0 || told.asked == 0 {
                continue;
            }
            let truth = confirmed as f64 / all as f64;
            let (estimate, bound) = (told.confirmed / told.due, 2.0 * told.deviation / told.due);
            if !self.sampled {
                assert!((estimate - truth).abs() < 0.02, "everybody was asked: {told:?} {truth}");
            }
            result.all += 1;
            result.within += u64::from((estimate - truth).abs() <= bound.max(1e-3));
            result.sampled += u64::from(self.sampled);
            result.missed_some += u64::from(confirmed < all);
        }
        result
    }
}

fn frame(number: u64, received: Time, asked: Asked, now: Time) -> Frame {
    let [kind, ..] = &kinds()[..] else { panic!("there are kinds") };
    let event = Event {
        id: format!("p{number}").into(),
        kind: Arc::clone(kind),
        user: "u".into(),
        payload: Payload { bytes: Bytes::from_static(b"1"), json: true },
        key: None,
        amount: None,
        ttl: None,
        received,
        mark: None,
    };
    let (seq, important) = (Seq(number), ImportantNo(number));
    let event = Numbered { event, seq: Some(seq), important: Some(important) };
    Frame {
        room: RoomId::new("r").expect("a valid name"),
        epoch: Epoch(1),
        first_seq: seq,
        last_seq: seq,
        important,
        time: now,
        oldest: received,
        events: vec![Arc::new(event)],
        totals: Vec::new(),
        dropped: Vec::new(),
        online: None,
        ack: Some(asked),
        represents: 1,
    }
}
