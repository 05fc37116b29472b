//! One connection: its streams, what they bring, and what is written to them.

use std::collections::VecDeque;
use std::io;
use std::time::Instant;

use bytes::Bytes;
use quinn_proto::{
    Connection, ConnectionError, Dir, Event, SendDatagramError, StreamEvent, StreamId, VarInt,
    WriteError,
};

use super::settings::Settings;
use super::timers::Entries;
use crate::shard::connection::ViewerKey;
use crate::shard::outlet::Datagram;
use crate::wire::close::CloseReason;
use crate::wire::stream::{self, Decoder};

/// What is important goes before the rest of a connection's streams, which have
/// priority 0.
const IMPORTANT_FIRST: i32 = 1;

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
    /// Its row, once there is one.
    pub viewer: Option<ViewerKey>,
    /// Which of the table's successive peers it is.
    pub serial: u32,
    /// Its handshake is not over.
    pub handshaking: bool,
    /// It is among those that have something to send.
    pub dirty: bool,
    /// Its deadlines.
    pub entries: Entries,
    /// Since when a message is unfinished.
    pub begun: Option<Instant>,
    control: Option<StreamId>,
    important: Option<StreamId>,
    waiting: Option<Box<Waiting>>,
    decoder: Decoder,
    closing: Option<(u16, &'static str)>,
}

impl Peer {
    /// A connection whose handshake has begun.
    #[must_use]
    pub fn new(connection: Connection, serial: u32) -> Self {
        Self {
            connection,
            viewer: None,
            serial,
            handshaking: true,
            dirty: false,
            entries: Entries::default(),
            begun: None,
            control: None,
            important: None,
            waiting: None,
            decoder: Decoder::default(),
            closing: None,
        }
    }

    /// Asks the protocol what has happened.
    pub fn poll(&mut self, settings: &Settings, now: Instant, heard: &mut dyn FnMut(Heard)) {
        while let Some(event) = self.connection.poll() {
            match event {
                Event::HandshakeDataReady | Event::DatagramsUnblocked => {}
                Event::Connected => self.handshaking = false,
                Event::ConnectionLost { reason } => {
                    self.handshaking = false;
                    heard(match reason {
                        ConnectionError::ApplicationClosed(_) => Heard::Left,
                        _ => Heard::Gone,
                    });
                    heard(Heard::Gone);
                }
                Event::DatagramReceived => while self.connection.datagrams().recv().is_some() {},
                Event::Stream(event) => self.streamed(event, settings, now, heard),
            }
        }
    }

    fn streamed(
        &mut self,
        event: StreamEvent,
        settings: &Settings,
        now: Instant,
        heard: &mut dyn FnMut(Heard),
    ) {
        match event {
            StreamEvent::Opened { dir } => self.accept(dir, settings, now, heard),
            StreamEvent::Readable { id } if self.control == Some(id) => {
                self.read(id, settings, now, heard);
            }
            StreamEvent::Writable { id } if self.control == Some(id) => heard(Heard::Writable),
            StreamEvent::Writable { id } if self.important == Some(id) => self.write_waiting(),
            StreamEvent::Available { dir: Dir::Uni } => self.write_waiting(),
            StreamEvent::Finished { id } if self.control == Some(id) => {
                if let Some((code, reason)) = self.closing {
                    self.end(code, reason, now);
                    heard(Heard::Gone);
                }
            }
            StreamEvent::Stopped { id, .. } if self.control == Some(id) => heard(Heard::Left),
            StreamEvent::Stopped { id, .. } if self.important == Some(id) => {
                heard(Heard::Broke(CloseReason::ProtocolError));
            }
            _ => {}
        }
    }

    fn accept(
        &mut self,
        dir: Dir,
        settings: &Settings,
        now: Instant,
        heard: &mut dyn FnMut(Heard),
    ) {
        while let Some(id) = self.connection.streams().accept(dir) {
            if dir == Dir::Bi && self.control.is_none() {
                self.control = Some(id);
                heard(Heard::Opened);
                self.read(id, settings, now, heard);
            } else {
                heard(Heard::Broke(CloseReason::ProtocolError));
            }
        }
    }

    fn read(
        &mut self,
        id: StreamId,
        settings: &Settings,
        now: Instant,
        heard: &mut dyn FnMut(Heard),
    ) {
        let mut stream = self.connection.recv_stream(id);
        let Ok(mut chunks) = stream.read(true) else { return };
        let mut whole = false;
        let ended = loop {
            match chunks.next(usize::MAX) {
                Ok(Some(chunk)) => {
                    let fed =
                        self.decoder.feed(&chunk.bytes, settings.max_message, &mut |message| {
                            whole = true;
                            heard(Heard::Message(Bytes::copy_from_slice(message)));
                            true
                        });
                    if fed.is_err() {
                        heard(Heard::Broke(CloseReason::MessageTooLarge));
                        break false;
                    }
                }
                Ok(None) => break true,
                Err(quinn_proto::ReadError::Blocked) => break false,
                Err(quinn_proto::ReadError::Reset(_)) => break true,
            }
        };
        // Credit for what was read goes out when the connection has been asked.
        let _ = chunks.finalize();
        if ended {
            heard(Heard::Left);
        }
        if self.decoder.is_idle() {
            self.begun = None;
        } else if whole || self.begun.is_none() {
            self.begun = Some(now);
        }
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
    pub fn write_important(&mut self, message: &Bytes, most: usize) -> io::Result<()> {
        let waiting = self.waiting.get_or_insert_default();
        if waiting.bytes + message.len() > most {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        waiting.bytes += message.len();
        waiting.messages.push_back(message.clone());
        self.write_waiting();
        Ok(())
    }

    fn write_waiting(&mut self) {
        let Some(waiting) = &mut self.waiting else { return };
        let important = match self.important {
            Some(important) => important,
            // Without credit for a stream, `Available` tells when there is some.
            None => match self.connection.streams().open(Dir::Uni) {
                Some(opened) => *self.important.insert(opened),
                None => return,
            },
        };
        let mut stream = self.connection.send_stream(important);
        // Fails for a stream that has ended, and so does the write below.
        let _ = stream.set_priority(IMPORTANT_FIRST);
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
    pub fn datagram(&mut self, message: &Bytes) -> Datagram {
        let payload = stream::payload(message);
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
        let finished = self
            .control
            .is_some_and(|control| self.connection.send_stream(control).finish().is_ok());
        if !finished {
            self.end(code, reason, now);
        }
    }

    /// Ends the connection at once.
    pub fn end(&mut self, code: u16, reason: &'static str, now: Instant) {
        if !self.connection.is_closed() {
            let reason = Bytes::from_static(reason.as_bytes());
            self.connection.close(now, VarInt::from_u32(u32::from(code)), reason);
        }
    }

    /// Its row is free. Ends the connection, if nothing else has.
    pub fn release(&mut self, now: Instant) {
        self.viewer = None;
        self.waiting = None;
        let (code, reason) = self.closing.unwrap_or((1000, ""));
        self.end(code, reason, now);
    }
}
