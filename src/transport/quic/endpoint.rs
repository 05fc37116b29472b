//! The QUIC connections of one shard.
//!
//! The order of things within a turn: datagrams are read and given to their
//! connections, deadlines that have passed likewise; then each connection with
//! news is asked what happened ([`Heard`], for the shard) and what it wants to
//! send. What the shard writes afterwards is sent by the next
//! [`flush`](Endpoint::flush).

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use quinn_proto::{
    ConnectionEvent, ConnectionHandle, DatagramEvent, EndpointEvent, Incoming, ServerConfig,
    Transmit,
};

use super::peer::{Context, CopyWork, Heard, Peer, Prefixed};
use super::peers::Peers;
use super::settings::Settings;
use super::socket::{DatagramSocket, Origin};
use super::steer::{Handover, Stray, shard_of};
use super::timers::Timers;
use crate::clock::Clock;
use crate::shard::carrier_stats::CarrierStats;
use crate::shard::connection::ViewerKey;
use crate::shard::outlet::{Carrier, Datagram, Link};
use crate::wire::close::CloseReason;

/// Batches read before the shard's other work has its turn.
const READ_TURN: usize = 24;
/// Handshakes begun before it has: each takes a quarter of a millisecond, most of
/// it for the signature (measured).
const ADMIT_TURN: usize = 4;
/// Datagrams that go to one viewer in one call.
const BURST: usize = 8;
/// Connections that are worked with before what they have to send is sent.
const MOST_WHOLE: usize = 256;
/// How often unfinished messages are looked at.
const SWEEP: Duration = Duration::from_secs(1);

/// Its connections and what they wait for; everything but the socket.
struct Table {
    proto: quinn_proto::Endpoint,
    settings: Settings,
    shard: u16,
    handover: Handover,
    peers: Peers,
    open: usize,
    handshakes: usize,
    serial: u32,
    dirty: Vec<u32>,
    drained: Vec<u32>,
    /// Those whose handshake may begin.
    knocking: VecDeque<Incoming>,
    timers: Timers,
    due: Vec<u32>,
    /// What one batch brought, while the connections' memory is fetched.
    arrived: Vec<(u32, ConnectionEvent)>,
    /// When those without a viewer must have one, in order.
    unheard: VecDeque<(Instant, u32, u32)>,
    unfinished: Vec<u32>,
    next_sweep: Option<Instant>,
    heard: VecDeque<(u32, Heard)>,
    responses: Vec<(Transmit, Vec<u8>)>,
    draining: bool,
    prefixed: Prefixed,
    stats: CarrierStats,
}

/// See the module's documentation.
pub struct Endpoint {
    socket: DatagramSocket,
    clock: Clock,
    table: Table,
    /// Some of what was given to the socket is still there.
    blocked: bool,
    buffer: Vec<u8>,
}

impl Endpoint {
    /// One shard's.
    #[must_use]
    pub fn new(
        socket: DatagramSocket,
        clock: Clock,
        config: quinn_proto::EndpointConfig,
        server: Arc<ServerConfig>,
        settings: Settings,
        shard: u16,
        handover: Handover,
    ) -> Self {
        // Whether the path may fragment datagrams; the socket forbids it.
        let whole = true;
        let proto = quinn_proto::Endpoint::new(Arc::new(config), Some(server), whole, None);
        Self {
            socket,
            clock,
            table: Table {
                proto,
                settings,
                shard,
                handover,
                peers: Peers::default(),
                open: 0,
                handshakes: 0,
                serial: 0,
                dirty: Vec::new(),
                drained: Vec::new(),
                knocking: VecDeque::new(),
                timers: Timers::new(clock.instant(clock.now())),
                due: Vec::new(),
                arrived: Vec::new(),
                unheard: VecDeque::new(),
                unfinished: Vec::new(),
                next_sweep: None,
                heard: VecDeque::new(),
                responses: Vec::new(),
                draining: false,
                prefixed: Prefixed::default(),
                stats: CarrierStats::default(),
            },
            blocked: false,
            buffer: Vec::new(),
        }
    }

    /// Reads what has come. Returns whether there may be more.
    ///
    /// # Errors
    /// The socket's.
    pub fn receive(&mut self, now: Instant) -> io::Result<bool> {
        for _ in 0..READ_TURN {
            let Self { socket, table, .. } = self;
            let more = socket.receive(|origin, bytes| {
                table.stats.datagrams_received += 1;
                table.stats.bytes_received += bytes.len() as u64;
                let shards = table.handover.shards();
                let home = shard_of(bytes, shards).unwrap_or(table.shard);
                let bytes = BytesMut::from(bytes);
                if home == table.shard {
                    return table.datagram(origin, bytes, now);
                }
                let Origin { remote, local, ecn } = origin;
                table.stats.handed_over += 1;
                let stray = Stray { remote, local, ecn, bytes };
                table.stats.strays_lost += u64::from(!table.handover.send(home, stray));
            })?;
            table.deliver();
            // While their memory is at hand.
            self.flush(now);
            if !more {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// A datagram that another shard's socket got.
    pub fn take_over(&mut self, stray: Stray, now: Instant) {
        let Stray { remote, local, ecn, bytes } = stray;
        self.table.datagram(Origin { remote, local, ecn }, bytes, now);
        self.table.deliver();
    }

    /// Begins some handshakes. Returns whether more wait.
    pub fn admit(&mut self, now: Instant) -> bool {
        self.table.admit(now)
    }

    /// Looks at connections whose deadline has passed.
    pub fn expire(&mut self, now: Instant) {
        self.table.note_due(now);
        while self.table.expire_some(now) {
            self.flush(now);
        }
        self.table.tidy(now);
    }

    /// Sends before more connections are worked with than [`MOST_WHOLE`]: each is
    /// whole until then, and what all of them take an allocator gives back late.
    fn make_room(&mut self) {
        if self.table.dirty.len() >= MOST_WHOLE && !self.blocked {
            let now = self.now();
            self.flush(now);
        }
    }

    /// Sends what connections have to send, and notes what they have to say.
    pub fn flush(&mut self, now: Instant) {
        self.table.remove_drained();
        if self.blocked && !self.push() {
            return;
        }
        self.respond();
        while !self.blocked
            && let Some(index) = self.table.dirty.pop()
        {
            self.drive(index, now);
        }
        self.push();
        if self.buffer.capacity() > 256 * 1024 {
            self.buffer = Vec::new();
        }
    }

    /// What a connection has to say, if it or another has.
    pub fn heard(&mut self) -> Option<(Link, Heard)> {
        self.table.heard.pop_front()
    }

    /// Whether a connection has something to say.
    #[must_use]
    pub fn has_heard(&self) -> bool {
        !self.table.heard.is_empty()
    }

    /// A viewer has its row.
    pub fn opened(&mut self, link: Link, viewer: ViewerKey) {
        self.table.peers.set_viewer(link, Some(viewer));
    }

    /// Whose connection it is.
    #[must_use]
    pub fn viewer(&self, link: Link) -> Option<ViewerKey> {
        self.table.peers.viewer(link)
    }

    /// Nobody new is let in.
    pub fn drain(&mut self) {
        self.table.draining = true;
        for incoming in self.table.knocking.drain(..) {
            self.table.proto.ignore(incoming);
        }
    }

    /// Whether the kernel takes no more at present.
    #[must_use]
    pub fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// When [`expire`](Self::expire) wants to be called.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        let unheard = self.table.unheard.front().map(|(at, ..)| *at);
        let sweep = self.table.next_sweep.filter(|_| !self.table.unfinished.is_empty());
        let rest = self.table.peers.next_rest();
        [self.table.timers.next(), unheard, sweep, rest].into_iter().flatten().min()
    }

    fn drive(&mut self, index: u32, now: Instant) {
        let Self { socket, table, blocked, buffer, .. } = self;
        if !table.ask(index, now) {
            return;
        }
        let Some(peer) = table.peers.take_up(index) else { return };
        let before = table.stats.datagrams_sent;
        loop {
            buffer.clear();
            let burst = socket.segments().min(BURST);
            let Some(transmit) = peer.connection.poll_transmit(now, burst, buffer) else { break };
            let segments = transmit.segment_size.map_or(1, |size| transmit.size.div_ceil(size));
            table.stats.datagrams_sent += segments as u64;
            table.stats.bytes_sent += transmit.size as u64;
            if !socket.send(transmit, buffer) {
                *blocked = true;
                table.stats.blocked += 1;
                // It goes on from here when there is room.
                peer.dirty = true;
                table.dirty.push(index);
                break;
            }
        }
        table.timers.set(index, peer.deadline(now));
        if table.stats.datagrams_sent > before {
            table.peers.sent(index, now);
        }
        table.peers.lay_down(index);
    }

    /// Has the socket send what it gathered. Returns whether all of it is out.
    fn push(&mut self) -> bool {
        let out = self.socket.flush();
        self.table.stats.blocked += u64::from(!out && !self.blocked);
        self.blocked = !out;
        out
    }

    /// What is said without a connection. Without room it is dropped: whoever it
    /// is for asks again.
    fn respond(&mut self) {
        for (transmit, mut bytes) in self.table.responses.drain(..) {
            if self.blocked {
                self.table.stats.answers_lost += 1;
                continue;
            }
            self.table.stats.datagrams_sent += 1;
            self.table.stats.bytes_sent += transmit.size as u64;
            self.blocked = !self.socket.send(transmit, &mut bytes);
        }
    }

    fn now(&self) -> Instant {
        self.clock.instant(self.clock.now())
    }
}

impl Table {
    /// A connection, to be driven at the next flush.
    fn touch(&mut self, index: u32) -> Option<&mut Peer> {
        let peer = self.peers.take_up(index)?;
        if !std::mem::replace(&mut peer.dirty, true) {
            self.dirty.push(index);
        }
        Some(peer)
    }

    /// Gives connections what has come for them.
    fn deliver(&mut self) {
        let mut arrived = std::mem::take(&mut self.arrived);
        for (index, event) in arrived.drain(..) {
            if let Some(peer) = self.touch(index) {
                peer.connection.handle_event(event);
            }
        }
        self.arrived = arrived;
    }

    fn datagram(&mut self, origin: Origin, bytes: BytesMut, now: Instant) {
        let mut out = Vec::new();
        let Origin { remote, local, ecn } = origin;
        match self.proto.handle(now, remote, local, ecn, bytes, &mut out) {
            None => {}
            Some(DatagramEvent::ConnectionEvent(handle, event)) => {
                let index = handle.0 as u32;
                if self.peers.has(index) {
                    self.peers.prefetch(index);
                    self.arrived.push((index, event));
                }
            }
            Some(DatagramEvent::NewConnection(incoming)) => self.knocked(incoming),
            Some(DatagramEvent::Response(transmit)) => self.responses.push((transmit, out)),
        }
    }

    fn knocked(&mut self, incoming: Incoming) {
        let mut out = Vec::new();
        let under_way = self.handshakes + self.knocking.len();
        let connections = self.open + self.knocking.len();
        let full = self.draining || connections >= self.settings.max_connections;
        if !full && under_way >= self.settings.retry_above && incoming.may_retry() {
            self.stats.retries += 1;
            if let Ok(transmit) = self.proto.retry(incoming, &mut out) {
                self.responses.push((transmit, out));
            }
            return;
        }
        if full || under_way >= self.settings.max_handshakes {
            self.stats.refused += 1;
            let transmit = self.proto.refuse(incoming, &mut out);
            return self.responses.push((transmit, out));
        }
        self.knocking.push_back(incoming);
    }

    /// Begins some handshakes. Returns whether more wait.
    fn admit(&mut self, now: Instant) -> bool {
        for _ in 0..ADMIT_TURN {
            let Some(incoming) = self.knocking.pop_front() else { break };
            self.accept(incoming, now);
        }
        !self.knocking.is_empty()
    }

    fn accept(&mut self, incoming: Incoming, now: Instant) {
        let mut out = Vec::new();
        match self.proto.accept(incoming, now, &mut out, None) {
            Ok((handle, connection)) => {
                self.serial = self.serial.wrapping_add(1);
                let index = handle.0 as u32;
                self.peers.put(index, Peer::new(connection, self.serial), now);
                self.open += 1;
                self.handshakes += 1;
                let by = now + self.settings.handshake_timeout;
                self.unheard.push_back((by, index, self.serial));
                self.touch(index);
            }
            Err(error) => {
                self.stats.failed += 1;
                if let Some(transmit) = error.response {
                    self.responses.push((transmit, out));
                }
            }
        }
    }

    /// Whose deadline has passed.
    fn note_due(&mut self, now: Instant) {
        let due = &mut self.due;
        self.timers.expire(now, |index| due.push(index));
    }

    /// Looks at some of those. Returns whether more are left.
    fn expire_some(&mut self, now: Instant) -> bool {
        for _ in 0..MOST_WHOLE {
            let Some(index) = self.due.pop() else { return false };
            self.touch(index);
            let Self { peers, settings, prefixed, stats, .. } = self;
            if let Some(peer) = peers.take_up(index) {
                let rules = &settings.copies;
                peer.expire(now, &mut CopyWork { rules, prefixed, stats: &mut stats.copies });
            }
        }
        !self.due.is_empty()
    }

    /// What else time brings: ends of those who said nothing or too little, and rest.
    fn tidy(&mut self, now: Instant) {
        while let Some((_, index, serial)) = self.unheard.pop_front_if(|(at, ..)| *at <= now) {
            if self.peers.viewer(index).is_some() {
                continue;
            }
            if let Some(peer) = self.touch(index).filter(|peer| peer.serial == serial) {
                let reason = CloseReason::MessageTimeout;
                let code = reason.code().unwrap_or_default();
                if peer.is_closing() {
                    peer.end(code, reason.name(), now);
                } else {
                    peer.close(code, reason.name(), now);
                    // For the answer of one with a session.
                    let by = now + self.settings.handshake_timeout;
                    self.unheard.push_back((by, index, serial));
                }
            }
        }
        if self.next_sweep.is_some_and(|at| at <= now) {
            self.sweep(now);
        }
        self.peers.rest(now);
    }

    /// Whoever began a message must finish it in time.
    fn sweep(&mut self, now: Instant) {
        self.next_sweep = Some(now + SWEEP);
        let timeout = self.settings.handshake_timeout;
        let Self { unfinished, peers, heard, .. } = self;
        unfinished.retain(|&index| {
            let begun = peers.take_up(index).and_then(|peer| peer.begun);
            peers.lay_down(index);
            let Some(begun) = begun else { return false };
            let late = now.saturating_duration_since(begun) >= timeout;
            if late {
                heard.push_back((index, Heard::Broke(CloseReason::MessageTimeout)));
            }
            !late
        });
    }

    /// Notes what a connection has to say. Returns whether it is there.
    fn ask(&mut self, index: u32, now: Instant) -> bool {
        let Self { proto, peers, heard, settings, drained, handshakes, unfinished, stats, .. } =
            self;
        let Some(peer) = peers.take_up(index) else { return false };
        peer.dirty = false;
        let (handshaking, idle) = (peer.handshaking, peer.begun.is_none());
        let mut context = Context {
            settings,
            now,
            heard: &mut |what| heard.push_back((index, what)),
            session: &mut |result| stats.session(result),
            ignored: 0,
        };
        peer.poll(&mut context);
        let ignored = context.ignored;
        stats.ignored += ignored;
        while let Some(event) = peer.connection.poll_endpoint_events() {
            if event.is_drained() {
                drained.push(index);
            } else if let Some(event) = proto.handle_event(ConnectionHandle(index as usize), event)
            {
                peer.connection.handle_event(event);
            }
        }
        if handshaking && !peer.handshaking {
            *handshakes -= 1;
            if peer.connection.is_closed() {
                stats.failed += 1;
            } else {
                stats.accepted += 1;
            }
        }
        if idle && peer.begun.is_some() {
            unfinished.push(index);
            self.next_sweep.get_or_insert(now + SWEEP);
        }
        true
    }

    /// Forgets connections that are over, unless a row still names them.
    fn remove_drained(&mut self) {
        let Self { drained, peers, proto, open, handshakes, stats, timers, .. } = self;
        drained.retain(|&index| {
            if peers.viewer(index).is_some() {
                return true;
            }
            let Some(peer) = peers.take_up(index) else { return false };
            if peer.handshaking {
                *handshakes -= 1;
                stats.failed += 1;
            }
            peers.remove(index);
            timers.set(index, None);
            *open -= 1;
            proto.handle_event(ConnectionHandle(index as usize), EndpointEvent::drained());
            false
        });
    }
}

impl Carrier for Endpoint {
    fn write(&mut self, link: Link, bytes: &Bytes) -> io::Result<usize> {
        self.make_room();
        match self.table.touch(link) {
            Some(peer) => peer.write(bytes),
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    fn write_important(&mut self, link: Link, message: &Bytes) -> io::Result<()> {
        self.make_room();
        self.table.touch(link);
        let Self { table: Table { peers, settings, stats, .. }, clock, .. } = self;
        let Some(peer) = peers.take_up(link) else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        peer.write_important(message, settings)?;
        peer.copy(message, settings, || clock.instant(clock.now()), &mut stats.copies);
        Ok(())
    }

    fn datagram(&mut self, link: Link, message: &Bytes) -> Datagram {
        self.make_room();
        let mut prefixed = std::mem::take(&mut self.table.prefixed);
        let taken = match self.table.touch(link) {
            Some(peer) => peer.datagram(message, &mut prefixed),
            None => Datagram::Unfit,
        };
        self.table.prefixed = prefixed;
        taken
    }

    fn close(&mut self, link: Link, code: u16, reason: &'static str) {
        let now = self.now();
        if let Some(peer) = self.table.touch(link) {
            peer.close(code, reason, now);
        }
    }

    fn release(&mut self, link: Link) {
        let now = self.now();
        self.table.peers.set_viewer(link, None);
        if let Some(peer) = self.table.touch(link) {
            peer.release(now);
        }
    }

    fn expect(&self, link: Link) {
        self.table.peers.prefetch(link);
    }

    fn flush(&mut self) {
        let now = self.now();
        Endpoint::flush(self, now);
    }

    fn stats(&self) -> CarrierStats {
        let connections = self.table.open as u64;
        let handshakes = (self.table.handshakes + self.table.knocking.len()) as u64;
        let web_viewers = self.table.peers.web_viewers() as u64;
        CarrierStats { connections, handshakes, web_viewers, ..self.table.stats }
    }
}
