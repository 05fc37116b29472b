//! WebSocket framing of what a server sends (RFC 6455, section 5.2): never
//! masked, never fragmented, so the same bytes serve every viewer.

use bytes::Bytes;
use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

use super::close::CloseReason;

/// Longest header of an unmasked frame, in bytes.
const MAX_HEADER: usize = 10;

/// A text or binary message with its header.
#[must_use]
pub fn data(text: bool, compressed: bool, payload: &[u8]) -> Bytes {
    let opcode = OpCode::Data(if text { Data::Text } else { Data::Binary });
    with_header(opcode, compressed, payload)
}

/// A pong carrying what the ping carried.
#[must_use]
pub fn pong(payload: &[u8]) -> Bytes {
    with_header(OpCode::Control(Control::Pong), false, payload)
}

/// A close frame for `reason`; empty where none is sent.
#[must_use]
pub fn close(reason: CloseReason) -> Bytes {
    let Some(code) = reason.code() else { return Bytes::new() };
    close_with(code, reason.name().as_bytes())
}

/// A close frame with a code and a reason of at most 123 bytes.
#[must_use]
pub fn close_with(code: u16, reason: &[u8]) -> Bytes {
    let mut payload = Vec::with_capacity(2 + reason.len());
    payload.extend_from_slice(&code.to_be_bytes());
    payload.extend_from_slice(reason);
    with_header(OpCode::Control(Control::Close), false, &payload)
}

/// A close frame without a code, the answer to one without.
#[must_use]
pub fn close_empty() -> Bytes {
    with_header(OpCode::Control(Control::Close), false, &[])
}

fn with_header(opcode: OpCode, rsv1: bool, payload: &[u8]) -> Bytes {
    let header = FrameHeader { is_final: true, rsv1, rsv2: false, rsv3: false, opcode, mask: None };
    let mut bytes = Vec::with_capacity(MAX_HEADER + payload.len());
    // Writing into a Vec cannot fail, and the header has no other error.
    let formatted = header.format(payload.len() as u64, &mut bytes);
    debug_assert!(formatted.is_ok());
    bytes.extend_from_slice(payload);
    Bytes::from(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn length_takes_the_shortest_form() {
        assert_eq!(&data(true, false, b"hi")[..], b"\x81\x02hi");
        assert_eq!(&data(false, true, &[7; 126])[..4], b"\xc2\x7e\x00\x7e");
        assert_eq!(data(true, false, &[b'a'; 70_000])[1], 127);
    }

    #[test]
    fn a_broken_connection_gets_no_close_frame() {
        assert!(close(CloseReason::Broken).is_empty());
        assert_eq!(&close(CloseReason::Slow)[2..4], &3008u16.to_be_bytes());
    }
}
