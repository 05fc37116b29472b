//! What `/metrics` says, at a glance: a page of text for a terminal or a browser.
//!
//! Counts are since the start, and those that are zero are left out: what has
//! never happened is not what anybody looks for here.

use std::fmt::Write as _;
use std::sync::atomic::AtomicU64;

use super::{Scrape, absorb, load};
use crate::engine::admission::Shed;
use crate::engine::delivery::Rung;
use crate::engine::kind::Lane;
use crate::engine::outcome::Refusal;
use crate::engine::stats::DropReason;
use crate::ingress::stats::{
    EdgeStats, GRPC_RESULTS, HANDSHAKES, REFUSALS, TLS_FAILURES, TLS_SESSIONS, TLS_VERSIONS,
};
use crate::shard::carrier_stats::SESSIONS;
use crate::shard::outlet::Transport;
use crate::shard::stats::{JOIN_RESULTS, PUBLISH_REFUSALS, ShardStats};
use crate::wire::close::CloseReason;

/// Columns of the names on the left.
const NAMES: usize = 22;
/// Columns of a line; longer lists go on below.
const WIDTH: usize = 88;

/// The page for operators: who is connected by which transport, how handshakes
/// went, and what was dropped, refused or ended, by reason.
#[must_use]
pub fn overview(scrape: &Scrape<'_>) -> String {
    let mut total = ShardStats::default();
    for shard in scrape.shards {
        absorb(&mut total, shard);
    }
    let mut page = Page { out: String::with_capacity(4 * 1024) };
    let state = match (scrape.draining, scrape.ready) {
        (true, _) => "draining",
        (false, true) => "ready",
        (false, false) => "not ready",
    };
    let resident = scrape.process.resident_bytes >> 20;
    page.line(&format!("tidegate {}: {state}, {resident} MiB", env!("CARGO_PKG_VERSION")));
    connected(&mut page, &total, scrape.edges);
    handshakes(&mut page, &total, scrape.edges);
    lost(&mut page, &total, scrape);
    shards(&mut page, scrape);
    page.out
}

struct Page {
    out: String,
}

impl Page {
    fn line(&mut self, text: &str) {
        self.out.push_str(text);
        self.out.push('\n');
    }

    fn head(&mut self, title: &str) {
        self.line(&format!("\n{title}"));
    }

    fn number(&mut self, name: &str, value: u64) {
        self.line(&format!("  {name:<NAMES$}{value:>10}"));
    }

    /// `name` and what is not zero of these.
    fn counts<N: AsRef<str>>(&mut self, name: &str, counts: impl IntoIterator<Item = (N, u64)>) {
        let counts = counts.into_iter().filter(|(_, count)| *count > 0);
        let told: Vec<String> =
            counts.map(|(what, count)| format!("{} {count}", what.as_ref())).collect();
        let mut line = format!("  {name:<NAMES$}");
        for (i, part) in told.iter().enumerate() {
            let comma = if i + 1 < told.len() { "," } else { "" };
            if line.len() + part.len() > WIDTH {
                self.line(line.trim_end());
                line = " ".repeat(NAMES + 2);
            }
            // Writing to a String cannot fail.
            let _ = write!(line, "{part}{comma} ");
        }
        if told.is_empty() {
            line.push('-');
        }
        self.line(line.trim_end());
    }
}

/// A counter over all edges.
fn sum(edges: &[&EdgeStats], field: impl Fn(&EdgeStats) -> &AtomicU64) -> u64 {
    edges.iter().map(|edge| load(field(edge))).sum()
}

fn connected(page: &mut Page, total: &ShardStats, edges: &[&EdgeStats]) {
    page.head("connections");
    for transport in Transport::ALL {
        page.number(transport.name(), total.transports[transport as usize]);
    }
    page.number("http connections", sum(edges, |edge| &edge.http_held));
    page.number("http connections in line", sum(edges, |edge| &edge.http_waiting));
    page.number("grpc streams", sum(edges, |edge| &edge.grpc_streams));
    page.number("viewers in rooms", total.viewers);
    page.number("rooms", total.open_rooms);
    page.number("joins in line", total.joins_waiting);
    let slow = Rung::ALL[1..].iter().map(|rung| (rung.name(), total.slow_viewers[rung.index()]));
    page.counts("slow viewers", slow);
}

fn handshakes(page: &mut Page, total: &ShardStats, edges: &[&EdgeStats]) {
    page.head("handshakes");
    page.number("at the door", sum(edges, |edge| &edge.at_the_door));
    page.number("in progress", sum(edges, |e| &e.handshaking) + total.carrier.handshakes);
    let outcomes = (0..).zip(HANDSHAKES);
    let outcomes = outcomes.map(|(i, name)| (name, sum(edges, |edge| &edge.handshakes[i])));
    page.counts("websocket", outcomes);
    let versions = (0..).zip(TLS_VERSIONS).flat_map(|(v, version)| {
        (0..).zip(TLS_SESSIONS).map(move |(s, session)| {
            let count = sum(edges, |edge| &edge.tls_handshakes[v][s]);
            (format!("{version} {session}"), count)
        })
    });
    let failures = (0..)
        .zip(TLS_FAILURES)
        .map(|(i, reason)| (format!("failed: {reason}"), sum(edges, |edge| &edge.tls_failures[i])));
    page.counts("tls", versions.chain(failures));
    let quic = &total.carrier;
    page.counts(
        "quic",
        [
            ("accepted", quic.accepted),
            ("failed", quic.failed),
            ("refused", quic.refused),
            ("retry", quic.retries),
        ],
    );
    page.counts("webtransport", SESSIONS.into_iter().zip(quic.sessions));
    page.counts("joins", JOIN_RESULTS.into_iter().zip(total.joins));
}

fn lost(page: &mut Page, total: &ShardStats, scrape: &Scrape<'_>) {
    let edges = scrape.edges;
    page.head("dropped and refused");
    let by_lane = |name: &'static str, lanes: [u64; 3]| {
        Lane::ALL.map(|lane| (format!("{name} ({})", lane.name()), lanes[lane.index()]))
    };
    let rooms = DropReason::ALL;
    let rooms = rooms
        .into_iter()
        .flat_map(|reason| by_lane(reason.name(), total.rooms.dropped[reason.index()]));
    page.counts("events, by rooms", rooms);
    let slow = &Rung::ALL[1..];
    let dropped = &total.delivery.events_dropped;
    let events = slow.iter().flat_map(|rung| by_lane(rung.name(), dropped[rung.index()]));
    page.counts("events, slow viewers", events);
    let datagrams = [
        ("from_viewer", total.carrier.ignored),
        ("handover", total.carrier.strays_lost),
        ("answer", total.carrier.answers_lost),
        ("displaced", total.displaced_datagrams),
    ];
    page.counts("datagrams", datagrams);
    let at_rooms = Refusal::CODES.into_iter().zip(total.rooms.refused);
    let at_edge = (0..).zip(REFUSALS).map(|(i, code)| (code, sum(edges, |edge| &edge.refused[i])));
    page.counts("published events", at_rooms.chain(at_edge));
    page.counts("viewers' events", PUBLISH_REFUSALS.into_iter().zip(total.publish_refused));
    let shed = |reason: Shed| -> u64 {
        let tiers = scrape.shards.iter().flat_map(|s| s.intake.admission.shed[reason as usize]);
        tiers.sum()
    };
    page.counts("overload control", Shed::ALL.map(|reason| (reason.name(), shed(reason))));
    let grpc = (0..).zip(GRPC_RESULTS).filter(|(_, result)| *result != "answered");
    let grpc = grpc.map(|(i, result)| (result, sum(edges, |edge| &edge.grpc_requests[i])));
    page.counts("grpc requests", grpc);
    let closes = CloseReason::ALL.map(|reason| (reason.name(), total.closes[reason as usize]));
    page.counts("connections ended", closes);
    page.counts("turned away", [("too_many", sum(edges, |edge| &edge.turned_away))]);
    let http = [("gave_way", sum(edges, |e| &e.gave_way)), ("busy", sum(edges, |e| &e.placeless))];
    page.counts("http connections ended", http);
}

fn shards(page: &mut Page, scrape: &Scrape<'_>) {
    page.head("shards");
    for (index, shard) in scrape.shards.iter().enumerate() {
        let intake = &shard.intake;
        let queued = scrape.queued.get(index).copied().unwrap_or_default();
        let lag = scrape.edges.get(index).map_or(0.0, |edge| edge.lag().as_secs_f64() * 1e3);
        page.line(&format!(
            "  {index}: {} connections, rung {}, level {}/{}{}, load {:.2}, {queued} events \
             waiting, lag {lag:.1} ms",
            shard.connections,
            intake.rung.name(),
            intake.level.business(),
            intake.level.user(),
            if intake.pinned { " pinned" } else { "" },
            intake.load,
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::LogStats;
    use crate::telemetry::{Process, TraceScrape};

    fn page(shard: ShardStats, edge: &EdgeStats) -> String {
        let watch = crate::trace::Watch::new(crate::trace::WatchSettings {
            sample_one_in: 0,
            follow_parents: false,
            most_rules: 0,
        });
        overview(&Scrape {
            shards: &[shard.clone(), shard],
            edges: &[edge],
            queued: &[7, 0],
            ready: true,
            draining: false,
            log: Some(LogStats::default()),
            trace: TraceScrape { rules: 0, watch: &watch, export: None },
            certificate: None,
            process: Process::default(),
        })
    }

    fn line<'a>(page: &'a str, name: &str) -> Vec<&'a str> {
        let found = page.lines().find_map(|line| line.trim().strip_prefix(name));
        found.unwrap_or_else(|| panic!("{name}: {page}")).split_whitespace().collect()
    }

    #[test]
    fn every_transport_is_shown_and_what_never_happened_is_not() {
        let page = page(ShardStats::default(), &EdgeStats::default());
        for transport in Transport::ALL {
            assert_eq!(line(&page, transport.name())[..], ["0"], "{page}");
        }
        assert_eq!(line(&page, "datagrams"), ["-"]);
        assert!(!page.contains("frame_budget"), "{page}");
    }

    #[test]
    fn counts_are_those_of_all_shards_with_their_reason() {
        let mut shard = ShardStats::default();
        shard.transports[Transport::WebTransport as usize] = 3;
        shard.carrier.accepted = 5;
        shard.carrier.ignored = 2;
        shard.rooms.dropped[DropReason::BufferFull.index()][Lane::Ordered.index()] = 9;
        shard.intake.admission.shed[Shed::Level as usize] = [1; 64];
        let edge = EdgeStats::default();
        edge.handshake("foreign_origin");
        edge.tls_failed("alert");
        let page = page(shard, &edge);
        assert_eq!(line(&page, "webtransport"), ["6"]);
        assert_eq!(line(&page, "websocket  ")[..], ["0"]);
        assert!(page.contains("foreign_origin 1") && page.contains("failed: alert 1"), "{page}");
        assert_eq!(line(&page, "quic  ")[..], ["0"]);
        assert!(page.contains("accepted 10\n") && page.contains("from_viewer 4\n"), "{page}");
        assert!(page.contains("buffer_full (ordered) 18\n"), "{page}");
        assert_eq!(line(&page, "overload control"), ["level", "128"]);
        assert!(page.contains("0: 0 connections") && page.contains("7 events waiting"), "{page}");
    }

    #[test]
    fn a_long_list_goes_on_below_its_beginning() {
        let mut page = Page { out: String::new() };
        page.counts("refused", REFUSALS.into_iter().zip(1_000_000..));
        assert!(page.out.lines().count() > 1, "{}", page.out);
        assert!(page.out.lines().all(|line| line.len() <= WIDTH), "{}", page.out);
        let words = page.out.split_whitespace().filter(|word| REFUSALS.contains(word)).count();
        assert_eq!(words, REFUSALS.len(), "{}", page.out);
    }
}
