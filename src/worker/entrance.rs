//! The first bytes of a connection: TLS or not, and whether it may be without;
//! then HTTP/2 or HTTP/1.1.
//!
//! A TLS record of a handshake begins with 0x16 (RFC 8446, section 5.1), which no
//! HTTP request does. All of it happens within the deadline and the place that
//! every connection has until its first request is read.

use std::cell::RefCell;
use std::io;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::BytesMut;
use rustls::{Error, ServerConfig};
use tokio::net::TcpStream;
use tracing::debug;

use super::preface::{self, Prefixed, Protocol};
use super::stream::{HandshakeFailure, Scratch, Stream, TlsStream};
use crate::config::Plaintext;
use crate::ingress::stats::EdgeStats;
use crate::tls::Identity;

/// What a server without TLS says to who wants it: a record with the fatal alert
/// handshake_failure (RFC 8446, section 6.2).
const NO_TLS: [u8; 7] = [0x15, 0x03, 0x03, 0x00, 0x02, 0x02, 0x28];

/// Who comes in, and how.
pub struct Entrance {
    config: Option<Arc<ServerConfig>>,
    plaintext: Plaintext,
    scratch: Rc<RefCell<Scratch>>,
    stats: Arc<EdgeStats>,
}

/// A connection that has said what it speaks.
pub struct Begun {
    /// HTTP/2, or else HTTP/1.1.
    pub http2: bool,
    /// It should have used TLS: whatever it asks for is refused.
    pub must_use_tls: bool,
    /// The rest of it.
    pub io: Prefixed,
}

impl Entrance {
    /// For one thread. Without an identity there is no TLS, and everyone may come
    /// without.
    #[must_use]
    pub fn new(identity: Option<&Identity>, plaintext: Plaintext, stats: Arc<EdgeStats>) -> Self {
        Self {
            config: identity.map(Identity::tcp_config),
            plaintext,
            scratch: Scratch::new(),
            stats,
        }
    }

    /// Reads until it is clear what the peer speaks. `None` where that is nothing
    /// that goes on; it has been counted.
    ///
    /// # Errors
    /// The socket's.
    pub async fn begin(&self, stream: TcpStream, peer: IpAddr) -> io::Result<Option<Begun>> {
        let (protocol, io) = preface::read(Stream::Clear(stream)).await?;
        if protocol != Protocol::Tls {
            let must_use_tls = self.config.is_some() && !self.may_be_clear(peer);
            return Ok(Some(Begun { http2: protocol == Protocol::Http2, must_use_tls, io }));
        }
        let (head, Stream::Clear(stream)) = io.into_parts() else { return Ok(None) };
        let Some(config) = &self.config else {
            self.stats.handshake("tls_off");
            // Whoever does not wait for it does not care.
            let _ = stream.try_write(&NO_TLS);
            return Ok(None);
        };
        let mut attempt = Attempt { stats: &self.stats, failure: Some("unfinished") };
        let mut head = BytesMut::from(head);
        let (config, scratch) = (Arc::clone(config), Rc::clone(&self.scratch));
        match TlsStream::accept(stream, &mut head, config, scratch).await {
            Ok((stream, agreed)) => {
                attempt.failure = None;
                let count = &self.stats.tls_handshakes;
                let count = &count[usize::from(agreed.is_13)][usize::from(agreed.resumed)];
                count.fetch_add(1, Ordering::Relaxed);
                let (protocol, io) = preface::read(Stream::Tls(Box::new(stream))).await?;
                let http2 = protocol == Protocol::Http2;
                Ok(Some(Begun { http2, must_use_tls: false, io }))
            }
            Err(HandshakeFailure::Socket(error)) => Err(error),
            Err(HandshakeFailure::Tls(error)) => {
                attempt.failure = Some(reason(&error));
                self.stats.handshake("bad_tls");
                debug!(%error, "no TLS handshake");
                Ok(None)
            }
        }
    }

    fn may_be_clear(&self, peer: IpAddr) -> bool {
        match self.plaintext {
            Plaintext::Always => true,
            Plaintext::Loopback => peer.to_canonical().is_loopback(),
            Plaintext::Never => false,
        }
    }
}

/// Counts a handshake that fails, or whose connection ends before.
struct Attempt<'a> {
    stats: &'a EdgeStats,
    failure: Option<&'static str>,
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if let Some(reason) = self.failure {
            self.stats.tls_failed(reason);
        }
    }
}

/// Names a failure, as [`TLS_FAILURES`](crate::ingress::stats::TLS_FAILURES) does.
fn reason(error: &Error) -> &'static str {
    match error {
        Error::PeerIncompatible(_) | Error::NoApplicationProtocol => "incompatible",
        Error::AlertReceived(_) => "alert",
        _ => "malformed",
    }
}
