//! Ours: the very engine code, fed as a server feeds it.

use std::time::Duration;

use tidegate::engine::admission::{Admission, AdmissionSettings, Entry, Shed};
use tidegate::engine::priority::AdmissionLevel;
use tidegate::engine::time::Time;

use super::{Call, Controller};
use crate::simulate::scenario::SERVICE;

/// Weight of the newest service in the estimated cost of a call.
const COST_WEIGHT: f64 = 0.02;
/// Runs begin at the start of an hour, so that user levels hold through one.
const START: Time = Time::from_micros(472_222 * 3_600_000_000);

/// Time of a run as the engine sees it.
pub(in crate::simulate) fn engine_time(now: u64) -> Time {
    START + Duration::from_micros(now)
}

/// Admission in front of one server.
pub(super) struct Engine {
    admission: Admission<Call>,
    shed: Vec<(Entry<Call>, Shed)>,
    /// Moving average of service times: a server calibrates what calls cost.
    cost: f64,
}

impl Engine {
    /// With the default settings.
    pub(super) fn new() -> Self {
        let admission = Admission::new(AdmissionSettings::default(), engine_time(0));
        Self { admission, shed: Vec::new(), cost: SERVICE as f64 }
    }
}

impl Controller for Engine {
    fn offer(&mut self, call: Call, now: u64, refused: &mut Vec<Call>) {
        let entry = Entry {
            item: call,
            priority: call.priority,
            room: call.room,
            cost: self.cost,
            arrived: engine_time(call.arrived),
            deadline: Some(engine_time(call.deadline)),
        };
        self.admission.offer(entry, engine_time(now), &mut self.shed);
        self.admission.tick(engine_time(now));
        refused.extend(self.shed.drain(..).map(|(entry, _)| entry.item));
    }

    fn take(&mut self, now: u64, refused: &mut Vec<Call>) -> Option<Call> {
        let taken = self.admission.take(engine_time(now), &mut self.shed);
        refused.extend(self.shed.drain(..).map(|(entry, _)| entry.item));
        taken.map(|entry| entry.item)
    }

    fn rest(&mut self, now: u64) {
        self.admission.rest(engine_time(now));
    }

    fn other_work(&mut self, now: u64) {
        // The rest ends without anything taken: the tick counts it until now.
        self.admission.tick(engine_time(now));
        self.admission.rested(Duration::ZERO);
    }

    fn served(&mut self, _call: &Call, took: u64, _now: u64) {
        self.cost += (took as f64 - self.cost) * COST_WEIGHT;
    }

    fn tick(&mut self, now: u64) {
        self.admission.tick(engine_time(now));
    }

    fn deadline(&self) -> Option<u64> {
        let due = self.admission.next_deadline().as_micros();
        Some(due.saturating_sub(START.as_micros()))
    }

    fn level(&self) -> Option<AdmissionLevel> {
        Some(self.admission.advised())
    }
}
