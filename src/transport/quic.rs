//! QUIC (RFC 9000), driven from the shard's own thread.
//!
//! `quinn-proto` is the protocol without I/O; here are the socket, the turns and
//! the timers. A viewer is no task: one endpoint per shard holds its connections
//! in a table, reads what has come in batches, and sends what many viewers were
//! given from one buffer. What a shard writes goes through
//! [`Carrier`](crate::shard::outlet::Carrier), so that rooms, limits and the
//! ladder for slow viewers are the same as over WebSocket.
//!
//! [`socket`] reads and sends datagrams, [`steer`] keeps a connection on its
//! shard whatever its address, [`crypto`], [`keys`], [`parameters`], [`session`] and
//! [`settings`] configure it, [`congestion`] says how fast it may send, [`peer`] is
//! one connection, [`endpoint`] all of a shard, [`peers`] where they are kept,
//! [`rest`] which of them are at work, [`packed`] how the others are kept,
//! [`timers`] their deadlines, [`prefetch`] is for the caches, [`driver`] is what
//! the worker calls.

pub mod congestion;
pub mod crypto;
pub mod driver;
pub mod endpoint;
pub mod keys;
mod packed;
mod parameters;
pub mod peer;
pub mod peers;
mod prefetch;
pub mod rest;
pub mod session;
pub mod settings;
pub mod socket;
pub mod steer;
pub mod timers;

/// What raw QUIC is asked for by, in the handshake (RFC 7301).
pub const ALPN: &[u8] = b"tidegate/1";

/// What HTTP/3, and so WebTransport, is asked for by (RFC 9114, section 3.1).
pub const ALPN_H3: &[u8] = b"h3";
