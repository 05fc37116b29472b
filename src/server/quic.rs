//! QUIC's share of the start: one configuration for all shards, an endpoint for
//! each.

use std::fs;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use quinn_proto::ServerConfig;
use tokio::sync::mpsc;
use tracing::{info, warn};

use crate::clock::Clock;
use crate::config::Config;
use crate::shard::Shard;
use crate::tls::Identity;
use crate::transport::quic::crypto::{self, SECRET_BYTES};
use crate::transport::quic::driver::Driver;
use crate::transport::quic::endpoint::Endpoint;
use crate::transport::quic::peer::copies;
use crate::transport::quic::settings::Settings;
use crate::transport::quic::socket::{self, DatagramSocket};
use crate::transport::quic::steer::{self, Handover, MOST_SHARDS, Stray};
use crate::transport::webtransport::Rules;

/// Where the secret of connection resets is kept, in the directory of the log.
const SECRET_FILE: &str = "quic-reset.key";

/// Where WebTransport sessions are opened.
const WEBTRANSPORT_PATH: &str = "/v1/wt";

/// What all shards share of QUIC.
pub(super) struct Shared {
    server: Arc<ServerConfig>,
    settings: Settings,
    secret: [u8; SECRET_BYTES],
    handover: Handover,
    ends: Vec<Option<mpsc::Receiver<Stray>>>,
}

/// What one shard starts its endpoint from.
pub(super) struct Start {
    server: Arc<ServerConfig>,
    settings: Settings,
    secret: [u8; SECRET_BYTES],
    handover: Handover,
    strays: mpsc::Receiver<Stray>,
    shard: u16,
}

impl Shared {
    /// `None` where QUIC is off, or has no certificate.
    pub(super) fn new(
        config: &Config,
        identity: Option<&Identity>,
        shards: u16,
    ) -> anyhow::Result<Option<Self>> {
        let Some(identity) = identity.filter(|_| config.quic.enabled) else { return Ok(None) };
        if shards > MOST_SHARDS {
            warn!(shards, most = MOST_SHARDS, "too many shards for QUIC: it is off");
            return Ok(None);
        }
        let quic = &config.quic;
        let settings = Settings {
            idle_timeout: quic.idle_timeout(),
            handshake_timeout: quic.handshake_timeout(),
            send_window: quic.send_window_bytes,
            receive_window: quic.receive_window_bytes,
            datagram_bytes: quic.datagram_bytes,
            important_bytes: quic.important_bytes,
            congestion: quic.congestion,
            copies: copies::Rules {
                after: Duration::from_millis(quic.copy_after_ms),
                min_rtt: Duration::from_millis(quic.copy_min_rtt_ms),
                one_in: quic.copy_one_lost_in,
                bytes_per_second: quic.copy_bytes_per_second,
            },
            retry_above: quic.retry_above,
            max_handshakes: quic.max_handshakes,
            max_connections: quic.max_connections,
            max_message: config.websocket.max_message_bytes,
            sessions: Arc::new(Rules {
                origins: config.websocket.allowed_origins.clone(),
                path: WEBTRANSPORT_PATH.to_owned(),
                max_header: config.websocket.max_header_bytes,
            }),
        };
        let server = crypto::server(identity.resolver(), &settings).context("QUIC")?;
        let (handover, ends) = Handover::new(shards);
        let ends = ends.into_iter().map(Some).collect();
        let secret = secret(&config.durable.directory);
        Ok(Some(Self { server, settings, secret, handover, ends }))
    }

    /// One shard's part.
    pub(super) fn start(&mut self, shard: u16) -> Option<Start> {
        let strays = self.ends.get_mut(usize::from(shard))?.take()?;
        Some(Start {
            server: Arc::clone(&self.server),
            settings: self.settings.clone(),
            secret: self.secret,
            handover: self.handover.clone(),
            strays,
            shard,
        })
    }
}

impl Start {
    /// Binds the shard's socket, after those of the shards before it, and has
    /// its viewers carried. Call within the shard's runtime.
    pub(super) fn open(
        self,
        address: SocketAddr,
        clock: Clock,
        shard: &mut Shard,
    ) -> io::Result<Driver> {
        let shards = self.handover.shards();
        let socket = socket::bind(address, shards > 1)?;
        if shards > 1
            && let Err(error) = steer::attach(&socket, shards)
        {
            info!(%error, "the kernel does not steer datagrams; shards hand them over");
        }
        let socket = DatagramSocket::new(socket)?;
        let readiness = socket.readiness();
        let config = crypto::endpoint(&self.secret, self.shard, shards);
        let endpoint = Endpoint::new(
            socket,
            clock,
            config,
            self.server,
            self.settings,
            self.shard,
            self.handover,
        );
        Ok(Driver::new(endpoint, readiness, self.strays, clock, shard))
    }
}

/// The secret that lasts across restarts, where there is a place to keep it.
fn secret(directory: &Path) -> [u8; SECRET_BYTES] {
    let fresh = || std::array::from_fn(|_| rand::random());
    if directory.as_os_str().is_empty() {
        return fresh();
    }
    match kept(&directory.join(SECRET_FILE), fresh()) {
        Ok(secret) => secret,
        Err(error) => {
            warn!(%error, file = SECRET_FILE, "clients will not notice a restart at once");
            fresh()
        }
    }
}

fn kept(path: &Path, fresh: [u8; SECRET_BYTES]) -> io::Result<[u8; SECRET_BYTES]> {
    match fs::read(path) {
        Ok(bytes) => {
            if let Ok(secret) = bytes.try_into() {
                return Ok(secret);
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let mut file =
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(&fresh)?;
    Ok(fresh)
}
