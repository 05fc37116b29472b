//! A connection of HTTP/3: what its streams bring goes to the state machine of
//! [`webtransport`](crate::transport::webtransport), and what that wants is done
//! here. Its session's streams and datagrams are then those of a viewer like any
//! other.

use std::time::Duration;

use bytes::Bytes;
use quinn_proto::crypto::rustls::HandshakeData;
use quinn_proto::{Dir, StreamId, VarInt};

use super::{Context, End, Heard, Peer};
use crate::transport::quic::ALPN_H3;
use crate::transport::webtransport::{Output, Session};
use crate::wire::close::CloseReason;
use crate::wire::stream;

/// Streams that a client may have open: one of each sort more than it needs, so
/// that what is too much is told so and does not wait for ever.
const CLIENT_BIDI: u32 = 3;
const CLIENT_UNI: u32 = 4;

/// Between the end of a session and that of its connection. Chromium (156) tells
/// its page of the first a moment after it has read it; with the second right
/// behind, it says that the connection was lost, and gives no code.
pub(super) const LEAVING: Duration = Duration::from_millis(100);

impl Peer {
    /// The handshake has told which protocol is spoken. The settings of HTTP/3
    /// go out with the handshake: a browser asks for its session only then.
    pub(super) fn begin_session(&mut self, context: &mut Context<'_>) {
        let data = self.connection.crypto_session().handshake_data();
        let data = data.and_then(|data| data.downcast::<HandshakeData>().ok());
        if data.and_then(|data| data.protocol).as_deref() != Some(ALPN_H3) {
            return;
        }
        self.connection.set_max_concurrent_streams(Dir::Bi, VarInt::from_u32(CLIENT_BIDI));
        self.connection.set_max_concurrent_streams(Dir::Uni, VarInt::from_u32(CLIENT_UNI));
        let mut out = Vec::new();
        let session = Session::new(context.settings.sessions.clone(), &mut out);
        self.session = Some(Box::new(session));
        self.obey(out, context);
    }

    /// Reads a stream of HTTP/3.
    pub(super) fn read_web(&mut self, id: StreamId, context: &mut Context<'_>) {
        let (mut chunks, end) = self.take_chunks(id);
        if end == Some(End::Finished) && chunks.is_empty() {
            chunks.push(Bytes::new());
        }
        let Some(session) = &mut self.session else { return };
        let mut out = Vec::new();
        let mut left = chunks.len();
        for chunk in chunks {
            left -= 1;
            let fin = left == 0 && end == Some(End::Finished);
            session.stream_bytes(id, chunk, fin, &mut out);
            let stops =
                |output: &Output| matches!(output, Output::Stop { stream, .. } if *stream == id);
            if out.iter().any(stops) {
                break;
            }
        }
        if end == Some(End::Reset) {
            session.stream_reset(id, &mut out);
        }
        self.obey(out, context);
    }

    /// Closes the session, if there is one to be closed; the connection follows
    /// when the client has answered.
    pub(super) fn close_session(&mut self, code: u16, reason: &'static str) -> bool {
        let Some(session) = &mut self.session else { return false };
        let mut out = Vec::new();
        if !session.close(u32::from(code), reason, &mut out) {
            return false;
        }
        out.into_iter().all(|output| match output {
            Output::Write { stream, bytes, fin } => self.write_whole(stream, &bytes, fin),
            _ => true,
        })
    }

    fn obey(&mut self, out: Vec<Output>, context: &mut Context<'_>) {
        for output in out {
            match output {
                Output::OpenUni(bytes) => {
                    let opened = self.connection.streams().open(Dir::Uni);
                    if !opened.is_some_and(|id| self.write_whole(id, &bytes, false)) {
                        self.end(0, "no room for the control stream", context.now);
                    }
                }
                Output::Write { stream, bytes, fin } => {
                    if !self.write_whole(stream, &bytes, fin) {
                        self.end(0, "no room for an answer", context.now);
                    }
                }
                // Either fails for a stream that is over, which is as well.
                Output::Reset { stream, code } => {
                    let _ = self.connection.send_stream(stream).reset(error_code(code));
                }
                Output::Stop { stream, code } => {
                    let _ = self.connection.recv_stream(stream).stop(error_code(code));
                }
                Output::Accepted => (context.session)("accepted"),
                Output::Refused { code } => (context.session)(code),
                Output::Control(stream) => {
                    self.control = Some(stream);
                    (context.heard)(Heard::Opened);
                }
                Output::Data { bytes, fin } => {
                    if self.said(&bytes, context) && fin {
                        (context.heard)(Heard::Left);
                    }
                }
                Output::Closed { .. } => {
                    (context.heard)(Heard::Left);
                    self.end(0, "", context.now);
                    (context.heard)(Heard::Gone);
                }
                Output::Ended => {
                    self.leaves = Some(context.now + LEAVING);
                    (context.heard)(Heard::Gone);
                }
                Output::Error { code, reason } => {
                    self.end_with(error_code(code), reason, context.now);
                    (context.heard)(Heard::Broke(CloseReason::ProtocolError));
                    (context.heard)(Heard::Gone);
                }
            }
        }
    }

    /// Writes a few bytes, all or the connection is of no use: a client that
    /// leaves no room for them cannot be answered.
    fn write_whole(&mut self, stream: StreamId, bytes: &[u8], fin: bool) -> bool {
        let mut stream = self.connection.send_stream(stream);
        let written = stream.write(bytes).is_ok_and(|written| written == bytes.len());
        written && (!fin || stream.finish().is_ok())
    }
}

fn error_code(code: u64) -> VarInt {
    VarInt::from_u64(code).unwrap_or(VarInt::MAX)
}

/// The last message that went out in datagrams of sessions, with their prefix:
/// a frame goes to one viewer after another, and nearly all sessions have the
/// same prefix.
#[derive(Debug, Default)]
pub struct Prefixed {
    /// The message as it was given, kept so that its place is not another's.
    message: Bytes,
    prefix: Vec<u8>,
    datagram: Bytes,
}

impl Prefixed {
    /// The datagram for a message behind its length.
    pub fn make(&mut self, prefix: &[u8], message: &Bytes) -> Bytes {
        let same = self.message.as_ptr() == message.as_ptr() && self.message.len() == message.len();
        if !same || self.prefix != prefix {
            let payload = stream::payload(message);
            self.datagram = [prefix, &payload].concat().into();
            self.message = message.clone();
            self.prefix = prefix.to_vec();
        }
        self.datagram.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_is_made_once_for_all_sessions_alike() {
        let mut prefixed = Prefixed::default();
        let message = stream::data(b"frame");
        let first = prefixed.make(&[0], &message);
        assert_eq!(first, &b"\0frame"[..]);
        assert_eq!(prefixed.make(&[0], &message).as_ptr(), first.as_ptr());
        assert_eq!(prefixed.make(&[4], &message), &b"\x04frame"[..]);
        assert_eq!(prefixed.make(&[4], &stream::data(b"other")), &b"\x04other"[..]);
    }
}
