//! What is simulated: the traffic, the service under it, and the network
//! between. Times are microseconds from the start of a run.

use clap::ValueEnum;
use serde::Serialize;

/// A millisecond.
pub(super) const MS: u64 = 1_000;
/// A second.
pub(super) const SECOND: u64 = 1_000_000;

/// Servers of the service M, each serving one call at a time.
pub(super) const SERVERS: usize = 3;
/// Machines of the upstream A, each with its own view of M.
pub(super) const UPSTREAMS: usize = 3;
/// Mean time a call holds a server.
pub(super) const SERVICE: u64 = 4 * MS;
/// Calls per second of the whole service.
pub(super) const CAPACITY: f64 = SERVERS as f64 * SECOND as f64 / SERVICE as f64;
/// Most calls of one task.
pub(super) const MOST_CALLS: usize = 4;
/// A task that takes longer has failed.
pub(super) const DEADLINE: u64 = 500 * MS;
/// Resends of one refused call at most.
pub(super) const RESENDS: u8 = 3;
/// How often a user who does not take no for an answer starts the task again.
pub(super) const RESTARTS: u8 = 3;
/// One way between A and M.
pub(super) const NETWORK: u64 = 500;

/// Distribution of the service time; the mean is always [`SERVICE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Service {
    /// Variance of a memoryless service.
    Exponential,
    /// Always the same.
    Fixed,
    /// Two exponential phases in a row.
    Erlang2,
}

/// How tasks arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Arrivals {
    /// Independently of each other.
    Poisson,
    /// Poisson with a rate that is now 1.75 times and now 0.25 times the mean,
    /// each for 100 ms on average.
    Bursty,
}

/// How an upstream machine picks a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Balance {
    /// The one with the fewest calls of this machine on their way; equals at random.
    Least,
    /// Any.
    Random,
}

/// A value that holds from each of the given times on.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Steps(Vec<(u64, f64)>);

impl Steps {
    /// One value for ever.
    pub(super) fn always(value: f64) -> Self {
        Self(vec![(0, value)])
    }

    /// Values by the time from which they hold, ascending, the first from 0.
    pub(super) fn new(steps: Vec<(u64, f64)>) -> Self {
        debug_assert!(steps.first().is_some_and(|step| step.0 == 0));
        debug_assert!(steps.is_sorted_by_key(|step| step.0));
        Self(steps)
    }

    /// The value at `time`, and when it changes next.
    pub(super) fn at(&self, time: u64) -> (f64, u64) {
        let next = self.0.partition_point(|step| step.0 <= time);
        (self.0[next - 1].1, self.0.get(next).map_or(u64::MAX, |step| step.0))
    }
}

/// Everything a run depends on beside its seed and the controller.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Scenario {
    /// Relative frequency of tasks with 1, 2, 3 and 4 calls.
    pub(super) mix: [f64; MOST_CALLS],
    /// Calls offered by first attempts if all succeeded ÷ [`CAPACITY`].
    pub(super) load: Steps,
    /// Speed of every server, 1 when healthy.
    pub(super) speed: Steps,
    /// The order of tiers is turned round so often; 0: never.
    pub(super) swap_every: u64,
    /// How long a served call waits for something else, without holding the server.
    pub(super) downstream: u64,
    /// Distribution of service times.
    pub(super) service: Service,
    /// Arrivals of tasks.
    pub(super) arrivals: Arrivals,
    /// Choice of a server.
    pub(super) balance: Balance,
    /// From the moment an answer leaves M until its level holds in A.
    pub(super) propagation: u64,
    /// What a refusal costs the server ÷ [`SERVICE`].
    pub(super) refusal_cost: f64,
    /// Share of the users who resend at once, ignore levels and start again.
    pub(super) aggressive: f64,
    /// Shares of the tiers in the tasks, the most important first; they sum to 1.
    pub(super) tiers: Vec<f64>,
    /// Distinct users.
    pub(super) users: u32,
    /// Distinct rooms, users dealt out evenly.
    pub(super) rooms: u32,
    /// Whether the upstream keeps to the levels it is told.
    pub(super) collaborate: bool,
    /// Figures are taken from here ...
    pub(super) from: u64,
    /// ... to here; the traffic goes on for a little longer.
    pub(super) until: u64,
}

/// Tiers that are small at the top, as kinds of a live room are.
pub(super) const TIERS: [f64; 8] = [0.02, 0.03, 0.05, 0.10, 0.15, 0.20, 0.25, 0.20];

impl Scenario {
    /// Steady load of tasks with `calls` calls, measured for `seconds` after a
    /// warm-up of `warm` seconds.
    pub(super) fn steady(calls: usize, load: f64, warm: u64, seconds: u64) -> Self {
        let mut mix = [0.0; MOST_CALLS];
        mix[calls - 1] = 1.0;
        Self {
            mix,
            load: Steps::always(load),
            speed: Steps::always(1.0),
            swap_every: 0,
            downstream: 0,
            service: Service::Exponential,
            arrivals: Arrivals::Poisson,
            balance: Balance::Least,
            propagation: MS,
            refusal_cost: 0.0,
            aggressive: 0.0,
            tiers: TIERS.to_vec(),
            users: 50_000,
            rooms: 1,
            collaborate: true,
            from: warm * SECOND,
            until: (warm + seconds) * SECOND,
        }
    }

    /// Half the load, then `load` for 10 s from second 5, then 0.7 for 10 s.
    pub(super) fn step(calls: usize, load: f64) -> Self {
        let steps = vec![(0, 0.5), (5 * SECOND, load), (15 * SECOND, 0.7)];
        Self { load: Steps::new(steps), ..Self::steady(calls, load, 5, 20) }
    }

    /// From 0.5 up to `load` and back in 10 s each.
    pub(super) fn ramp(calls: usize, load: f64) -> Self {
        let steps = (0..=200_u64).map(|index| {
            let climbed = 1.0 - (index as f64 / 100.0 - 1.0).abs();
            (index * SECOND / 10, 0.5 + (load - 0.5) * climbed)
        });
        Self { load: Steps::new(steps.collect()), ..Self::steady(calls, load, 0, 20) }
    }

    /// Bursts of 200 ms at `load` every 2 s, 0.5 between them.
    pub(super) fn bursts(calls: usize, load: f64) -> Self {
        let mut steps = vec![(0, 0.5)];
        for second in (5..25).step_by(2) {
            steps.push((second * SECOND, load));
            steps.push((second * SECOND + 200 * MS, 0.5));
        }
        Self { load: Steps::new(steps), ..Self::steady(calls, load, 5, 20) }
    }

    /// Every server at half its speed from second 5 to 15, under `load`.
    pub(super) fn loss(calls: usize, load: f64) -> Self {
        let speed = vec![(0, 1.0), (5 * SECOND, 0.5), (15 * SECOND, 1.0)];
        Self { speed: Steps::new(speed), ..Self::steady(calls, load, 5, 20) }
    }

    /// The order of tiers turned round every second.
    pub(super) fn swap(calls: usize, load: f64) -> Self {
        Self { swap_every: SECOND, ..Self::steady(calls, load, 5, 20) }
    }

    /// Twenty calls a second.
    pub(super) fn trickle() -> Self {
        Self::steady(1, 20.0 / CAPACITY, 5, 60)
    }

    /// Load 0.6, and every call waits 200 ms for something that is not M's.
    pub(super) fn slow_downstream() -> Self {
        Self { downstream: 200 * MS, ..Self::steady(1, 0.6, 5, 30) }
    }

    /// As many tasks of each length.
    pub(super) fn mixed(mut self) -> Self {
        self.mix = [1.0; MOST_CALLS];
        self
    }

    /// Whether the order of tiers is turned round at `time`.
    pub(super) fn swapped(&self, time: u64) -> bool {
        self.swap_every != 0 && (time / self.swap_every) % 2 == 1
    }

    /// Calls of a task, on average.
    pub(super) fn calls_per_task(&self) -> f64 {
        let sum: f64 = self.mix.iter().sum();
        let calls: f64 = self.mix.iter().zip(1..).map(|(w, calls)| w * f64::from(calls)).sum();
        calls / sum
    }

    /// Tiers whose demand, with that of all better ones, stays below `share` of
    /// what M can do while `load` is offered at `speed`; where the order of tiers
    /// is turned round now and then, in the worse of both orders.
    pub(super) fn tiers_within(&self, share: f64, load: f64, speed: f64) -> usize {
        let tiers = |swapped| {
            let fit = self.share_within(share, load, speed, swapped);
            (0..=self.tiers.len())
                .rev()
                .find(|&count| self.share_of(count, swapped) <= fit + 1e-9)
                .unwrap_or(0)
        };
        let usual = tiers(false);
        if self.swap_every == 0 { usual } else { usual.min(tiers(true)) }
    }

    /// Their share of the tasks.
    pub(super) fn share_within(&self, share: f64, load: f64, speed: f64, swapped: bool) -> f64 {
        (0..=self.tiers.len())
            .map(|count| self.share_of(count, swapped))
            .take_while(|demand| demand * load < share * speed - 1e-9)
            .last()
            .unwrap_or(0.0)
    }

    /// Share of the `count` most important tiers in the tasks.
    fn share_of(&self, count: usize, swapped: bool) -> f64 {
        if swapped {
            self.tiers.iter().rev().take(count).sum()
        } else {
            self.tiers.iter().take(count).sum()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_hold_until_the_next() {
        let steps = Steps::new(vec![(0, 1.0), (10, 3.0)]);
        assert_eq!((steps.at(0), steps.at(9)), ((1.0, 10), (1.0, 10)));
        assert_eq!(steps.at(10), (3.0, u64::MAX));
    }

    #[test]
    fn the_shares_of_tiers_sum_to_one_and_accumulate() {
        let scenario = Scenario::steady(1, 2.0, 0, 1);
        assert!((scenario.tiers.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        assert_eq!(scenario.tiers_within(0.9, 2.0, 1.0), 5, "2 x 0.35 is within, 2 x 0.55 not");
        assert_eq!(scenario.tiers_within(0.9, 0.5, 1.0), 8);
        // Turned round, 2 x 0.45 is not below 0.9 any more: one tier is within.
        assert_eq!(Scenario::swap(1, 2.0).tiers_within(0.9, 2.0, 1.0), 1);
    }

    #[test]
    fn a_ramp_climbs_to_its_load_and_comes_back() {
        let ramp = Scenario::ramp(1, 10.0);
        assert!((ramp.load.at(10 * SECOND).0 - 10.0).abs() < 1e-9);
        assert!((ramp.load.at(20 * SECOND).0 - 0.5).abs() < 1e-9);
    }
}
