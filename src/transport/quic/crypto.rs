//! What handshakes are made with: TLS 1.3 with the server's certificate, and the
//! keys of what QUIC signs on its own.

use std::sync::Arc;

use aws_lc_rs::hmac;
use quinn_proto::crypto::rustls::QuicServerConfig;
use quinn_proto::{EndpointConfig, ServerConfig};
use rustls::crypto::aws_lc_rs::Ticketer;
use rustls::server::{NoServerSessionStorage, ResolvesServerCert};
use rustls::version::TLS13;
use thiserror::Error;

use super::settings::Settings;
use super::steer::Ids;
use super::{ALPN, ALPN_H3, keys, session};

/// Why there is no QUIC.
#[derive(Debug, Error)]
pub enum CryptoError {
    /// TLS could not be set up.
    #[error("no TLS for QUIC: {0}")]
    Tls(#[from] rustls::Error),
    /// The cipher that every QUIC handshake begins with is missing.
    #[error("no cipher for QUIC: {0}")]
    Cipher(#[from] quinn_proto::crypto::rustls::NoInitialCipherSuite),
}

/// Bytes of a secret for [`endpoint`].
pub const SECRET_BYTES: usize = 64;

/// How connections are accepted; the same for all shards, so that each takes the
/// others' tokens. Data before the handshake's end (0-RTT) is not taken: a `join`
/// could be replayed.
///
/// # Errors
/// [`CryptoError`].
pub fn server(
    resolver: Arc<dyn ResolvesServerCert>,
    settings: &Settings,
) -> Result<Arc<ServerConfig>, CryptoError> {
    let mut tls = rustls::ServerConfig::builder_with_provider(keys::compact())
        .with_protocol_versions(&[&TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(resolver);
    tls.alpn_protocols = vec![ALPN.to_vec(), ALPN_H3.to_vec()];
    tls.ticketer = Ticketer::new()?;
    tls.session_storage = Arc::new(NoServerSessionStorage {});
    tls.send_tls13_tickets = 1;
    let tls = Arc::new(tls);
    let initial = QuicServerConfig::try_from(Arc::clone(&tls))?;
    let crypto = session::Config::new(initial, tls);
    let mut config = ServerConfig::with_crypto(Arc::new(crypto));
    config.transport_config(settings.transport());
    Ok(Arc::new(config))
}

/// How one shard names connections and resets those it does not know. With the
/// same `secret` after a restart, clients of the process before learn of its end
/// with the first packet that they send (RFC 9000, section 10.3).
#[must_use]
pub fn endpoint(secret: &[u8; SECRET_BYTES], shard: u16, shards: u16) -> EndpointConfig {
    let mut config = EndpointConfig::new(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, secret)));
    config
        .cid_generator(move || Box::new(Ids::new(shard, shards)))
        // After a restart all of a server's clients send at once. Each answer is
        // smaller than what it answers.
        .min_reset_interval(std::time::Duration::from_micros(100));
    config
}
