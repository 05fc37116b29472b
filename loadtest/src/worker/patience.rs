//! Viewers that come back: one whose join is refused with a time to return asks
//! again then, on the same connection or, if that ended meanwhile, on a new one.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use anyhow::Result;

use super::Worker;
use crate::protocol::Returns;
use crate::sys;
use crate::viewer::{Phase, Viewer};

/// Wait before a connection that ended while joining is made anew.
const RECONNECT_US: u64 = 500_000;

/// Who returns when.
#[derive(Default)]
pub(super) struct Patience {
    due: BinaryHeap<Reverse<(u64, usize)>>,
    pub(super) counts: Returns,
}

impl Patience {
    fn schedule(&mut self, viewer: &mut Viewer, index: usize, at_us: u64) {
        viewer.returning = true;
        self.due.push(Reverse((at_us, index)));
    }

    /// A viewer is in.
    pub(super) fn joined(&mut self, viewer: &mut Viewer) {
        if viewer.refused {
            self.counts.came_back += 1;
        }
        viewer.returning = false;
    }
}

impl Worker {
    /// Sends the join of a viewer whose connection stands.
    pub(super) fn ask_to_join(&mut self, index: usize) -> Result<(), String> {
        let join = self.join_of(index);
        self.write(index, &join)
    }

    /// The join of a viewer, which is needed again only if it may return.
    pub(super) fn join_of(&mut self, index: usize) -> Vec<u8> {
        if self.is_patient() {
            self.joins[index].clone()
        } else {
            self.joins.get_mut(index).map(std::mem::take).unwrap_or_default()
        }
    }

    /// The server asks to come back after so many milliseconds.
    pub(super) fn refused_for_now(
        &mut self,
        index: usize,
        wait_ms: u64,
        now: u64,
    ) -> Result<(), String> {
        if !self.is_patient() {
            return Err(format!("refused, to come back after {wait_ms} ms"));
        }
        self.patience.counts.refused += 1;
        self.viewers[index].refused = true;
        self.patience.schedule(&mut self.viewers[index], index, now + wait_ms * 1_000);
        Ok(())
    }

    /// Whether a viewer whose connection ended will be back.
    pub(super) fn returns(&mut self, index: usize) -> bool {
        let viewer = &mut self.viewers[index];
        let joining = !matches!(viewer.phase, Phase::Live | Phase::Closed);
        if !joining || !self.plan.as_ref().is_some_and(|plan| plan.patient) {
            return false;
        }
        viewer.stream = None;
        viewer.phase = Phase::Closed;
        viewer.refused = true;
        viewer.partial = Vec::new();
        if !viewer.returning {
            self.patience.schedule(viewer, index, sys::mono_us() + RECONNECT_US);
        }
        true
    }

    /// Lets those ask again whose time has come.
    pub(super) fn come_back(&mut self, now: u64) -> Result<()> {
        while let Some(Reverse((at, index))) = self.patience.due.peek().copied()
            && at <= now
        {
            self.patience.due.pop();
            let viewer = &mut self.viewers[index];
            // One that took too long has been given up.
            if !std::mem::take(&mut viewer.returning) {
                continue;
            }
            if viewer.stream.is_some() || self.quic.as_ref().is_some_and(|quic| quic.holds(index)) {
                if let Err(reason) = self.ask_to_join(index) {
                    self.gone(index, reason);
                }
                continue;
            }
            self.connect_again(index);
        }
        Ok(())
    }

    /// Makes a connection anew.
    fn connect_again(&mut self, index: usize) {
        let (Some(connecting), Some(plan)) = (&mut self.connecting, &self.plan) else { return };
        self.patience.counts.reconnected += 1;
        let (quic, tls, registry) = (&mut self.quic, self.tls.as_ref(), self.poll.registry());
        let viewer = &mut self.viewers[index];
        let mut open = super::opener(quic, tls, plan.addr, registry);
        if let Err(error) = connecting.again(viewer, index, &mut open) {
            viewer.phase = Phase::Closed;
            connecting.failed(format!("connect: {error:#}"));
        }
    }

    fn is_patient(&self) -> bool {
        self.plan.as_ref().is_some_and(|plan| plan.patient)
    }
}
