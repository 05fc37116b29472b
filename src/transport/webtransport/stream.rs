//! What each of the client's streams is, and what becomes of its bytes.

use bytes::Bytes;
use quinn_proto::{Dir, StreamId, VarInt};

use super::codes::{
    FRAME_CANCEL_PUSH, FRAME_DATA, FRAME_GOAWAY, FRAME_HEADERS, FRAME_MAX_PUSH_ID,
    FRAME_PUSH_PROMISE, FRAME_SETTINGS, Failure, H3_CLOSED_CRITICAL_STREAM, H3_FRAME_ERROR,
    H3_FRAME_UNEXPECTED, H3_ID_ERROR, H3_REQUEST_INCOMPLETE, H3_STREAM_CREATION_ERROR,
    QPACK_DECOMPRESSION_FAILED, SIGNAL_STREAM, STREAM_CONTROL, STREAM_DECODER, STREAM_ENCODER,
    STREAM_PUSH, STREAM_SESSION, WT_BUFFERED_STREAM_REJECTED, WT_SESSION_GONE,
};
use super::connect::Connect;
use super::control::{self, Control};
use super::request::{self, Refusal, Verdict};
use super::varint::{Partial, Piece, Records};
use super::{HELD_BYTES, Output, Phase, Session};

/// What a stream is, as far as it is known, and what was read of it.
#[derive(Debug)]
pub(super) enum State {
    /// Unidirectional; its type is to come.
    Type(Partial),
    Control(Control),
    Encoder,
    Decoder {
        /// A number goes on.
        within: bool,
    },
    /// Bidirectional; the first frame's type, or the signal of a session's
    /// stream, is to come.
    First(Records),
    /// The id of the session is to come.
    Signalled(Partial),
    /// A stream that overtook the CONNECT of its session.
    Held {
        session: StreamId,
        bytes: Vec<u8>,
        fin: bool,
    },
    /// A request; its header section is to come.
    Request(Records),
    /// In the header section.
    Header {
        frames: Records,
        section: Vec<u8>,
    },
    /// The request for a session.
    Connect(Box<Connect>),
    /// The control stream of the session.
    Session,
}

/// What a step leads to: the next state, and whether it can read on at once.
enum Step {
    Go(State),
    Rest(State),
    /// The stream is of no more interest.
    Gone,
}

impl State {
    /// A stream of which nothing was read.
    pub(super) fn new(dir: Dir) -> Self {
        match dir {
            Dir::Uni => State::Type(Partial::default()),
            Dir::Bi => State::First(Records::default()),
        }
    }
}

impl Session {
    /// Reads a stream on; none when it is of no more interest.
    ///
    /// # Errors
    /// What ends the connection.
    pub(super) fn advance(
        &mut self,
        id: StreamId,
        mut state: State,
        bytes: &mut Bytes,
        fin: bool,
        out: &mut Vec<Output>,
    ) -> Result<Option<State>, Failure> {
        loop {
            let step = match state {
                State::Type(number) => self.read_type(id, number, bytes, out)?,
                State::First(frames) => first(frames, bytes),
                State::Signalled(number) => self.read_signal(id, number, bytes, out)?,
                State::Held { session, bytes: held, .. } => {
                    self.hold((id, session), held, (bytes, fin), out)?
                }
                State::Request(frames) => self.read_request(id, frames, bytes, out)?,
                State::Header { frames, section } => {
                    self.read_header(id, frames, section, bytes, out)?
                }
                State::Control(mut control) => match control.read(bytes, &mut self.skipped)? {
                    Some(settings) => {
                        self.seen.settings = true;
                        self.datagrams = settings.datagrams;
                        self.grant(out)?;
                        Step::Go(State::Control(control))
                    }
                    None => Step::Rest(State::Control(control)),
                },
                State::Encoder => {
                    control::read_encoder(bytes, &mut self.skipped)?;
                    Step::Rest(State::Encoder)
                }
                State::Decoder { mut within } => {
                    control::read_decoder(bytes, &mut within, &mut self.skipped)?;
                    Step::Rest(State::Decoder { within })
                }
                State::Connect(mut connect) => match connect.read(bytes, &mut self.skipped)? {
                    Some(close) => {
                        self.closed(close, out);
                        Step::Gone
                    }
                    None => Step::Rest(State::Connect(connect)),
                },
                State::Session => {
                    if self.is_open() && (fin || !bytes.is_empty()) {
                        out.push(Output::Data { bytes: std::mem::take(bytes), fin });
                    }
                    Step::Rest(State::Session)
                }
            };
            match step {
                Step::Go(next) => state = next,
                Step::Rest(next) => return Ok(Some(next)),
                Step::Gone => return Ok(None),
            }
        }
    }

    fn read_type(
        &mut self,
        id: StreamId,
        mut number: Partial,
        bytes: &mut Bytes,
        out: &mut Vec<Output>,
    ) -> Result<Step, Failure> {
        let Some(kind) = number.read(bytes) else { return Ok(Step::Rest(State::Type(number))) };
        let (seen, next) = match kind {
            STREAM_CONTROL => (&mut self.seen.control, State::Control(Control::new())),
            STREAM_ENCODER => (&mut self.seen.encoder, State::Encoder),
            STREAM_DECODER => (&mut self.seen.decoder, State::Decoder { within: false }),
            STREAM_PUSH => {
                return Err(Failure::new(H3_STREAM_CREATION_ERROR, "a client does not push"));
            }
            // Nothing of the protocol comes on one, nor on types not known.
            STREAM_SESSION => {
                self.refuse_stream(id, WT_BUFFERED_STREAM_REJECTED, out)?;
                return Ok(Step::Gone);
            }
            _ => {
                self.refuse_stream(id, H3_STREAM_CREATION_ERROR, out)?;
                return Ok(Step::Gone);
            }
        };
        if std::mem::replace(seen, true) {
            return Err(Failure::new(H3_STREAM_CREATION_ERROR, "such a stream comes once"));
        }
        Ok(Step::Go(next))
    }

    fn read_signal(
        &mut self,
        id: StreamId,
        mut number: Partial,
        bytes: &mut Bytes,
        out: &mut Vec<Output>,
    ) -> Result<Step, Failure> {
        let Some(session) = number.read(bytes) else {
            return Ok(Step::Rest(State::Signalled(number)));
        };
        // A session's id is that of the client's bidirectional stream which
        // opened it.
        let session = match VarInt::from_u64(session) {
            Ok(session) if session.into_inner() % 4 == 0 => StreamId::from(session),
            _ => return Err(Failure::new(H3_ID_ERROR, "not the id of a session")),
        };
        let holds = |stream: &super::Stream| matches!(stream.state, State::Held { .. });
        match self.phase {
            Phase::Open(open) if open == session && !self.seen.session => {
                self.seen.session = true;
                out.push(Output::Control(id));
                Ok(Step::Go(State::Session))
            }
            Phase::Waiting | Phase::Asked(_) if !self.streams.iter().any(holds) => {
                Ok(Step::Go(State::Held { session, bytes: Vec::new(), fin: false }))
            }
            Phase::Closing(_) | Phase::Over => {
                self.refuse_stream(id, WT_SESSION_GONE, out)?;
                Ok(Step::Gone)
            }
            _ => {
                self.refuse_stream(id, WT_BUFFERED_STREAM_REJECTED, out)?;
                Ok(Step::Gone)
            }
        }
    }

    fn hold(
        &mut self,
        (id, session): (StreamId, StreamId),
        mut held: Vec<u8>,
        (bytes, fin): (&mut Bytes, bool),
        out: &mut Vec<Output>,
    ) -> Result<Step, Failure> {
        if held.len() + bytes.len() > HELD_BYTES {
            self.refuse_stream(id, WT_BUFFERED_STREAM_REJECTED, out)?;
            return Ok(Step::Gone);
        }
        held.extend_from_slice(&std::mem::take(bytes));
        Ok(Step::Rest(State::Held { session, bytes: held, fin }))
    }

    fn read_request(
        &mut self,
        id: StreamId,
        mut frames: Records,
        bytes: &mut Bytes,
        out: &mut Vec<Output>,
    ) -> Result<Step, Failure> {
        while let Some(piece) = frames.read(bytes) {
            let Piece::Head { kind, length } = piece else { continue };
            match kind {
                // One session per connection, and one header section at a time.
                FRAME_HEADERS if self.phase != Phase::Waiting || self.reads_header() => {
                    self.refuse(id, Refusal::Busy, out)?;
                    return Ok(Step::Gone);
                }
                FRAME_HEADERS if length as usize > self.rules.max_header => {
                    self.refuse(id, Refusal::TooLarge, out)?;
                    return Ok(Step::Gone);
                }
                FRAME_HEADERS => {
                    return Ok(Step::Go(State::Header { frames, section: Vec::new() }));
                }
                FRAME_DATA | FRAME_CANCEL_PUSH | FRAME_SETTINGS | FRAME_PUSH_PROMISE
                | FRAME_GOAWAY | FRAME_MAX_PUSH_ID => {
                    let reason = "a request begins with its header";
                    return Err(Failure::new(H3_FRAME_UNEXPECTED, reason));
                }
                _ => control::foreign(kind, length, &mut self.skipped)?,
            }
        }
        Ok(Step::Rest(State::Request(frames)))
    }

    fn reads_header(&self) -> bool {
        self.streams.iter().any(|stream| matches!(stream.state, State::Header { .. }))
    }

    fn read_header(
        &mut self,
        id: StreamId,
        mut frames: Records,
        mut section: Vec<u8>,
        bytes: &mut Bytes,
        out: &mut Vec<Output>,
    ) -> Result<Step, Failure> {
        let last = match frames.read(bytes) {
            Some(Piece::Part { bytes, last }) => {
                section.extend_from_slice(&bytes);
                last
            }
            _ => false,
        };
        if !last {
            return Ok(Step::Rest(State::Header { frames, section }));
        }
        // Another request may have been granted in the meantime.
        let verdict = match self.phase {
            Phase::Waiting => request::judge(&section, &self.rules),
            _ => Verdict::Refuse(Refusal::Busy),
        };
        match verdict {
            Verdict::Accept => {
                self.phase = Phase::Asked(id);
                self.grant(out)?;
                return Ok(Step::Go(State::Connect(Box::new(Connect::after(frames)))));
            }
            Verdict::Refuse(refusal) => self.refuse(id, refusal, out)?,
            Verdict::Unreadable => {
                let reason = "a header section that cannot be read";
                return Err(Failure::new(QPACK_DECOMPRESSION_FAILED, reason));
            }
        }
        Ok(Step::Gone)
    }

    /// A stream has ended in this state.
    ///
    /// # Errors
    /// What ends the connection.
    pub(super) fn ended(
        &mut self,
        id: StreamId,
        state: State,
        out: &mut Vec<Output>,
    ) -> Result<(), Failure> {
        match state {
            State::Control(_) | State::Encoder | State::Decoder { .. } => {
                let reason = "a stream of the connection was closed";
                return Err(Failure::new(H3_CLOSED_CRITICAL_STREAM, reason));
            }
            State::Header { .. } => {
                return Err(Failure::new(H3_FRAME_ERROR, "a frame is cut short"));
            }
            State::First(frames) | State::Request(frames) => {
                if !frames.is_idle() {
                    return Err(Failure::new(H3_FRAME_ERROR, "a frame is cut short"));
                }
                self.count_refusal()?;
                out.push(Output::Reset { stream: id, code: H3_REQUEST_INCOMPLETE });
            }
            State::Signalled(_) => {
                self.count_refusal()?;
                out.push(Output::Reset { stream: id, code: WT_BUFFERED_STREAM_REJECTED });
            }
            State::Connect(connect) => {
                let close = connect.end()?;
                self.closed(close, out);
            }
            // It is read when its session is there.
            State::Held { .. } => self.streams.push(super::Stream { id, state }),
            // A type need not come (RFC 9114, section 6.2), and what the session
            // said was handed on with its end.
            State::Type(_) | State::Session => {}
        }
        Ok(())
    }
}

/// The first type on a bidirectional stream: of a frame, or the signal that the
/// stream is a session's.
fn first(mut frames: Records, bytes: &mut Bytes) -> Step {
    match frames.kind(bytes) {
        None => Step::Rest(State::First(frames)),
        Some(SIGNAL_STREAM) => Step::Go(State::Signalled(Partial::default())),
        Some(_) => Step::Go(State::Request(frames)),
    }
}
