//! A join storm in the middle of a phase, and what came of it.

use std::collections::BTreeMap;

use serde::Serialize;

use super::result::Step;
use crate::fleet::Joined;
use crate::hist::Summary;
use crate::protocol::{Returns, Stats};
use crate::report::Section;
use crate::server::Metrics;

/// See the module's documentation.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Storm {
    pub(super) asked: u32,
    /// From the first connection begun to the last.
    opened_seconds: f64,
    /// Before the load ended.
    joined_under_load: u32,
    /// From the first connection to the last join, if that was before.
    seconds: Option<f64>,
    /// Some time after it had.
    pub(super) joined: u64,
    failed: BTreeMap<String, u32>,
    /// By the server: joins that waited in line.
    held: f64,
    returns: Returns,
    join: Summary,
    /// Closed loops with all of them in, after the phase: it costs more to write to
    /// them all.
    capacity_after: Option<Step>,
}

impl Storm {
    pub(super) fn of(
        asked: u32,
        (joined_under_load, rush): (u32, Joined),
        stats: &Stats,
        before: &Metrics,
        after: &Metrics,
    ) -> Self {
        let group = stats.groups.first().cloned().unwrap_or_default();
        let series = "tidegate_joins_total{result=\"held\"}";
        Self {
            asked,
            opened_seconds: rush.opened_seconds,
            joined_under_load,
            seconds: (rush.seconds > 0.0).then_some(rush.seconds),
            joined: group.viewers,
            failed: rush.failed,
            held: after.series_growth(before, series).unwrap_or(0.0),
            returns: stats.returns,
            join: group.join.summary(),
            capacity_after: None,
        }
    }

    /// Events accepted in a phase of so many seconds, as many as it could be: what the
    /// server takes with the storm's viewers in is what the part of the phase with them
    /// is held to; while they came, the mean of before and after.
    pub(super) fn could_be(&mut self, before: f64, with_all: Step, seconds: f64) -> f64 {
        let after = with_all.accepted_per_second.min(before);
        let half = seconds / 2.0;
        let coming = self.seconds.unwrap_or(half).min(half);
        self.capacity_after = Some(with_all);
        before * half + (before + after) / 2.0 * coming + after * (half - coming)
    }

    /// For people.
    pub(super) fn account(&self, mut section: Section) -> Section {
        section = section
            .line(
                "storm",
                format!(
                    "{} asked, the last connection begun after {:.2} s; {} in before the load \
                     ended{}, {} some time after; held {:.0}, refused with a time {}, came back \
                     {}, reconnected {}",
                    self.asked,
                    self.opened_seconds,
                    self.joined_under_load,
                    self.seconds.map(|s| format!(" (the last after {s:.2} s)")).unwrap_or_default(),
                    self.joined,
                    self.held,
                    self.returns.refused,
                    self.returns.came_back,
                    self.returns.reconnected
                ),
            )
            .line("storm joins", self.join.to_string());
        if let Some(after) = &self.capacity_after {
            let accepted = format!("{:.0} accepted/s by closed loops", after.accepted_per_second);
            section = section.line("with them in", accepted);
        }
        for (reason, count) in &self.failed {
            section = section.line("storm FAILED", format!("{count}: {reason}"));
        }
        section
    }
}
