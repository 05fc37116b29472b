//! The connections of a worker's QUIC viewers, without sockets and without a
//! clock: datagrams and time go in, datagrams come out.
//!
//! The calling contract: [`Clients::connect`], [`Clients::datagram`],
//! [`Clients::expire`] and [`Clients::say`] only note what there is to do;
//! [`Clients::drive`] does it, tells the [`Watcher`], and hands out what is to
//! be sent. So a connection that gets several datagrams in a batch is worked
//! through once. [`Clients::next_timeout`] says when [`Clients::expire`] is
//! due.
//!
//! Timers stand in one heap. One that was put off is left where it is and is
//! looked at again when it comes up, for nearly every datagram puts one off:
//! moving it each time would cost a search.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, bail};
use bytes::{Bytes, BytesMut};
use quinn_proto::{
    ClientConfig, Connection, ConnectionError, ConnectionHandle, DatagramEvent, Dir, EcnCodepoint,
    Endpoint, EndpointConfig, Event, ReadError, StreamEvent, StreamId, VarInt,
};

use super::inbox::{Inbox, framed};
use super::web::{self, News, Session};
use super::{Lane, Reply, Watcher};
use crate::trust;

/// What a client says when it hangs up because of the server.
const MISTAKE: u32 = 1;

/// Takes datagrams that are to be sent.
pub(crate) trait Outbox {
    /// One, from this socket to the server.
    fn push(&mut self, socket: u32, datagram: &[u8]);
}

/// The connections.
pub(crate) struct Clients {
    config: ClientConfig,
    remote: SocketAddr,
    endpoints: Vec<Socket>,
    viewers: Vec<Option<Box<Slot>>>,
    timers: BinaryHeap<Reverse<(Instant, u32)>>,
    dirty: Vec<u32>,
    /// Answers of an endpoint that belong to no connection: stateless resets.
    strays: Vec<(u32, Vec<u8>)>,
    scratch: Vec<u8>,
    replies: Vec<Reply>,
    lost: u64,
    /// Viewers are WebTransport sessions.
    sessions: bool,
}

/// One UDP socket's worth of connections.
struct Socket {
    endpoint: Endpoint,
    /// Viewer by connection handle.
    owners: Vec<u32>,
}

struct Slot {
    connection: Connection,
    handle: ConnectionHandle,
    socket: u32,
    /// In the list of connections to work through.
    dirty: bool,
    /// Its streams are to be read though nothing new came.
    unread: bool,
    /// The entry in the heap that counts.
    armed: Option<Instant>,
    control: Option<(StreamId, Inbox)>,
    important: Option<(StreamId, Inbox)>,
    kind: Kind,
}

/// What a connection carries.
enum Kind {
    /// The viewer protocol by itself.
    Raw,
    /// A WebTransport session, at this authority; there from the handshake on.
    Web(SocketAddr, Option<Session>),
}

impl Clients {
    /// For so many viewers on so many sockets. `seed`: of connection ids and
    /// the like, for tests; drawn from the system if absent.
    pub(crate) fn new(
        config: ClientConfig,
        remote: SocketAddr,
        viewers: usize,
        sockets: u32,
        seed: Option<[u8; 32]>,
    ) -> Self {
        let shared = Arc::new(EndpointConfig::default());
        let endpoint = |number: u32| {
            let seed = seed.map(|mut seed| {
                seed[..4].copy_from_slice(&number.to_le_bytes());
                seed
            });
            let endpoint = Endpoint::new(Arc::clone(&shared), None, false, seed);
            Socket { endpoint, owners: Vec::new() }
        };
        Self {
            config,
            remote,
            endpoints: (0..sockets.max(1)).map(endpoint).collect(),
            viewers: (0..viewers).map(|_| None).collect(),
            timers: BinaryHeap::new(),
            dirty: Vec::new(),
            strays: Vec::new(),
            scratch: Vec::with_capacity(2048),
            replies: Vec::new(),
            lost: 0,
            sessions: false,
        }
    }

    /// The same over WebTransport.
    pub(crate) fn with_sessions(self) -> Self {
        Self { sessions: true, ..self }
    }

    /// Packets that ended connections and living ones hold for lost.
    pub(crate) fn lost_packets(&self) -> u64 {
        let living = self.viewers.iter().flatten();
        self.lost + living.map(|slot| slot.connection.stats().path.lost_packets).sum::<u64>()
    }

    /// Whether the viewer has a connection.
    pub(crate) fn holds(&self, viewer: usize) -> bool {
        self.viewers.get(viewer).is_some_and(Option::is_some)
    }

    /// Begins a connection from this socket; an older one is forgotten.
    pub(crate) fn connect(&mut self, now: Instant, viewer: usize, socket: u32) -> Result<()> {
        let number = u32::try_from(viewer)?;
        if let Some(old) = self.viewers[viewer].take() {
            // Without a word to the server, as when a phone loses its network;
            // the endpoint keeps its place until the peer's packets end.
            self.forget(old);
        }
        let socket_of = &mut self.endpoints[socket as usize];
        let (handle, connection) = socket_of.endpoint.connect(
            now,
            self.config.clone(),
            self.remote,
            trust::SERVER_NAME,
        )?;
        if socket_of.owners.len() <= handle.0 {
            socket_of.owners.resize(handle.0 + 1, u32::MAX);
        }
        socket_of.owners[handle.0] = number;
        self.viewers[viewer] = Some(Box::new(Slot {
            connection,
            handle,
            socket,
            dirty: false,
            unread: false,
            armed: None,
            control: None,
            important: None,
            kind: if self.sessions { Kind::Web(self.remote, None) } else { Kind::Raw },
        }));
        self.mark(number);
        Ok(())
    }

    /// Says something on the viewer's control stream.
    pub(crate) fn say(&mut self, viewer: usize, message: &[u8]) -> Result<(), String> {
        let Some(slot) = self.viewers.get_mut(viewer).and_then(Option::as_mut) else {
            return Err("the connection is over".into());
        };
        slot.say(message)?;
        self.mark(u32::try_from(viewer).unwrap_or(u32::MAX));
        Ok(())
    }

    /// Has the viewer's streams read at the next [`Clients::drive`].
    pub(crate) fn read_again(&mut self, viewer: usize) {
        if let Some(slot) = self.viewers.get_mut(viewer).and_then(Option::as_mut) {
            slot.unread = true;
            self.mark(u32::try_from(viewer).unwrap_or(u32::MAX));
        }
    }

    /// Hangs up on everybody.
    pub(crate) fn close_all(&mut self, now: Instant) {
        for viewer in 0..self.viewers.len() {
            if let Some(slot) = &mut self.viewers[viewer] {
                slot.connection.close(now, VarInt::from_u32(0), Bytes::new());
                self.mark(u32::try_from(viewer).unwrap_or(u32::MAX));
            }
        }
    }

    /// Takes a datagram that came to this socket.
    pub(crate) fn datagram(
        &mut self,
        now: Instant,
        socket: u32,
        from: SocketAddr,
        ecn: Option<EcnCodepoint>,
        data: BytesMut,
        watcher: &mut dyn Watcher,
    ) {
        let length = data.len();
        self.scratch.clear();
        let one = &mut self.endpoints[socket as usize];
        match one.endpoint.handle(now, from, None, ecn, data, &mut self.scratch) {
            Some(DatagramEvent::ConnectionEvent(handle, event)) => {
                let number = one.owners.get(handle.0).copied().unwrap_or(u32::MAX);
                if let Some(slot) = self.viewers.get_mut(number as usize).and_then(Option::as_mut)
                    && (slot.socket, slot.handle) == (socket, handle)
                {
                    slot.connection.handle_event(event);
                    watcher.received(number as usize, length);
                    self.mark(number);
                }
            }
            Some(DatagramEvent::Response(transmit)) => {
                self.strays.push((socket, self.scratch[..transmit.size].to_vec()));
            }
            // Only servers have them.
            Some(DatagramEvent::NewConnection(_)) | None => {}
        }
    }

    /// When [`Clients::expire`] is due.
    pub(crate) fn next_timeout(&self) -> Option<Instant> {
        self.timers.peek().map(|Reverse((at, _))| *at)
    }

    /// Whether there is something to do for [`Clients::drive`].
    pub(crate) fn is_waiting(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Notes the timers that are due.
    pub(crate) fn expire(&mut self, now: Instant) {
        while let Some(&Reverse((at, number))) = self.timers.peek()
            && at <= now
        {
            self.timers.pop();
            let Some(slot) = &mut self.viewers[number as usize] else { continue };
            if slot.armed != Some(at) {
                continue;
            }
            slot.armed = None;
            match slot.connection.poll_timeout() {
                Some(due) if due <= now => {
                    slot.connection.handle_timeout(now);
                    self.mark(number);
                }
                due => slot.arm(due, number, &mut self.timers),
            }
        }
    }

    /// Works through all connections of which something is noted.
    pub(crate) fn drive(&mut self, now: Instant, watcher: &mut dyn Watcher, out: &mut dyn Outbox) {
        for (socket, datagram) in self.strays.drain(..) {
            out.push(socket, &datagram);
        }
        let dirty = std::mem::take(&mut self.dirty);
        for &number in &dirty {
            self.drive_one(now, number, watcher, out);
        }
        // Its memory is used again, unless what was told led to more.
        if self.dirty.is_empty() {
            self.dirty = dirty;
            self.dirty.clear();
        }
    }

    fn drive_one(
        &mut self,
        now: Instant,
        number: u32,
        watcher: &mut dyn Watcher,
        out: &mut dyn Outbox,
    ) {
        let Some(slot) = &mut self.viewers[number as usize] else { return };
        slot.dirty = false;
        slot.events(now, number as usize, watcher, &mut self.replies);
        let endpoint = &mut self.endpoints[slot.socket as usize].endpoint;
        let mut drained = slot.endpoint_events(endpoint);
        self.scratch.clear();
        while let Some(transmit) = slot.connection.poll_transmit(now, 1, &mut self.scratch) {
            out.push(slot.socket, &self.scratch[..transmit.size]);
            self.scratch.clear();
        }
        drained |= slot.endpoint_events(endpoint);
        if !drained {
            let due = slot.connection.poll_timeout();
            slot.arm(due, number, &mut self.timers);
        } else if let Some(slot) = self.viewers[number as usize].take() {
            self.forget(slot);
        }
    }

    fn forget(&mut self, slot: Box<Slot>) {
        self.lost += slot.connection.stats().path.lost_packets;
    }

    fn mark(&mut self, number: u32) {
        if let Some(slot) = &mut self.viewers[number as usize]
            && !std::mem::replace(&mut slot.dirty, true)
        {
            self.dirty.push(number);
        }
    }
}

impl Slot {
    /// Sees to it that the heap has an entry no later than `due`.
    fn arm(
        &mut self,
        due: Option<Instant>,
        number: u32,
        timers: &mut BinaryHeap<Reverse<(Instant, u32)>>,
    ) {
        let Some(due) = due else { return };
        if self.armed.is_none_or(|armed| due < armed) {
            self.armed = Some(due);
            timers.push(Reverse((due, number)));
        }
    }

    /// Moves what the connection and its endpoint have to tell each other;
    /// whether the connection is over for good.
    fn endpoint_events(&mut self, endpoint: &mut Endpoint) -> bool {
        let mut drained = false;
        while let Some(event) = self.connection.poll_endpoint_events() {
            drained |= event.is_drained();
            if let Some(event) = endpoint.handle_event(self.handle, event) {
                self.connection.handle_event(event);
            }
        }
        drained
    }

    fn events(
        &mut self,
        now: Instant,
        viewer: usize,
        watcher: &mut dyn Watcher,
        replies: &mut Vec<Reply>,
    ) {
        while let Some(event) = self.connection.poll() {
            let outcome = match event {
                Event::Connected => match self.kind {
                    Kind::Raw => self.open_control(viewer, &[], watcher),
                    Kind::Web(authority, _) => self.open_session(authority),
                },
                Event::ConnectionLost { reason } => {
                    watcher.closed(viewer, reason_of(&reason));
                    Ok(())
                }
                Event::Stream(StreamEvent::Opened { dir: Dir::Uni }) => {
                    while let Some(id) = self.connection.streams().accept(Dir::Uni) {
                        match &mut self.kind {
                            Kind::Web(_, Some(session)) => session.unknown.push((id, Vec::new())),
                            _ => self.important = Some((id, Inbox::default())),
                        }
                        self.unread = true;
                    }
                    Ok(())
                }
                Event::Stream(StreamEvent::Readable { .. }) => {
                    self.unread = true;
                    Ok(())
                }
                Event::DatagramReceived => {
                    while let Some(datagram) = self.connection.datagrams().recv() {
                        let bare = match self.kind {
                            Kind::Raw => Some(&datagram[..]),
                            Kind::Web(..) => web::datagram(&datagram),
                        };
                        let message = |bare| watcher.message(viewer, Lane::Datagram, bare);
                        replies.extend(bare.map(message));
                    }
                    Ok(())
                }
                _ => Ok(()),
            };
            if let Err(reason) = outcome {
                self.hang_up(now, viewer, reason, watcher);
            }
        }
        if self.unread && !watcher.is_deaf(viewer) {
            self.unread = false;
            if let Err(reason) = self.read(viewer, watcher, replies) {
                self.hang_up(now, viewer, reason, watcher);
            }
        }
        for reply in replies.drain(..) {
            let outcome = match reply {
                Reply::Nothing => Ok(()),
                Reply::Say(message) => self.say(&message),
                Reply::HangUp => Err("hung up".into()),
            };
            if let Err(reason) = outcome {
                self.hang_up(now, viewer, reason, watcher);
            }
        }
    }

    /// Ends the connection for the server's mistake, or ours.
    fn hang_up(&mut self, now: Instant, viewer: usize, reason: String, watcher: &mut dyn Watcher) {
        let text = Bytes::copy_from_slice(reason.as_bytes());
        self.connection.close(now, VarInt::from_u32(MISTAKE), text);
        watcher.closed(viewer, reason);
    }

    /// Opens a stream of ours and writes the first bytes.
    fn open(&mut self, dir: Dir, first: &[u8]) -> Result<StreamId, String> {
        let id = self.connection.streams().open(dir).ok_or("the server allows no stream")?;
        match self.connection.send_stream(id).write(first) {
            Ok(written) if written == first.len() => Ok(id),
            Ok(_) => Err("short write".into()),
            Err(error) => Err(format!("write: {error}")),
        }
    }

    /// The control stream, with what its transport wants first.
    fn open_control(
        &mut self,
        viewer: usize,
        first: &[u8],
        watcher: &mut dyn Watcher,
    ) -> Result<(), String> {
        let id = self.open(Dir::Bi, first)?;
        self.control = Some((id, Inbox::default()));
        let first = watcher.connected(viewer);
        self.say(&first)
    }

    /// Asks for a WebTransport session. The server's settings, which a browser
    /// waits for, come with its part of the handshake.
    fn open_session(&mut self, authority: SocketAddr) -> Result<(), String> {
        self.open(Dir::Uni, &web::CONTROL)?;
        let request = self.open(Dir::Bi, &web::request(&authority.to_string()))?;
        self.kind = Kind::Web(authority, Some(Session::new(request)));
        Ok(())
    }

    fn say(&mut self, message: &[u8]) -> Result<(), String> {
        let Some((id, _)) = &self.control else { return Err("no control stream yet".into()) };
        let bytes = framed(message);
        match self.connection.send_stream(*id).write(&bytes) {
            Ok(written) if written == bytes.len() => Ok(()),
            Ok(_) => Err("short write".into()),
            Err(error) => Err(format!("write: {error}")),
        }
    }

    fn read(
        &mut self,
        viewer: usize,
        watcher: &mut dyn Watcher,
        replies: &mut Vec<Reply>,
    ) -> Result<(), String> {
        self.read_session(viewer, watcher, replies)?;
        let lanes = [(Lane::Important, &mut self.important), (Lane::Control, &mut self.control)];
        for (lane, stream) in lanes {
            let Some((id, inbox)) = stream else { continue };
            let mut each = |message: &[u8]| replies.push(watcher.message(viewer, lane, message));
            let mut take = |bytes: &[u8]| inbox.take(bytes, &mut each);
            let over = drain(&mut self.connection, *id, &mut take)?;
            if over {
                *stream = None;
            }
        }
        Ok(())
    }

    /// Reads what WebTransport has beside the lanes.
    fn read_session(
        &mut self,
        viewer: usize,
        watcher: &mut dyn Watcher,
        replies: &mut Vec<Reply>,
    ) -> Result<(), String> {
        let Kind::Web(_, Some(session)) = &mut self.kind else { return Ok(()) };
        for (id, mut head) in std::mem::take(&mut session.unknown) {
            let over = drain(&mut self.connection, id, &mut |bytes| {
                head.extend_from_slice(bytes);
                Ok(())
            })?;
            match web::kind(&head) {
                Some((true, used)) => {
                    let mut inbox = Inbox::default();
                    inbox.take(&head[used..], |message| {
                        replies.push(watcher.message(viewer, Lane::Important, message));
                    })?;
                    self.important = Some((id, inbox));
                }
                None if !over => session.unknown.push((id, head)),
                // Of HTTP/3 itself: nothing that is needed.
                Some((false, _)) | None => {}
            }
        }
        let over = drain(&mut self.connection, session.request, &mut |bytes| {
            session.hear(bytes);
            Ok(())
        })?;
        loop {
            let Kind::Web(_, Some(session)) = &mut self.kind else { return Ok(()) };
            match session.news() {
                News::Opened => self.open_control(viewer, &web::STREAM, watcher)?,
                News::Over(reason) => return Err(reason),
                News::Nothing if over => return Err("the server ended the session".into()),
                News::Nothing => return Ok(()),
            }
        }
    }
}

/// Reads a stream to its present end; whether it is over.
fn drain(
    connection: &mut Connection,
    id: StreamId,
    take: &mut dyn FnMut(&[u8]) -> Result<(), String>,
) -> Result<bool, String> {
    let mut stream = connection.recv_stream(id);
    let Ok(mut chunks) = stream.read(true) else { return Ok(true) };
    let over = loop {
        match chunks.next(usize::MAX) {
            Ok(Some(chunk)) => take(&chunk.bytes)?,
            Ok(None) => break true,
            Err(ReadError::Blocked) => break false,
            Err(ReadError::Reset(code)) => return Err(format!("stream reset, code {code}")),
        }
    };
    // More credit is sent with whatever comes next: the caller transmits.
    let _ = chunks.finalize();
    Ok(over)
}

fn reason_of(error: &ConnectionError) -> String {
    match error {
        ConnectionError::ApplicationClosed(close) => {
            format!("close {} {}", close.error_code, String::from_utf8_lossy(&close.reason))
        }
        other => other.to_string(),
    }
}

/// Connecting needs a server that can be named.
pub(crate) fn check_remote(remote: SocketAddr) -> Result<()> {
    if remote.port() == 0 || remote.ip().is_unspecified() {
        bail!("{remote} is no address of a server");
    }
    Ok(())
}
