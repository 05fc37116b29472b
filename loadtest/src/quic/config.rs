//! What QUIC viewers agree to.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use quinn_proto::crypto::rustls::QuicClientConfig;
use quinn_proto::{ClientConfig, IdleTimeout, NoneTokenStore, TransportConfig, VarInt};

use super::web;
use crate::transport::{Transport, Wire};
use crate::trust;

/// Application protocol of the raw viewer protocol.
pub(crate) const ALPN: &[u8] = b"tidegate/1";

/// A connection that hears nothing for so long is over, unless the server wants
/// less: loss is what is measured, and a dead server ends the run otherwise.
const IDLE: Duration = Duration::from_secs(120);
/// The server's stream of important events.
const SERVER_STREAMS: u32 = 1;
/// What a viewer says is a join and a pong now and then.
const SEND_WINDOW: u64 = 64 * 1024;
/// Datagrams are read as they come.
const DATAGRAM_BUFFER: usize = 64 * 1024;

/// The configuration of all connections.
pub(crate) fn client(wire: Wire) -> Result<ClientConfig> {
    let protocol = if wire.transport == Transport::Webtransport { web::ALPN } else { ALPN };
    let tls = QuicClientConfig::try_from(trust::config(&[protocol])?).context("TLS for QUIC")?;
    let mut config = ClientConfig::new(Arc::new(tls));
    config.transport_config(Arc::new(transport(wire)?));
    // A token of an earlier connection would spare the server its doubts.
    config.token_store(Arc::new(NoneTokenStore));
    Ok(config)
}

fn transport(wire: Wire) -> Result<TransportConfig> {
    let mut config = TransportConfig::default();
    let streams = match wire.transport {
        Transport::Webtransport => web::SERVER_STREAMS,
        _ => SERVER_STREAMS,
    };
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(streams))
        .max_idle_timeout(Some(IdleTimeout::try_from(IDLE)?))
        .stream_receive_window(VarInt::from_u32(wire.window))
        .receive_window(VarInt::from_u32(wire.window.saturating_mul(2)))
        .send_window(SEND_WINDOW)
        .datagram_receive_buffer_size(wire.datagrams.then_some(DATAGRAM_BUFFER))
        .datagram_send_buffer_size(0)
        // Ours are small datagrams; larger ones need not be looked for.
        .mtu_discovery_config(None)
        .enable_segmentation_offload(false)
        .allow_spin(false);
    Ok(config)
}
