//! Over what viewers speak to the server.

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

/// A transport.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Transport {
    /// WebSocket in clear, JSON.
    #[default]
    Ws,
    /// WebSocket over TLS 1.3, JSON.
    Wss,
    /// Raw QUIC, protobuf.
    Quic,
    /// WebTransport over HTTP/3, protobuf.
    Webtransport,
}

impl Transport {
    /// As on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Transport::Ws => "ws",
            Transport::Wss => "wss",
            Transport::Quic => "quic",
            Transport::Webtransport => "webtransport",
        }
    }

    /// Whether it runs over QUIC.
    pub(crate) fn is_quic(self) -> bool {
        matches!(self, Transport::Quic | Transport::Webtransport)
    }

    /// Descriptors that so many viewers take in the server.
    pub(crate) fn descriptors(self, viewers: u32) -> u32 {
        if self.is_quic() { 0 } else { viewers }
    }
}

/// A transport and how it is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Wire {
    /// Which.
    pub(crate) transport: Transport,
    /// UDP sockets of a worker's QUIC viewers, who share them evenly; 0: one
    /// for each viewer.
    pub(crate) sockets: u32,
    /// Whether QUIC viewers take datagrams.
    pub(crate) datagrams: bool,
    /// Bytes that QUIC viewers let the server send ahead of them on one stream.
    pub(crate) window: u32,
}

impl Wire {
    /// Descriptors that so many viewers take in the client.
    pub(crate) fn descriptors(self, viewers: u32) -> u32 {
        match (self.transport.is_quic(), self.sockets) {
            (true, 1..) => self.sockets.min(viewers),
            _ => viewers,
        }
    }
}

impl Default for Wire {
    fn default() -> Self {
        Wire { transport: Transport::Ws, sockets: 0, datagrams: true, window: WINDOW }
    }
}

/// Enough for any frame of a calm room, and small beside what a connection
/// weighs by itself.
const WINDOW: u32 = 256 * 1024;

/// How QUIC viewers connect.
#[derive(Args, Debug, Clone)]
#[command(next_help_heading = "QUIC viewers")]
pub(crate) struct QuicOptions {
    /// UDP sockets of a worker, shared by its viewers; 0: one for each viewer,
    /// as it is on the Internet.
    #[arg(long, default_value_t = 64)]
    quic_sockets: u32,
    /// Viewers take no datagrams: sampled content comes on the control stream.
    #[arg(long)]
    no_datagrams: bool,
    /// Bytes that the server may send ahead of a viewer on one stream; twice
    /// that on the connection.
    #[arg(long, default_value_t = WINDOW)]
    quic_window: u32,
}

impl QuicOptions {
    /// With this transport.
    pub(crate) fn wire(&self, transport: Transport) -> Wire {
        Wire {
            transport,
            sockets: self.quic_sockets,
            datagrams: !self.no_datagrams,
            window: self.quic_window,
        }
    }
}
