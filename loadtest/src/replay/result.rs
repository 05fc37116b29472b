//! What a replay found, in figures and in words.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::hist::Recorded;
use crate::ledger::{Balance, KindBalance};
use crate::report::Section;
use crate::trace::TraceEvent;
use crate::wsclient;

/// What was found.
#[derive(Debug, Default, Serialize)]
pub(super) struct ReplayResult {
    pub(super) viewers: u32,
    pub(super) events: u64,
    pub(super) accepted: u64,
    pub(super) rejected: BTreeMap<String, u64>,
    pub(super) not_sent: u64,
    pub(super) spread: bool,
    pub(super) seconds: f64,
    pub(super) recorders: u64,
    pub(super) balance: Balance,
    /// Streams of the other viewers that differ from each other.
    pub(super) distinct_streams: u64,
    pub(super) same_as_first: u64,
    pub(super) stream_errors: u64,
    pub(super) gaps: u64,
    pub(super) frames: u64,
    pub(super) writes: u64,
    pub(super) writes_counted: bool,
    pub(super) bytes: u64,
    pub(super) naive_writes: u64,
    pub(super) naive_bytes: u64,
    pub(super) writes_saved: f64,
    pub(super) bytes_saved: f64,
    pub(super) restarts: u64,
    pub(super) server_cpu_us: f64,
    pub(super) age_ms: BTreeMap<u64, u64>,
}

/// One message per event per viewer: what merging is compared to.
#[derive(Default)]
pub(super) struct Naive {
    pub(super) frames: u64,
    pub(super) bytes: u64,
}

impl Naive {
    /// The frame with this one event, in the shape of the JSON subprotocol.
    pub(super) fn add(&mut self, room: &str, id: &str, event: &TraceEvent, seq: Option<u64>) {
        let numbers = seq.map_or_else(String::new, |seq| format!("\"seq\":{seq},"));
        let seq = seq.unwrap_or_default();
        let user = event.user.as_deref().unwrap_or_default();
        let mut text = format!(
            "{{\"frame\":{{\"room\":\"{room}\",\"epoch\":1234567890123,\"first_seq\":{seq},\
             \"last_seq\":{seq},\"important\":1,\"time_ms\":1234567890123,\"events\":[{{\
             \"id\":\"{id}\",\"kind\":\"{}\",\"user\":\"{user}\",{numbers}\"payload\":{},\
             \"time_ms\":1234567890123}}],\"totals\":[]}}}}",
            event.kind,
            event.payload.as_ref().map_or("null", |payload| payload.get())
        )
        .len();
        text += event.key.as_ref().map_or(0, |key| key.len() + ",\"key\":\"\"".len());
        text += event.amount.map_or(0, |n| n.to_string().len() + ",\"amount\":".len());
        self.frames += 1;
        self.bytes += (text + wsclient::server_header_bytes(text)) as u64;
    }
}

/// A part of the report.
pub(super) fn balance_section(result: &ReplayResult) -> Section {
    let mut section =
        Section::new("accepted = delivered + merged + dropped (+ gaps of the viewer)");
    let mut sum = KindBalance::default();
    for (kind, line) in &result.balance.kinds {
        sum.accepted += line.accepted;
        sum.delivered += line.delivered;
        sum.merged += line.merged;
        sum.dropped += line.dropped;
        sum.gap += line.gap;
        section = section.line(kind, balance_line(line));
    }
    section.line("all", balance_line(&sum))
}

fn balance_line(line: &KindBalance) -> String {
    format!(
        "{:>7} = {:>7} + {:>7} + {:>7} (+ {})",
        line.accepted, line.delivered, line.merged, line.dropped, line.gap
    )
}

/// A part of the report.
pub(super) fn check_section(result: &ReplayResult) -> Section {
    let mut section = Section::new("check")
        .line(
            "recorders",
            format!(
                "{} viewers compared in full, {} sums to the unit ({} combos began anew)",
                result.recorders, result.balance.sums, result.restarts
            ),
        )
        .line(
            "all viewers",
            format!(
                "{} of {} received the same stream, byte for byte; {} distinct",
                result.same_as_first, result.viewers, result.distinct_streams
            ),
        )
        .line(
            "errors",
            format!(
                "{} in the balance, {} in streams, {} gap notices",
                result.balance.error_count, result.stream_errors, result.gaps
            ),
        )
        .line("age", format!("from acceptance to arrival: {}", ages(&result.age_ms).summary()));
    for error in &result.balance.errors {
        section = section.line("ERROR", error.clone());
    }
    section
}

fn ages(age_ms: &BTreeMap<u64, u64>) -> Recorded {
    let mut histogram = crate::hist::new();
    for (ms, count) in age_ms {
        histogram.saturating_record_n(ms * 1_000, *count);
    }
    Recorded::of(&histogram)
}

/// Age at arrival by percentile.
pub(super) fn age_curve(age_ms: &BTreeMap<u64, u64>) -> Vec<(f64, f64)> {
    ages(age_ms).curve()
}

/// A part of the report.
pub(super) fn saved_section(result: &ReplayResult) -> Section {
    let source = if result.writes_counted { "counted by the server" } else { "frames received" };
    Section::new("against one message per event per viewer")
        .line(
            "socket writes",
            format!(
                "{} ({source}) instead of {}: {:.1} times fewer",
                result.writes, result.naive_writes, result.writes_saved
            ),
        )
        .line("of these", {
            let all = &result.balance.kinds;
            let accepted: u64 = all.values().map(|line| line.accepted).sum();
            let dropped: u64 = all.values().map(|line| line.dropped).sum();
            let kept = 1.0 - dropped as f64 / accepted.max(1) as f64;
            format!(
                "{:.1} times by merging alone; the rest by dropping {:.1} % of the events",
                result.writes_saved * kept,
                100.0 * (1.0 - kept)
            )
        })
        .line(
            "bytes",
            format!(
                "{} instead of {}: {:.1} times fewer",
                result.bytes, result.naive_bytes, result.bytes_saved
            ),
        )
        .line(
            "processor",
            format!(
                "{:.1} µs per socket write",
                result.server_cpu_us / result.writes.max(1) as f64
            ),
        )
}
