//! A connection to a server, whatever carries it.

use std::net::SocketAddr;

use super::Transport;
use super::quic::Quic;
use super::room::Source;
use super::websocket::WebSocket;
use crate::wire::proto::v1;
use crate::wire::proto::v1::client_message::Message as Out;

/// Largest message taken, in bytes: above the largest frame that can be configured
/// usefully.
pub(super) const MAX_MESSAGE_BYTES: usize = 16 << 20;

/// A connection that was welcomed.
pub(super) enum Link {
    WebSocket(Box<WebSocket>),
    Quic(Box<Quic>),
}

/// What a connection brings.
#[derive(Debug)]
pub(super) enum Received {
    Message(Source, v1::ServerMessage),
    /// Nothing to read, but the peer is there.
    Alive,
    Closed(Closed),
}

/// A connection is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Closed {
    /// The server's code, if it gave one.
    pub(super) code: Option<u16>,
    /// For people.
    pub(super) why: String,
    /// Its certificate is not believed.
    pub(super) untrusted: bool,
}

impl Closed {
    /// Without a word from the server.
    pub(super) fn broken(why: impl Into<String>) -> Self {
        Self { code: None, why: why.into(), untrusted: false }
    }

    /// Whether the server said not to come back.
    pub(super) fn dismissed(&self) -> Option<u16> {
        self.code.filter(|code| (3_500..4_000).contains(code))
    }
}

/// Why there is no connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum DialError {
    /// It may work later.
    Failed(Closed),
    /// The server will say the same again.
    Refused {
        /// HTTP status.
        code: u16,
        why: String,
    },
}

impl DialError {
    pub(super) fn failed(why: impl Into<String>) -> Self {
        Self::Failed(Closed::broken(why))
    }

    /// The server's certificate is not believed.
    pub(super) fn distrusted(why: impl Into<String>) -> Self {
        Self::Failed(Closed { code: None, why: why.into(), untrusted: true })
    }

    pub(super) fn is_distrust(&self) -> bool {
        matches!(self, DialError::Failed(closed) if closed.untrusted)
    }

    pub(super) fn why(&self) -> &str {
        match self {
            DialError::Failed(closed) => &closed.why,
            DialError::Refused { why, .. } => why,
        }
    }

    /// Whether trying again is of no use.
    pub(super) fn is_final(&self) -> bool {
        match self {
            DialError::Failed(closed) => closed.dismissed().is_some(),
            DialError::Refused { .. } => true,
        }
    }
}

/// A connection that stands: the server's welcome has come.
pub(super) struct Dialed {
    pub(super) link: Link,
    pub(super) welcome: v1::Welcome,
}

impl Link {
    pub(super) fn transport(&self) -> Transport {
        match self {
            Link::WebSocket(_) => Transport::WebSocket,
            Link::Quic(_) => Transport::Quic,
        }
    }

    /// The server's.
    pub(super) fn address(&self) -> SocketAddr {
        match self {
            Link::WebSocket(socket) => socket.address(),
            Link::Quic(quic) => quic.address(),
        }
    }

    /// Whether important events have a stream of their own.
    pub(super) fn is_split(&self) -> bool {
        matches!(self, Link::Quic(_))
    }

    /// The next thing; may be dropped before it is there.
    pub(super) async fn next(&mut self) -> Received {
        match self {
            Link::WebSocket(socket) => socket.next().await,
            Link::Quic(quic) => quic.next().await,
        }
    }

    /// Writes a message. If this is dropped half-way, so must the connection be.
    pub(super) async fn send(&mut self, message: Out) -> Result<(), Closed> {
        let message = v1::ClientMessage { message: Some(message) };
        match self {
            Link::WebSocket(socket) => socket.send(&message).await,
            Link::Quic(quic) => quic.send(&message).await,
        }
    }

    /// Says goodbye.
    pub(super) async fn close(self) {
        match self {
            Link::WebSocket(socket) => socket.close().await,
            Link::Quic(quic) => quic.close(),
        }
    }
}
