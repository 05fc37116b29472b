//! The best that can be had, against which everything is measured.

use super::scenario::{Arrivals, CAPACITY, Scenario};
use super::traffic::BURST_RATES;

/// Tasks per second at best: `offered` tasks per second of `calls` calls each,
/// for a service that does `capacity` calls per second, where each task that is
/// not served costs `refusal` calls' worth of work once.
///
/// With everything admitted: `offered`, if `offered · calls ≤ capacity`.
/// Otherwise g tasks with `g · calls + refusal · (offered − g) = capacity`.
pub(super) fn goodput(offered: f64, calls: f64, capacity: f64, refusal: f64) -> f64 {
    if offered * calls <= capacity {
        return offered;
    }
    ((capacity - refusal * offered) / (calls - refusal)).max(0.0)
}

/// What a refusal costs M in calls' worth of work when the upstream does its
/// best: nothing where it keeps the call back itself.
pub(super) fn cost(scenario: &Scenario) -> f64 {
    if scenario.collaborate { 0.0 } else { scenario.refusal_cost }
}

/// The optimum of `scenario` over a window, with `refusal` as in [`goodput`].
/// Each state of bursty arrivals has its own: what one leaves unused is lost.
pub(super) fn between(scenario: &Scenario, from: u64, to: u64, refusal: f64) -> f64 {
    let calls = scenario.calls_per_task();
    let (mut at, mut sum) = (from, 0.0);
    while at < to {
        let (load, load_until) = scenario.load.at(at);
        let (speed, speed_until) = scenario.speed.at(at);
        let until = load_until.min(speed_until).min(to);
        let states: &[f64] = match scenario.arrivals {
            Arrivals::Poisson => &[1.0],
            Arrivals::Bursty => &BURST_RATES,
        };
        for state in states {
            let offered = state * load * CAPACITY / calls;
            let best = goodput(offered, calls, CAPACITY * speed, refusal);
            sum += best * (until - at) as f64 / states.len() as f64;
        }
        at = until;
    }
    sum / (to - from).max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::scenario::SECOND;

    #[test]
    fn the_optimum_is_the_demand_up_to_capacity_and_the_capacity_beyond() {
        assert_eq!(goodput(300.0, 2.0, 750.0, 0.05), 300.0);
        assert_eq!(goodput(1_000.0, 2.0, 750.0, 0.0), 375.0);
        // 394.74 served, 7,105 refused at 5 % each: 394.74 + 355.26 = 750.
        assert!((goodput(7_500.0, 1.0, 750.0, 0.05) - 394.74).abs() < 0.01);
        assert_eq!(goodput(20_000.0, 1.0, 750.0, 0.05), 0.0);
    }

    #[test]
    fn a_window_over_a_step_takes_each_part_at_its_own() {
        let step = Scenario::step(1, 5.0);
        let both = between(&step, 4 * SECOND, 6 * SECOND, 0.0);
        assert!((both - (375.0 + 750.0) / 2.0).abs() < 1e-9, "{both}");
    }
}
