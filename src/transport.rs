//! Transports: they read and decode what viewers send, and hand accepted
//! sockets to the shard, which writes to them.

pub mod quic;
pub mod session;
pub mod websocket;
