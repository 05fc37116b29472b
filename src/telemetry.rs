//! Every metric: name, help, unit. Reads plain counters, keeps none.
//!
//! Written as Prometheus text (exposition format 0.0.4). Counters live in the
//! shards as plain integers and are copied out once per scrape, which no
//! registry of a metrics library is made for; the format itself is three line
//! shapes.

mod delivery;
mod overload;
mod overview;
mod quic;
mod slow;
mod tls;
mod trace;

pub use overview::overview;
pub use trace::TraceScrape;

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::engine::kind::Lane;
use crate::engine::outcome::Refusal;
use crate::engine::stats::DropReason;
use crate::ingress::stats::{EdgeStats, GRPC_RESULTS, HANDSHAKES, REFUSALS, ROUTES, STATUSES};
use crate::log::LogStats;
use crate::shard::stats::{Histogram, JOIN_RESULTS, PUBLISH_REFUSALS, ShardStats};
use crate::tls::Reloads;
use crate::wire::Format;
use crate::wire::close::CloseReason;
use crate::wire::message::ClientMessage;

/// The content type of [`render`]'s text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What one scrape sees.
pub struct Scrape<'a> {
    /// Of each shard.
    pub shards: &'a [ShardStats],
    /// Of each shard's edge.
    pub edges: &'a [&'a EdgeStats],
    /// Events waiting in front of each shard.
    pub queued: &'a [usize],
    /// Takes traffic.
    pub ready: bool,
    /// Sends viewers away.
    pub draining: bool,
    /// The log's counters, if there is one.
    pub log: Option<LogStats>,
    /// Following events.
    pub trace: TraceScrape<'a>,
    /// Of the certificate, if there is one.
    pub certificate: Option<Reloads>,
    /// What the kernel says of the process.
    pub process: Process,
}

/// What the kernel says of the process.
#[derive(Debug, Clone, Copy, Default)]
pub struct Process {
    /// Resident bytes.
    pub resident_bytes: u64,
    /// User and system time, in seconds.
    pub cpu_seconds: f64,
    /// Open descriptors of the main table.
    pub open_fds: u64,
    /// The limit of one table.
    pub max_fds: u64,
    /// When it started, in seconds since the Unix epoch.
    pub start_seconds: f64,
}

/// The whole text of a scrape.
#[must_use]
pub fn render(scrape: &Scrape<'_>) -> String {
    let mut total = ShardStats::default();
    for shard in scrape.shards {
        absorb(&mut total, shard);
    }
    let mut text = Text { out: String::with_capacity(32 * 1024) };
    events(&mut text, &total, scrape.edges);
    fanout(&mut text, &total);
    viewers(&mut text, &total);
    connections(&mut text, &total, scrape.edges);
    requests(&mut text, scrape.edges);
    grpc(&mut text, scrape.edges);
    tls::tls(&mut text, scrape);
    shards(&mut text, scrape);
    delivery::delivery(&mut text, &total, scrape);
    overload::overload(&mut text, &total, scrape);
    trace::trace(&mut text, &total, scrape);
    process(&mut text, scrape);
    text.out
}

struct Text {
    out: String,
}

impl Text {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.out, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        self.out.push_str(name);
        for (i, (label, value)) in labels.iter().enumerate() {
            self.out.push(if i == 0 { '{' } else { ',' });
            // Label values are our own names: nothing to escape.
            let _ = write!(self.out, "{label}=\"{value}\"");
        }
        if !labels.is_empty() {
            self.out.push('}');
        }
        let _ = writeln!(self.out, " {value}");
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.head(name, "counter", help);
        self.sample(name, &[], value as f64);
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.head(name, "gauge", help);
        self.sample(name, &[], value);
    }

    fn by<'a>(
        &mut self,
        (name, label): (&str, &str),
        help: &str,
        values: impl IntoIterator<Item = (&'a str, u64)>,
    ) {
        self.head(name, "counter", help);
        for (value, count) in values {
            self.sample(name, &[(label, value)], count as f64);
        }
    }

    fn lanes(&mut self, name: &str, help: &str, counts: &[u64; 3]) {
        self.by((name, "lane"), help, Lane::ALL.map(|lane| (lane.name(), counts[lane.index()])));
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.head(name, "histogram", help);
        let bucket = format!("{name}_bucket");
        let mut count = 0;
        for (bound, n) in histogram.seconds() {
            count += n;
            let bound = if bound == f64::MAX { "+Inf".to_owned() } else { bound.to_string() };
            self.sample(&bucket, &[("le", &bound)], count as f64);
        }
        self.sample(&format!("{name}_sum"), &[], histogram.sum as f64 / 1e6);
        self.sample(&format!("{name}_count"), &[], count as f64);
    }
}

fn events(text: &mut Text, total: &ShardStats, edges: &[&EdgeStats]) {
    let rooms = &total.rooms;
    text.lanes(
        "tidegate_events_accepted_total",
        "Events taken by rooms. Equals carried + merged + dropped + what is pending.",
        &rooms.accepted,
    );
    text.counter(
        "tidegate_events_duplicate_total",
        "Repeated event ids, answered with the first number and delivered once.",
        rooms.duplicates,
    );
    let at_rooms = Refusal::CODES.into_iter().zip(rooms.refused);
    let at_edge = REFUSALS
        .iter()
        .enumerate()
        .map(|(i, code)| (*code, edges.iter().map(|edge| load(&edge.refused[i])).sum()));
    text.by(
        ("tidegate_events_refused_total", "reason"),
        "Events not taken from publishers, by reason.",
        at_rooms.chain(at_edge),
    );
    text.by(
        ("tidegate_viewer_events_refused_total", "reason"),
        "Events of viewers refused before they reached a room, by reason.",
        PUBLISH_REFUSALS.into_iter().zip(total.publish_refused),
    );
    text.lanes(
        "tidegate_events_carried_total",
        "Events that travelled by themselves in a frame.",
        &rooms.carried,
    );
    text.lanes(
        "tidegate_events_merged_total",
        "Events that live on only in a total or in a newer event of their key.",
        &rooms.merged,
    );
    let name = "tidegate_events_dropped_total";
    text.head(name, "counter", "Accepted events that their room shed, by reason and lane.");
    for reason in DropReason::ALL {
        for lane in Lane::ALL {
            let labels = [("reason", reason.name()), ("lane", lane.name())];
            let count = rooms.dropped[reason.index()][lane.index()];
            text.sample(name, &labels, count as f64);
        }
    }
    text.counter("tidegate_frames_total", "Frames made by rooms.", rooms.frames);
    text.by(
        ("tidegate_frame_bytes_total", "format"),
        "Bytes of frames encoded, once per frame and format in use.",
        Format::ALL.map(|format| (format.name(), total.frame_bytes[format.index()])),
    );
}

fn fanout(text: &mut Text, total: &ShardStats) {
    text.counter(
        "tidegate_deliveries_total",
        "Logical deliveries: accepted events that frames stood for, times viewers reached.",
        total.deliveries,
    );
    text.counter(
        "tidegate_socket_writes_total",
        "write and writev calls that a viewer's socket took bytes from.",
        total.socket_writes,
    );
    text.counter(
        "tidegate_socket_write_bytes_total",
        "Bytes that viewers' sockets took.",
        total.socket_bytes,
    );
    text.histogram(
        "tidegate_message_age_seconds",
        "Age of a frame's oldest event at each write to a socket.",
        &total.message_age,
    );
    text.histogram(
        "tidegate_fanout_slice_seconds",
        "Length of one slice of the fan-out loop, in which a shard does nothing else.",
        &total.slice,
    );
    text.histogram(
        "tidegate_fanout_frame_seconds",
        "From a frame's arrival on a shard to its last viewer there.",
        &total.frame_fanout,
    );
}

fn viewers(text: &mut Text, total: &ShardStats) {
    slow::slow(text, total);
    quic::quic(text, total);
    text.counter(
        "tidegate_viewer_overruns_total",
        "Viewers given up as too slow; they were told to reconnect.",
        total.slow_overruns,
    );
    text.counter(
        "tidegate_late_frames_total",
        "Frames that reached a viewer from its backlog.",
        total.late_frames,
    );
    let gauges = [
        ("tidegate_backlogged_viewers", "Viewers whose socket takes no more.", total.backlogged),
        ("tidegate_backlog_frames", "Frames waiting for slow viewers.", total.backlog_frames),
        ("tidegate_backlog_bytes", "Bytes waiting for slow viewers.", total.backlog_bytes),
        ("tidegate_viewers", "Viewers in rooms; one in two rooms counts twice.", total.viewers),
        ("tidegate_rooms", "Rooms open.", total.open_rooms),
        (
            "tidegate_rooms_asleep",
            "Rooms that nobody is in, whose numbering is kept.",
            total.asleep_rooms,
        ),
        ("tidegate_room_bytes", "Bytes held by rooms: buffers, state, history.", total.room_bytes),
    ];
    for (name, help, value) in gauges {
        text.gauge(name, help, value as f64);
    }
    text.by(
        ("tidegate_joins_total", "result"),
        "Attempts of viewers to join a room.",
        JOIN_RESULTS.into_iter().zip(total.joins),
    );
    text.by(
        ("tidegate_client_messages_total", "type"),
        "Messages from viewers.",
        ClientMessage::NAMES.into_iter().zip(total.messages),
    );
}

fn connections(text: &mut Text, total: &ShardStats, edges: &[&EdgeStats]) {
    let sum = |field: fn(&EdgeStats) -> &AtomicU64| -> u64 {
        edges.iter().map(|edge| load(field(edge))).sum()
    };
    text.gauge("tidegate_connections", "Viewers' connections.", total.connections as f64);
    text.counter(
        "tidegate_connections_accepted_total",
        "Connections taken from the listening sockets.",
        sum(|edge| &edge.accepted),
    );
    text.counter(
        "tidegate_connections_turned_away_total",
        "Connections closed at once because there were too many.",
        sum(|edge| &edge.turned_away),
    );
    text.gauge(
        "tidegate_http_connections",
        "HTTP connections and gRPC streams that are no viewers.",
        sum(|edge| &edge.http_held) as f64,
    );
    text.gauge(
        "tidegate_http_connections_waiting",
        "HTTP connections in line for a place among them.",
        sum(|edge| &edge.http_waiting) as f64,
    );
    text.counter(
        "tidegate_http_connections_gave_way_total",
        "Idle HTTP connections ended for others in line.",
        sum(|edge| &edge.gave_way),
    );
    text.counter(
        "tidegate_http_connections_refused_total",
        "HTTP connections for which no place became free in time.",
        sum(|edge| &edge.placeless),
    );
    text.gauge(
        "tidegate_connections_waiting",
        "Connections accepted and not yet let in.",
        sum(|edge| &edge.at_the_door) as f64,
    );
    text.gauge(
        "tidegate_handshakes_in_progress",
        "Connections whose first request has not come.",
        sum(|edge| &edge.handshaking) as f64,
    );
    let handshakes = HANDSHAKES
        .iter()
        .enumerate()
        .map(|(i, outcome)| (*outcome, edges.iter().map(|edge| load(&edge.handshakes[i])).sum()));
    text.by(("tidegate_handshakes_total", "result"), "WebSocket handshakes.", handshakes);
    text.by(
        ("tidegate_closes_total", "reason"),
        "Viewers' connections that ended.",
        CloseReason::ALL.map(|reason| (reason.name(), total.closes[reason as usize])),
    );
    let name = "tidegate_http_requests_total";
    text.head(name, "counter", "HTTP requests answered.");
    for (r, route) in ROUTES.iter().enumerate() {
        for (s, status) in STATUSES.iter().enumerate() {
            let count: u64 = edges.iter().map(|edge| load(&edge.requests[r][s])).sum();
            text.sample(name, &[("route", route), ("status", status)], count as f64);
        }
    }
}

fn requests(text: &mut Text, edges: &[&EdgeStats]) {
    let name = "tidegate_ingress_requests_waiting";
    text.head(name, "gauge", "Requests of publishers that wait to be read, by shard.");
    for (shard, edge) in edges.iter().enumerate() {
        text.sample(name, &[("shard", &shard.to_string())], load(&edge.waiting) as f64);
    }
    let waited: u64 = edges.iter().map(|edge| load(&edge.waited_micros)).sum();
    let name = "tidegate_ingress_request_wait_seconds";
    text.head(name, "summary", "How long requests of publishers waited to be read.");
    text.sample(&format!("{name}_sum"), &[], waited as f64 / 1e6);
    let read: u64 = edges.iter().map(|edge| load(&edge.read)).sum();
    text.sample(&format!("{name}_count"), &[], read as f64);
}

fn grpc(text: &mut Text, edges: &[&EdgeStats]) {
    let open: u64 = edges.iter().map(|edge| load(&edge.grpc_streams)).sum();
    text.gauge("tidegate_grpc_streams", "Open gRPC streams of publishers.", open as f64);
    let results = GRPC_RESULTS
        .iter()
        .enumerate()
        .map(|(i, result)| (*result, edges.iter().map(|edge| load(&edge.grpc_requests[i])).sum()));
    let help = "Requests on gRPC streams, by what they were answered with.";
    text.by(("tidegate_grpc_requests_total", "result"), help, results);
}

fn shards(text: &mut Text, scrape: &Scrape<'_>) {
    let name = "tidegate_ingress_queue_events";
    text.head(name, "gauge", "Published events waiting in front of a shard.");
    for (index, queued) in scrape.queued.iter().enumerate() {
        text.sample(name, &[("shard", &index.to_string())], *queued as f64);
    }
    let name = "tidegate_shard_lag_seconds";
    text.head(name, "gauge", "How long a task of the shard's thread waits for its turn.");
    for (index, edge) in scrape.edges.iter().enumerate() {
        text.sample(name, &[("shard", &index.to_string())], edge.lag().as_secs_f64());
    }
    let name = "tidegate_shard_busy_seconds_total";
    text.head(name, "counter", "Time a shard's loop spent working; 1 s per second is all it has.");
    for (index, shard) in scrape.shards.iter().enumerate() {
        text.sample(name, &[("shard", &index.to_string())], shard.busy_micros as f64 / 1e6);
    }
}

fn process(text: &mut Text, scrape: &Scrape<'_>) {
    let flag = |set| if set { 1.0 } else { 0.0 };
    text.gauge("tidegate_ready", "Whether the server takes traffic.", flag(scrape.ready));
    text.gauge("tidegate_draining", "Whether it sends viewers away.", flag(scrape.draining));
    text.head("tidegate_build_info", "gauge", "Constant 1, labelled with the version.");
    text.sample("tidegate_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1.0);
    let Process { resident_bytes, cpu_seconds, open_fds, max_fds, start_seconds } = scrape.process;
    text.gauge("process_resident_memory_bytes", "Resident memory.", resident_bytes as f64);
    text.head("process_cpu_seconds_total", "counter", "User and system time.");
    text.sample("process_cpu_seconds_total", &[], cpu_seconds);
    text.gauge("process_open_fds", "Open descriptors of the main table.", open_fds as f64);
    text.gauge("process_max_fds", "Descriptors one table may have.", max_fds as f64);
    text.gauge("process_start_time_seconds", "When the process started.", start_seconds);
}

fn load(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

fn absorb(total: &mut ShardStats, shard: &ShardStats) {
    total.rooms.absorb(&shard.rooms);
    let numbers: [(&mut u64, u64); 15] = [
        (&mut total.open_rooms, shard.open_rooms),
        (&mut total.asleep_rooms, shard.asleep_rooms),
        (&mut total.room_bytes, shard.room_bytes),
        (&mut total.connections, shard.connections),
        (&mut total.viewers, shard.viewers),
        (&mut total.backlogged, shard.backlogged),
        (&mut total.backlog_frames, shard.backlog_frames),
        (&mut total.backlog_bytes, shard.backlog_bytes),
        (&mut total.deliveries, shard.deliveries),
        (&mut total.socket_writes, shard.socket_writes),
        (&mut total.socket_bytes, shard.socket_bytes),
        (&mut total.displaced_datagrams, shard.displaced_datagrams),
        (&mut total.late_frames, shard.late_frames),
        (&mut total.slow_overruns, shard.slow_overruns),
        (&mut total.busy_micros, shard.busy_micros),
    ];
    for (into, from) in numbers {
        *into += from;
    }
    total.delivery.absorb(&shard.delivery);
    total.carrier.absorb(&shard.carrier);
    add(&mut total.transports, &shard.transports);
    add(&mut total.slow_viewers, &shard.slow_viewers);
    add(&mut total.frame_bytes, &shard.frame_bytes);
    add(&mut total.closes, &shard.closes);
    add(&mut total.messages, &shard.messages);
    add(&mut total.joins, &shard.joins);
    add(&mut total.resumes, &shard.resumes);
    add(&mut total.pulls, &shard.pulls);
    add(&mut total.digests, &shard.digests);
    total.confirmation_age.absorb(&shard.confirmation_age);
    total.confirmed += shard.confirmed;
    total.carried_along += shard.carried_along;
    total.missed += shard.missed;
    total.arrival.absorb(&shard.arrival);
    add(&mut total.publish_refused, &shard.publish_refused);
    total.message_age.absorb(&shard.message_age);
    total.slice.absorb(&shard.slice);
    total.frame_fanout.absorb(&shard.frame_fanout);
    total.queueing.absorb(&shard.queueing);
    total.joins_waiting += shard.joins_waiting;
    total.trace.absorb(&shard.trace);
}

fn add(into: &mut [u64], from: &[u64]) {
    for (into, from) in into.iter_mut().zip(from) {
        *into += from;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scrape_is_well_formed_and_complete_from_the_start() {
        let edge = EdgeStats::default();
        let shard = ShardStats::default();
        let watch = crate::trace::Watch::new(crate::trace::WatchSettings {
            sample_one_in: 0,
            follow_parents: false,
            most_rules: 0,
        });
        let scrape = Scrape {
            shards: &[shard],
            edges: &[&edge],
            queued: &[0],
            ready: true,
            draining: false,
            log: Some(LogStats::default()),
            trace: TraceScrape { rules: 0, watch: &watch, export: None },
            certificate: None,
            process: Process::default(),
        };
        let text = render(&scrape);
        let mut described = std::collections::HashSet::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let name = rest.split(' ').next().unwrap_or_default().to_owned();
                assert!(described.insert(name), "described twice: {line}");
            } else if !line.starts_with('#') {
                let (series, value) = line.rsplit_once(' ').expect("name and value");
                assert!(value.parse::<f64>().is_ok(), "{line}");
                let name = series.split('{').next().unwrap_or_default();
                let base = ["_bucket", "_sum", "_count"]
                    .iter()
                    .find_map(|suffix| name.strip_suffix(suffix))
                    .unwrap_or(name);
                assert!(described.contains(base), "no TYPE before {line}");
            }
        }
        assert!(text.contains("tidegate_closes_total{reason=\"slow\"} 0"));
    }

    #[test]
    fn histograms_are_cumulative() {
        let mut histogram = Histogram::new(&[1_000_000, 2_000_000]);
        histogram.observe(std::time::Duration::from_millis(500), 3);
        histogram.observe(std::time::Duration::from_secs(9), 1);
        let mut text = Text { out: String::new() };
        text.histogram("x_seconds", "x", &histogram);
        assert!(text.out.contains("x_seconds_bucket{le=\"2\"} 3\n"), "{}", text.out);
        assert!(text.out.contains("x_seconds_bucket{le=\"+Inf\"} 4\n"));
        assert!(text.out.contains("x_seconds_sum 10.5\n"));
    }
}
