//! Messages and formats: what stands on the wire, and the bytes of it.
//!
//! [`message`] names what viewers and servers say, [`json`] and [`proto`] write
//! and read it, [`frame`] puts the WebSocket header before it and [`stream`] the
//! length that QUIC streams need, [`shared`] encodes a room's frame once per
//! format for everyone and [`split`] takes it apart by lanes, [`close`] lists the
//! close codes.

pub mod close;
pub mod deflate;
pub mod frame;
pub mod json;
pub mod message;
pub mod proto;
pub mod shared;
pub mod split;
pub mod stream;
#[cfg(test)]
mod testing;

/// How a viewer's bytes are written: a WebSocket subprotocol and whether
/// permessage-deflate was negotiated, or messages on the streams of QUIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Format {
    /// `tidegate.v1.json`, text messages.
    Json,
    /// `tidegate.v1.json` with permessage-deflate.
    JsonDeflate,
    /// `tidegate.v1.proto`, binary messages.
    Proto,
    /// `tidegate.v1.proto` with permessage-deflate.
    ProtoDeflate,
    /// Protobuf behind its length, on QUIC and WebTransport streams; see
    /// [`stream`].
    Stream,
}

impl Format {
    /// How many there are.
    pub const COUNT: usize = 5;
    /// All, in the order of their index.
    pub const ALL: [Format; Self::COUNT] =
        [Format::Json, Format::JsonDeflate, Format::Proto, Format::ProtoDeflate, Format::Stream];

    /// Index into per-format tables.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Name in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Format::Json => "json",
            Format::JsonDeflate => "json_deflate",
            Format::Proto => "proto",
            Format::ProtoDeflate => "proto_deflate",
            Format::Stream => "stream",
        }
    }

    /// Text messages rather than binary ones.
    #[must_use]
    pub const fn is_json(self) -> bool {
        matches!(self, Format::Json | Format::JsonDeflate)
    }

    /// Whether messages may be compressed.
    #[must_use]
    pub const fn is_deflate(self) -> bool {
        matches!(self, Format::JsonDeflate | Format::ProtoDeflate)
    }

    /// The same subprotocol without compression.
    #[must_use]
    pub const fn plain(self) -> Format {
        match self {
            Format::Json | Format::JsonDeflate => Format::Json,
            Format::Proto | Format::ProtoDeflate => Format::Proto,
            Format::Stream => Format::Stream,
        }
    }
}
