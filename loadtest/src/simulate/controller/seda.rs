//! The response time controller of SEDA: Matt Welsh and David Culler, *Adaptive
//! Overload Control for Busy Internet Servers*, USITS 2003, section 3. The 90th
//! percentile of response times, smoothed, is held below a target by the rate
//! of a token bucket: additive increase, multiplicative decrease. Parameters
//! are those of the paper's figure 5. The target is the administrator's: a
//! fifth of the deadline, so that four calls in a row fit into it.

use super::{Call, Controller, Fifo};
use crate::simulate::scenario::{DEADLINE, SECOND, SERVICE};

/// Target of the 90th percentile.
const TARGET: f64 = DEADLINE as f64 / 5.0;
/// Requests after which the controller runs.
const REQUESTS: usize = 100;
/// Or this time.
const TIMEOUT: u64 = SECOND;
/// Weight of the past in the smoothed percentile.
const SMOOTHING: f64 = 0.7;
/// The rate grows when the error is below this.
const ERROR_INCREASE: f64 = -0.5;
/// And falls when it is above this.
const ERROR_DECREASE: f64 = 0.0;
/// Additive increase, per second.
const INCREASE: f64 = 2.0;
/// Multiplicative decrease.
const DECREASE: f64 = 1.2;
/// Weight on the additive increase.
const INCREASE_OFFSET: f64 = -0.1;
/// Bounds of the rate, per second.
const RATES: std::ops::RangeInclusive<f64> = 0.05..=5_000.0;
/// Rate to start with: what the administrator knows one server to do. From the
/// upper bound down it would overshoot, and need minutes to come back.
const START: f64 = SECOND as f64 / SERVICE as f64;
/// Depth of the bucket; the paper names none, an RPC server's stage has about this.
const DEPTH: f64 = 10.0;

/// One stage.
#[derive(Debug)]
pub(super) struct ResponseTime {
    queue: Fifo,
    rate: f64,
    tokens: f64,
    filled: u64,
    samples: Vec<u64>,
    smoothed: Option<f64>,
    window_ends: u64,
}

impl ResponseTime {
    /// Admits what a server can do at first.
    pub(super) fn new() -> Self {
        Self {
            queue: Fifo::default(),
            rate: START,
            tokens: DEPTH,
            filled: 0,
            samples: Vec::with_capacity(REQUESTS),
            smoothed: None,
            window_ends: TIMEOUT,
        }
    }

    fn adjust(&mut self, now: u64) {
        self.window_ends = now + TIMEOUT;
        if self.samples.is_empty() {
            // Nothing was served: nothing is too slow.
            self.rate = (self.rate + INCREASE).min(*RATES.end());
            return;
        }
        let nth = (self.samples.len() * 9 / 10).min(self.samples.len() - 1);
        let (_, percentile, _) = self.samples.select_nth_unstable(nth);
        let sample = *percentile as f64;
        self.samples.clear();
        let current =
            self.smoothed.map_or(sample, |past| SMOOTHING * past + (1.0 - SMOOTHING) * sample);
        self.smoothed = Some(current);
        let error = (current - TARGET) / TARGET;
        if error > ERROR_DECREASE {
            self.rate /= DECREASE;
        } else if error < ERROR_INCREASE {
            self.rate -= (error - INCREASE_OFFSET) * INCREASE;
        }
        self.rate = self.rate.clamp(*RATES.start(), *RATES.end());
    }
}

impl Controller for ResponseTime {
    fn offer(&mut self, call: Call, now: u64, refused: &mut Vec<Call>) {
        let grown = (now - self.filled) as f64 / SECOND as f64 * self.rate;
        self.tokens = (self.tokens + grown).min(DEPTH);
        self.filled = now;
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            self.queue.offer(call, refused);
        } else {
            refused.push(call);
        }
    }

    fn take(&mut self, _now: u64, _refused: &mut Vec<Call>) -> Option<Call> {
        self.queue.take()
    }

    fn served(&mut self, call: &Call, _took: u64, now: u64) {
        self.samples.push(now - call.arrived);
        if self.samples.len() >= REQUESTS {
            self.adjust(now);
        }
    }

    fn tick(&mut self, now: u64) {
        self.adjust(now);
    }

    fn deadline(&self) -> Option<u64> {
        Some(self.window_ends)
    }
}
