//! The client's three streams that belong to the connection: control (RFC 9114,
//! section 6.2.1), QPACK encoder and decoder (RFC 9204, section 4.2).

use bytes::Bytes;

use super::codes::{
    FRAME_CANCEL_PUSH, FRAME_DATA, FRAME_GOAWAY, FRAME_HEADERS, FRAME_MAX_PUSH_ID,
    FRAME_PUSH_PROMISE, FRAME_SETTINGS, FRAMES_OF_HTTP2, Failure, H3_EXCESSIVE_LOAD,
    H3_FRAME_ERROR, H3_FRAME_UNEXPECTED, H3_MISSING_SETTINGS, QPACK_DECODER_STREAM_ERROR,
    QPACK_ENCODER_STREAM_ERROR, SIGNAL_STREAM,
};
use super::settings::{Settings, SettingsReader};
use super::varint::{Piece, Records};

/// Largest SETTINGS frame that is read, in bytes; browsers send some 40.
const MAX_SETTINGS: u32 = 1_024;

/// What a connection may send that means nothing to us, in bytes over its whole
/// life: reserved frames and capsules are a few bytes each.
const MAX_SKIPPED: u32 = 64 * 1_024;

/// Counts what is skipped.
#[derive(Debug)]
pub(super) struct Skipped(u32);

impl Skipped {
    pub(super) const fn new() -> Self {
        Skipped(MAX_SKIPPED)
    }

    /// Takes a type, its length and `length` bytes that will be skipped.
    ///
    /// # Errors
    /// `H3_EXCESSIVE_LOAD`: that is too many.
    pub(super) fn take(&mut self, length: u32) -> Result<(), Failure> {
        let most = length.saturating_add(2);
        self.0 = self
            .0
            .checked_sub(most)
            .ok_or(Failure::new(H3_EXCESSIVE_LOAD, "too much that nobody understands"))?;
        Ok(())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Current {
    Settings,
    Skipped,
}

/// Reads the client's control stream.
#[derive(Debug)]
pub(super) struct Control {
    records: Records,
    current: Current,
    /// Until the SETTINGS frame is read.
    reader: Option<Box<SettingsReader>>,
    begun: bool,
}

impl Control {
    pub(super) fn new() -> Self {
        Control {
            records: Records::default(),
            current: Current::Skipped,
            reader: Some(Box::default()),
            begun: false,
        }
    }

    /// Reads on, until the settings are complete, which happens once, or all is
    /// read.
    ///
    /// # Errors
    /// What ends the connection.
    pub(super) fn read(
        &mut self,
        bytes: &mut Bytes,
        skipped: &mut Skipped,
    ) -> Result<Option<Settings>, Failure> {
        while let Some(piece) = self.records.read(bytes) {
            match piece {
                Piece::Head { kind, length } => self.begin(kind, length, skipped)?,
                Piece::Part { bytes, last } if self.current == Current::Settings => {
                    if let Some(reader) = &mut self.reader {
                        reader.read(bytes)?;
                    }
                    if last && let Some(reader) = self.reader.take() {
                        return Ok(Some(reader.finish()?));
                    }
                }
                Piece::Part { .. } => {}
            }
        }
        Ok(None)
    }

    fn begin(&mut self, kind: u32, length: u32, skipped: &mut Skipped) -> Result<(), Failure> {
        if !self.begun && kind != FRAME_SETTINGS {
            return Err(Failure::new(H3_MISSING_SETTINGS, "the first frame must be SETTINGS"));
        }
        if self.begun && kind == FRAME_SETTINGS {
            return Err(Failure::new(H3_FRAME_UNEXPECTED, "SETTINGS come once"));
        }
        self.begun = true;
        self.current = Current::Skipped;
        match kind {
            FRAME_SETTINGS if length > MAX_SETTINGS => {
                Err(Failure::new(H3_EXCESSIVE_LOAD, "SETTINGS are too large"))
            }
            FRAME_SETTINGS => {
                self.current = Current::Settings;
                Ok(())
            }
            FRAME_DATA | FRAME_HEADERS | FRAME_PUSH_PROMISE => {
                Err(Failure::new(H3_FRAME_UNEXPECTED, "not a frame of the control stream"))
            }
            // About pushes, of which there are none, by one number each.
            FRAME_CANCEL_PUSH | FRAME_GOAWAY | FRAME_MAX_PUSH_ID if !(1..=8).contains(&length) => {
                Err(Failure::new(H3_FRAME_ERROR, "not one number"))
            }
            _ => foreign(kind, length, skipped),
        }
    }
}

/// A frame that no stream needs: skipped, unless it may not come at all.
///
/// # Errors
/// `H3_FRAME_UNEXPECTED`, `H3_FRAME_ERROR`, or too much was skipped.
pub(super) fn foreign(kind: u32, length: u32, skipped: &mut Skipped) -> Result<(), Failure> {
    if FRAMES_OF_HTTP2.contains(&kind) {
        return Err(Failure::new(H3_FRAME_UNEXPECTED, "a frame of HTTP/2"));
    }
    if kind == SIGNAL_STREAM {
        return Err(Failure::new(H3_FRAME_ERROR, "a stream's signal inside it"));
    }
    skipped.take(length)
}

/// Reads the QPACK encoder's instructions: with a table of capacity 0 only that
/// capacity can be set.
///
/// # Errors
/// `QPACK_ENCODER_STREAM_ERROR`.
pub(super) fn read_encoder(bytes: &Bytes, skipped: &mut Skipped) -> Result<(), Failure> {
    const CAPACITY_0: u8 = 0b0010_0000;
    if bytes.iter().any(|byte| *byte != CAPACITY_0) {
        return Err(Failure::new(QPACK_ENCODER_STREAM_ERROR, "there is no dynamic table"));
    }
    skipped.take(u32::try_from(bytes.len()).unwrap_or(u32::MAX))
}

/// Reads the QPACK decoder's instructions: it may say that it gave up a stream,
/// and has nothing to acknowledge. `within` tells that a number goes on.
///
/// # Errors
/// `QPACK_DECODER_STREAM_ERROR`.
pub(super) fn read_decoder(
    bytes: &Bytes,
    within: &mut bool,
    skipped: &mut Skipped,
) -> Result<(), Failure> {
    for byte in bytes {
        if *within {
            *within = byte & 0x80 != 0;
        } else if byte & 0b1100_0000 == 0b0100_0000 {
            *within = byte & 0b0011_1111 == 0b0011_1111;
        } else {
            return Err(Failure::new(QPACK_DECODER_STREAM_ERROR, "there is no dynamic table"));
        }
    }
    skipped.take(u32::try_from(bytes.len()).unwrap_or(u32::MAX))
}
