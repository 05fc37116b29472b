//! Error codes of HTTP/3 (RFC 9114, section 8.1), QPACK (RFC 9204, section 6)
//! and WebTransport (draft-ietf-webtrans-http3, section 4.3 and 7.5), and the
//! types of frames and streams.

/// What ends the connection: a code of this module and a text for logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) code: u64,
    pub(super) reason: &'static str,
}

impl Failure {
    pub(super) const fn new(code: u64, reason: &'static str) -> Self {
        Failure { code, reason }
    }
}

/// Nothing went wrong; also what a driver closes a connection with that it no
/// longer needs.
pub const H3_NO_ERROR: u64 = 0x100;
/// A stream of a type that may not be opened, or twice.
pub(super) const H3_STREAM_CREATION_ERROR: u64 = 0x103;
/// A stream that must stay open was closed.
pub(super) const H3_CLOSED_CRITICAL_STREAM: u64 = 0x104;
/// A frame that may not stand where it does.
pub(super) const H3_FRAME_UNEXPECTED: u64 = 0x105;
/// A frame that is cut short or whose content is not of its form.
pub(super) const H3_FRAME_ERROR: u64 = 0x106;
/// More than what a peer that means well would send.
pub(super) const H3_EXCESSIVE_LOAD: u64 = 0x107;
/// A stream or session id that cannot be one.
pub(super) const H3_ID_ERROR: u64 = 0x108;
/// A setting that may not be sent, or not with that value.
pub(super) const H3_SETTINGS_ERROR: u64 = 0x109;
/// The control stream does not begin with SETTINGS.
pub(super) const H3_MISSING_SETTINGS: u64 = 0x10a;
/// A request whose answer nobody wants any more.
pub(super) const H3_REQUEST_CANCELLED: u64 = 0x10c;
/// A stream that ended before its request was complete.
pub(super) const H3_REQUEST_INCOMPLETE: u64 = 0x10d;
/// A malformed request or capsule.
pub(super) const H3_MESSAGE_ERROR: u64 = 0x10e;
/// A header section that cannot be read.
pub(super) const QPACK_DECOMPRESSION_FAILED: u64 = 0x200;
/// An instruction that the encoder may not give.
pub(super) const QPACK_ENCODER_STREAM_ERROR: u64 = 0x201;
/// An instruction that the decoder may not give.
pub(super) const QPACK_DECODER_STREAM_ERROR: u64 = 0x202;
/// A stream came before its session and was not kept, or one too many.
pub(super) const WT_BUFFERED_STREAM_REJECTED: u64 = 0x3994_bd84;
/// The stream's session is over.
pub(super) const WT_SESSION_GONE: u64 = 0x170d_7b68;

pub(super) const FRAME_DATA: u32 = 0x00;
pub(super) const FRAME_HEADERS: u32 = 0x01;
pub(super) const FRAME_CANCEL_PUSH: u32 = 0x03;
pub(super) const FRAME_SETTINGS: u32 = 0x04;
pub(super) const FRAME_PUSH_PROMISE: u32 = 0x05;
pub(super) const FRAME_GOAWAY: u32 = 0x07;
pub(super) const FRAME_MAX_PUSH_ID: u32 = 0x0d;
/// Not a frame: what follows is a session id, then the stream's own bytes.
pub(super) const SIGNAL_STREAM: u32 = 0x41;
/// Frames of HTTP/2 that HTTP/3 does not have (RFC 9114, section 7.2.8).
pub(super) const FRAMES_OF_HTTP2: [u32; 4] = [0x02, 0x06, 0x08, 0x09];

pub(super) const STREAM_CONTROL: u64 = 0x00;
pub(super) const STREAM_PUSH: u64 = 0x01;
pub(super) const STREAM_ENCODER: u64 = 0x02;
pub(super) const STREAM_DECODER: u64 = 0x03;
/// A unidirectional stream of a session, whose id follows.
pub(super) const STREAM_SESSION: u64 = 0x54;
