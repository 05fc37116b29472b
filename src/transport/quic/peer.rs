//! One connection: its streams, what they bring, and what is written to them.

pub mod copies;
#[cfg(test)]
mod tests;
mod web;

use std::collections::VecDeque;
use std::io;
use std::time::Instant;

use bytes::Bytes;
use quinn_proto::{
    Connection, ConnectionError, ConnectionStats, Dir, Event, SendDatagramError, StreamEvent,
    StreamId, VarInt, WriteError,
};
use smallvec::SmallVec;

use self::copies::{Copies, Counts};
use super::settings::Settings;
use crate::shard::carrier_stats::CopyStats;
use crate::shard::outlet::Datagram;
use crate::transport::webtransport::{H3_NO_ERROR, Session};
use crate::wire::close::CloseReason;
use crate::wire::stream::{self, Decoder};

pub use web::Prefixed;

/// What is important goes before the rest of a connection's streams, which have
/// priority 0.
const IMPORTANT_FIRST: i32 = 1;

/// What a connection of HTTP/3 ends with that broke no rule of its own.
const NO_ERROR: VarInt = VarInt::from_u32(H3_NO_ERROR as u32);

/// How a stream of the client ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Finished,
    Reset,
}

/// What a connection has to say to the shard.
#[derive(Debug)]
pub enum Heard {
    /// A viewer begins.
    Opened,
    /// It says something.
    Message(Bytes),
    /// It takes bytes again.
    Writable,
    /// It broke a rule.
    Broke(CloseReason),
    /// It has said all that it will say.
    Left,
    /// The connection is at its end.
    Gone,
}

/// What a connection works with while it is asked.
pub struct Context<'a> {
    /// Limits.
    pub settings: &'a Settings,
    /// The time.
    pub now: Instant,
    /// Takes what there is to say.
    pub heard: &'a mut dyn FnMut(Heard),
    /// Takes the results of requests for WebTransport sessions, as metrics name
    /// them.
    pub session: &'a mut dyn FnMut(&'static str),
    /// Datagrams that came, which mean nothing.
    pub ignored: u64,
}

/// What copies of important events are made with.
pub struct CopyWork<'a> {
    /// When they are made.
    pub rules: &'a copies::Rules,
    /// Puts sessions' prefixes before them.
    pub prefixed: &'a mut Prefixed,
    /// What became of them.
    pub stats: &'a mut CopyStats,
}

/// Messages for the important stream that it did not take yet.
#[derive(Debug, Default)]
struct Waiting {
    messages: VecDeque<Bytes>,
    bytes: usize,
}

/// See the module's documentation.
pub struct Peer {
    /// The protocol's state.
    pub connection: Connection,
    /// Which of the table's successive peers it is.
    pub serial: u32,
    /// Its handshake is not over.
    pub handshaking: bool,
    /// It is among those that have something to send.
    pub dirty: bool,
    /// Since when a message is unfinished.
    pub begun: Option<Instant>,
    control: Option<StreamId>,
    important: Option<StreamId>,
    waiting: Option<Box<Waiting>>,
    decoder: Decoder,
    closing: Option<(u16, &'static str)>,
    /// When the session ends, where it has not, or the connection whose session
    /// is over.
    leaves: Option<Instant>,
    /// How the session is to end then.
    parts: Option<(u16, &'static str)>,
    /// Speaks HTTP/3.
    session: Option<Box<Session>>,
    /// Its path loses packets, or nothing is known of it.
    copies: Option<Box<Copies>>,
    /// Packets lost when it was last found to be a good one.
    known_losses: u32,
}

impl Peer {
    /// A connection whose handshake has begun.
    #[must_use]
    pub fn new(connection: Connection, serial: u32) -> Self {
        Self {
            connection,
            serial,
            handshaking: true,
            dirty: false,
            begun: None,
            control: None,
            important: None,
            waiting: None,
            decoder: Decoder::default(),
            closing: None,
            leaves: None,
            parts: None,
            session: None,
            copies: None,
            known_losses: 0,
        }
    }

    /// Whether it is a WebTransport session.
    #[must_use]
    pub fn is_web(&self) -> bool {
        self.session.is_some()
    }

    /// When it wants [`expire`](Self::expire) to be called. Asked once it has sent
    /// what it had to.
    #[must_use]
    pub fn deadline(&mut self, now: Instant) -> Option<Instant> {
        let of_protocol = self.connection.poll_timeout();
        let of_copies = match &mut self.copies {
            Some(copies) if !copies.is_idle() => {
                let probes = probes(&self.connection.stats());
                copies.review(probes, self.connection.rtt(), now);
                copies.next_due()
            }
            _ => None,
        };
        [of_protocol, self.leaves, of_copies].into_iter().flatten().min()
    }

    /// A deadline has passed.
    pub fn expire(&mut self, now: Instant, work: &mut CopyWork<'_>) {
        self.send_copies(now, work);
        if self.leaves.take_if(|at| *at <= now).is_some() {
            match self.parts.take() {
                Some((code, reason)) if self.close_session(code, reason) => {}
                _ => self.end(0, "", now),
            }
        }
        if self.connection.poll_timeout().is_some_and(|at| at <= now) {
            self.connection.handle_timeout(now);
        }
    }

    /// Asks the protocol what has happened.
    pub fn poll(&mut self, context: &mut Context<'_>) {
        while let Some(event) = self.connection.poll() {
            match event {
                Event::HandshakeDataReady => self.begin_session(context),
                Event::DatagramsUnblocked => {}
                Event::Connected => self.handshaking = false,
                Event::ConnectionLost { reason } => {
                    self.handshaking = false;
                    (context.heard)(match reason {
                        ConnectionError::ApplicationClosed(_) => Heard::Left,
                        _ => Heard::Gone,
                    });
                    (context.heard)(Heard::Gone);
                }
                Event::DatagramReceived => {
                    while self.connection.datagrams().recv().is_some() {
                        context.ignored += 1;
                    }
                }
                Event::Stream(event) => self.streamed(event, context),
            }
        }
    }

    fn streamed(&mut self, event: StreamEvent, context: &mut Context<'_>) {
        match event {
            StreamEvent::Opened { dir } => self.accept(dir, context),
            StreamEvent::Readable { id } if self.session.is_some() => self.read_web(id, context),
            StreamEvent::Readable { id } if self.control == Some(id) => self.read(id, context),
            StreamEvent::Writable { id } if self.control == Some(id) => {
                (context.heard)(Heard::Writable);
            }
            StreamEvent::Writable { id } if self.important == Some(id) => {
                self.write_waiting(context.settings);
            }
            StreamEvent::Available { dir: Dir::Uni } => self.write_waiting(context.settings),
            StreamEvent::Finished { id } if self.control == Some(id) => {
                if self.session.is_some() {
                    // What is acknowledged is not yet read by the page, and a
                    // browser throws it away with the session.
                    self.parts = self.closing;
                    self.leaves = Some(context.now + web::LEAVING);
                } else if let Some((code, reason)) = self.closing {
                    self.end(code, reason, context.now);
                    (context.heard)(Heard::Gone);
                }
            }
            StreamEvent::Stopped { id, .. } if self.control == Some(id) => {
                (context.heard)(Heard::Left);
            }
            StreamEvent::Stopped { id, .. } if self.important == Some(id) => {
                (context.heard)(Heard::Broke(CloseReason::ProtocolError));
            }
            _ => {}
        }
    }

    fn accept(&mut self, dir: Dir, context: &mut Context<'_>) {
        while let Some(id) = self.connection.streams().accept(dir) {
            if self.session.is_some() {
                self.read_web(id, context);
            } else if dir == Dir::Bi && self.control.is_none() {
                self.control = Some(id);
                (context.heard)(Heard::Opened);
                self.read(id, context);
            } else {
                (context.heard)(Heard::Broke(CloseReason::ProtocolError));
            }
        }
    }

    fn read(&mut self, id: StreamId, context: &mut Context<'_>) {
        let (chunks, end) = self.take_chunks(id);
        for chunk in chunks {
            if !self.said(&chunk, context) {
                return;
            }
        }
        if end.is_some() {
            (context.heard)(Heard::Left);
        }
    }

    /// Everything that a stream has brought, and its end, once it is there.
    fn take_chunks(&mut self, id: StreamId) -> (SmallVec<[Bytes; 4]>, Option<End>) {
        let mut stream = self.connection.recv_stream(id);
        let mut taken = SmallVec::new();
        let Ok(mut chunks) = stream.read(true) else { return (taken, None) };
        let end = loop {
            match chunks.next(usize::MAX) {
                Ok(Some(chunk)) => taken.push(chunk.bytes),
                Ok(None) => break Some(End::Finished),
                Err(quinn_proto::ReadError::Blocked) => break None,
                Err(quinn_proto::ReadError::Reset(_)) => break Some(End::Reset),
            }
        };
        // Credit for what was read goes out when the connection has been asked.
        let _ = chunks.finalize();
        (taken, end)
    }

    /// Bytes of the viewer's messages. Returns whether it may go on.
    fn said(&mut self, bytes: &[u8], context: &mut Context<'_>) -> bool {
        let mut whole = false;
        let fed = self.decoder.feed(bytes, context.settings.max_message, &mut |message| {
            whole = true;
            (context.heard)(Heard::Message(Bytes::copy_from_slice(message)));
            true
        });
        if self.decoder.is_idle() {
            self.begun = None;
        } else if whole || self.begun.is_none() {
            self.begun = Some(context.now);
        }
        if fed.is_err() {
            (context.heard)(Heard::Broke(CloseReason::MessageTooLarge));
        }
        fed.is_ok()
    }

    /// Bytes for the control stream. See
    /// [`Carrier::write`](crate::shard::outlet::Carrier::write).
    ///
    /// # Errors
    /// `WouldBlock`, or the stream's end.
    pub fn write(&mut self, bytes: &Bytes) -> io::Result<usize> {
        let Some(control) = self.control else { return Err(io::ErrorKind::NotConnected.into()) };
        match self.connection.send_stream(control).write_chunks(&mut [bytes.clone()]) {
            Ok(written) => Ok(written.bytes),
            Err(WriteError::Blocked) => Err(io::ErrorKind::WouldBlock.into()),
            Err(WriteError::Stopped(_) | WriteError::ClosedStream) => {
                Err(io::ErrorKind::BrokenPipe.into())
            }
        }
    }

    /// A message for the important stream. What it does not take waits.
    ///
    /// # Errors
    /// When more waits than may.
    pub fn write_important(&mut self, message: &Bytes, settings: &Settings) -> io::Result<()> {
        let mut message = message.clone();
        self.beyond_window(settings);
        if let (None, Some(important)) = (&self.waiting, self.important) {
            // The common case: it takes all.
            let mut stream = self.connection.send_stream(important);
            let taken = stream.write_chunks(&mut [message.clone()]).map_or(0, |w| w.bytes);
            if taken == message.len() {
                self.connection.set_send_window(settings.send_window);
                return Ok(());
            }
            message = message.slice(taken..);
        }
        let waiting = self.waiting.get_or_insert_default();
        if waiting.bytes + message.len() > settings.important_bytes {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        waiting.bytes += message.len();
        waiting.messages.push_back(message);
        self.write_waiting(settings);
        Ok(())
    }

    /// A message that went to the important stream goes out once more, where its
    /// path loses packets ([`copies`]).
    pub fn copy(
        &mut self,
        message: &Bytes,
        settings: &Settings,
        now: impl FnOnce() -> Instant,
        stats: &mut CopyStats,
    ) {
        let rules = &settings.copies;
        if rules.bytes_per_second == 0 || self.connection.min_rtt() < rules.min_rtt {
            self.copies = None;
            return;
        }
        let told = self.connection.stats();
        let (sent, lost) = (told.path.sent_packets, told.path.lost_packets);
        let counts = Counts { sent, lost, probes: probes(&told) };
        let suspicious = self.copies.is_some() || copies::suspicious(counts, self.known_losses);
        if !suspicious {
            return;
        }
        let now = now();
        let begin = || Box::new(Copies::begin(counts, self.known_losses, rules, now));
        let copies = self.copies.get_or_insert_with(begin);
        if !copies.observe(counts, rules) {
            self.copies = None;
            self.known_losses = lost as u32;
        } else if self.waiting.is_some() {
            // More would only make it worse.
            stats.congested += 1;
        } else {
            copies.keep(message, rules, now);
        }
    }

    fn send_copies(&mut self, now: Instant, work: &mut CopyWork<'_>) {
        let CopyWork { rules, prefixed, stats } = work;
        let Some(copies) = &mut self.copies else { return };
        while let Some(message) = copies.take_due(now) {
            let payload = payload(self.session.as_deref(), &message, prefixed);
            let mut datagrams = self.connection.datagrams();
            let (Some(payload), Some(most)) = (payload, datagrams.max_size()) else {
                stats.unsupported += 1;
                continue;
            };
            if payload.len() > most {
                stats.too_large += 1;
            } else if datagrams.send_buffer_space() < payload.len() {
                stats.congested += 1;
            } else if !copies.afford(payload.len(), rules, now) {
                stats.budget += 1;
            } else if datagrams.send(payload, false).is_ok() {
                stats.sent += 1;
            } else {
                stats.unsupported += 1;
            }
        }
    }

    /// What is important does not wait for the rest to be acknowledged: it has
    /// room of its own behind the window that the rest can fill.
    fn beyond_window(&mut self, settings: &Settings) {
        let room = settings.send_window.saturating_add(settings.important_bytes as u64);
        self.connection.set_send_window(room);
    }

    fn write_waiting(&mut self, settings: &Settings) {
        self.beyond_window(settings);
        self.take_waiting();
        self.connection.set_send_window(settings.send_window);
    }

    fn take_waiting(&mut self) {
        let Some(waiting) = &mut self.waiting else { return };
        let important = match self.important {
            Some(important) => important,
            // Without credit for a stream, `Available` tells when there is some.
            None => match self.connection.streams().open(Dir::Uni) {
                Some(opened) => {
                    if let Some(session) = &self.session {
                        let header = Bytes::from(session.uni_header());
                        waiting.bytes += header.len();
                        waiting.messages.push_front(header);
                    }
                    // Fails for a stream that has ended, and so does the write.
                    let _ = self.connection.send_stream(opened).set_priority(IMPORTANT_FIRST);
                    *self.important.insert(opened)
                }
                None => return,
            },
        };
        let mut stream = self.connection.send_stream(important);
        while let Some(front) = waiting.messages.front_mut() {
            let Ok(written) = stream.write_chunks(&mut [front.clone()]) else { return };
            waiting.bytes -= written.bytes;
            if written.bytes < front.len() {
                *front = front.slice(written.bytes..);
                return;
            }
            waiting.messages.pop_front();
        }
        self.waiting = None;
    }

    /// A message that may be lost.
    pub fn datagram(&mut self, message: &Bytes, prefixed: &mut Prefixed) -> Datagram {
        let Some(payload) = payload(self.session.as_deref(), message, prefixed) else {
            return Datagram::Unfit;
        };
        let mut datagrams = self.connection.datagrams();
        let tight = datagrams.send_buffer_space() < payload.len();
        match datagrams.send(payload, true) {
            Ok(()) if tight => Datagram::Displaced,
            Ok(()) => Datagram::Taken,
            Err(
                SendDatagramError::UnsupportedByPeer
                | SendDatagramError::Disabled
                | SendDatagramError::TooLarge
                | SendDatagramError::Blocked(_),
            ) => Datagram::Unfit,
        }
    }

    /// Ends the connection once what was written is acknowledged.
    pub fn close(&mut self, code: u16, reason: &'static str, now: Instant) {
        self.closing = Some((code, reason));
        let begun = match self.control {
            Some(control) => self.connection.send_stream(control).finish().is_ok(),
            None => self.close_session(code, reason),
        };
        if !begun {
            self.end(code, reason, now);
        }
    }

    /// Whether [`close`](Self::close) was called.
    #[must_use]
    pub fn is_closing(&self) -> bool {
        self.closing.is_some()
    }

    /// Ends the connection at once. Over HTTP/3 a code of ours has its place in
    /// the session's end, not in the connection's.
    pub fn end(&mut self, code: u16, reason: &'static str, now: Instant) {
        let code = VarInt::from_u32(u32::from(code));
        self.end_with(if self.session.is_some() { NO_ERROR } else { code }, reason, now);
    }

    fn end_with(&mut self, code: VarInt, reason: &'static str, now: Instant) {
        if !self.connection.is_closed() {
            self.connection.close(now, code, Bytes::from_static(reason.as_bytes()));
        }
    }

    /// Its row is free. Ends the connection, if nothing else has.
    pub fn release(&mut self, now: Instant) {
        self.waiting = None;
        self.copies = None;
        if self.leaves.is_none() {
            let (code, reason) = self.closing.unwrap_or((1000, ""));
            self.end(code, reason, now);
        }
    }
}

/// Probes that were sent for want of an acknowledgement: nothing else sends these
/// frames.
fn probes(stats: &ConnectionStats) -> u64 {
    stats.frame_tx.ping + stats.frame_tx.immediate_ack
}

/// What a datagram of a message holds; `None`: the viewer takes none.
fn payload(session: Option<&Session>, message: &Bytes, prefixed: &mut Prefixed) -> Option<Bytes> {
    match session {
        None => Some(stream::payload(message)),
        Some(session) if session.takes_datagrams() => {
            Some(prefixed.make(&session.datagram_prefix(), message))
        }
        Some(_) => None,
    }
}
