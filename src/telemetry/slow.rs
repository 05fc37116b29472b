//! Metrics of slow viewers: where they stand on their ladder, what they were not
//! sent, and what was done for them.

use super::Text;
use crate::engine::delivery::Rung;
use crate::engine::kind::Lane;
use crate::shard::stats::ShardStats;

pub(super) fn slow(text: &mut Text, total: &ShardStats) {
    let stats = &total.delivery;
    let name = "tidegate_slow_viewers";
    text.head(name, "gauge", "Viewers from whom something is withheld, by rung.");
    for rung in &Rung::ALL[1..] {
        let viewers = total.slow_viewers[rung.index()];
        text.sample(name, &[("rung", rung.name())], viewers as f64);
    }
    text.by(
        ("tidegate_slow_viewer_climbs_total", "rung"),
        "Viewers that fell behind as far as this rung.",
        Rung::ALL[1..].iter().map(|rung| (rung.name(), stats.climbed[rung.index()])),
    );
    text.by(
        ("tidegate_slow_viewer_returns_total", "rung"),
        "Viewers that kept up, and came down to this rung.",
        Rung::ALL[..4].iter().map(|rung| (rung.name(), stats.descended[rung.index()])),
    );
    by_rung_and_lane(
        text,
        "tidegate_viewer_dropped_events_total",
        "Events that slow viewers were not sent, once per viewer, by rung and lane.",
        &stats.events_dropped,
    );
    by_rung_and_lane(
        text,
        "tidegate_viewer_dropped_totals_total",
        "Totals that slow viewers were not sent; a newer one makes up for each.",
        &stats.totals_dropped,
    );
    let counters = [
        ("tidegate_viewer_gaps_total", "Gap notices sent to slow viewers.", stats.gaps),
        (
            "tidegate_viewer_refreshes_total",
            "Times that a slow viewer was given the totals or the state that it had missed.",
            stats.refreshed,
        ),
        (
            "tidegate_viewer_rebases_total",
            "Times that a slow viewer was given a room's state to go on from.",
            stats.rebased,
        ),
        (
            "tidegate_viewer_owed_events_total",
            "Important events taken out of the backlogs of slow viewers, to be sent again.",
            stats.owed,
        ),
        ("tidegate_viewer_repaid_events_total", "Of those, sent again.", stats.repaid),
        (
            "tidegate_viewer_unpaid_events_total",
            "Of those, no longer held by their room; the viewer was told.",
            stats.unpaid,
        ),
    ];
    for (name, help, value) in counters {
        text.counter(name, help, value);
    }
}

fn by_rung_and_lane(text: &mut Text, name: &str, help: &str, counts: &[[u64; 3]; Rung::COUNT]) {
    text.head(name, "counter", help);
    // Nothing is dropped on the first rung, and important events on none.
    for rung in &Rung::ALL[1..] {
        for lane in Lane::ALL {
            let labels = [("rung", rung.name()), ("lane", lane.name())];
            text.sample(name, &labels, counts[rung.index()][lane.index()] as f64);
        }
    }
}
