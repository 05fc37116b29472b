//! The oracle: knows the capacity, the demand and everything on its way.
//!
//! It admits whole tasks by priority. How far down follows from the known
//! demand and the known optimum, corrected by how much admitted work there is:
//! at exactly the capacity a queue would wander without bound. The correction
//! spares the tiers that together fit into 95 % of the capacity; and
//! what it has admitted it never refuses.

use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;

use tidegate::engine::priority::{AdmissionLevel, CELLS_PER_TIER};

use super::{Call, Controller};
use crate::simulate::optimum;
use crate::simulate::scenario::{CAPACITY, NETWORK, Scenario};

/// Tasks that should be on their way: so many that no server is idle for want
/// of one, so few that they wait for 20 ms at most on average.
const TASKS: f64 = 18.0;
/// Share of the capacity within which tiers are never refused.
const SPARED: f64 = 0.95;

/// What all servers' oracles share.
#[derive(Debug)]
pub(in crate::simulate) struct Insight {
    scenario: Scenario,
    /// Calls of admitted tasks that are not yet served.
    committed: Cell<f64>,
    /// Rate of arrivals relative to the mean at this load.
    rate: Cell<f64>,
}

impl Insight {
    /// Nothing admitted yet.
    pub(super) fn new(scenario: &Scenario) -> Self {
        Self { scenario: scenario.clone(), committed: Cell::new(0.0), rate: Cell::new(1.0) }
    }

    /// Tasks come at this rate now, relative to the mean.
    pub(in crate::simulate) fn observe(&self, rate: f64) {
        self.rate.set(rate);
    }

    /// Up to which priority tasks that come now are admitted.
    fn level(&self, now: u64) -> AdmissionLevel {
        let scenario = &self.scenario;
        let load = scenario.load.at(now).0 * self.rate.get();
        let (speed, _) = scenario.speed.at(now);
        let calls = scenario.calls_per_task();
        let offered = load * CAPACITY / calls;
        let capacity = CAPACITY * speed;
        let best = optimum::goodput(offered, calls, capacity, optimum::cost(scenario));
        // Below capacity there is room beyond the demand.
        let room = if best < offered { best } else { capacity / calls };
        let wanted = TASKS * speed * (calls + 1.0) / 2.0;
        let correction = 2.0 - self.committed.get() / wanted;
        let swapped = scenario.swapped(now);
        let spared = scenario.share_within(SPARED, load, speed, swapped);
        let mut share = (room / offered * correction).max(spared);
        for index in 0..scenario.tiers.len() {
            let tier = if swapped { scenario.tiers.len() - 1 - index } else { index };
            if share < scenario.tiers[tier] {
                let cells = share / scenario.tiers[tier] * CELLS_PER_TIER as f64;
                let cell = index * CELLS_PER_TIER + cells as usize;
                return AdmissionLevel::inside(cell, cells.fract());
            }
            share -= scenario.tiers[tier];
        }
        AdmissionLevel::OPEN
    }
}

/// One server's.
#[derive(Debug)]
pub(super) struct Oracle {
    insight: Rc<Insight>,
    queue: VecDeque<Call>,
}

impl Oracle {
    /// With what it knows.
    pub(super) fn new(insight: Rc<Insight>) -> Self {
        Self { insight, queue: VecDeque::new() }
    }

    fn commit(&self, calls: f64) {
        self.insight.committed.set((self.insight.committed.get() + calls).max(0.0));
    }
}

impl Controller for Oracle {
    fn offer(&mut self, call: Call, now: u64, refused: &mut Vec<Call>) {
        if call.index == 0 {
            if !self.insight.level(now).admits(call.priority) {
                refused.push(call);
                return;
            }
            self.commit(f64::from(call.remaining));
        }
        self.queue.push_back(call);
    }

    fn take(&mut self, _now: u64, _refused: &mut Vec<Call>) -> Option<Call> {
        self.queue.pop_front()
    }

    fn served(&mut self, call: &Call, _took: u64, now: u64) {
        let late = now + NETWORK > call.deadline;
        self.commit(if late { -f64::from(call.remaining) } else { -1.0 });
    }
}
