//! WebSocket (RFC 6455) with permessage-deflate (RFC 7692).
//!
//! [`handshake`] answers the upgrade, [`decode`] turns bytes into messages,
//! [`reader`] waits for sockets and feeds it. The handshake's rules and the
//! frame header are tungstenite's; messages are assembled here because a shared
//! scratch buffer, bounded inflation and idle viewers without buffers need it.

pub mod decode;
pub mod handshake;
pub mod reader;
