//! Refuses at random.
//!
//! It sees overload exactly as DAGOR does (mean queueing time above 20 ms in a
//! window of 1 s or 2,000 requests) and moves the share it admits by the same
//! steps (down by 5 %, up by 1 %), so that the difference between the two is
//! what they refuse and not how they notice.

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::dagor::{ALPHA, BETA, Window};
use super::{Call, Controller, Fifo};

/// Admits a share of what comes.
#[derive(Debug)]
pub(super) struct Shedding {
    queue: Fifo,
    window: Window,
    /// Share admitted; never so small that nothing would tell that it may grow.
    share: f64,
    rng: SmallRng,
}

const LEAST_SHARE: f64 = 0.001;

impl Shedding {
    /// Admits all at first.
    pub(super) fn new(seed: u64) -> Self {
        let rng = SmallRng::seed_from_u64(seed);
        Self { queue: Fifo::default(), window: Window::default(), share: 1.0, rng }
    }

    fn adjust(&mut self, overloaded: Option<bool>) {
        match overloaded {
            Some(true) => self.share = (self.share * (1.0 - ALPHA)).max(LEAST_SHARE),
            Some(false) => self.share = (self.share + BETA).min(1.0),
            None => {}
        }
    }
}

impl Controller for Shedding {
    fn offer(&mut self, call: Call, now: u64, refused: &mut Vec<Call>) {
        let closed = self.window.arrived(now);
        self.adjust(closed);
        if self.rng.random::<f64>() < self.share {
            self.queue.offer(call, refused);
        } else {
            refused.push(call);
        }
    }

    fn take(&mut self, now: u64, _refused: &mut Vec<Call>) -> Option<Call> {
        let call = self.queue.take()?;
        self.window.began(now - call.arrived);
        Some(call)
    }

    fn tick(&mut self, now: u64) {
        let closed = self.window.close_if_due(now);
        self.adjust(closed);
    }

    fn deadline(&self) -> Option<u64> {
        Some(self.window.ends())
    }
}
