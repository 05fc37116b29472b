//! The connection phase of a worker: sockets are opened as rate and limit
//! allow, each from an address and port of its own.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use rustls::ClientConfig;
use socket2::{Domain, Protocol, Socket, Type};

use crate::protocol::{Plan, Report};
use crate::stream::Stream;
use crate::sys;
use crate::viewer::{Phase, Viewer};

/// Connections made from one source address: each has an explicit port, so
/// that `connect` need not search for one.
const PORTS_PER_ADDRESS: u16 = 10_000;
/// Outside the range from which the kernel itself chooses.
const FIRST_PORT: u16 = 20_000;
/// Receive buffer of slow viewers; the kernel doubles it.
const SLOW_RECEIVE_BUFFER: usize = 4096;
/// A connection that has not joined after this long has failed.
const JOIN_LIMIT_US: u64 = 30_000_000;
/// Connections started before sockets are looked at again.
const BATCH: u32 = 64;
/// Between reports of progress.
const TELL_US: u64 = 250_000;

/// Opens a viewer's connection, by its index; its stream, if it has one of its
/// own.
pub(crate) type Open<'a> =
    &'a mut dyn FnMut(&mut Viewer, usize, &mut Ports) -> Result<Option<Stream>>;

/// How far the connection phase is.
pub(crate) struct Connecting {
    started_us: u64,
    next: usize,
    in_progress: u32,
    joined: u32,
    failed: BTreeMap<String, u32>,
    ports: Ports,
    told_us: u64,
    opened_us: u64,
}

impl Connecting {
    /// It begins.
    pub(crate) fn new(source: [u8; 2]) -> Self {
        Self {
            started_us: sys::mono_us(),
            next: 0,
            in_progress: 0,
            joined: 0,
            failed: BTreeMap::new(),
            ports: Ports::new(source),
            told_us: 0,
            opened_us: 0,
        }
    }

    /// One has joined.
    pub(crate) fn joined(&mut self) {
        self.joined += 1;
        self.in_progress -= 1;
    }

    /// Opens a connection anew for a viewer that lost its first one.
    pub(crate) fn again(
        &mut self,
        viewer: &mut Viewer,
        index: usize,
        open: Open<'_>,
    ) -> Result<()> {
        // The join is one, however many connections it takes.
        let begun = viewer.next;
        connect(viewer, index, &mut self.ports, open)?;
        viewer.next = begun;
        Ok(())
    }

    /// One has failed.
    pub(crate) fn failed(&mut self, reason: String) {
        self.in_progress -= 1;
        *self.failed.entry(reason).or_default() += 1;
    }

    /// Starts connections as rate and limit allow; a report when there is one.
    pub(crate) fn more(
        &mut self,
        plan: &Plan,
        viewers: &mut [Viewer],
        open: Open<'_>,
    ) -> Option<Report> {
        let now = sys::mono_us();
        let elapsed = now - self.started_us;
        let allowed = match plan.connect_rate {
            0 => usize::MAX,
            rate => usize::try_from(elapsed * u64::from(rate) / 1_000_000 + 1).unwrap_or(0),
        };
        let mut started = 0;
        while self.next < viewers.len().min(allowed)
            && self.in_progress < plan.in_progress
            && (started < BATCH || plan.rush)
        {
            let viewer = &mut viewers[self.next];
            let index = self.next;
            self.next += 1;
            self.in_progress += 1;
            started += 1;
            if let Err(error) = connect(viewer, index, &mut self.ports, open) {
                self.failed(format!("connect: {error:#}"));
            }
        }
        if self.next == viewers.len() && self.opened_us == 0 {
            self.opened_us = sys::mono_us();
            if plan.rush {
                sys::set_nice(plan.nice);
            }
        }
        let (joined, opened_us) = (self.joined, self.opened_us);
        if self.next == viewers.len() && self.in_progress == 0 {
            let failed = std::mem::take(&mut self.failed);
            return Some(Report::Settled { joined, failed, at_us: sys::mono_us(), opened_us });
        }
        if now.saturating_sub(self.told_us) < TELL_US {
            return None;
        }
        self.told_us = now;
        self.expire(&mut viewers[..self.next], now);
        Some(Report::Progress { joined, failed: self.failed.values().sum(), opened_us })
    }

    fn expire(&mut self, viewers: &mut [Viewer], now: u64) {
        for viewer in viewers {
            let waits = viewer.returning || !matches!(viewer.phase, Phase::Live | Phase::Closed);
            if waits && now.saturating_sub(viewer.next) > JOIN_LIMIT_US {
                self.failed(format!("no answer while {:?}", viewer.phase));
                viewer.phase = Phase::Closed;
                viewer.stream = None;
                viewer.returning = false;
            }
        }
    }
}

fn connect(viewer: &mut Viewer, index: usize, ports: &mut Ports, open: Open<'_>) -> Result<()> {
    let now = sys::mono_us();
    viewer.stream = open(viewer, index, ports)?;
    viewer.phase = Phase::Connecting;
    viewer.next = now;
    Ok(())
}

/// Opens a viewer's TCP connection, and TLS over it if there is a configuration.
pub(crate) fn tcp(
    viewer: &Viewer,
    token: Token,
    addr: SocketAddr,
    tls: Option<&Arc<ClientConfig>>,
    ports: &mut Ports,
    registry: &Registry,
) -> Result<Stream> {
    let buffer = viewer.slow.then_some(SLOW_RECEIVE_BUFFER);
    let mut stream = open(addr, buffer, ports)?;
    // Edge-triggered: writability is told once, when the connection stands.
    registry.register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)?;
    Stream::new(stream, tls).context("TLS")
}

/// Begins a connection; `receive_buffer`: bytes, the kernel's choice if absent.
pub(crate) fn open(
    addr: SocketAddr,
    receive_buffer: Option<usize>,
    ports: &mut Ports,
) -> Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))
        .context("socket")?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    if let Some(bytes) = receive_buffer {
        socket.set_recv_buffer_size(bytes)?;
    }
    // A reset at the end instead of a handshake and a minute of TIME_WAIT.
    socket.set_linger(Some(Duration::ZERO))?;
    if addr.ip().is_loopback() && addr.is_ipv4() {
        ports.bind(&socket)?;
    }
    let in_progress = rustix::io::Errno::INPROGRESS.raw_os_error();
    match socket.connect(&addr.into()) {
        Err(error) if error.raw_os_error() == Some(in_progress) => {}
        other => other.context("connect")?,
    }
    Ok(TcpStream::from_std(socket.into()))
}

/// Source addresses and ports, handed out one after the other.
pub(crate) struct Ports {
    net: [u8; 2],
    address: u8,
    port: u16,
}

impl Ports {
    /// From the addresses `127.net.1` on.
    pub(crate) fn new(net: [u8; 2]) -> Self {
        Self { net, address: 1, port: 0 }
    }

    /// Binds to the next pair that is free.
    fn bind(&mut self, socket: &Socket) -> Result<()> {
        // Others' connections of a minute ago do not matter: their server's
        // port was another.
        socket.set_reuse_address(true)?;
        for _ in 0..PORTS_PER_ADDRESS {
            if self.port == PORTS_PER_ADDRESS {
                self.port = 0;
                self.address = self.address.checked_add(1).context("out of source addresses")?;
            }
            let address = Ipv4Addr::new(127, self.net[0], self.net[1], self.address);
            let source = SocketAddrV4::new(address, FIRST_PORT + self.port);
            self.port += 1;
            match socket.bind(&SocketAddr::V4(source).into()) {
                Err(error) if error.kind() == ErrorKind::AddrInUse => {}
                other => return other.with_context(|| format!("bind {source}")),
            }
        }
        bail!("no free port on a source address")
    }
}
