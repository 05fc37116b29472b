//! The stream of the CONNECT request after its header: DATA frames whose
//! payload is a sequence of capsules (RFC 9297, section 3), one of which closes
//! the session.

use bytes::{Buf, Bytes};

use super::codes::{
    FRAME_CANCEL_PUSH, FRAME_DATA, FRAME_GOAWAY, FRAME_HEADERS, FRAME_MAX_PUSH_ID,
    FRAME_PUSH_PROMISE, FRAME_SETTINGS, Failure, H3_FRAME_ERROR, H3_FRAME_UNEXPECTED,
    H3_MESSAGE_ERROR,
};
use super::control::{Skipped, foreign};
use super::varint::{self, Piece, Records};

const CLOSE_SESSION: u32 = 0x2843;
/// Longest reason in bytes.
const MAX_REASON: usize = 1_024;

/// Why the client closed its session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Close {
    pub(super) code: u32,
    pub(super) reason: String,
}

/// Reads what follows the header of the CONNECT request.
#[derive(Debug, Default)]
pub(super) struct Connect {
    frames: Records,
    in_data: bool,
    capsules: Records,
    /// The body of the closing capsule, once it has begun.
    closing: Option<Vec<u8>>,
}

impl Connect {
    /// Goes on where the header ended.
    pub(super) fn after(frames: Records) -> Self {
        Connect { frames, ..Connect::default() }
    }

    /// Reads on; `Some` when the client closed the session, after which nothing
    /// of this stream matters.
    ///
    /// # Errors
    /// What ends the connection.
    pub(super) fn read(
        &mut self,
        bytes: &mut Bytes,
        skipped: &mut Skipped,
    ) -> Result<Option<Close>, Failure> {
        while let Some(piece) = self.frames.read(bytes) {
            match piece {
                Piece::Head { kind, length } => self.begin(kind, length, skipped)?,
                Piece::Part { mut bytes, .. } if self.in_data => {
                    if let Some(close) = self.read_capsules(&mut bytes, skipped)? {
                        return Ok(Some(close));
                    }
                }
                Piece::Part { .. } => {}
            }
        }
        Ok(None)
    }

    fn begin(&mut self, kind: u32, length: u32, skipped: &mut Skipped) -> Result<(), Failure> {
        self.in_data = kind == FRAME_DATA;
        match kind {
            // Its length says nothing: what it carries is bounded by itself.
            // Nor is an empty one free.
            FRAME_DATA if length == 0 => skipped.take(0),
            FRAME_DATA => Ok(()),
            // RFC 9114, section 4.4: after a CONNECT nothing but DATA.
            FRAME_HEADERS | FRAME_CANCEL_PUSH | FRAME_SETTINGS | FRAME_PUSH_PROMISE
            | FRAME_GOAWAY | FRAME_MAX_PUSH_ID => {
                Err(Failure::new(H3_FRAME_UNEXPECTED, "not a frame of a CONNECT stream"))
            }
            _ => foreign(kind, length, skipped),
        }
    }

    fn read_capsules(
        &mut self,
        bytes: &mut Bytes,
        skipped: &mut Skipped,
    ) -> Result<Option<Close>, Failure> {
        while let Some(piece) = self.capsules.read(bytes) {
            match (piece, &mut self.closing) {
                (Piece::Head { kind: CLOSE_SESSION, length }, _) => {
                    if !(4..=4 + MAX_REASON).contains(&(length as usize)) {
                        return Err(Failure::new(H3_MESSAGE_ERROR, "a close of no size for one"));
                    }
                    self.closing = Some(Vec::new());
                }
                (Piece::Head { length, .. }, _) => skipped.take(length)?,
                (Piece::Part { bytes, last }, Some(body)) => {
                    body.extend_from_slice(&bytes);
                    if last {
                        let mut body = body.as_slice();
                        let code = body.get_u32();
                        let reason = String::from_utf8_lossy(body).into_owned();
                        return Ok(Some(Close { code, reason }));
                    }
                }
                (Piece::Part { .. }, None) => {}
            }
        }
        Ok(None)
    }

    /// Bytes of the client that are kept.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.closing.as_ref().map_or(0, Vec::len)
    }

    /// The client ended the stream, which ends the session without a code.
    ///
    /// # Errors
    /// It ended within a frame or a capsule.
    pub(super) fn end(&self) -> Result<Close, Failure> {
        if !self.frames.is_idle() {
            return Err(Failure::new(H3_FRAME_ERROR, "a frame is cut short"));
        }
        if !self.capsules.is_idle() {
            return Err(Failure::new(H3_MESSAGE_ERROR, "a capsule is cut short"));
        }
        Ok(Close { code: 0, reason: String::new() })
    }
}

/// A DATA frame with the capsule that closes the session. Of a reason that is
/// too long the beginning is sent.
pub(super) fn close_frame(code: u32, reason: &str) -> Vec<u8> {
    let reason = &reason.as_bytes()[..reason.floor_char_boundary(MAX_REASON)];
    let mut capsule = Vec::with_capacity(reason.len() + 8);
    varint::put(&mut capsule, u64::from(CLOSE_SESSION));
    varint::put(&mut capsule, reason.len() as u64 + 4);
    capsule.extend_from_slice(&code.to_be_bytes());
    capsule.extend_from_slice(reason);
    frame(FRAME_DATA, &capsule)
}

/// A frame.
pub(super) fn frame(kind: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(payload.len() + 4);
    varint::put(&mut bytes, u64::from(kind));
    varint::put(&mut bytes, payload.len() as u64);
    bytes.extend_from_slice(payload);
    bytes
}
