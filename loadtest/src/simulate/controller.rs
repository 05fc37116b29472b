//! What decides, in front of one server, which calls it serves: one trait, and
//! one file for each law that is compared.

mod codel;
mod dagor;
mod engine;
mod facebook;
mod none;
mod oracle;
mod random;
mod seda;

use std::collections::VecDeque;
use std::rc::Rc;

use clap::ValueEnum;
use serde::Serialize;
use tidegate::engine::priority::{AdmissionLevel, Priority};

pub(super) use engine::engine_time;
pub(super) use oracle::Insight;

use super::scenario::{DEADLINE, SERVICE, Scenario};

/// Calls that wait in front of a server at most, where the law's source names
/// no bound: 500 ms of work, since what waits longer has missed its deadline.
const QUEUE_BOUND: usize = (DEADLINE / SERVICE) as usize;

/// One call as M sees it. Times are microseconds from the start of the run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Call {
    /// Which task it belongs to.
    pub(super) task: u32,
    /// Which of the task's calls it is, from 0.
    pub(super) index: u8,
    /// Calls of the task that are still to be made, this one included.
    pub(super) remaining: u8,
    /// Where it stands in the order of importance.
    pub(super) priority: Priority,
    /// Hash of the room.
    pub(super) room: u64,
    /// When it reached the server.
    pub(super) arrived: u64,
    /// When its task fails.
    pub(super) deadline: u64,
}

/// The law of one server. `refused` takes every call that leaves unserved.
pub(super) trait Controller {
    /// A call has arrived.
    fn offer(&mut self, call: Call, now: u64, refused: &mut Vec<Call>);

    /// The server is free: what it serves next.
    fn take(&mut self, now: u64, refused: &mut Vec<Call>) -> Option<Call>;

    /// The server has nothing to do.
    fn rest(&mut self, _now: u64) {}

    /// The server begins with something else, such as answering those refused.
    fn other_work(&mut self, _now: u64) {}

    /// The server has served a call for `took` microseconds.
    fn served(&mut self, _call: &Call, _took: u64, _now: u64) {}

    /// A time given by [`deadline`](Self::deadline) has come.
    fn tick(&mut self, _now: u64) {}

    /// When to call [`tick`](Self::tick).
    fn deadline(&self) -> Option<u64> {
        None
    }

    /// The level that answers carry, where the law has one.
    fn level(&self) -> Option<AdmissionLevel> {
        None
    }
}

/// The laws that are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// First come first served, without a bound.
    None,
    /// Refuses at random, more or less by the queueing time.
    Random,
    /// RFC 8289.
    Codel,
    /// Adaptive LIFO and controlled delay as Facebook described them.
    Facebook,
    /// Welsh and Culler's response time controller.
    Seda,
    /// As published.
    Dagor,
    /// The same without its upstream's part: nothing is kept back.
    DagorAlone,
    /// The engine's admission, and its caller in the upstream.
    Tidegate,
    /// Knows the capacity and the demand.
    Oracle,
}

impl Kind {
    /// In the order of the tables.
    pub(super) const ALL: [Kind; 9] = [
        Kind::None,
        Kind::Random,
        Kind::Codel,
        Kind::Facebook,
        Kind::Seda,
        Kind::Dagor,
        Kind::DagorAlone,
        Kind::Tidegate,
        Kind::Oracle,
    ];

    /// For tables.
    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::None => "none",
            Kind::Random => "random",
            Kind::Codel => "CoDel",
            Kind::Facebook => "Facebook",
            Kind::Seda => "SEDA",
            Kind::Dagor => "DAGOR",
            Kind::DagorAlone => "D. alone",
            Kind::Tidegate => "Tidegate",
            Kind::Oracle => "oracle",
        }
    }

    /// The law in front of one server. `draw` seeds what it draws.
    pub(super) fn build(self, insight: &Rc<Insight>, draw: u64) -> Box<dyn Controller> {
        match self {
            Kind::None => Box::new(none::Unbounded::default()),
            Kind::Random => Box::new(random::Shedding::new(draw)),
            Kind::Codel => Box::new(codel::Codel::default()),
            Kind::Facebook => Box::new(facebook::AdaptiveLifo::default()),
            Kind::Seda => Box::new(seda::ResponseTime::new()),
            Kind::Dagor | Kind::DagorAlone => Box::new(dagor::Dagor::new()),
            Kind::Tidegate => Box::new(engine::Engine::new()),
            Kind::Oracle => Box::new(oracle::Oracle::new(Rc::clone(insight))),
        }
    }

    /// What the oracle of `scenario` knows.
    pub(super) fn insight(scenario: &Scenario) -> Rc<Insight> {
        Rc::new(Insight::new(scenario))
    }
}

/// A first-come-first-served queue with the common bound; a newcomer that finds
/// it full is refused.
#[derive(Debug, Default)]
struct Fifo(VecDeque<Call>);

impl Fifo {
    fn offer(&mut self, call: Call, refused: &mut Vec<Call>) {
        if self.0.len() < QUEUE_BOUND {
            self.0.push_back(call);
        } else {
            refused.push(call);
        }
    }

    fn take(&mut self) -> Option<Call> {
        self.0.pop_front()
    }
}
