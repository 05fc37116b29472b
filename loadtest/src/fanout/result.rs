//! What a fan-out run found, in figures and in words.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::drive::{Series, Window};
use crate::floor;
use crate::hist::Summary;
use crate::protocol::{Datagrams, GroupStats};
use crate::report::Section;
use crate::server::Metrics;
use crate::sys::PortDrops;
use crate::transport::Transport;

/// Broken promises that are told in words.
const SHOWN_ERRORS: usize = 5;
/// What stands for socket writes over QUIC.
const DATAGRAMS_SENT: &str = "tidegate_quic_datagrams_total{direction=\"sent\"}";

/// One round.
#[derive(Debug, Clone, Serialize)]
pub(super) struct FanoutResult {
    pub(super) transport: Transport,
    pub(super) joined: u32,
    pub(super) failed: BTreeMap<String, u32>,
    pub(super) join_seconds: f64,
    /// Resident KiB of the server without and with its viewers.
    pub(super) memory: Option<Memory>,
    /// What an idle viewer weighs in the client.
    pub(super) client_bytes_per_viewer: f64,
    /// What QUIC viewers sent in the window.
    pub(super) datagrams: Datagrams,
    /// Datagrams of the window that the kernel dropped before a full receive
    /// buffer.
    pub(super) dropped: PortDrops,
    pub(super) frame_bytes: u64,
    pub(super) window: WindowResult,
    /// Windows of a run with slow viewers.
    pub(super) slow: Option<SlowResult>,
}

/// Memory of the server.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Memory {
    pub(super) empty_kib: u64,
    pub(super) joined_kib: u64,
    pub(super) bytes_per_viewer: f64,
}

/// A window in relation to what it did.
#[derive(Debug, Clone, Serialize)]
pub(super) struct WindowResult {
    /// Events accepted, all rooms.
    pub(super) events: u64,
    /// Events refused.
    pub(super) refused: u64,
    /// Deliveries due: accepted events times viewers that read.
    pub(super) expected: u64,
    /// Events that reached viewers.
    pub(super) deliveries: u64,
    /// Due and not arrived.
    pub(super) lost: u64,
    /// Arrived again.
    pub(super) duplicated: u64,
    /// Gap notices.
    pub(super) gaps: u64,
    /// Broken promises that checking viewers saw.
    pub(super) errors: u64,
    /// The first of them in words.
    pub(super) broken: Vec<String>,
    /// Frames that viewers received.
    pub(super) frames: u64,
    /// Socket writes of the server; over QUIC, datagrams.
    pub(super) writes: u64,
    /// Whether the server counted them; otherwise they are the frames received.
    pub(super) writes_counted: bool,
    /// `read(2)` calls of the viewers.
    pub(super) reads: u64,
    /// Bytes the viewers read.
    pub(super) bytes: u64,
    /// Length.
    pub(super) seconds: f64,
    /// Server processor time per delivery, in microseconds.
    pub(super) cpu_us_per_delivery: f64,
    /// Server processor time per socket write, in microseconds.
    pub(super) cpu_us_per_write: f64,
    /// Per second.
    pub(super) deliveries_per_second: f64,
    /// Per second.
    pub(super) writes_per_second: f64,
    /// From intended send time to arrival.
    pub(super) latency: Summary,
    /// How late the publisher itself was (included in the latency).
    pub(super) lateness: Summary,
    /// Share of one processor.
    pub(super) server_cpu: f64,
    /// Share of one processor.
    pub(super) client_cpu: f64,
    /// Connections that ended, by reason.
    pub(super) closed: BTreeMap<String, u64>,
    /// Over time.
    pub(super) series: Series,
    /// Percentile curve: (quantile, ms).
    pub(super) curve: Vec<(f64, f64)>,
}

/// Viewers that do not read, and the others meanwhile.
#[derive(Debug, Clone, Serialize)]
pub(super) struct SlowResult {
    pub(super) viewers: u32,
    /// The others, while the slow ones do not read.
    pub(super) stopped: WindowResult,
    /// Resident KiB of the server at the end of that.
    pub(super) memory_kib: Option<u64>,
    /// The slow ones after they read again, both windows together.
    pub(super) deliveries: u64,
    pub(super) gaps: u64,
    pub(super) gap_dropped: u64,
    pub(super) expected: u64,
    pub(super) unaccounted: i64,
    pub(super) alive: u64,
    pub(super) closed: BTreeMap<String, u64>,
}

/// Puts a window in relation to what it did.
pub(super) fn relate(
    window: &Window,
    rooms: u16,
    transport: Transport,
    before: &Metrics,
    after: &Metrics,
) -> WindowResult {
    let group = window.stats.groups.first().cloned().unwrap_or_default();
    let others: GroupStats = window.stats.groups.get(1).cloned().unwrap_or_default();
    // Every room has the same number of events, but not of viewers.
    let events_per_room = window.events / u64::from(rooms);
    let expected = events_per_room * (group.viewers + window.stats.closed.values().sum::<u64>());
    let frames = group.frames + others.frames;
    let counted = match transport {
        transport if transport.is_quic() => after.series_growth(before, DATAGRAMS_SENT),
        _ => after.growth(before, "tidegate_socket_writes_total"),
    };
    let writes = counted.map_or(frames, |count| count as u64);
    let deliveries = group.deliveries + others.deliveries;
    let cpu_us = window.cpu_ns as f64 / 1e3;
    WindowResult {
        events: window.events,
        refused: window.refused,
        expected,
        deliveries: group.deliveries,
        lost: expected.saturating_sub(group.deliveries),
        duplicated: group.duplicated,
        gaps: group.gaps,
        errors: window.stats.error_count,
        broken: window.stats.errors.iter().take(SHOWN_ERRORS).cloned().collect(),
        frames,
        writes,
        writes_counted: counted.is_some(),
        reads: group.reads,
        bytes: group.bytes,
        seconds: window.seconds,
        cpu_us_per_delivery: cpu_us / deliveries.max(1) as f64,
        cpu_us_per_write: cpu_us / writes.max(1) as f64,
        deliveries_per_second: deliveries as f64 / window.seconds,
        writes_per_second: writes as f64 / window.seconds,
        latency: group.latency.summary(),
        lateness: window.lateness(),
        server_cpu: cpu_us / 1e6 / window.seconds,
        client_cpu: window.client_cpu_ns as f64 / 1e9 / window.seconds,
        closed: window.stats.closed.clone(),
        series: window.series.clone(),
        curve: group.latency.curve(),
    }
}

/// A round for people.
pub(super) fn sections(round: &FanoutResult, number: usize) -> Vec<Section> {
    let title = format!("round {number}, {}", round.transport.name());
    let mut head = Section::new(&title).line(
        "joined",
        format!(
            "{} in {:.2} s, {:.0} per second",
            round.joined,
            round.join_seconds,
            f64::from(round.joined) / round.join_seconds.max(1e-9)
        ),
    );
    for (reason, count) in &round.failed {
        head = head.line("FAILED", format!("{count}: {reason}"));
    }
    if let Some(memory) = round.memory {
        head = head.line(
            "memory",
            format!(
                "{:.0} bytes per idle viewer ({} KiB empty, {} KiB joined)",
                memory.bytes_per_viewer, memory.empty_kib, memory.joined_kib
            ),
        );
    }
    head = head.line(
        "client memory",
        format!("{:.0} bytes per idle viewer", round.client_bytes_per_viewer),
    );
    head = head.line("frame", format!("{} bytes", round.frame_bytes));
    let mut window = window_section(&round.window, "window");
    if round.transport.is_quic() {
        let Datagrams { sent, sends, refused, lost } = round.datagrams;
        window = window.line(
            "datagrams",
            format!(
                "{sent} sent by viewers in {sends} calls ({refused} refused), {lost} packets held \
                 for lost since the start; the kernel dropped {} before viewers and {} before the \
                 server",
                round.dropped.viewers, round.dropped.server
            ),
        );
    }
    let mut sections = vec![head, window];
    if let Some(slow) = &round.slow {
        sections.push(window_section(&slow.stopped, "the others while some do not read"));
        sections.push(slow_section(slow, &round.window));
    }
    sections
}

fn window_section(window: &WindowResult, title: &str) -> Section {
    let reads = window.reads as f64 / window.deliveries.max(1) as f64;
    let source = if window.writes_counted { "counted by the server" } else { "frames received" };
    let mut section = Section::new(title)
        .line(
            "deliveries",
            format!(
                "{} of {} due ({} events): {:.0} per second",
                window.deliveries, window.expected, window.events, window.deliveries_per_second
            ),
        )
        .line(
            "integrity",
            format!(
                "lost {}, duplicated {}, gap notices {}, broken promises {}",
                window.lost, window.duplicated, window.gaps, window.errors
            ),
        )
        .line(
            "socket writes",
            format!("{} ({source}): {:.0} per second", window.writes, window.writes_per_second),
        )
        .line("reads", format!("{reads:.2} per delivery, {} bytes in all", window.bytes))
        .line(
            "processor",
            format!(
                "{:.2} µs per delivery, {:.2} µs per socket write",
                window.cpu_us_per_delivery, window.cpu_us_per_write
            ),
        )
        .line("latency", window.latency.to_string())
        .line("publisher", format!("late by {}", window.lateness))
        .line("load", floor::load(window.server_cpu, window.client_cpu));
    if window.refused > 0 {
        section = section.line("REFUSED", format!("{} events", window.refused));
    }
    for (reason, count) in &window.closed {
        section = section.line("CLOSED", format!("{count}: {reason}"));
    }
    for error in &window.broken {
        section = section.line("BROKEN", error.clone());
    }
    section
}

fn slow_section(slow: &SlowResult, normal: &WindowResult) -> Section {
    let mut section = Section::new("viewers that did not read")
        .line(
            "others' p99",
            format!(
                "{:.1} ms before, {:.1} ms meanwhile",
                normal.latency.p99_ms, slow.stopped.latency.p99_ms
            ),
        )
        .line(
            "after reading",
            format!(
                "{} viewers: {} of {} events, {} gap notices naming {} as dropped, {} unaccounted, \
                 {} still connected",
                slow.viewers,
                slow.deliveries,
                slow.expected,
                slow.gaps,
                slow.gap_dropped,
                slow.unaccounted,
                slow.alive
            ),
        );
    if let Some(kib) = slow.memory_kib {
        section = section.line("server memory", format!("{kib} KiB at the end"));
    }
    for (reason, count) in &slow.closed {
        section = section.line("closed", format!("{count}: {reason}"));
    }
    section
}
