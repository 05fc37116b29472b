//! QUIC viewers: thousands of connections on one thread and a few UDP sockets.
//!
//! `quinn-proto` is the protocol without I/O, and it is driven here directly: a
//! task, a timer and a waker per connection would make the client cost more
//! than the server it measures. [`clients`] holds the connections and knows
//! neither sockets nor clock, so its tests run under virtual time against a
//! server of the same kind; [`sockets`] moves datagrams by the batch; [`driver`]
//! puts both into a worker's readiness loop. [`inbox`] cuts streams into
//! messages.
//!
//! The mapping of the viewer protocol is in docs/protocol.md: messages with a
//! varint length on the control stream (ours, the first) and on the server's
//! stream of important events, bare messages in datagrams. [`web`] is what
//! WebTransport puts before these.

pub(crate) mod clients;
pub(crate) mod config;
pub(crate) mod driver;
pub(crate) mod inbox;
pub(crate) mod sockets;
#[cfg(test)]
mod tests;
mod web;

/// Which way a message came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    /// The control stream: answers, and what is ordered.
    Control,
    /// The server's stream of important events.
    Important,
    /// A datagram.
    Datagram,
}

/// What a message asks of its viewer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    /// Nothing.
    Nothing,
    /// To say this, framed, on the control stream.
    Say(Vec<u8>),
    /// To hang up.
    HangUp,
}

/// Who looks after the viewers: called while datagrams are taken in.
pub(crate) trait Watcher {
    /// The handshake is done; returns what to say first on the control stream.
    fn connected(&mut self, viewer: usize) -> Vec<u8>;
    /// A datagram of so many bytes came.
    fn received(&mut self, viewer: usize, bytes: usize);
    /// A message came.
    fn message(&mut self, viewer: usize, lane: Lane, message: &[u8]) -> Reply;
    /// Whether the viewer leaves its streams unread for now.
    fn is_deaf(&self, viewer: usize) -> bool;
    /// The connection ended, or never began.
    fn closed(&mut self, viewer: usize, reason: String);
}
