//! A worker's QUIC viewers: connections, sockets and the time.

use std::time::{Duration, Instant};

use anyhow::Result;
use bytes::BytesMut;
use mio::{Interest, Registry, Token};
use quinn_proto::EcnCodepoint;

use super::clients::{Clients, check_remote};
use super::sockets::{Sockets, Traffic};
use super::{Watcher, config};
use crate::protocol::Plan;
use crate::transport::Transport;

/// Batches taken from one socket before the others have their turn.
const BATCHES: u32 = 16;

/// The driver.
pub(crate) struct Driver {
    clients: Clients,
    sockets: Sockets,
    count: u32,
    first: usize,
    /// Sockets that may hold more.
    ready: Vec<u32>,
    traffic: Traffic,
    since: Traffic,
}

impl Driver {
    /// Opens the sockets of a plan with so many viewers and registers them, from
    /// token `first` on.
    pub(crate) fn open(
        plan: &Plan,
        viewers: usize,
        first: usize,
        registry: &Registry,
    ) -> Result<Driver> {
        check_remote(plan.addr)?;
        let most = u32::try_from(viewers.max(1))?;
        let count = if plan.wire.sockets == 0 { most } else { plan.wire.sockets.min(most) };
        let mut sockets = Sockets::open(plan.addr, count, plan.source)?;
        for (number, socket) in sockets.sources() {
            registry.register(socket, Token(first + number as usize), Interest::READABLE)?;
        }
        let config = config::client(plan.wire)?;
        let mut clients = Clients::new(config, plan.addr, viewers, count, None);
        if plan.wire.transport == Transport::Webtransport {
            clients = clients.with_sessions();
        }
        let (traffic, since) = (Traffic::default(), Traffic::default());
        Ok(Driver { clients, sockets, count, first, ready: Vec::new(), traffic, since })
    }

    /// Begins a viewer's connection.
    pub(crate) fn connect(&mut self, viewer: usize) -> Result<()> {
        let socket = u32::try_from(viewer)? % self.count;
        self.clients.connect(Instant::now(), viewer, socket)
    }

    /// Says something on a viewer's control stream.
    pub(crate) fn say(&mut self, viewer: usize, message: &[u8]) -> Result<(), String> {
        self.clients.say(viewer, message)
    }

    /// Whether the viewer has a connection.
    pub(crate) fn holds(&self, viewer: usize) -> bool {
        self.clients.holds(viewer)
    }

    /// Has a viewer's streams read, who was deaf.
    pub(crate) fn read_again(&mut self, viewer: usize) {
        self.clients.read_again(viewer);
    }

    /// A registered socket is ready.
    pub(crate) fn ready(&mut self, token: usize) {
        let socket = u32::try_from(token - self.first).unwrap_or(0);
        if !self.ready.contains(&socket) {
            self.ready.push(socket);
        }
    }

    /// How long to wait for sockets at most.
    pub(crate) fn patience(&self, most: Duration) -> Duration {
        if !self.ready.is_empty() || self.clients.is_waiting() {
            return Duration::ZERO;
        }
        let due = self.clients.next_timeout();
        due.map_or(most, |due| due.saturating_duration_since(Instant::now()).min(most))
    }

    /// Takes what the sockets hold, a fair share of each, sees to timers, and
    /// sends what is to be sent.
    pub(crate) fn turn(&mut self, watcher: &mut dyn Watcher) -> Result<()> {
        let mut ready = std::mem::take(&mut self.ready);
        let mut more = Vec::new();
        for socket in ready.drain(..) {
            if self.receive(socket, watcher)? {
                more.push(socket);
            }
        }
        self.ready = more;
        self.clients.expire(Instant::now());
        self.drive(watcher)?;
        self.sockets.flush(&mut self.traffic)
    }

    /// Whether the socket may hold more.
    fn receive(&mut self, socket: u32, watcher: &mut dyn Watcher) -> Result<bool> {
        for _ in 0..BATCHES {
            let now = Instant::now();
            let clients = &mut self.clients;
            let more = self.sockets.receive(socket, |meta, datagram| {
                let ecn = meta.ecn.and_then(|ecn| EcnCodepoint::from_bits(ecn as u8));
                let data = BytesMut::from(datagram);
                clients.datagram(now, socket, meta.addr, ecn, data, &mut *watcher);
            })?;
            self.drive(watcher)?;
            if !more {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn drive(&mut self, watcher: &mut dyn Watcher) -> Result<()> {
        while self.clients.is_waiting() {
            self.clients.drive(Instant::now(), watcher, self.sockets.outbox());
            self.sockets.flush_batch(&mut self.traffic)?;
        }
        Ok(())
    }

    /// Hangs up on everybody.
    pub(crate) fn close_all(&mut self, watcher: &mut dyn Watcher) -> Result<()> {
        self.clients.close_all(Instant::now());
        self.drive(watcher)?;
        self.sockets.flush(&mut self.traffic)
    }

    /// Counters of [`Driver::traffic`] to zero.
    pub(crate) fn open_window(&mut self) {
        self.since = self.traffic;
    }

    /// What was sent since the window began.
    pub(crate) fn traffic(&self) -> Traffic {
        Traffic {
            sent: self.traffic.sent - self.since.sent,
            sends: self.traffic.sends - self.since.sends,
            refused: self.traffic.refused - self.since.refused,
        }
    }

    /// Packets that viewers hold for lost, since the start.
    pub(crate) fn lost_packets(&self) -> u64 {
        self.clients.lost_packets()
    }
}
