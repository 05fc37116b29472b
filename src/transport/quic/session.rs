//! TLS of one connection, for as long as it is needed.
//!
//! A TLS connection is some kilobytes that serve the handshake. Afterwards QUIC
//! needs two secrets of it, to derive keys from (RFC 9001, section 6), so once
//! the handshake and the tickets behind it are written, the rest is let go.
//! `quinn-proto` keeps all of it in a session of its own, which this is instead
//! of, for servers.

use std::any::Any;
use std::io::Cursor;
use std::sync::Arc;

use quinn_proto::crypto::rustls::{HandshakeData, QuicServerConfig};
use quinn_proto::crypto::{
    ExportKeyingMaterialError, HeaderKey, KeyPair, Keys, PacketKey, ServerConfig, Session,
    UnsupportedVersion,
};
use quinn_proto::transport_parameters::TransportParameters;
use quinn_proto::{ConnectionId, Side, TransportError, TransportErrorCode};
use rustls::quic::{KeyChange, Secrets, ServerConnection, Version};

use super::keys::{header_key, packet_key};
use super::parameters::with_few_ids;

/// Drafts 29 to 32 of QUIC, whose keys are derived with other labels.
const DRAFTS: std::ops::RangeInclusive<u32> = 0xff00_001d..=0xff00_0020;

/// TLS alerts (RFC 8446, section 6).
const UNEXPECTED_MESSAGE: u8 = 10;
const INTERNAL_ERROR: u8 = 80;

/// How connections are accepted: initial keys and retries as `quinn-proto` has
/// them, handshakes as above.
pub struct Config {
    initial: Arc<QuicServerConfig>,
    tls: Arc<rustls::ServerConfig>,
}

impl Config {
    /// With this TLS, of which `initial` was made.
    #[must_use]
    pub fn new(initial: QuicServerConfig, tls: Arc<rustls::ServerConfig>) -> Self {
        Self { initial: Arc::new(initial), tls }
    }
}

impl ServerConfig for Config {
    fn initial_keys(
        &self,
        version: u32,
        dst_cid: &ConnectionId,
    ) -> Result<Keys, UnsupportedVersion> {
        self.initial.initial_keys(version, dst_cid)
    }

    fn retry_tag(&self, version: u32, orig_dst_cid: &ConnectionId, packet: &[u8]) -> [u8; 16] {
        self.initial.retry_tag(version, orig_dst_cid, packet)
    }

    fn start_session(
        self: Arc<Self>,
        version: u32,
        params: &TransportParameters,
    ) -> Box<dyn Session> {
        let mut own = Vec::new();
        params.write(&mut own);
        // Versions without initial keys do not come here.
        let rules = if DRAFTS.contains(&version) { Version::V1Draft } else { Version::V1 };
        let tls = ServerConnection::new(Arc::clone(&self.tls), rules, own);
        // A configuration without TLS 1.3 is refused before it comes here; without
        // a connection, the first message of the handshake is an error.
        let phase = tls.map_or(Phase::Broken, |tls| Phase::Shaking(Box::new(tls)));
        Box::new(Handshake { config: self, version, phase, next: None })
    }
}

enum Phase {
    Shaking(Box<ServerConnection>),
    /// What was agreed (RFC 7301).
    Done(Option<Box<[u8]>>),
    Broken,
}

/// See the module's documentation.
struct Handshake {
    config: Arc<Config>,
    version: u32,
    phase: Phase,
    next: Option<Box<Secrets>>,
}

impl Handshake {
    fn tls(&self) -> Option<&ServerConnection> {
        match &self.phase {
            Phase::Shaking(tls) => Some(tls),
            Phase::Done(_) | Phase::Broken => None,
        }
    }
}

fn alert(description: u8, reason: impl Into<String>) -> TransportError {
    TransportError {
        code: TransportErrorCode::crypto(description),
        frame: None,
        reason: reason.into(),
    }
}

impl Session for Handshake {
    fn initial_keys(&self, dst_cid: &ConnectionId, _side: Side) -> Keys {
        match self.config.initial.initial_keys(self.version, dst_cid) {
            Ok(keys) => keys,
            Err(_) => unreachable!("a version without initial keys starts no session"),
        }
    }

    fn handshake_data(&self) -> Option<Box<dyn Any>> {
        let protocol = match &self.phase {
            Phase::Shaking(tls) => tls.alpn_protocol()?.to_vec(),
            Phase::Done(protocol) => protocol.as_deref()?.to_vec(),
            Phase::Broken => return None,
        };
        Some(Box::new(HandshakeData { protocol: Some(protocol), server_name: None }))
    }

    fn peer_identity(&self) -> Option<Box<dyn Any>> {
        None
    }

    fn early_crypto(&self) -> Option<(Box<dyn HeaderKey>, Box<dyn PacketKey>)> {
        None
    }

    fn early_data_accepted(&self) -> Option<bool> {
        None
    }

    fn is_handshaking(&self) -> bool {
        match &self.phase {
            Phase::Shaking(tls) => tls.is_handshaking(),
            Phase::Done(_) => false,
            Phase::Broken => true,
        }
    }

    fn read_handshake(&mut self, buf: &[u8]) -> Result<bool, TransportError> {
        let tls = match &mut self.phase {
            Phase::Shaking(tls) => tls,
            // Clients have nothing more to say, and may not renew keys this way
            // (RFC 9001, section 6).
            Phase::Done(_) => return Err(alert(UNEXPECTED_MESSAGE, "after the handshake")),
            Phase::Broken => return Err(alert(INTERNAL_ERROR, "no TLS")),
        };
        let before = tls.alpn_protocol().is_some();
        match tls.read_hs(buf) {
            Ok(()) => Ok(!before && tls.alpn_protocol().is_some()),
            Err(error) => {
                let description = tls.alert().map_or(INTERNAL_ERROR, u8::from);
                Err(alert(description, error.to_string()))
            }
        }
    }

    fn transport_parameters(&self) -> Result<Option<TransportParameters>, TransportError> {
        match self.tls().and_then(|tls| tls.quic_transport_parameters()) {
            Some(bytes) => {
                let bytes = with_few_ids(bytes);
                Ok(Some(TransportParameters::read(Side::Server, &mut Cursor::new(bytes))?))
            }
            None => Ok(None),
        }
    }

    fn write_handshake(&mut self, buf: &mut Vec<u8>) -> Option<Keys> {
        let Phase::Shaking(tls) = &mut self.phase else { return None };
        let before = buf.len();
        let keys = match tls.write_hs(buf) {
            Some(KeyChange::Handshake { keys }) => keys,
            Some(KeyChange::OneRtt { keys, next }) => {
                self.next = Some(Box::new(next));
                keys
            }
            None => {
                // Nothing came, not even tickets: nothing ever will.
                if !tls.is_handshaking() && buf.len() == before {
                    self.phase = Phase::Done(tls.alpn_protocol().map(Into::into));
                }
                return None;
            }
        };
        Some(Keys {
            header: KeyPair {
                local: header_key(keys.local.header),
                remote: header_key(keys.remote.header),
            },
            packet: KeyPair {
                local: packet_key(keys.local.packet),
                remote: packet_key(keys.remote.packet),
            },
        })
    }

    fn next_1rtt_keys(&mut self) -> Option<KeyPair<Box<dyn PacketKey>>> {
        let keys = self.next.as_mut()?.next_packet_keys();
        Some(KeyPair { local: packet_key(keys.local), remote: packet_key(keys.remote) })
    }

    fn is_valid_retry(&self, _orig: &ConnectionId, _header: &[u8], _payload: &[u8]) -> bool {
        false // Servers send them.
    }

    fn export_keying_material(
        &self,
        _output: &mut [u8],
        _label: &[u8],
        _context: &[u8],
    ) -> Result<(), ExportKeyingMaterialError> {
        Err(ExportKeyingMaterialError) // Nobody here asks; what it takes is let go.
    }
}
