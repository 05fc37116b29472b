//! WebTransport over HTTP/3, server side, without I/O: one [`Session`] per QUIC
//! connection with ALPN `h3`.
//!
//! A browser that wants a session opens the three streams of HTTP/3, sends its
//! SETTINGS (RFC 9114) and an extended CONNECT (RFC 9220) to one path. Its
//! answer is a status. From there on the session has the same three as raw
//! QUIC: the client's first bidirectional stream is the control stream, the
//! server's unidirectional stream carries what is important, and datagrams what
//! is sampled (RFC 9297). Either side closes with a capsule on the stream of the
//! CONNECT. The drafts of WebTransport differ in the settings that announce it,
//! not in this; `settings.rs` says which are spoken.
//!
//! Contract: the driver gives what it reads to [`Session::stream_bytes`], each
//! stream's bytes in order, until the stream's end or an [`Output::Stop`] for it;
//! resets to [`Session::stream_reset`]; and does what the outputs say, in their
//! order. Nothing here knows the time: a driver closes a connection whose session
//! has not been accepted by its deadline, or that does not answer a close.
//!
//! Everything a client can make this hold is bounded: one header section by the
//! rules, until it is judged; one early stream by [`HELD_BYTES`]; the reason of a
//! close by the protocol; streams by [`MAX_STREAMS`]. Bytes that mean nothing
//! here are skipped, not kept, and no more than 64 KiB of them per connection.
//! What a session holds once it is accepted is a few hundred bytes.

mod codes;
mod connect;
mod control;
mod huffman;
mod qpack;
mod request;
mod settings;
mod static_table;
mod stream;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod varint;

use std::sync::Arc;

use bytes::Bytes;
use quinn_proto::{Dir, Side, StreamId};

pub use codes::H3_NO_ERROR;

use codes::{
    FRAME_HEADERS, Failure, H3_CLOSED_CRITICAL_STREAM, H3_EXCESSIVE_LOAD, H3_REQUEST_CANCELLED,
    STREAM_SESSION, WT_BUFFERED_STREAM_REJECTED,
};
use connect::Close;
use control::Skipped;
use request::Refusal;
use stream::State;

/// Streams of the client that are open at the same time; beyond them the
/// connection ends. A browser has up to five: control, two of QPACK, the
/// CONNECT and the control stream of its session.
pub const MAX_STREAMS: usize = 16;

/// Streams that are refused per connection, before it ends.
const MAX_REFUSED: u16 = 64;

/// What is kept of a stream that overtook the CONNECT of its session, in bytes:
/// enough for a `join` with its token. Chromium waits for the answer.
pub const HELD_BYTES: usize = 4_096;

/// What may connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// See [`origin::allowed`](super::origin::allowed).
    pub origins: Vec<String>,
    /// Where sessions are opened.
    pub path: String,
    /// Largest header section of a request in bytes, as it is sent and as
    /// RFC 9114, section 4.2.2, counts it.
    pub max_header: usize,
}

/// What the driver is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Open a unidirectional stream, write this and keep it open.
    OpenUni(Vec<u8>),
    /// Write to a stream, and end it where `fin`.
    Write {
        /// One that the client opened.
        stream: StreamId,
        /// All of it.
        bytes: Vec<u8>,
        /// Nothing follows.
        fin: bool,
    },
    /// Reset what we send on a stream.
    Reset {
        /// One that the client opened.
        stream: StreamId,
        /// Of HTTP/3 or WebTransport.
        code: u64,
    },
    /// Ask the client to send no more on a stream, and read no more of it.
    Stop {
        /// One that the client opened.
        stream: StreamId,
        /// Of HTTP/3 or WebTransport.
        code: u64,
    },
    /// The session is open; the answer that says so is the write before. Comes
    /// once at most.
    Accepted,
    /// A request was refused; the connection may still ask again.
    Refused {
        /// A result of a handshake, as metrics name it.
        code: &'static str,
    },
    /// This is the control stream; what is written to it needs no header. Comes
    /// once at most, after [`Output::Accepted`].
    Control(StreamId),
    /// What the client says on its control stream.
    Data {
        /// Perhaps none.
        bytes: Bytes,
        /// It says nothing more.
        fin: bool,
    },
    /// The client closed its session: close the connection. Nothing follows.
    Closed {
        /// Of the application; 0 where it gave none.
        code: u32,
        /// UTF-8 of at most 1,024 bytes before replacement of what is not.
        reason: String,
    },
    /// The client has seen our close: close the connection. Nothing follows.
    Ended,
    /// The client broke the protocol: close the connection with this. Nothing
    /// follows.
    Error {
        /// Of HTTP/3 or QPACK.
        code: u64,
        /// For logs and for the client.
        reason: &'static str,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nobody has asked for a session.
    Waiting,
    /// A request for a session may be granted when the SETTINGS are there
    /// (draft-ietf-webtrans-http3, section 3.1).
    Asked(StreamId),
    Open(StreamId),
    /// We have closed the session of this stream.
    Closing(StreamId),
    /// Nothing more is to be done but closing the connection.
    Over,
}

#[derive(Debug)]
struct Stream {
    id: StreamId,
    state: State,
}

/// Which streams have come that may come once.
#[derive(Debug, Default, Clone, Copy)]
struct Seen {
    control: bool,
    encoder: bool,
    decoder: bool,
    /// The SETTINGS are complete.
    settings: bool,
    /// The session has its control stream.
    session: bool,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Session {
    rules: Arc<Rules>,
    phase: Phase,
    streams: Vec<Stream>,
    seen: Seen,
    datagrams: bool,
    skipped: Skipped,
    refused: u16,
}

impl Session {
    /// A connection whose TLS handshake is complete.
    pub fn new(rules: Arc<Rules>, out: &mut Vec<Output>) -> Self {
        // Neither of the QPACK streams: without a dynamic table there is nothing
        // to be said on them (RFC 9204, section 4.2).
        out.push(Output::OpenUni(settings::control_stream(rules.max_header)));
        Session {
            rules,
            phase: Phase::Waiting,
            streams: Vec::new(),
            seen: Seen::default(),
            datagrams: false,
            skipped: Skipped::new(),
            refused: 0,
        }
    }

    /// Takes what was read from one of the client's streams; `fin`: its end.
    pub fn stream_bytes(
        &mut self,
        id: StreamId,
        mut bytes: Bytes,
        fin: bool,
        out: &mut Vec<Output>,
    ) {
        if self.phase == Phase::Over || id.initiator() != Side::Client {
            return;
        }
        let stream = match self.streams.iter().position(|stream| stream.id == id) {
            Some(at) => self.streams.swap_remove(at),
            None if self.streams.len() == MAX_STREAMS => {
                return self.fail(Failure::new(H3_EXCESSIVE_LOAD, "too many streams"), out);
            }
            None => Stream { id, state: State::new(id.dir()) },
        };
        let state = stream.state;
        match self.advance(id, state, &mut bytes, fin, out) {
            Ok(Some(state)) if !fin => self.streams.push(Stream { id, state }),
            Ok(Some(state)) => {
                if let Err(failure) = self.ended(id, state, out) {
                    self.fail(failure, out);
                }
            }
            Ok(None) => {}
            Err(failure) => self.fail(failure, out),
        }
    }

    /// The client reset one of its streams.
    pub fn stream_reset(&mut self, id: StreamId, out: &mut Vec<Output>) {
        let Some(at) = self.streams.iter().position(|stream| stream.id == id) else { return };
        let stream = self.streams.swap_remove(at);
        match stream.state {
            State::Control(_) | State::Encoder | State::Decoder { .. } => {
                let reason = "a stream of the connection was reset";
                self.fail(Failure::new(H3_CLOSED_CRITICAL_STREAM, reason), out);
            }
            State::Connect(_) => self.closed(Close { code: 0, reason: String::new() }, out),
            State::Session if self.is_open() => {
                out.push(Output::Data { bytes: Bytes::new(), fin: true });
            }
            // Nothing was answered, so nothing else ends our side of it.
            _ if id.dir() == Dir::Bi => {
                out.push(Output::Reset { stream: id, code: H3_REQUEST_CANCELLED });
            }
            _ => {}
        }
    }

    /// What the stream of important events begins with. Empty while there is no
    /// session.
    #[must_use]
    pub fn uni_header(&self) -> Vec<u8> {
        let mut header = Vec::new();
        if let Phase::Open(session) = self.phase {
            varint::put(&mut header, STREAM_SESSION);
            varint::put(&mut header, u64::from(session));
        }
        header
    }

    /// What a datagram of the session begins with (RFC 9297, section 2.1): for a
    /// CONNECT that is the connection's first request, as it is from browsers,
    /// one byte, 0. Empty while there is no session.
    #[must_use]
    pub fn datagram_prefix(&self) -> Vec<u8> {
        let mut prefix = Vec::new();
        if let Phase::Open(session) = self.phase {
            varint::put(&mut prefix, u64::from(session) / 4);
        }
        prefix
    }

    /// Whether the client said that it takes datagrams of HTTP/3.
    #[must_use]
    pub fn takes_datagrams(&self) -> bool {
        self.datagrams
    }

    /// Whether there is a session, neither of us having closed it.
    #[must_use]
    pub fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Open(_))
    }

    /// Closes the session: the client answers by ending its stream, of which
    /// [`Output::Ended`] tells. A connection that is closed before, or by too
    /// short a wait, looks broken to the page and gives it no code (tried with
    /// Chromium 156). Returns whether there is a session to be closed; if not,
    /// the connection can be closed at once.
    pub fn close(&mut self, code: u32, reason: &str, out: &mut Vec<Output>) -> bool {
        let Phase::Open(session) = self.phase else { return false };
        let bytes = connect::close_frame(code, reason);
        out.push(Output::Write { stream: session, bytes, fin: true });
        self.phase = Phase::Closing(session);
        true
    }

    /// The client closed the session, or answered our close.
    fn closed(&mut self, close: Close, out: &mut Vec<Output>) {
        let output = match self.phase {
            Phase::Closing(_) => Output::Ended,
            _ => Output::Closed { code: close.code, reason: close.reason },
        };
        out.push(output);
        self.over();
    }

    fn fail(&mut self, failure: Failure, out: &mut Vec<Output>) {
        out.push(Output::Error { code: failure.code, reason: failure.reason });
        self.over();
    }

    fn over(&mut self) {
        self.phase = Phase::Over;
        self.streams = Vec::new();
    }

    /// Grants the request that waits, once the SETTINGS are there.
    ///
    /// # Errors
    /// A stream that waited for another session was one too many.
    fn grant(&mut self, out: &mut Vec<Output>) -> Result<(), Failure> {
        let session = match self.phase {
            Phase::Asked(session) if self.seen.settings => session,
            _ => return Ok(()),
        };
        self.phase = Phase::Open(session);
        // The field is what clients of draft 02 look for.
        let section = qpack::response(200, Some(("sec-webtransport-http3-draft", "draft02")));
        let bytes = connect::frame(FRAME_HEADERS, &section);
        out.push(Output::Write { stream: session, bytes, fin: false });
        out.push(Output::Accepted);
        self.release(session, out)
    }

    /// The stream that overtook its session, now that there is one.
    fn release(&mut self, session: StreamId, out: &mut Vec<Output>) -> Result<(), Failure> {
        let held = |stream: &Stream| matches!(stream.state, State::Held { .. });
        let Some(at) = self.streams.iter().position(held) else { return Ok(()) };
        let stream = self.streams.swap_remove(at);
        let State::Held { session: wanted, bytes, fin } = stream.state else { return Ok(()) };
        if wanted != session {
            return self.refuse_stream(stream.id, WT_BUFFERED_STREAM_REJECTED, out);
        }
        self.seen.session = true;
        out.push(Output::Control(stream.id));
        out.push(Output::Data { bytes: bytes.into(), fin });
        if !fin {
            self.streams.push(Stream { id: stream.id, state: State::Session });
        }
        Ok(())
    }

    /// Answers a request with a refusal.
    fn refuse(
        &mut self,
        id: StreamId,
        refusal: Refusal,
        out: &mut Vec<Output>,
    ) -> Result<(), Failure> {
        self.count_refusal()?;
        let field = match refusal {
            Refusal::NotConnect => Some(("allow", "CONNECT")),
            _ => None,
        };
        let section = qpack::response(refusal.status(), field);
        let bytes = connect::frame(FRAME_HEADERS, &section);
        out.push(Output::Write { stream: id, bytes, fin: true });
        out.push(Output::Stop { stream: id, code: refusal.error() });
        out.push(Output::Refused { code: refusal.code() });
        Ok(())
    }

    /// Turns a stream away.
    fn refuse_stream(
        &mut self,
        id: StreamId,
        code: u64,
        out: &mut Vec<Output>,
    ) -> Result<(), Failure> {
        self.count_refusal()?;
        if id.dir() == Dir::Bi {
            out.push(Output::Reset { stream: id, code });
        }
        out.push(Output::Stop { stream: id, code });
        Ok(())
    }

    fn count_refusal(&mut self) -> Result<(), Failure> {
        self.refused += 1;
        if self.refused > MAX_REFUSED {
            return Err(Failure::new(H3_EXCESSIVE_LOAD, "too many refused streams"));
        }
        Ok(())
    }
}
