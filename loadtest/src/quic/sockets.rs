//! The UDP sockets of QUIC viewers: datagrams come and go by the batch.
//!
//! Every socket is connected to the server, so that the kernel looks the route
//! up once. It receives with `recvmmsg` and sends with `sendmmsg`; what the
//! kernel does not take is dropped and counted, as on any network.

use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Context, Result};
use mio::net::UdpSocket;
use quinn_udp::{BATCH_SIZE, RecvMeta, UdpSocketState};
use rustix::net::{MMsgHdr, SendAncillaryBuffer, SendFlags};
use socket2::{Domain, Protocol, Socket, Type};

use super::clients::Outbox;

/// Datagrams that wait before they are sent.
const SEND_BATCH: usize = 64;
/// Room for one datagram, or for several that the kernel hands over at once.
const SLOT_BYTES: usize = 65_536;
/// Receive buffers of all sockets together: a burst to everybody comes at once,
/// and the kernel charges a small datagram with some 1,300 bytes.
const RECEIVE_BYTES: usize = 192 << 20;
/// No single socket needs more.
const MAX_RECEIVE_BYTES: usize = 64 << 20;
/// ECN-capable, ECT(0), as browsers and libraries mark their datagrams.
const TOS_ECT0: u32 = 0b10;
/// First port; outside the range from which the kernel itself chooses.
const FIRST_PORT: u16 = 20_000;
/// Sockets per loopback address.
const PORTS_PER_ADDRESS: u32 = 10_000;

/// The sockets.
pub(crate) struct Sockets {
    sockets: Vec<One>,
    receive: Vec<u8>,
    outbox: Queues,
}

struct One {
    socket: UdpSocket,
    state: UdpSocketState,
}

/// Datagrams to be sent, by socket.
#[derive(Default)]
pub(crate) struct Queues {
    queues: Vec<Queue>,
    /// Those that are not empty.
    waiting: Vec<u32>,
    /// Datagrams in all of them.
    count: usize,
}

#[derive(Default)]
struct Queue {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

/// What went over the sockets.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Traffic {
    /// Datagrams sent.
    pub(crate) sent: u64,
    /// `sendmmsg` calls.
    pub(crate) sends: u64,
    /// Datagrams that the kernel did not take.
    pub(crate) refused: u64,
}

impl Sockets {
    /// Binds so many, on loopback from `127.net.1` on, and connects them.
    pub(crate) fn open(remote: SocketAddr, count: u32, net: [u8; 2]) -> Result<Sockets> {
        let share = (RECEIVE_BYTES / count.max(1) as usize).min(MAX_RECEIVE_BYTES);
        let mut source = (1, FIRST_PORT);
        let mut sockets = Vec::with_capacity(count as usize);
        for _ in 0..count {
            sockets.push(One::open(remote, net, &mut source, share)?);
        }
        let mut outbox = Queues::default();
        outbox.queues.resize_with(count as usize, Queue::default);
        Ok(Sockets { sockets, receive: vec![0; SLOT_BYTES * BATCH_SIZE], outbox })
    }

    /// Each with its number, to be registered.
    pub(crate) fn sources(&mut self) -> impl Iterator<Item = (u32, &mut UdpSocket)> {
        (0..).zip(self.sockets.iter_mut().map(|one| &mut one.socket))
    }

    /// Takes one batch of datagrams from a socket and calls `each` with them;
    /// whether there may be more.
    pub(crate) fn receive(
        &mut self,
        number: u32,
        mut each: impl FnMut(&RecvMeta, &[u8]),
    ) -> Result<bool> {
        let One { socket, state } = &self.sockets[number as usize];
        let mut metas = [RecvMeta::default(); BATCH_SIZE];
        let mut slots: Vec<IoSliceMut<'_>> =
            self.receive.chunks_exact_mut(SLOT_BYTES).map(IoSliceMut::new).collect();
        let count = match state.recv(socket.into(), &mut slots, &mut metas) {
            Ok(count) => count,
            Err(error) => return receive_error(&error),
        };
        for (meta, slot) in metas.iter().zip(&slots).take(count) {
            for datagram in slot[..meta.len].chunks(meta.stride.max(1)) {
                each(meta, datagram);
            }
        }
        Ok(true)
    }

    /// Where what is to be sent goes.
    pub(crate) fn outbox(&mut self) -> &mut Queues {
        &mut self.outbox
    }

    /// Sends what waits, if that is a batch.
    pub(crate) fn flush_batch(&mut self, traffic: &mut Traffic) -> Result<()> {
        if self.outbox.count >= SEND_BATCH { self.flush(traffic) } else { Ok(()) }
    }

    /// Sends what waits.
    pub(crate) fn flush(&mut self, traffic: &mut Traffic) -> Result<()> {
        let mut waiting = std::mem::take(&mut self.outbox.waiting);
        for number in waiting.drain(..) {
            let queue = &mut self.outbox.queues[number as usize];
            let outcome = send(&self.sockets[number as usize].socket, queue, traffic);
            queue.bytes.clear();
            queue.ends.clear();
            outcome?;
        }
        self.outbox.waiting = waiting;
        self.outbox.count = 0;
        Ok(())
    }
}

impl One {
    fn open(
        remote: SocketAddr,
        net: [u8; 2],
        source: &mut (u8, u16),
        receive_bytes: usize,
    ) -> Result<One> {
        let socket = Socket::new(Domain::for_address(remote), Type::DGRAM, Some(Protocol::UDP))
            .context("socket")?;
        bind(&socket, remote, net, source)?;
        // Beyond the system's limit only as root; what the kernel grants is enough
        // for fewer viewers, and what it drops is reported.
        if rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, receive_bytes).is_err()
        {
            socket.set_recv_buffer_size(receive_bytes).context("receive buffer")?;
        }
        if remote.is_ipv4() {
            socket.set_tos_v4(TOS_ECT0).context("ECN")?;
        }
        let state = UdpSocketState::new((&socket).into()).context("UDP socket")?;
        socket.connect(&remote.into()).context("connect")?;
        Ok(One { socket: UdpSocket::from_std(socket.into()), state })
    }
}

/// On loopback to an address and port of its own, else to whatever is free.
fn bind(socket: &Socket, remote: SocketAddr, net: [u8; 2], source: &mut (u8, u16)) -> Result<()> {
    if !remote.ip().is_loopback() || remote.is_ipv6() {
        return Ok(());
    }
    let (address, port) = source;
    loop {
        if u32::from(*port - FIRST_PORT) == PORTS_PER_ADDRESS {
            *port = FIRST_PORT;
            *address = address.checked_add(1).context("out of source addresses")?;
        }
        let ip = IpAddr::V4(Ipv4Addr::new(127, net[0], net[1], *address));
        let local = SocketAddr::new(ip, *port);
        *port += 1;
        match socket.bind(&local.into()) {
            Err(error) if error.kind() == ErrorKind::AddrInUse => {}
            other => return other.with_context(|| format!("bind {local}")),
        }
    }
}

/// An empty socket, or an answer such as "port unreachable", is no failure.
fn receive_error(error: &io::Error) -> Result<bool> {
    match error.kind() {
        ErrorKind::WouldBlock => Ok(false),
        ErrorKind::Interrupted | ErrorKind::ConnectionRefused => Ok(true),
        _ => Err(io::Error::from(error.kind())).with_context(|| format!("recvmmsg: {error}")),
    }
}

fn send(socket: &UdpSocket, queue: &Queue, traffic: &mut Traffic) -> Result<()> {
    let mut start = 0;
    let slices: Vec<[IoSlice<'_>; 1]> = queue
        .ends
        .iter()
        .map(|&end| [IoSlice::new(&queue.bytes[std::mem::replace(&mut start, end)..end])])
        .collect();
    let mut controls: Vec<SendAncillaryBuffer<'_, '_, '_>> =
        slices.iter().map(|_| SendAncillaryBuffer::default()).collect();
    let mut messages: Vec<MMsgHdr<'_>> = slices
        .iter()
        .zip(&mut controls)
        .map(|(slice, control)| MMsgHdr::new(slice, control))
        .collect();
    let mut rest = &mut messages[..];
    while !rest.is_empty() {
        traffic.sends += 1;
        match rustix::net::sendmmsg(socket, rest, SendFlags::DONTWAIT) {
            Ok(count) => {
                traffic.sent += count as u64;
                rest = &mut rest[count.max(1)..];
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::NOBUFS) => {
                traffic.refused += rest.len() as u64;
                break;
            }
            // Says something of the datagram before it.
            Err(rustix::io::Errno::CONNREFUSED) => {}
            Err(error) => return Err(error).context("sendmmsg"),
        }
    }
    Ok(())
}

impl Outbox for Queues {
    fn push(&mut self, socket: u32, datagram: &[u8]) {
        let queue = &mut self.queues[socket as usize];
        if queue.ends.is_empty() {
            self.waiting.push(socket);
        }
        queue.bytes.extend_from_slice(datagram);
        queue.ends.push(queue.bytes.len());
        self.count += 1;
    }
}
