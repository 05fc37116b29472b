//! The UDP socket of one shard: many datagrams in one call where the kernel has
//! it.
//!
//! Reading takes up to [`BATCH_SIZE`] buffers per call (`recvmmsg`), each of
//! which may hold several datagrams of one sender (GRO). Sending gathers the
//! datagrams of many viewers for one call (`sendmmsg`); a burst for one viewer is
//! a call of its own (GSO). What is sent carries no congestion mark (ECN): the
//! portable call for many datagrams sets none, and viewers whose packets come
//! unmarked are told so by their own counts (RFC 9000, section 13.4.2).

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::rc::Rc;

use quinn_proto::EcnCodepoint;
use quinn_udp::{BATCH_SIZE, RecvMeta, UdpSocketState};
use rustix::io::Errno;
use rustix::net::addr::SocketAddrArg as _;
use rustix::net::{MMsgHdr, SendAncillaryBuffer, SendFlags, SocketAddrAny, sendmmsg};
use smallvec::SmallVec;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Bytes that may wait in the kernel for the shard's turn to read: a thousand
/// viewers that answer at once. The kernel may grant less (`net.core.rmem_max`).
const RECEIVE_BYTES: usize = 8 * 1024 * 1024;
/// Bytes that may wait in the kernel to be sent.
const SEND_BYTES: usize = 4 * 1024 * 1024;
/// Largest datagram that can come, and so one buffer.
const BUFFER: usize = 64 * 1024;
/// Datagrams that one call sends.
const SENT_AT_ONCE: usize = 64;

/// A non-blocking UDP socket that others may share the port with.
///
/// # Errors
/// The kernel's.
pub fn bind(address: SocketAddr, shared: bool) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_reuse_port(shared)?;
    socket.set_nonblocking(true)?;
    // As much as the kernel grants.
    let _ = socket.set_recv_buffer_size(RECEIVE_BYTES);
    let _ = socket.set_send_buffer_size(SEND_BYTES);
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// See the module's documentation.
pub struct DatagramSocket {
    socket: Rc<AsyncFd<UdpSocket>>,
    state: UdpSocketState,
    /// The one address it is bound to needs not be told with every datagram.
    single_homed: bool,
    buffers: Vec<u8>,
    /// Datagrams to be sent, of which the first `gathered` are in use.
    outgoing: Vec<(SocketAddrAny, Vec<u8>)>,
    gathered: usize,
    /// A burst that the kernel did not take.
    burst: Option<(quinn_proto::Transmit, Vec<u8>)>,
}

/// What came with a datagram.
#[derive(Debug, Clone, Copy)]
pub struct Origin {
    /// From whom.
    pub remote: SocketAddr,
    /// To which of our addresses.
    pub local: Option<IpAddr>,
    /// Its congestion mark.
    pub ecn: Option<EcnCodepoint>,
}

impl DatagramSocket {
    /// Call within the shard's runtime.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(socket: UdpSocket) -> io::Result<Self> {
        let state = UdpSocketState::new((&socket).into())?;
        let single_homed = !socket.local_addr()?.ip().is_unspecified();
        let interest = Interest::READABLE | Interest::WRITABLE;
        // SAFETY: a `UdpSocket` is open and the same until it is dropped, and the
        // `AsyncFd` owns it; nothing takes it out again.
        let socket = unsafe { AsyncFd::register_with_interest(socket, interest) };
        Ok(Self {
            socket: Rc::new(socket.map_err(io::Error::from)?),
            state,
            single_homed,
            buffers: vec![0; BATCH_SIZE * BUFFER],
            outgoing: Vec::with_capacity(SENT_AT_ONCE),
            gathered: 0,
            burst: None,
        })
    }

    /// Reads one batch and hands every datagram on. Returns how many buffers came
    /// filled: less than a batch means that nothing more waits.
    ///
    /// # Errors
    /// The socket's; nothing to read is none.
    pub fn receive(&mut self, mut each: impl FnMut(Origin, &[u8])) -> io::Result<bool> {
        let mut metas = [RecvMeta::default(); BATCH_SIZE];
        let mut slices: [IoSliceMut<'_>; BATCH_SIZE] = {
            let mut buffers = self.buffers.chunks_exact_mut(BUFFER);
            std::array::from_fn(|_| IoSliceMut::new(buffers.next().unwrap_or_default()))
        };
        let read = self.state.recv(self.socket.get_ref().into(), &mut slices, &mut metas);
        let read = match read {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            // An ICMP error of some peer's: no matter of the others'.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return Ok(true),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(true),
            Err(error) => return Err(error),
        };
        for (meta, buffer) in metas.iter().zip(&slices).take(read) {
            let origin = Origin {
                remote: meta.addr,
                local: meta.dst_ip.filter(|_| !self.single_homed),
                ecn: meta.ecn.and_then(|ecn| EcnCodepoint::from_bits(ecn as u8)),
            };
            for datagram in buffer[..meta.len].chunks(meta.stride.max(1)) {
                each(origin, datagram);
            }
        }
        Ok(read == BATCH_SIZE)
    }

    /// Sends what the protocol made, or gathers it for the next
    /// [`flush`](Self::flush). `contents` is left with a buffer to use again.
    /// Returns false when the kernel takes no more at present: what was given is
    /// kept, and nothing more may be given until a flush says so.
    pub fn send(&mut self, transmit: quinn_proto::Transmit, contents: &mut Vec<u8>) -> bool {
        debug_assert!(!self.is_blocked());
        contents.truncate(transmit.size);
        if transmit.segment_size.is_some() || transmit.src_ip.is_some() {
            let sent = self.send_burst(&transmit, contents);
            if !sent {
                self.burst = Some((transmit, std::mem::take(contents)));
            }
            return sent;
        }
        let to = transmit.destination.as_any();
        match self.outgoing.get_mut(self.gathered) {
            Some((address, bytes)) => {
                *address = to;
                std::mem::swap(bytes, contents);
            }
            None => self.outgoing.push((to, std::mem::take(contents))),
        }
        self.gathered += 1;
        self.gathered < SENT_AT_ONCE || self.flush()
    }

    /// Sends what was gathered. Returns false when the kernel takes no more at
    /// present.
    pub fn flush(&mut self) -> bool {
        if let Some((transmit, contents)) = self.burst.take()
            && !self.send_burst(&transmit, &contents)
        {
            self.burst = Some((transmit, contents));
            return false;
        }
        let mut sent = 0;
        while sent < self.gathered {
            match self.send_gathered(sent) {
                Ok(taken) => sent += taken.max(1),
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                // Whatever else it is (no route, a firewall): the first of them is
                // as if the network had lost it.
                Err(_) => sent += 1,
            }
        }
        // What is left comes first; the buffers behind it are used again.
        self.outgoing[..self.gathered].rotate_left(sent);
        self.gathered -= sent;
        self.gathered == 0
    }

    fn send_gathered(&self, from: usize) -> rustix::io::Result<usize> {
        let gathered = &self.outgoing[from..self.gathered];
        let slices: SmallVec<[[IoSlice<'_>; 1]; SENT_AT_ONCE]> =
            gathered.iter().map(|(_, bytes)| [IoSlice::new(bytes)]).collect();
        let mut controls: SmallVec<[SendAncillaryBuffer<'_, '_, '_>; SENT_AT_ONCE]> =
            gathered.iter().map(|_| SendAncillaryBuffer::default()).collect();
        let mut messages: SmallVec<[MMsgHdr<'_>; SENT_AT_ONCE]> = gathered
            .iter()
            .zip(&slices)
            .zip(&mut controls)
            .map(|(((to, _), slice), control)| MMsgHdr::new_with_addr(to, slice, control))
            .collect();
        sendmmsg(self.socket.get_ref(), &mut messages, SendFlags::empty())
    }

    /// Whether the kernel took no more.
    #[must_use]
    pub fn is_blocked(&self) -> bool {
        self.burst.is_some() || self.gathered >= SENT_AT_ONCE
    }

    fn send_burst(&self, transmit: &quinn_proto::Transmit, contents: &[u8]) -> bool {
        let datagram = quinn_udp::Transmit {
            destination: transmit.destination,
            ecn: None,
            contents,
            segment_size: transmit.segment_size,
            src_ip: transmit.src_ip,
        };
        loop {
            return match self.state.try_send(self.socket.get_ref().into(), &datagram) {
                Ok(()) => true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => error.kind() != io::ErrorKind::WouldBlock,
            };
        }
    }

    /// Datagrams for one peer that one call may send.
    #[must_use]
    pub fn segments(&self) -> usize {
        self.state.max_gso_segments()
    }

    /// Waits for it.
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        Readiness(Rc::clone(&self.socket))
    }
}

/// Waits for a socket without holding what reads and writes it.
pub struct Readiness(Rc<AsyncFd<UdpSocket>>);

impl Readiness {
    /// Resolves when there may be something to read, or room to send if
    /// `blocked`.
    ///
    /// # Errors
    /// When the runtime is shutting down.
    pub async fn ready(&self, blocked: bool) -> io::Result<()> {
        let writable = async {
            match blocked {
                true => self.0.writable().await.map(|mut guard| guard.clear_ready()),
                false => std::future::pending().await,
            }
        };
        tokio::select! {
            readable = self.0.readable() => readable?.clear_ready(),
            writable = writable => writable?,
        }
        Ok(())
    }
}
