//! SETTINGS (RFC 9114, section 7.2.4): what we say, and what matters of what the
//! client says.

use bytes::Bytes;

use super::codes::{FRAME_SETTINGS, Failure, H3_FRAME_ERROR, H3_SETTINGS_ERROR, STREAM_CONTROL};
use super::varint::{self, Partial};

const MAX_FIELD_SECTION_SIZE: u64 = 0x06;
/// Extended CONNECT (RFC 9220).
const ENABLE_CONNECT_PROTOCOL: u64 = 0x08;
/// Datagrams (RFC 9297), and the id of its draft 04, which browsers still send.
const H3_DATAGRAM: u64 = 0x33;
const H3_DATAGRAM_DRAFT: u64 = 0xff_d277;
/// WebTransport of draft 02 to 06: what Chromium 156 asks for, and nothing else
/// will do (tried). Drafts 07 to 12 and 13 to 14 have ids of their own.
const ENABLE_WEBTRANSPORT: u64 = 0x2b60_3742;
const WEBTRANSPORT_MAX_SESSIONS: u64 = 0xc671_706a;
const WT_MAX_SESSIONS: u64 = 0x14e9_cd29;

/// Settings of HTTP/2 that HTTP/3 does not have (RFC 9114, section 11.2.2).
const OF_HTTP2: [u64; 5] = [0x00, 0x02, 0x03, 0x04, 0x05];

/// What our control stream begins with. Draft 15 and later are not offered: they
/// want RESET_STREAM_AT, which the QUIC library does not have.
pub(super) fn control_stream(max_header: usize) -> Vec<u8> {
    let mut settings = Vec::with_capacity(48);
    for (id, value) in [
        (MAX_FIELD_SECTION_SIZE, max_header as u64),
        (ENABLE_CONNECT_PROTOCOL, 1),
        (H3_DATAGRAM, 1),
        (H3_DATAGRAM_DRAFT, 1),
        (ENABLE_WEBTRANSPORT, 1),
        (WEBTRANSPORT_MAX_SESSIONS, 1),
        (WT_MAX_SESSIONS, 1),
    ] {
        varint::put(&mut settings, id);
        varint::put(&mut settings, value);
    }
    let mut stream = Vec::with_capacity(settings.len() + 3);
    varint::put(&mut stream, STREAM_CONTROL);
    varint::put(&mut stream, u64::from(FRAME_SETTINGS));
    varint::put(&mut stream, settings.len() as u64);
    stream.extend_from_slice(&settings);
    stream
}

/// What the client said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Settings {
    /// It takes datagrams.
    pub(super) datagrams: bool,
}

/// Reads the client's settings as they come.
#[derive(Debug, Default)]
pub(super) struct SettingsReader {
    number: Partial,
    id: Option<u64>,
    /// Which of those with a meaning have come.
    seen: [bool; 4],
    settings: Settings,
}

impl SettingsReader {
    /// Reads on.
    ///
    /// # Errors
    /// `H3_SETTINGS_ERROR`.
    pub(super) fn read(&mut self, mut bytes: Bytes) -> Result<(), Failure> {
        while let Some(number) = self.number.read(&mut bytes) {
            match self.id.take() {
                None if OF_HTTP2.contains(&number) => {
                    return Err(Failure::new(H3_SETTINGS_ERROR, "a setting of HTTP/2"));
                }
                None => self.id = Some(number),
                Some(id) => self.set(id, number)?,
            }
        }
        Ok(())
    }

    fn set(&mut self, id: u64, value: u64) -> Result<(), Failure> {
        let known =
            [H3_DATAGRAM, H3_DATAGRAM_DRAFT, ENABLE_CONNECT_PROTOCOL, MAX_FIELD_SECTION_SIZE];
        let Some(at) = known.iter().position(|known| *known == id) else { return Ok(()) };
        if std::mem::replace(&mut self.seen[at], true) {
            return Err(Failure::new(H3_SETTINGS_ERROR, "a setting comes once"));
        }
        if id != MAX_FIELD_SECTION_SIZE && value > 1 {
            return Err(Failure::new(H3_SETTINGS_ERROR, "neither 0 nor 1"));
        }
        if matches!(id, H3_DATAGRAM | H3_DATAGRAM_DRAFT) && value == 1 {
            self.settings.datagrams = true;
        }
        Ok(())
    }

    /// The frame is at its end.
    ///
    /// # Errors
    /// `H3_FRAME_ERROR`: but no setting is.
    pub(super) fn finish(self) -> Result<Settings, Failure> {
        if self.number.is_empty() && self.id.is_none() {
            Ok(self.settings)
        } else {
            Err(Failure::new(H3_FRAME_ERROR, "a setting is cut short"))
        }
    }
}
