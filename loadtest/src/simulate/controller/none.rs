//! No control: first come, first served, without a bound.

use std::collections::VecDeque;

use super::{Call, Controller};

/// Takes everything.
#[derive(Debug, Default)]
pub(super) struct Unbounded(VecDeque<Call>);

impl Controller for Unbounded {
    fn offer(&mut self, call: Call, _now: u64, _refused: &mut Vec<Call>) {
        self.0.push_back(call);
    }

    fn take(&mut self, _now: u64, _refused: &mut Vec<Call>) -> Option<Call> {
        self.0.pop_front()
    }
}
