//! Where tasks come from: when, from whom, how many calls, how important.

use std::fmt::Write as _;

use rand::RngExt;
use rand::rngs::SmallRng;
use tidegate::engine::ids::Tier;
use tidegate::engine::level::{HourKey, LevelKey};
use tidegate::engine::priority::Priority;

use super::controller::engine_time;
use super::scenario::{Arrivals, CAPACITY, MOST_CALLS, MS, SERVICE, Scenario, Service};

/// Mean length of either state of bursty arrivals.
const STATE: f64 = 100.0 * MS as f64;
/// Rate in the two states of bursty arrivals, relative to the mean.
pub(super) const BURST_RATES: [f64; 2] = [0.25, 1.75];

/// What a user wants.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wish {
    pub(super) calls: u8,
    pub(super) tier: u8,
    pub(super) priority: Priority,
    pub(super) room: u64,
    pub(super) aggressive: bool,
}

/// The source of tasks of one run.
#[derive(Debug)]
pub(super) struct Traffic {
    hour: HourKey,
    /// Bursty arrivals: the state, and until when it lasts.
    state: usize,
    state_until: u64,
    number: u64,
    user: String,
    id: String,
}

/// A draw from an exponential distribution.
pub(super) fn exponential(mean: f64, rng: &mut SmallRng) -> f64 {
    -(1.0 - rng.random::<f64>()).ln() * mean
}

/// How long a call holds a healthy server, in microseconds.
pub(super) fn service_time(service: Service, rng: &mut SmallRng) -> f64 {
    let mean = SERVICE as f64;
    match service {
        Service::Exponential => exponential(mean, rng),
        Service::Fixed => mean,
        Service::Erlang2 => exponential(mean / 2.0, rng) + exponential(mean / 2.0, rng),
    }
}

impl Traffic {
    /// With a key of its own for user levels.
    pub(super) fn new(rng: &mut SmallRng) -> Self {
        let seed = u128::from(rng.random::<u64>()) << 64 | u128::from(rng.random::<u64>());
        Self {
            hour: LevelKey::from_seed(seed).hour(engine_time(0)),
            state: 0,
            state_until: 0,
            number: 0,
            user: String::new(),
            id: String::new(),
        }
    }

    /// When the next task comes after one at `now`. Arrivals have no memory, so
    /// where the rate changes the draw is simply taken again.
    pub(super) fn next(&mut self, scenario: &Scenario, now: u64, rng: &mut SmallRng) -> u64 {
        let mut at = now as f64;
        loop {
            let (load, mut until) = scenario.load.at(at as u64);
            let mut rate = load * CAPACITY / scenario.calls_per_task() / 1e6;
            if scenario.arrivals == Arrivals::Bursty {
                while self.state_until as f64 <= at {
                    self.state = 1 - self.state;
                    self.state_until = (at + exponential(STATE, rng)).ceil() as u64;
                }
                rate *= BURST_RATES[self.state];
                until = until.min(self.state_until);
            }
            at += exponential(1.0 / rate, rng);
            if at < until as f64 {
                return at as u64;
            }
            at = until as f64;
        }
    }

    /// Rate of arrivals at this moment, relative to the mean.
    pub(super) fn rate(&self, scenario: &Scenario) -> f64 {
        match scenario.arrivals {
            Arrivals::Poisson => 1.0,
            Arrivals::Bursty => BURST_RATES[self.state],
        }
    }

    /// What the one who comes at `now` wants.
    pub(super) fn draw(&mut self, scenario: &Scenario, now: u64, rng: &mut SmallRng) -> Wish {
        let calls = 1 + choose(&scenario.mix, rng).min(MOST_CALLS - 1);
        let class = choose(&scenario.tiers, rng);
        let tier = if scenario.swapped(now) { scenario.tiers.len() - 1 - class } else { class };
        let user = rng.random_range(0..scenario.users);
        self.number += 1;
        self.user.clear();
        self.id.clear();
        // Writing to a String cannot fail.
        let _ = write!(self.user, "u{user}");
        let _ = write!(self.id, "{}", self.number);
        Wish {
            calls: calls as u8,
            tier: tier as u8,
            priority: self.hour.priority(Tier(tier as u8), &self.user, &self.id),
            room: u64::from(user % scenario.rooms),
            aggressive: f64::from(user) < scenario.aggressive * f64::from(scenario.users),
        }
    }
}

/// An index with a chance proportional to its weight.
fn choose(weights: &[f64], rng: &mut SmallRng) -> usize {
    let mut left = rng.random::<f64>() * weights.iter().sum::<f64>();
    let last = weights.iter().rposition(|weight| *weight > 0.0).unwrap_or(0);
    for (index, weight) in weights.iter().enumerate().take(last) {
        if left < *weight {
            return index;
        }
        left -= weight;
    }
    last
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;
    use crate::simulate::scenario::SECOND;

    fn arrivals(scenario: &Scenario, seconds: u64) -> Vec<u64> {
        let mut rng = SmallRng::seed_from_u64(1);
        let mut traffic = Traffic::new(&mut rng);
        let (mut now, mut times) = (0, Vec::new());
        loop {
            now = traffic.next(scenario, now, &mut rng);
            if now >= seconds * SECOND {
                return times;
            }
            times.push(now);
        }
    }

    #[test]
    fn arrivals_follow_the_load_and_bursts_keep_the_mean() {
        for (kind, tolerance) in [(Arrivals::Poisson, 0.02), (Arrivals::Bursty, 0.1)] {
            let scenario = Scenario { arrivals: kind, ..Scenario::steady(2, 2.0, 0, 60) };
            let rate = arrivals(&scenario, 60).len() as f64 / 60.0;
            assert!((rate / 750.0 - 1.0).abs() < tolerance, "{kind:?}: {rate}");
        }
    }

    #[test]
    fn a_change_of_load_takes_effect_at_its_time() {
        let step = Scenario::step(1, 5.0);
        let times = arrivals(&step, 6);
        let after = times.iter().filter(|&&time| time >= 5 * SECOND).count();
        assert!((3_500..4_000).contains(&after), "{after}");
        assert!((1_750..2_000).contains(&(times.len() - after)));
    }

    #[test]
    fn classes_are_drawn_by_weight_and_never_with_none() {
        let mut rng = SmallRng::seed_from_u64(2);
        let mut counts = [0; 3];
        for _ in 0..10_000 {
            counts[choose(&[1.0, 3.0, 0.0], &mut rng)] += 1;
        }
        assert!((2_300..2_700).contains(&counts[0]) && counts[2] == 0, "{counts:?}");
    }
}
