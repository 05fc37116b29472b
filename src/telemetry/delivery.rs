//! Metrics of delivery: the log, acknowledgements, and whether important events
//! arrive.

use super::{Scrape, Text};
use crate::engine::confirm::{Arrival, HORIZONS};
use crate::log::{LogFailure, LogState, LogStats, SYNC_BOUNDS_US};
use crate::shard::stats::{DIGEST_RESULTS, PULL_RESULTS, RESUME_RESULTS, ShardStats};

pub(super) fn delivery(text: &mut Text, total: &ShardStats, scrape: &Scrape<'_>) {
    text.by(
        ("tidegate_resumes_total", "result"),
        "Viewers who came back and said where they left off, by what they were sent.",
        RESUME_RESULTS.into_iter().zip(total.resumes),
    );
    text.by(
        ("tidegate_pulls_total", "result"),
        "Viewers that asked for important events again, by how they were answered.",
        PULL_RESULTS.into_iter().zip(total.pulls),
    );
    text.by(
        ("tidegate_digests_total", "result"),
        "Viewers' digests of what they received, by how they compared with ours.",
        DIGEST_RESULTS.into_iter().zip(total.digests),
    );
    text.counter(
        "tidegate_important_confirmed_total",
        "Pairs of viewer and important event that were acknowledged.",
        total.confirmed,
    );
    text.counter(
        "tidegate_carried_along_total",
        "Frames that brought important events again to viewers that were behind.",
        total.carried_along,
    );
    text.counter(
        "tidegate_important_missed_total",
        "Pairs of viewer and important event given up after that; the viewer was told to pull.",
        total.missed,
    );
    text.histogram(
        "tidegate_confirmation_age_seconds",
        "From an important event's arrival here to its confirmation by a viewer that was asked.",
        &total.confirmation_age,
    );
    arrival(text, total);
    if let Some(log) = &scrape.log {
        self::log(text, log);
    }
}

/// Sums, so that a rate over any time and its error can be taken:
/// confirmed ÷ due, give or take 1.96 × deviation ÷ due.
fn arrival(text: &mut Text, total: &ShardStats) {
    type Part = (&'static str, &'static str, fn(&Arrival) -> f64);
    let parts: [Part; 4] = [
        (
            "tidegate_arrival_due_total",
            "Pairs of viewer and important event, estimated from those asked to acknowledge.",
            |arrival| arrival.due,
        ),
        (
            "tidegate_arrival_confirmed_total",
            "Of these, confirmed within so many seconds of the event's arrival here.",
            |arrival| arrival.confirmed,
        ),
        (
            "tidegate_arrival_deviation_total",
            "Upper bound of the standard deviation of the confirmed, to be added up.",
            |arrival| arrival.deviation,
        ),
        (
            "tidegate_arrival_asked_total",
            "Pairs of viewer and important event that were asked for an acknowledgement.",
            |arrival| arrival.asked as f64,
        ),
    ];
    for (name, help, value) in parts {
        text.head(name, "counter", help);
        for (kind, arrivals) in total.arrival.iter() {
            let kind = escaped(kind);
            for (arrival, horizon) in arrivals.iter().zip(HORIZONS) {
                let within = horizon.as_secs().to_string();
                let labels = [("kind", kind.as_str()), ("within", within.as_str())];
                text.sample(name, &labels, value(arrival));
            }
        }
    }
}

fn log(text: &mut Text, log: &LogStats) {
    let failing = match log.state {
        LogState::Writable => 0.0,
        LogState::Failing { .. } => 1.0,
    };
    text.gauge("tidegate_log_failing", "Whether important events cannot be logged.", failing);
    let counters = [
        ("tidegate_log_entries_total", "Events and reservations made durable.", log.entries),
        ("tidegate_log_groups_total", "Groups written and synced together.", log.groups),
        ("tidegate_log_written_bytes_total", "Bytes written.", log.written_bytes),
        (
            "tidegate_log_abandoned_total",
            "Files given up after a failed write or sync.",
            log.abandoned,
        ),
        ("tidegate_log_read_events_total", "Events read back.", log.read_events),
        ("tidegate_log_reads_refused_total", "Reads refused, too many waited.", log.reads_refused),
        (
            "tidegate_log_damaged_reads_total",
            "Records that were damaged when they were asked for.",
            log.damaged_reads,
        ),
    ];
    for (name, help, value) in counters {
        text.counter(name, help, value);
    }
    let gauges = [
        ("tidegate_log_queue_bytes", "Bytes waiting to be written.", log.queue_bytes as u64),
        ("tidegate_log_rooms", "Rooms remembered.", log.rooms as u64),
        ("tidegate_log_events", "Events kept.", log.events),
        ("tidegate_log_bytes", "Bytes of all files.", log.segment_bytes),
        (
            "tidegate_log_damaged_bytes",
            "Bytes found damaged when the log was opened.",
            log.damaged_bytes,
        ),
    ];
    for (name, help, value) in gauges {
        text.gauge(name, help, value as f64);
    }
    let failures = &log.failures;
    let by = [
        (LogFailure::Write, failures.write),
        (LogFailure::Sync, failures.sync),
        (LogFailure::Full, failures.full),
        (LogFailure::Stale, failures.stale),
        (LogFailure::Queue, failures.queue),
        (LogFailure::Invalid, failures.invalid),
    ];
    text.by(
        ("tidegate_log_failures_total", "reason"),
        "Batches of events that could not be logged.",
        by.into_iter().map(|(failure, count)| (failure.code(), count)),
    );
    let name = "tidegate_log_sync_seconds";
    text.head(name, "histogram", "How long syncs took.");
    let bucket = format!("{name}_bucket");
    let mut sum = 0;
    for (bound, count) in SYNC_BOUNDS_US.iter().zip(log.syncs.counts) {
        sum += count;
        let le = (*bound as f64 / 1e6).to_string();
        text.sample(&bucket, &[("le", &le)], sum as f64);
    }
    text.sample(&bucket, &[("le", "+Inf")], log.syncs.count() as f64);
    text.sample(&format!("{name}_sum"), &[], log.syncs.sum_us as f64 / 1e6);
    text.sample(&format!("{name}_count"), &[], log.syncs.count() as f64);
}

/// A kind's name may be any text that a publisher sent.
fn escaped(label: &str) -> String {
    label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
