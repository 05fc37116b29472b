//! Limits of QUIC connections.

use std::sync::Arc;
use std::time::Duration;

use quinn_proto::congestion::CubicConfig;
use quinn_proto::{IdleTimeout, TransportConfig, VarInt};

use super::congestion;
use super::peer::copies;
use crate::config::Congestion;
use crate::transport::webtransport::Rules;

/// Streams that a client may have open towards us: of WebTransport, the request
/// and the stream of the viewer's messages; of HTTP/3, control and the two of
/// QPACK (RFC 9114, section 6.2), and it gets some more once it is known to speak
/// that. Raw QUIC needs one of them.
const CLIENT_BIDI: u32 = 2;
const CLIENT_UNI: u32 = 3;

/// Bytes of handshake messages that may come out of order.
const CRYPTO_BYTES: usize = 16 * 1024;

/// See the module's documentation.
#[derive(Debug, Clone)]
pub struct Settings {
    /// A connection is gone when nothing came for so long.
    pub idle_timeout: Duration,
    /// A handshake, and the first message after it, must come within this.
    pub handshake_timeout: Duration,
    /// Bytes sent and not acknowledged per connection. What goes beyond waits on
    /// the ladder.
    pub send_window: u64,
    /// Bytes of a client's streams that may lie unread.
    pub receive_window: u32,
    /// Bytes of datagrams that may wait to be sent, per connection. Newer ones
    /// take the place of older ones.
    pub datagram_bytes: usize,
    /// Bytes of important events that may wait beyond the window.
    pub important_bytes: usize,
    /// What says that a path is full.
    pub congestion: Congestion,
    /// When important events are sent twice.
    pub copies: copies::Rules,
    /// Handshakes in progress above which addresses must prove themselves first
    /// (Retry, RFC 9000, section 8.1.2).
    pub retry_above: usize,
    /// Handshakes in progress at most; more are refused.
    pub max_handshakes: usize,
    /// Connections at most.
    pub max_connections: usize,
    /// Largest message from a viewer, in bytes.
    pub max_message: usize,
    /// Who may open a WebTransport session.
    pub sessions: Arc<Rules>,
}

impl Settings {
    /// For the protocol.
    #[must_use]
    pub fn transport(&self) -> Arc<TransportConfig> {
        let mut config = TransportConfig::default();
        let idle = u32::try_from(self.idle_timeout.as_millis()).unwrap_or(u32::MAX);
        config
            .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(idle))))
            .max_concurrent_bidi_streams(VarInt::from_u32(CLIENT_BIDI))
            .max_concurrent_uni_streams(VarInt::from_u32(CLIENT_UNI))
            .stream_receive_window(VarInt::from_u32(self.receive_window))
            .receive_window(VarInt::from_u32(self.receive_window.saturating_mul(2)))
            .send_window(self.send_window)
            .crypto_buffer_size(CRYPTO_BYTES)
            // Clients send none; but who takes none may not send any (RFC 9221).
            .datagram_receive_buffer_size(Some(1_500))
            .datagram_send_buffer_size(self.datagram_bytes)
            // A frame fits one packet or a few: finding out about larger ones
            // costs probes and memory per connection.
            .mtu_discovery_config(None)
            // Without it a stream that has begun goes on until it is empty, also
            // before one of higher priority: what is important would wait behind
            // all the rest.
            .send_fairness(true)
            .allow_spin(false);
        match self.congestion {
            Congestion::Discerning => {
                config.congestion_controller_factory(Arc::new(congestion::Config::default()));
            }
            Congestion::Cubic => {
                config.congestion_controller_factory(Arc::new(CubicConfig::default()));
            }
        }
        Arc::new(config)
    }
}
