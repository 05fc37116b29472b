//! Metrics of following events.

use super::{Scrape, Text, load};
use crate::shard::stats::ShardStats;
use crate::trace::Watch;
use crate::trace::otlp::ExportStats;

/// What all shards share of it.
pub struct TraceScrape<'a> {
    /// Rules that hold.
    pub rules: usize,
    /// What they could not do.
    pub watch: &'a Watch,
    /// What became of spans, if they are exported.
    pub export: Option<&'a ExportStats>,
}

pub(super) fn trace(text: &mut Text, total: &ShardStats, scrape: &Scrape<'_>) {
    let (traces, shared) = (&total.trace, &scrape.trace);
    text.gauge("tidegate_traces", "Traces of events kept.", traces.kept as f64);
    text.gauge("tidegate_trace_rules", "Rules of operators that hold.", shared.rules as f64);
    let counters = [
        ("tidegate_traced_events_total", "Arrivals of events that were followed.", traces.arrivals),
        (
            "tidegate_traces_forgotten_total",
            "Traces that gave way to newer ones.",
            traces.forgotten,
        ),
        ("tidegate_trace_steps_cut_total", "Steps beyond what one trace keeps.", traces.cut_steps),
        (
            "tidegate_trace_rules_refused_total",
            "Rules that were one too many.",
            load(&shared.watch.rules_refused),
        ),
        (
            "tidegate_trace_unmarked_total",
            "Events not followed because their rule had followed as many as it may.",
            load(&shared.watch.unmarked),
        ),
    ];
    for (name, help, value) in counters {
        text.counter(name, help, value);
    }
    let [exported, failed, untrusted] = match shared.export {
        Some(export) => [&export.exported, &export.failed, &export.untrusted].map(load),
        None => [0; 3],
    };
    text.by(
        ("tidegate_trace_spans_total", "result"),
        "Spans taken by the collector, dropped before it, refused or lost by it, and not sent \
         since its certificate is not believed.",
        [
            ("exported", exported),
            ("dropped", traces.dropped_spans),
            ("failed", failed),
            ("untrusted", untrusted),
        ],
    );
}
