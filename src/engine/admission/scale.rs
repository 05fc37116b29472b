//! Levels for shares of the capacity, and the one that callers are advised to
//! keep to at this moment.
//!
//! A level that is read from a window of a second cannot know what chance does
//! within it: a queue of 40 ms is empty or full long before the next window. So
//! each window leaves a scale of levels, from a third to twice the capacity, and
//! what callers are told follows the queue along it with every answer: the
//! longer the queue the less new work, the shorter the more. The server itself
//! goes on admitting up to its level, so that what has begun elsewhere on the
//! word of a wider advice is not refused half way ([`Caller::proceed`]).
//!
//! This is a proportional controller. In the simulation at three times the
//! capacity, of the calls served for tasks of four calls 4.3 % were for tasks that
//! failed later without it, and 1.6 % with it; servers refused 0.46 calls per
//! task, and 0.26.
//!
//! [`Caller::proceed`]: crate::engine::caller::Caller::proceed

use std::time::Duration;

use super::demand::Demand;
use crate::engine::priority::AdmissionLevel;

/// Levels on the scale.
const STEPS: usize = 17;
/// Share of the capacity at its first level, and between two of them.
const FIRST: f64 = 0.3;
const BETWEEN: f64 = 0.1;
/// Backlog at which callers are told to send the capacity, in microseconds:
/// half of what it may hold. With a third of it goodput was 0.3 % higher, but who
/// ignored the advice had 1.14 times the success of who kept to it, and 1.09 times
/// with half of it: the less the advice asks for, the more lies between it and the
/// level.
const AIM: f64 = 20_000.0;
/// How much more, as a share of the capacity, they are told to send when nothing
/// waits. Large, for where most calls belong to work that has begun, advice moves
/// only the small part that is new.
const GAIN: f64 = 1.8;
/// After this much rest, with never more than one waiting, a level is out of date.
const IDLE: Duration = Duration::from_millis(4);
/// Share of requests that may have come under narrower advice than what a window
/// is judged by.
const NARROWER: f64 = 0.1;

/// See the module's documentation.
pub(super) struct Scale {
    levels: [AdmissionLevel; STEPS],
    /// Requests that came while callers were told each step.
    told: [u32; STEPS],
    /// Rest since more than one waited.
    idle: Duration,
}

impl Scale {
    pub(super) fn new() -> Self {
        Self { levels: [AdmissionLevel::OPEN; STEPS], told: [0; STEPS], idle: Duration::ZERO }
    }

    /// The scale anew, for a `capacity` in work per microsecond.
    pub(super) fn read(&self, demand: &Demand, seen: AdmissionLevel, capacity: f64) -> Self {
        let share = |step: usize| FIRST + BETWEEN * step as f64;
        let level = |step| demand.level(capacity * share(step), seen);
        Self { levels: std::array::from_fn(level), ..*self }
    }

    /// Something came while so much work was waiting, in microseconds.
    pub(super) fn arrived(&mut self, backlog: f64) {
        self.told[position(backlog) as usize] += 1;
    }

    /// The server had nothing to do.
    pub(super) fn rested(&mut self, time: Duration) {
        self.idle += time;
    }

    /// More than one waits.
    pub(super) fn waits(&mut self) {
        self.idle = Duration::ZERO;
    }

    /// What callers are told while `backlog` microseconds of work wait and `level`
    /// is in force. `safe` stays admitted in any case.
    pub(super) fn advised(
        &self,
        backlog: f64,
        level: AdmissionLevel,
        safe: AdmissionLevel,
    ) -> AdmissionLevel {
        if level.is_open() || self.idle >= IDLE {
            return AdmissionLevel::OPEN;
        }
        let position = position(backlog);
        let step = (position as usize).min(STEPS - 2);
        let [from, to] = [step, step + 1].map(|step| f64::from(self.levels[step].to_bits()));
        let bits = from + (to - from) * (position - step as f64);
        let wanted = AdmissionLevel::from_bits(bits as u32);
        let wanted = if self.idle.is_zero() { wanted.min(level) } else { wanted };
        wanted.max(safe.min(level))
    }

    /// What callers can be taken to have kept to, nearly all of them, in the
    /// window that ends.
    pub(super) fn kept_to(&mut self, level: AdmissionLevel) -> AdmissionLevel {
        let told = std::mem::replace(&mut self.told, [0; STEPS]);
        let mut left = (f64::from(told.iter().sum::<u32>()) * NARROWER) as u32;
        let lowest = told.iter().position(|requests| {
            let here = *requests > left;
            left = left.saturating_sub(*requests);
            here
        });
        match lowest {
            Some(step) if !level.is_open() => level.min(self.levels[step]),
            _ => level,
        }
    }
}

/// Where on the scale a backlog stands.
fn position(backlog: f64) -> f64 {
    let share = 1.0 + GAIN * (1.0 - backlog / AIM);
    ((share - FIRST) / BETWEEN).clamp(0.0, (STEPS - 1) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::ids::Tier;
    use crate::engine::priority::Priority;

    /// Four tiers that bring a unit of work per microsecond each.
    fn scale(capacity: f64) -> Scale {
        let mut demand = Demand::new();
        for tier in 0..4 {
            for user in 0..128 {
                demand.arrived(Priority::new(Tier(tier), user, 0), 1e6 / 128.0);
            }
        }
        demand.see(AdmissionLevel::OPEN, 1e6);
        Scale::new().read(&demand, AdmissionLevel::OPEN, capacity)
    }

    /// In tiers.
    fn place(level: AdmissionLevel) -> f64 {
        (level.cell() as f64 + level.share()) / 128.0
    }

    #[test]
    fn the_longer_the_queue_the_less_is_asked_for() {
        let scale = scale(2.0);
        let level = AdmissionLevel::inside(3 * 128, 0.0);
        let told = |backlog| place(scale.advised(backlog, level, AdmissionLevel::SHUT));
        assert!((told(AIM) - 2.0).abs() < 0.02, "the capacity: {}", told(AIM));
        let less = 2.0 * (1.0 - GAIN / 4.0);
        assert!((told(AIM * 1.25) - less).abs() < 0.02, "{}", told(AIM * 1.25));
        assert!((told(0.0) - 3.0).abs() < 0.02, "not more than the server lets in: {}", told(0.0));
        assert!((told(1e9) - 0.6).abs() < 0.02, "{}", told(1e9));
    }

    #[test]
    fn what_is_safe_is_asked_for_in_any_case() {
        let level = AdmissionLevel::inside(3 * 128, 0.0);
        let safe = AdmissionLevel::inside(128, 0.0);
        assert_eq!(scale(2.0).advised(1e9, level, safe), safe);
        // Unless the server itself lets in less.
        let tight = AdmissionLevel::inside(64, 0.0);
        assert_eq!(scale(2.0).advised(1e9, tight, safe), tight);
    }

    #[test]
    fn who_rests_asks_for_more_and_soon_for_everything() {
        let mut scale = scale(1.0);
        let level = AdmissionLevel::inside(128, 0.0);
        let told = |scale: &Scale| scale.advised(0.0, level, AdmissionLevel::SHUT);
        assert_eq!(told(&scale), level);
        scale.rested(IDLE / 2);
        assert!(told(&scale) > level && !told(&scale).is_open());
        scale.rested(IDLE / 2);
        assert!(told(&scale).is_open());
        scale.waits();
        assert_eq!(told(&scale), level);
    }

    #[test]
    fn a_window_is_judged_by_what_nearly_all_callers_kept_to() {
        let mut scale = scale(2.0);
        let level = AdmissionLevel::inside(3 * 128, 0.0);
        for request in 0..100 {
            scale.arrived(if request < 8 { 1e9 } else { AIM });
        }
        let kept_to = place(scale.kept_to(level));
        assert!((1.7..=2.0).contains(&kept_to), "{kept_to}");
        assert_eq!(scale.kept_to(level), level, "nothing came");
    }
}
