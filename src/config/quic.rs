//! `[quic]`: viewers over QUIC and WebTransport.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::section;
use super::validate::Check;

/// What is taken for a sign that a viewer's path is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Congestion {
    /// A loss while packets queue on the way, or very many losses.
    Discerning,
    /// Every loss (RFC 9438).
    Cubic,
}

section! {
/// `[quic]`: viewers over QUIC and WebTransport, on the UDP port of
/// `server.listen`; see docs/transports.md. What `[websocket]` says of messages,
/// joins, pings and origins holds here, too.
pub struct Quic {
    /// Whether it is served, where there is a certificate for it. Default `true`.
    pub enabled: bool = true,
    /// Viewers over QUIC and WebTransport per shard; one more is refused. They use
    /// no descriptors; an idle one costs about 12 KB, a busy one 15. Default
    /// 50,000.
    pub max_connections: usize = 50_000,
    /// Milliseconds without a packet after which a connection is gone. Default
    /// 60 s, so that the ping of `websocket.ping_interval_ms` keeps it.
    pub idle_timeout_ms: u64 = 60_000,
    /// Milliseconds for a handshake and the first message after it. Default 20 s:
    /// whose first packets are lost sends the fifth after 15 s (RFC 9002, section 6.2).
    pub handshake_timeout_ms: u64 = 20_000,
    /// Handshakes in progress per shard above which an address must prove itself
    /// first, which takes a round trip and costs nothing here. Default 128.
    pub retry_above: usize = 128,
    /// Handshakes in progress per shard at most; more are refused. Each holds
    /// about 20 KiB. Default 1024.
    pub max_handshakes: usize = 1_024,
    /// Bytes sent and not yet acknowledged per viewer. What is beyond waits on
    /// the ladder of `[delivery]`. Default 128 KiB: 10 Mbit/s at 100 ms.
    pub send_window_bytes: u64 = 131_072,
    /// Bytes of one viewer's messages that may lie unread. Default 32 KiB; not
    /// less than `websocket.max_message_bytes`.
    pub receive_window_bytes: u32 = 32_768,
    /// Bytes of `sampled` content that may wait to be sent per viewer. The newest
    /// wins. Default 4 KiB.
    pub datagram_bytes: usize = 4_096,
    /// Bytes of important events that may wait per viewer beyond its window, on
    /// their own stream; a viewer that takes less is closed, to come back.
    /// Default 256 KiB.
    pub important_bytes: usize = 262_144,
    /// What is taken for a sign that a viewer's path is full: `"discerning"`, a loss
    /// while packets queue on the way, or very many; `"cubic"`, every loss. See
    /// docs/transports.md. Default `"discerning"`.
    pub congestion: Congestion = Congestion::Discerning,
    /// Bytes per second and viewer of copies of important events, which go to
    /// viewers whose path loses packets; see docs/transports.md. Default 16 KiB; 0:
    /// no copies.
    pub copy_bytes_per_second: u32 = 16_384,
    /// Milliseconds between an important event and its copy: losses come in bursts.
    /// Default 20.
    pub copy_after_ms: u64 = 20,
    /// A path loses while more than one packet in so many is lost. Default 100.
    pub copy_one_lost_in: u32 = 100,
    /// Milliseconds there and back below which a path gets no copies: it repairs
    /// losses soon enough. Default 50.
    pub copy_min_rtt_ms: u64 = 50,
}
}

impl Quic {
    /// How long a connection lives without a packet.
    #[must_use]
    pub fn idle_timeout(&self) -> Duration {
        Duration::from_millis(self.idle_timeout_ms)
    }

    /// How long a handshake may take.
    #[must_use]
    pub fn handshake_timeout(&self) -> Duration {
        Duration::from_millis(self.handshake_timeout_ms)
    }
}

/// Ranges. `most`: the largest message of a viewer.
pub(super) fn check(quic: &Quic, most: usize, check: &mut Check) {
    check.range("quic.max_connections", quic.max_connections, 1..=10_000_000);
    check.range("quic.idle_timeout_ms", quic.idle_timeout_ms, 1_000..=3_600_000);
    check.range("quic.handshake_timeout_ms", quic.handshake_timeout_ms, 100..=300_000);
    check.range("quic.max_handshakes", quic.max_handshakes, 1..=1_000_000);
    check.range("quic.retry_above", quic.retry_above, 0..=1_000_000);
    check.range("quic.send_window_bytes", quic.send_window_bytes, 4_096..=1 << 30);
    check.range("quic.receive_window_bytes", quic.receive_window_bytes, 4_096..=1 << 28);
    check.range("quic.datagram_bytes", quic.datagram_bytes, 1_500..=1 << 24);
    check.range("quic.important_bytes", quic.important_bytes, 4_096..=1 << 30);
    check.range("quic.copy_bytes_per_second", quic.copy_bytes_per_second, 0..=1 << 24);
    check.range("quic.copy_after_ms", quic.copy_after_ms, 1..=1_000);
    check.range("quic.copy_one_lost_in", quic.copy_one_lost_in, 1..=10_000);
    check.range("quic.copy_min_rtt_ms", quic.copy_min_rtt_ms, 0..=10_000);
    if (quic.receive_window_bytes as usize) < most {
        let value = format!("is {}", quic.receive_window_bytes);
        let allowed = format!("at least websocket.max_message_bytes, {most}");
        check.fail("quic.receive_window_bytes", value, allowed);
    }
}
