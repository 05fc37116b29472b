//! DAGOR as published: Zhou et al., *Overload Control for Scaling WeChat
//! Microservices*, SoCC 2018, with the errata of arXiv:1806.04075v3.
//!
//! Section 4.1: overload is a mean queueing time above 20 ms in a window of 1 s
//! or 2,000 requests. Section 4.2: a histogram of the window's requests over
//! (B, U), refused ones included; under overload the level moves until α = 5 %
//! less than what was admitted lies before it, otherwise until β = 1 % of what
//! arrived lies before it in addition. Levels are whole cells. Section 4.3: the
//! level travels on every answer, and the upstream keeps back what lies beyond
//! it. Calls are served in the order of arrival.
//!
//! The paper does not say how the two go together: what the upstream keeps back
//! is in no histogram, so the way up finds nothing beyond the level and would
//! end at the open grid, however small a step was meant. Of the readings that
//! were tried the kindest is here: the way up ends one cell beyond the last in
//! which anything arrived. It still falls short of the same law without its
//! upstream's part, so that is run as well.

use std::cmp::Ordering;

use tidegate::engine::priority::{AdmissionLevel, CELLS};

use super::{Call, Controller, Fifo};
use crate::simulate::scenario::{MS, SECOND};

/// Share of the admitted load given up in an overloaded window.
pub(super) const ALPHA: f64 = 0.05;
/// Share of the arrived load taken on in another.
pub(super) const BETA: f64 = 0.01;
const WINDOW: u64 = SECOND;
const WINDOW_REQUESTS: u32 = 2_000;
const QUEUEING: u64 = 20 * MS;

/// The window in which overload is judged.
#[derive(Debug)]
pub(super) struct Window {
    ends: u64,
    arrived: u32,
    begun: u32,
    queued: u64,
}

impl Default for Window {
    fn default() -> Self {
        Self { ends: WINDOW, arrived: 0, begun: 0, queued: 0 }
    }
}

impl Window {
    /// A call came. Whether the window that it ends was overloaded.
    pub(super) fn arrived(&mut self, now: u64) -> Option<bool> {
        self.arrived += 1;
        (self.arrived >= WINDOW_REQUESTS || now >= self.ends).then(|| self.close(now))
    }

    /// A call left the queue.
    pub(super) fn began(&mut self, queued: u64) {
        self.begun += 1;
        self.queued += queued;
    }

    /// The window's time may be over.
    pub(super) fn close_if_due(&mut self, now: u64) -> Option<bool> {
        (now >= self.ends).then(|| self.close(now))
    }

    /// When its time is over.
    pub(super) fn ends(&self) -> u64 {
        self.ends
    }

    fn close(&mut self, now: u64) -> bool {
        let overloaded = self.queued > QUEUEING * u64::from(self.begun);
        *self = Self { ends: now + WINDOW, ..Self::default() };
        overloaded
    }
}

/// One server's admission.
#[derive(Debug)]
pub(super) struct Dagor {
    queue: Fifo,
    window: Window,
    histogram: Box<[u32]>,
    arrived: u32,
    admitted: u32,
    /// Cells that are admitted: all before this one.
    cells: usize,
}

impl Dagor {
    /// Admits all at first.
    pub(super) fn new() -> Self {
        Self {
            queue: Fifo::default(),
            window: Window::default(),
            histogram: vec![0; CELLS].into_boxed_slice(),
            arrived: 0,
            admitted: 0,
            cells: CELLS,
        }
    }

    fn adjust(&mut self, overloaded: bool) {
        let admitted = f64::from(self.admitted);
        let wanted = if overloaded {
            (1.0 - ALPHA) * admitted
        } else {
            admitted + BETA * f64::from(self.arrived)
        };
        let mut before = admitted;
        match before.total_cmp(&wanted) {
            Ordering::Greater => {
                while before > wanted && self.cells > 0 {
                    self.cells -= 1;
                    before -= f64::from(self.histogram[self.cells]);
                }
            }
            Ordering::Less => {
                let seen = self.histogram.iter().rposition(|&count| count > 0);
                let last = seen.map_or(0, |cell| cell + 2).max(self.cells + 1).min(CELLS);
                while before < wanted && self.cells < last {
                    before += f64::from(self.histogram[self.cells]);
                    self.cells += 1;
                }
            }
            // An empty window says nothing; the level opens by one cell, or a
            // level at which nothing is admitted would stay for ever.
            Ordering::Equal if self.arrived == 0 => self.cells = (self.cells + 1).min(CELLS),
            Ordering::Equal => {}
        }
        self.histogram.fill(0);
        (self.arrived, self.admitted) = (0, 0);
    }
}

impl Controller for Dagor {
    fn offer(&mut self, call: Call, now: u64, refused: &mut Vec<Call>) {
        if let Some(overloaded) = self.window.arrived(now) {
            self.adjust(overloaded);
        }
        let cell = call.priority.cell();
        self.histogram[cell] += 1;
        self.arrived += 1;
        if cell < self.cells {
            self.admitted += 1;
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
        if let Some(overloaded) = self.window.close_if_due(now) {
            self.adjust(overloaded);
        }
    }

    fn deadline(&self) -> Option<u64> {
        Some(self.window.ends())
    }

    fn level(&self) -> Option<AdmissionLevel> {
        Some(match self.cells {
            0 => AdmissionLevel::SHUT,
            cells => AdmissionLevel::inside(cells - 1, 1.0),
        })
    }
}
