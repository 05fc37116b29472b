//! Metrics of QUIC: handshakes, datagrams, and viewers by transport.

use super::Text;
use crate::shard::carrier_stats::SESSIONS;
use crate::shard::outlet::Transport;
use crate::shard::stats::ShardStats;

pub(super) fn quic(text: &mut Text, total: &ShardStats) {
    let carried = &total.carrier;
    text.head("tidegate_transport_connections", "gauge", "Connections of viewers by transport.");
    for transport in Transport::ALL {
        let labels = [("transport", transport.name())];
        let count = total.transports[transport as usize];
        text.sample("tidegate_transport_connections", &labels, count as f64);
    }
    let gauges = [
        (
            "tidegate_quic_connections",
            "QUIC connections, handshakes included.",
            carried.connections,
        ),
        ("tidegate_quic_handshakes", "QUIC handshakes in progress.", carried.handshakes),
    ];
    for (name, help, value) in gauges {
        text.gauge(name, help, value as f64);
    }
    text.by(
        ("tidegate_quic_handshakes_total", "result"),
        "QUIC handshakes: completed, failed, refused because there were too many, or told to \
         prove their address first.",
        [
            ("accepted", carried.accepted),
            ("failed", carried.failed),
            ("refused", carried.refused),
            ("retry", carried.retries),
        ],
    );
    text.by(
        ("tidegate_webtransport_sessions_total", "result"),
        "Requests over HTTP/3: WebTransport sessions, pages of other origins, and what is not \
         served.",
        SESSIONS.into_iter().zip(carried.sessions),
    );
    text.by(
        ("tidegate_quic_datagrams_total", "direction"),
        "UDP datagrams.",
        [("received", carried.datagrams_received), ("sent", carried.datagrams_sent)],
    );
    text.by(
        ("tidegate_quic_bytes_total", "direction"),
        "Bytes of UDP datagrams.",
        [("received", carried.bytes_received), ("sent", carried.bytes_sent)],
    );
    text.by(
        ("tidegate_quic_dropped_total", "reason"),
        "Datagrams dropped: messages from viewers, which mean nothing there; too many for another \
         shard; answers without a connection that the kernel had no room for.",
        [
            ("from_viewer", carried.ignored),
            ("handover", carried.strays_lost),
            ("answer", carried.answers_lost),
        ],
    );
    text.by(
        ("tidegate_quic_copies_total", "result"),
        "Copies of important events for viewers whose path loses packets: sent, or not because \
         the viewer had its share of bytes, they do not fit into a datagram, it takes none, or \
         what was sent before still waits.",
        carried.copies.by_result(),
    );
    let counters = [
        (
            "tidegate_quic_handed_over_total",
            "UDP datagrams that came to another shard's socket.",
            carried.handed_over,
        ),
        (
            "tidegate_quic_blocked_total",
            "Times that the kernel took no more UDP datagrams.",
            carried.blocked,
        ),
        (
            "tidegate_quic_displaced_total",
            "Sampled content that took the place of older content which had not been sent.",
            total.displaced_datagrams,
        ),
    ];
    for (name, help, value) in counters {
        text.counter(name, help, value);
    }
}
